"""The α–β model: a message costs α seconds, and β seconds for each of its bytes; fitted to measurements.

Sources: R. W. Hockney, The communication challenge for MPP: Intel Paragon and Meiko CS-2, Parallel Computing
20(3), 1994: the two parameters, and the size that reaches half of the bandwidth. R. Thakur, R. Rabenseifner
and W. Gropp, Optimization of collective communication operations in MPICH, Int. J. High Perform. Comput.
Appl. 19(1), 2005: collectives in this model. P. Patarasuk and X. Yuan, J. Parallel Distrib. Comput. 69(2),
2009: the ring.
"""

import math
from dataclasses import dataclass

__all__ = ["ALGORITHMS", "AlphaBeta", "all_reduce_cost", "fit", "r_squared"]

ALGORITHMS = ("ring", "recursive doubling", "halving and doubling")


@dataclass(frozen=True)
class AlphaBeta:
    """What a message costs: `alpha` seconds whatever its size, and `beta` seconds a byte."""

    alpha: float
    beta: float

    @property
    def bandwidth(self):
        """Bytes per second of a message so long that α does not count: 1/β."""
        return 1 / self.beta if self.beta else math.inf

    @property
    def half_bytes(self):
        """The bytes of a message that reaches half of the bandwidth: α/β, Hockney's n½."""
        return self.alpha / self.beta if self.beta else math.inf

    def seconds(self, n_bytes, messages=1):
        """Return the seconds of `messages` one after the other, with `n_bytes` in all."""
        return self.alpha * messages + self.beta * n_bytes

    def all_reduce(self, n_ranks, n_bytes, algorithm="ring"):
        """Return the predicted seconds of an all_reduce of `n_bytes` on `n_ranks`."""
        messages, sent = all_reduce_cost(n_ranks, n_bytes, algorithm)
        return self.seconds(sent, messages)

    def __repr__(self):
        return f"α = {1e6 * self.alpha:.3g} µs a message · 1/β = {self.bandwidth / 1e9:.3g} GB/s"


def fit(n_bytes, seconds, messages=1, weights="1/t"):
    """Return the AlphaBeta that fits measurements best: t = messages · α + n_bytes · β, by least squares.

    `n_bytes`, `seconds`: equally long lists; `messages`: a list too, or one number for all. The squared
    errors are weighted by 1/t: unweighted (`weights=None`) only the longest messages would matter, and with
    the relative errors (1/t²) only the shortest. Neither α nor β is less than 0: where the best fit would be
    negative, it is 0 and the other is fitted alone. Raises ValueError with less than two sizes.
    """
    if weights not in ("1/t", None):
        raise ValueError(f"weights={weights!r}: it is '1/t' or None.")
    n, counts = len(n_bytes), messages if hasattr(messages, "__len__") else [messages] * len(n_bytes)
    if len(set(n_bytes)) < 2 or not n == len(seconds) == len(counts):
        raise ValueError("give as many seconds as n_bytes, of two sizes at least.")
    w = [1 / t if weights else 1.0 for t in seconds]
    # The normal equations of two unknowns: [mm mb; mb bb] [α β]ᵀ = [mt bt]ᵀ.
    mm, mb, bb = _dot(w, counts, counts), _dot(w, counts, n_bytes), _dot(w, n_bytes, n_bytes)
    mt, bt = _dot(w, counts, seconds), _dot(w, n_bytes, seconds)
    determinant = mm * bb - mb * mb
    if not determinant > 1e-12 * mm * bb:
        raise ValueError("messages and bytes grow together: α and β cannot be told apart.")
    alpha, beta = (mt * bb - bt * mb) / determinant, (bt * mm - mt * mb) / determinant
    if alpha < 0:
        alpha, beta = 0.0, bt / bb
    elif beta < 0:
        alpha, beta = mt / mm, 0.0
    return AlphaBeta(alpha, beta)


def r_squared(measured, predicted):
    """Return the share of the variance of `measured` that `predicted` explains: at most 1."""
    mean = math.fsum(measured) / len(measured)
    left = math.fsum((m - p) ** 2 for m, p in zip(measured, predicted, strict=True))
    return 1 - left / math.fsum((m - mean) ** 2 for m in measured)


def all_reduce_cost(n_ranks, n_bytes, algorithm="ring"):
    """Return what a rank sends in an all_reduce: (messages one after the other, bytes in all).

    With n ranks and S bytes: ring, 2(n−1) messages and 2(n−1)/n · S bytes; recursive doubling, log₂n and
    log₂n · S; halving and doubling, 2 log₂n and 2(n−1)/n · S. The last two take 2, 4, 8… ranks.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: it is one of {', '.join(ALGORITHMS)}.")
    least = 2 * (n_ranks - 1) * n_bytes / n_ranks
    if algorithm == "ring":
        return 2 * (n_ranks - 1), least
    rounds = n_ranks.bit_length() - 1
    if 2**rounds != n_ranks:
        raise ValueError(f"{algorithm} takes 2, 4, 8… ranks, not {n_ranks}.")
    return (rounds, rounds * n_bytes) if algorithm == "recursive doubling" else (2 * rounds, least)


def _dot(weights, a, b):
    return math.fsum(w * x * y for w, x, y in zip(weights, a, b, strict=True))
