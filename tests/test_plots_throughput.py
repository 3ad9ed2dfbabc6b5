"""Figures of speed: what is drawn is what was recorded, and nothing is cut off."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fidle_utils import plots
from fidle_utils.measure.throughput import Throughput


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def recorded(seconds_of_ranks, steps=100, samples=10, gap_s=0.0, flops=None):
    """Two loops a rank, `gap_s` apart; steps of equal length, two of them warm-up."""
    reports = []
    for rank, seconds in enumerate(seconds_of_ranks):
        for loop in (0, 1):
            start = 1.79e9 + loop * (steps * seconds + gap_s)
            rows = [[k, start + k * seconds, seconds, 0.0, samples, flops, k < 2, {}] for k in range(steps)]
            report = dict(number=loop, name="", unit="images", total=steps, rows=rows, done=True)
            reports.append((rank, report))
    return Throughput.of_reports(reports)


def curves(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in ax.lines}


def inside(ax):
    """Everything that is written is within the figure."""
    ax.figure.canvas.draw()
    frame = ax.figure.bbox.padded(2)
    legend = [ax.get_legend()] if ax.get_legend() else []
    for part in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *legend):
        box = part.get_window_extent()
        assert box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1, part


def test_each_rank_and_their_sum_are_constant_where_their_steps_are():
    ax = plots.plot_throughput(recorded([0.01, 0.01, 0.02]))
    drawn = curves(ax)
    while_all_run = slice(0, 20)
    assert drawn["rank 0"][while_all_run] == pytest.approx([1000] * 20, rel=0.01)
    assert drawn["rank 2"][while_all_run] == pytest.approx([500] * 20, rel=0.01)
    assert drawn["all 3 ranks"] == pytest.approx(sum(drawn[f"rank {r}"] for r in range(3)))
    assert drawn["while in a step: 2 500 images/s"][0] == pytest.approx(2500)
    inside(ax)


def test_a_gap_between_two_loops_shows_and_nothing_is_lost():
    ax = plots.plot_throughput(recorded([0.01], gap_s=1.0))
    (line,) = (line for line in ax.lines if line.get_label() == "rank 0")
    seconds, rate = line.get_xdata(), line.get_ydata()
    assert rate.min() == pytest.approx(0, abs=1e-6)
    area = np.trapezoid(rate, seconds) + rate[0] * seconds[0]  # the first window lies before the first point
    assert area == pytest.approx(10 * (200 - 2), rel=0.05)


def test_mfu_is_on_a_second_axis():
    ax = plots.plot_throughput(recorded([0.01], flops=5e7), peak_flops_per_second=1e10)
    ax.figure.canvas.draw()
    (side,) = ax.child_axes
    low, high = ax.get_ylim()
    # 1000 images a second in steps of 10 images and 5e7 FLOPs: 5e9 FLOP/s, half of the peak
    assert side.get_ylim()[1] / high == pytest.approx(50 / 1000)
    assert side.get_ylabel() == "MFU (%)"
    inside(ax)


def test_mfu_is_of_one_rank_s_device_and_asks_for_flops():
    one, two = (plots.plot_throughput(recorded([0.01] * n, flops=5e7), 1e10) for n in (1, 2))
    for ax, n in ((one, 1), (two, 2)):
        ax.figure.canvas.draw()
        assert ax.child_axes[0].get_ylim()[1] / ax.get_ylim()[1] == pytest.approx(50 / (1000 * n))
    with pytest.raises(ValueError, match="flops=True"):
        plots.plot_throughput(recorded([0.01]), peak_flops_per_second=1e10)


def test_many_ranks_are_drawn_without_a_legend_of_each():
    ax = plots.plot_throughput(recorded([0.01] * 12))
    assert len(ax.get_legend().get_texts()) == 2 and len(ax.lines) == 14


def test_scaling_shows_median_spread_ideal_and_efficiency():
    left, right = plots.plot_scaling({1: [10, 11, 12], 4: [20, 25, 40]}, [33, 35], unit="images")
    drawn = curves(left)
    assert list(drawn["ideal"]) == [11, 44] and list(drawn["one process, all threads"]) == [34, 34]
    assert list(left.containers[0].lines[0].get_ydata()) == [11, 25]
    ends = [list(segment[:, 1]) for segment in left.containers[0].lines[2][0].get_segments()]
    assert ends == [pytest.approx(np.percentile(values, [10, 90])) for values in ([10, 11, 12], [20, 25, 40])]
    assert list(right.containers[0].lines[0].get_ydata()) == pytest.approx([100, 100 * 25 / 44])
    assert right.lines[0].get_ydata()[0] == 100, "the ideal line"
    for ax in (left, right):
        inside(ax)
        assert "ranks" in ax.get_xlabel() and ax.get_ylim()[0] == 0
    assert left.get_ylabel() == "images per second"


def test_scaling_takes_what_track_recorded():
    one, two = recorded([0.01]), recorded([0.01, 0.02])
    left, right = plots.plot_scaling({1: one, 2: two})
    assert list(left.containers[0].lines[0].get_ydata()) == pytest.approx([1000, 2 * 10 / 0.02])
    assert right.containers[0].lines[0].get_ydata()[1] == pytest.approx(50)
