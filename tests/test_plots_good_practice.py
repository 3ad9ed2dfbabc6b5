"""The figures of lesson 10 say what their data say."""

import math

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_helpers import whole

from fidle_utils import plots
from fidle_utils.plots.style import rank_color
from fidle_utils.reference import table


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines_of(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_batch_sizes_draw_means_and_the_published_table_beside_them():
    measured = {"linear, warm-up": {16: [3, 5], 256: [4, 6]}, "unscaled": {16: [3, 5], 256: [30, 40]}}
    here, published = plots.plot_batch_sizes(measured, table("goyal_minibatch"))
    bars = {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in here.containers}
    assert bars == {"linear, warm-up": [[16, 4], [256, 5]], "unscaled": [[16, 4], [256, 35]]}
    points = [bar.lines[0].get_xydata().tolist() for bar in published.containers]
    assert [8192, 23.74] in points[0] and [65536, 33.96] in points[0] and len(points[0]) == 9
    assert points[1:] == [[[8192, 24.84]], [[8192, 26.22]], [[8192, 41.67]]]
    assert here.containers[1].lines[0].get_color() == published.containers[3].lines[0].get_color()
    text = whole(here.figure)
    assert (
        "published · Goyal arXiv:1706.02677" in text and "measured here · 2 seeds" in text and "64k" in text
    )


def rows(losses, weights, waited=1.0):
    return [
        dict(step=i, loss=loss, waited_ms=waited, weights=w, error="")
        for i, (loss, w) in enumerate(zip(losses, weights, strict=True))
    ]


def test_vital_signs_cross_a_nan_and_colour_other_weights():
    well, other = rows([2, 1.5, 1], [7, 8, 9]), rows([2, 1.5, 1], [7, 8, 5])
    bad = rows([2, math.nan, math.nan], [7, 8, 9], waited=60.0)
    axes = plots.plot_vital_signs({"C": [well, well, other], "D": [well, bad, well]})
    assert axes.shape == (3, 2)
    squares = axes[2, 0].images[0].get_array()
    assert squares.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert axes[2, 1].images[0].get_array().sum() == 0
    crosses = [line for line in axes[0, 1].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in crosses] == [[1, 2]]
    assert crosses[0].get_color() == rank_color(1)
    assert axes[1, 1].lines[1].get_ydata().tolist() == [60, 60, 60]
    assert "other weights" in whole(axes[0, 0].figure)


def test_vital_signs_leave_out_steps_that_did_not_end():
    short, long = rows([2, 1], [7, 8]), rows([2, 1, 1], [7, 8, None])
    squares = plots.plot_vital_signs({"B": [long, short]})[2, 0].images[0].get_array()
    assert np.ma.getmaskarray(np.ma.masked_invalid(squares)).tolist() == [[False, False, True]] * 2


def test_attempts_mark_the_death_and_what_was_done_twice():
    ax = plots.plot_attempts(
        [[(0, 2.0), (1, 1.9), (2, 1.8)], [(1, 1.9), (2, 1.8), (3, 1.7)]], [(0, 2.0), (3, 1.7)], [1]
    )
    text = whole(ax.figure)
    assert "attempt 0: steps 0–2" in text and "attempt 1: steps 1–3" in text and "done twice: 2 steps" in text
    (death,) = [line for line in ax.lines if line.get_marker() == "X"]
    assert death.get_xydata().tolist() == [[2, 1.8]]


def test_the_checkpoint_curve_is_least_at_youngs_interval():
    ax = plots.plot_checkpoint_interval(40, 7 * 86400, marks={"Young": math.sqrt(2 * 40 * 7 * 86400)})
    hours, lost = lines_of(ax)["total"].T
    assert hours[lost.argmin()] == pytest.approx(math.sqrt(2 * 40 * 7 * 86400) / 3600, rel=0.02)
    assert lost.min() == pytest.approx(100 * math.sqrt(2 * 40 / (7 * 86400)), rel=1e-3)
    assert "simulated" not in whole(ax.figure)
    assert "points simulated" in whole(plots.plot_checkpoint_interval(40, 6e5, {7e3: 0.012}).figure)


def test_files_say_how_many_and_how_fast():
    text = whole(plots.plot_files({"one file, mapped": (1, 5e5), "shards": (1200, 1.5e6)}).figure)
    assert (
        "one file, mapped\n1 file\n" in text + "\n" and "1\u202f200 files" in text and "500\u202f000" in text
    )
