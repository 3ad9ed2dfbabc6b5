import pydoc_data.topics

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fidle_utils import data


def test_digits_are_those_of_scikit_learn():
    x_train, y_train, x_test, y_test = data.digits()
    assert x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    assert x_train.shape[1:] == (1, 8, 8) and x_train.min() == 0 and x_train.max() == 1
    assert len(x_test) == len(y_test) == round(0.2 * 1797)
    ours = torch.cat([torch.cat([x_train, x_test]).flatten(1) * 16, torch.cat([y_train, y_test])[:, None]], 1)
    theirs = torch.cat([torch.tensor(load_digits().data), torch.tensor(load_digits().target)[:, None]], 1)
    assert sorted(ours.long().tolist()) == sorted(theirs.long().tolist())


def test_digits_without_the_data_file_come_from_load_digits(monkeypatch):
    expected = data.digits()
    data._digits_table.cache_clear()
    monkeypatch.setattr(data.Path, "exists", lambda path: False)
    assert all(torch.equal(a, b) for a, b in zip(data.digits(), expected, strict=True))
    data._digits_table.cache_clear()


def test_digits_depend_on_the_seed_only():
    torch.manual_seed(1)
    first = data.digits()
    first.x_train.zero_()  # a learner who overwrites the tensors does not spoil the next call
    torch.manual_seed(2)
    again, other = data.digits(), data.digits(seed=1)
    assert again.x_train.sum() > 0
    assert torch.equal(again.y_train, data.digits().y_train)
    assert not torch.equal(again.y_train, other.y_train)


def test_topics_are_cpythons_and_decode_to_themselves():
    topics = data.topics(block_size=32)
    text = topics.decode(topics.ids)
    assert all(section in text for section in pydoc_data.topics.topics.values())
    assert topics.ids.dtype == torch.int64 and len(topics.vocab) == topics.ids.max() + 1
    assert topics.decode(topics.encode("while True:")) == "while True:"


def test_topics_windows_follow_each_other():
    topics = data.topics(block_size=32)
    x, y = topics[3]
    assert x.shape == y.shape == (32,)
    assert torch.equal(x, topics.ids[96:128]) and torch.equal(y, topics.ids[97:129])
    assert len(list(topics)) == len(topics) and topics[len(topics) - 1][1].shape == (32,)
    with pytest.raises(ValueError, match="block_size=0"):
        data.topics(block_size=0)


def test_batches_are_seeded_and_leave_the_global_random_state_alone():
    x, y = torch.arange(10), torch.arange(10) * 2
    state = torch.get_rng_state()
    first = list(data.batches((x, y), 4, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    again = list(data.batches(TensorDataset(x, y), 4, seed=1))
    assert [b[0].tolist() for b in first] == [b[0].tolist() for b in again]
    assert [b[0].tolist() for b in first] != [b[0].tolist() for b in data.batches((x, y), 4, seed=2)]
    assert len(first) == 2 and all(torch.equal(2 * bx, by) for bx, by in first)
    with pytest.raises(ValueError, match="batch_size=11"):
        data.batches((x, y), 11)


def test_topics_serve_a_distributed_sampler():
    topics = data.topics(block_size=64)
    sampler = DistributedSampler(topics, num_replicas=4, rank=3, shuffle=False)
    x, _ = next(iter(DataLoader(topics, batch_size=2, sampler=sampler)))
    assert torch.equal(x, torch.stack([topics[3][0], topics[7][0]]))
