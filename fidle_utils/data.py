"""Small, seeded, offline data sets: handwritten digits and CPython's reference topics."""

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

__all__ = ["Digits", "Topics", "batches", "digits", "topics"]


class Digits(NamedTuple):
    """The digits in two parts; unpacks as `x_train, y_train, x_test, y_test`."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def digits(test_fraction=0.2, seed=0):
    """Return scikit-learn's 1797 handwritten digits, shuffled by `seed` and split in train and test.

    Images are float32 in [0, 1], shape (n, 1, 8, 8); labels are int64 in 0..9, shape (n,).
    Same arguments, same tensors: on every rank and on every machine.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """
    table = torch.from_numpy(_digits_table())
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    table = table[order]
    x, y = table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()
    n_train = len(table) - round(test_fraction * len(table))
    return Digits(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


@lru_cache(maxsize=1)
def _digits_table():
    # Importing sklearn.datasets costs each rank seconds and 100 MB; its data file costs 20 ms.
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise ModuleNotFoundError("digits() reads a file of scikit-learn: `pip install scikit-learn`.")
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.exists():
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.float32)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.float32)


class Topics(Dataset):
    """A text as characters, cut in windows: item i is `(x, y)`, two int64 tensors of shape (block_size,).

    `y` is `x` one character later, which is what a language model learns to predict.
    `ids` is the whole text, int64, shape (n,); `vocab` is its characters, sorted, as one string.
    """

    def __init__(self, text, block_size):
        if not 0 < block_size < len(text):
            raise ValueError(f"block_size={block_size}: choose between 1 and {len(text) - 1}.")
        self.vocab, self.block_size = "".join(sorted(set(text))), block_size
        self._id_of = {character: i for i, character in enumerate(self.vocab)}
        self.ids = self.encode(text)

    def __len__(self):
        return (len(self.ids) - 1) // self.block_size

    def __getitem__(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        start = i % len(self) * self.block_size
        window = self.ids[start : start + self.block_size + 1]
        return window[:-1], window[1:]

    def encode(self, text):
        """Return the ids of `text`, int64, shape (len(text),); KeyError for a character not in `vocab`."""
        return torch.tensor([self._id_of[character] for character in text], dtype=torch.int64)

    def decode(self, ids):
        """Return the text of a tensor or list of ids."""
        return "".join(self.vocab[int(i)] for i in ids)


def topics(block_size=64):
    """Return CPython's own reference manual, the text behind `help("for")`, as character tokens.

    The text is `pydoc_data.topics`, which every CPython carries: nothing is downloaded. It differs from one
    Python version to the next, so its length and vocabulary do too: read them from the result.
    """
    return Topics(_topics_text(), block_size)


@lru_cache(maxsize=1)
def _topics_text():
    try:
        from pydoc_data.topics import topics as sections
    except ImportError as error:
        message = "This Python was installed without `pydoc_data`: install CPython's full standard library."
        raise ModuleNotFoundError(message) from error
    return "\n\n".join(sections[name] for name in sorted(sections))


def batches(data, batch_size, seed=0):
    """Return a DataLoader of one seeded epoch over a Dataset, or over a tuple of tensors of equal length.

    Every batch has `batch_size` samples: a last, smaller one is dropped. The order depends on `seed` only
    and the global random state is left alone, so every rank that asks sees the same batches:
    `x.chunk(world_size)[rank]` is this rank's share of one.
    """
    dataset = data if isinstance(data, Dataset) else TensorDataset(*data)
    if not 0 < batch_size <= len(dataset):
        raise ValueError(f"batch_size={batch_size}: choose between 1 and {len(dataset)}, all the samples.")
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=generator)
