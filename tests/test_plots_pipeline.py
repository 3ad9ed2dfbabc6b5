"""The figures of pipelines say what the simulation says: boxes, numbers, curves."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_helpers import whole
from matplotlib.colors import to_hex

from fidle_utils import plots
from fidle_utils.plots.pipeline import COLORS, box_color, ink_on
from fidle_utils.reference import table
from fidle_utils.schedules import SCHEDULES, gpipe, interleaved, one_f_one_b, zb_h1, zb_v


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def boxes(ax):
    """(row, start, length, colour) of every box."""
    found = []
    for bars in ax.collections:
        for path in bars.get_paths():
            (left, low), (right, _) = path.vertices[0], path.vertices[2]
            found.append((round(low + 0.42), left, right - left, to_hex(bars.get_facecolor()[0])))
    return sorted(found)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_operation_is_a_box_where_the_clock_put_it(name, large):
    done = SCHEDULES[name](4, 8).simulate(1.3, 1.7, 0.6, communication=0.2)
    with plots.presentation(large):
        ax = plots.plot_schedule(done)
    said = whole(ax.figure)
    assert name in said and "simulated" in said and "rank 3" in said
    held = {rank: [s for s, r in enumerate(done.schedule.rank_of_stage) if r == rank] for rank in range(4)}
    expected = sorted(
        (rank, start, end - start, to_hex(box_color(kind, held[rank].index(stage))))
        for rank, kind, _, stage, start, end in done.events
    )
    for box, event in zip(boxes(ax), expected, strict=True):
        assert box[0] == event[0] and box[3] == event[3]
        assert box[1:3] == pytest.approx(event[1:3])


def test_numbers_are_the_micro_batches_and_go_where_there_is_no_room():
    ax = plots.plot_schedule(gpipe(2, 3).simulate())
    numbers = sorted((t.get_position(), t.get_text()) for t in ax.texts if t.get_text().isdigit())
    assert numbers[:3] == [((0.5, 0), "0"), ((1.5, 0), "1"), ((1.5, 1), "0")] and len(numbers) == 2 * 2 * 3
    crowded = plots.plot_schedule(interleaved(8, 32).simulate())
    assert not [t for t in crowded.texts if t.get_text().isdigit()]
    assert "1 micro-batch:" in plots.plot_schedule(gpipe(2, 1).simulate()).get_title("left")


def test_kinds_and_later_stages_are_in_the_legend_and_told_apart():
    figure = plots.plot_schedule(zb_v(4, 8).simulate()).figure
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 4 and "paler" in names[-1] and not any("whole" in name for name in names)
    classic = plots.plot_schedule(one_f_one_b(4, 8).simulate()).figure.legends[0].get_texts()
    assert [text.get_text()[:2] for text in classic] == ["F:", "BW"]
    for kind in COLORS:
        assert len({to_hex(box_color(kind, place)) for place in range(3)}) == 3
        assert ink_on(box_color(kind, 2)) != "white"


@pytest.mark.parametrize("large", [False, True])
def test_the_longest_legend_is_not_cut_off(large):
    with plots.presentation(large):
        axes = plots.plot_schedules([one_f_one_b(4, 8).simulate(), zb_v(4, 8).simulate()])
    figure = axes[0].figure
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_schedules_share_the_axis_of_the_slowest():
    simulated = [gpipe(4, 8).simulate(), zb_v(4, 8).simulate()]
    axes = plots.plot_schedules(simulated)
    assert [ax.get_xlim() for ax in axes] == [(0, 33)] * 2
    assert "27% of it" in axes[0].get_title("left") and "6% of it" in axes[1].get_title("left")
    named = plots.plot_schedules({"mine": simulated[0]})
    assert named[0].get_title("left") == "mine"


def test_measured_stands_above_simulated_and_is_called_emulated():
    slow, ideal = zb_h1(4, 8).simulate(communication=0.3), zb_h1(4, 8).simulate()
    axes = plots.plot_measured_schedule(slow, ideal)
    said = whole(axes[0].figure)
    assert "emulated" in said and "measured, stages sleep" in axes[0].get_title("left")
    assert len(boxes(axes[0])) == len(boxes(axes[1])) == 4 * 8 * 3
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_xlim()[1] > slow.total


def curve(ax, label):
    return next(line for line in ax.lines if str(line.get_label()).startswith(label)).get_data()


def test_the_bubble_curves_are_the_formulas_and_the_dots_the_simulation():
    ax = plots.plot_bubble(4, {8: (3 / 8, 3 / 11)}, m_max=16)
    m, ideal = curve(ax, "of the ideal")
    assert np.allclose(ideal, [300 / k for k in m])
    assert np.allclose(curve(ax, "of the total")[1], [300 / (k + 3) for k in m])
    dots = [line.get_data() for line in ax.lines if line.get_linestyle() == "None"]
    assert [(x[0], y[0]) for x, y in dots] == [(8, 37.5), (8, pytest.approx(300 / 11))]
    assert "simulated" in whole(ax.figure)
    assert "computed" in whole(plots.plot_bubble(4).figure)


def test_peaks_costs_and_targets_are_drawn_as_given():
    ax = plots.plot_peak_activations({"1F1B": [4, 3, 2, 1]}, limit=5)
    assert list(curve(ax, "1F1B")[1]) == [4, 3, 2, 1] and list(curve(ax, "what fits")[1]) == [5, 5]
    ax = plots.plot_time_and_memory({"a": (33, 4), "b": (24, 7)}, targets=(28, 5))
    assert [value[0] for value in curve(ax, "b")] == [24, 7]
    (field,) = ax.patches
    assert field.get_x() + field.get_width() == pytest.approx(28) and field.get_height() == 5
    axes = plots.plot_message_cost({"one": {"a": [(0, 1), (1, 2)]}, "two": {"a": [(0, 1), (1, 3)]}})
    assert list(curve(axes[1], "a")[1]) == [1, 3]


def test_stale_losses_are_running_means():
    axes = plots.plot_staleness({"lr": {"fresh": [4, 2, 0, 2]}}, window=2)
    assert list(curve(axes[0], "fresh")[1]) == [4, 3, 1, 1]


def test_published_curves_go_through_the_published_points():
    rows = table("zero_bubble", parameters_billion=6.2)
    ax = plots.plot_published_bubbles(rows)
    shares, line = curve(ax, "if only the bubble")
    at = np.interp(23.47, shares, line)
    assert at == pytest.approx(3.5)  # 1F1B with 24 micro-batches
    points = {tuple(map(float, (x[0], y[0]))) for x, y in (dot.get_data() for dot in ax.lines) if len(x) == 1}
    assert (23.47, 3.5) in {(round(x, 2), y) for x, y in points} and len(points) == 12
    ax = plots.plot_published_gpipe(table("gpipe_throughput", model="Transformer-48 TPUv3"))
    assert list(curve(ax, "8 stages, published")[1]) == [1.3, 4.8, 6.3]
    m, speed = curve(ax, "8 stages, formula")
    assert speed[-1] == pytest.approx(8 * 32 / 39) and m[-1] == 32
    ramp = [row for row in table("jeanzay_bigscience_a100") if "Batchsize Warmup" in row["source"]]
    ax = plots.plot_batch_ramp(ramp)
    m, tflops = curve(ax, "published")
    assert list(m) == [32, 64, 96, 128] and tflops[-1] == 151.64
    assert curve(ax, "without a bubble")[1][0] == pytest.approx(151.64 * 139 / 128)
