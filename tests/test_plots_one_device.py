"""The figures of lesson 02: whole, labelled by where their numbers come from, and right when read back."""

import math

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from figure_helpers import whole
from matplotlib.colors import to_rgba

from fidle_utils import plots
from fidle_utils.measure.timeline import Timeline
from fidle_utils.plots.one_device import wave_efficiency

LADDER = [("your memory", 50e9, "measured here"), ("H100: its memory", 3350e9, "published")]
LANES = ([(0, 1), (1, 2)], [(1, 3), (3, 5)])
FORMATS = {"fp32": torch.finfo(torch.float32), "fp16": torch.finfo(torch.float16)}
SCALING = ([1.0, 16.0], [0.9, 0.0], [0.0, 0.5], {"fp32": [2, 1], "fp16": [2, 9], "scaled": [2, 1]})
ACCUMULATION = {1: {"activations": 8e6, "gradients": 1e6}, 2: {"activations": 4e6, "gradients": 1e6}}


def timeline():
    columns = ["rank", "kind", "what", "name", "lane", "group", "start_ms", "end_ms", "waiting_ms"]
    rows = [(0, "data loading", "", "", "", None, 0, 30, 0), (0, "forward", "", "", "", None, 30, 40, 0)]
    return Timeline(pd.DataFrame(rows, columns=columns))


FIGURES = {
    "ladder": (lambda: plots.plot_memory_ladder(LADDER, "a data sheet"), "published · a data sheet"),
    "orders": (lambda: plots.plot_orders({"once": LANES, "each": LANES}, "emulated"), "emulated"),
    "orders of a GPU": (lambda: plots.plot_orders({"once": LANES}, "measured here"), "measured here"),
    "formats": (lambda: plots.plot_number_formats(FORMATS, torch.logspace(-9, -1, 99)), "computed"),
    "formats alone": (lambda: plots.plot_number_formats(FORMATS), "1 + 0.00098"),
    "scaling": (lambda: plots.plot_loss_scaling(*SCALING), "emulated · fp16 by casts"),
    "workers": (lambda: plots.plot_workers({0: 0.8, 4: 0.1}), "80%"),
    "waves": (lambda: plots.plot_waves({"A100": 108}), "computed"),
    "accumulation": (lambda: plots.plot_accumulation(ACCUMULATION), "measured here"),
    "timelines": (lambda: plots.plot_timelines({"A": timeline(), "B": timeline()}), "measured here"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_where_its_numbers_come_from(name):
    draw, expected = FIGURES[name]
    before = dict(plt.rcParams)
    figure = np.ravel(draw())[0].figure
    assert dict(plt.rcParams) == before
    assert expected in whole(figure)


def bars(ax):
    return [(bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()) for bar in ax.patches]


def test_the_ladder_tells_measured_from_published():
    ax = plots.plot_memory_ladder(LADDER, "a data sheet")
    assert [width for _, _, width, _ in bars(ax)] == [50, 3350]
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] != colors[1] == to_rgba("#bbbbbb")


def test_orders_stand_where_they_began_and_ended():
    ax = plots.plot_orders({"once": LANES}, "emulated")[0]
    assert [(x, x + width) for x, _, width, _ in bars(ax)] == [*LANES[0], *LANES[1]]
    assert [line.get_xdata()[0] for line in ax.lines] == [2, 5]


def test_formats_reach_from_their_smallest_to_their_largest_number():
    fp16 = bars(plots.plot_number_formats(FORMATS))[2:]
    assert math.isclose(fp16[0][0] + fp16[0][2], math.log10(65504))
    assert math.isclose(fp16[1][0], math.log10(2**-24), rel_tol=1e-6)


@pytest.mark.parametrize(
    "n, multiprocessors, expected",
    [
        (256, 108, 2 / 108),  # two tiles, 106 idle
        (1536, 72, 1.0),  # 12 × 6 tiles: one full wave
        (1536, 71, 72 / 142),  # the 72nd tile needs a wave of its own
        (128, 1, 0.5),  # half of the one tile hangs over the edge
    ],
)
def test_waves_against_a_count_by_hand(n, multiprocessors, expected):
    assert math.isclose(wave_efficiency(n, multiprocessors), expected)


def test_workers_and_accumulation_read_back():
    assert [height for *_, height in bars(plots.plot_workers({0: 0.8, 4: 0.1}))] == [80, 10]
    assert [height for *_, height in bars(plots.plot_accumulation(ACCUMULATION))] == [8, 4, 1, 1]


def test_timelines_are_cut_where_asked():
    axes = plots.plot_timelines({"A": timeline(), "B": timeline()}, span_ms=20)
    assert [ax.get_xlim() for ax in axes] == [(0, 20)] * 2
