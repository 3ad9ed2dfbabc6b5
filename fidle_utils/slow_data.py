"""A data set that takes its time: loading workers must import it, so it cannot live in a notebook."""

import time

from torch.utils.data import Dataset

from fidle_utils.data import digits

__all__ = ["SlowDigits"]


class SlowDigits(Dataset):
    """The training digits; reading one takes `milliseconds` more, emulated by a sleep.

    A sleep takes no core from anyone: it stands for a disc or a network, not for decoding.
    """

    def __init__(self, milliseconds=0.5):
        self.x, self.y, *_ = digits()
        self.seconds = milliseconds / 1e3

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        time.sleep(self.seconds)
        return self.x[i], self.y[i]
