"""The figures of lesson 04: each says where its numbers come from, and nothing in it warns or is cut off."""

import math

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figure_helpers import whole

from fidle_utils import plots

EVENTS = [[("backward", 1, 0.0, 0.1), ("backward", 0, 0.1, 0.2), ("communication", 1, 0.1, 0.3)]] * 2
FIGURES = {
    "split": (lambda: plots.plot_batch_split(torch.rand(8, 1, 8, 8), n_ranks=4), "rank 3"),
    "ring": (lambda: plots.plot_ring_bytes({2: 1.0, 4: 1.5}), "measured here"),
    "ring, nothing measured": (lambda: plots.plot_ring_bytes({}), "computed"),
    "drift": (lambda: plots.plot_drift({"A": [[0, 0], [1, 2]], "B": [[0, 0], [0, 0]]}), "measured here"),
    "losses": (lambda: plots.plot_equal_losses([3, 2, 1], [3, 2, 1 + 1e-6], 1e-3), "tolerance 0.001"),
    "equal losses": (lambda: plots.plot_equal_losses([3, 2], [3, 2], 1e-3), "measured here"),
    "buckets": (lambda: plots.plot_buckets([(42, 200.0), (1, 8.0)]), "8.0 ms"),
    "overlap": (lambda: plots.plot_overlap(EVENTS, EVENTS), "emulated"),
    "means": (lambda: plots.plot_batch_means([torch.zeros(3), torch.ones(3)], torch.zeros(3)), "rank 1"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name):
    draw, expected = FIGURES[name]
    before = dict(plt.rcParams)
    ax = np.ravel(draw())[0]
    assert dict(plt.rcParams) == before
    assert expected in whole(ax.figure)


def test_the_ring_curve_is_the_formula():
    curve = next(line for line in plots.plot_ring_bytes({}).lines if line.get_label().startswith("ring"))
    assert all(math.isclose(y, 2 * (n - 1) / n) for n, y in zip(*curve.get_data(), strict=True))


def test_a_first_figure_leaves_the_notebook_showing_the_next_ones():
    """A notebook's backend turns interactive drawing on while the first figure is made: that must last."""

    @plots.style.course_style()
    def first_figure():
        plt.ion()

    try:
        first_figure()
        assert plt.isinteractive()
    finally:
        plt.ioff()
