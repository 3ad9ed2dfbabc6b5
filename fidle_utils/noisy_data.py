"""A data set with chance in it: loading workers must import it, so it cannot live in a notebook."""

import random

import numpy
import torch
from torch.utils.data import Dataset

__all__ = ["Draws"]


class Draws(Dataset):
    """Item i is three numbers below a million, drawn by the worker that loads it: torch, numpy, random."""

    def __init__(self, n=4):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        draws = int(torch.randint(10**6, ())), int(numpy.random.randint(10**6)), random.randrange(10**6)
        return torch.tensor(draws)
