"""The figures of lesson 07, read back: groups, nodes that they leave, bytes, seconds, experts."""

import math
from fractions import Fraction

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from figure_helpers import said_by
from matplotlib.colors import to_hex

from fidle_utils import plots
from fidle_utils.measure.collectives import Message
from fidle_utils.measure.communication import Communication
from fidle_utils.plots.mesh import dimension_color

GRID = {"pp": [[0, 2], [1, 3]], "dp": [[0, 1], [2, 3]]}
CUBE = {
    "tp": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "dp": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "pp": [[0, 4], [1, 5], [2, 6], [3, 7]],
}
BLOOM = {"pp": 12, "dp": 8, "tp": 4}
SECONDS = {"NVLink": {"tp": 2.7, "pp": 0.1}, "network": {"tp": 130, "pp": 4.8}}
ROWS = [{"tp": t, "pp": 12, "dp": 8, "seconds_per_iteration": s} for t, s in ((4, 110.0), (8, 129.0))]
PAIRS = {"OPA": [("14B", (45.0, False), (17.0, False))], "IB": [("14B", (2.2, False), (4.6, True))]}


def counted():
    messages = [("all_reduce", "tp", 400, 400), ("send", "pp", 100, 100), ("all_reduce", "dp", 50, 50)]
    return Communication([Message(*message[:3], Fraction(message[3])) for message in messages])


def topologies():
    return plots.plot_topologies(ROWS, [{"tensor": 4, "bubble": 9, "data": 3}] * 2, "somebody")


FIGURES = {
    "grid": (lambda: plots.plot_grid(GRID), "stage 1"),
    "mesh": (lambda: plots.plot_mesh({"one": CUBE, "two": CUBE}, node=4), "4 of 4 cross"),
    "cluster": (lambda: plots.plot_cluster(BLOOM, node=8, mark=96), "384 GPUs: pipeline 12"),
    "bytes": (lambda: plots.plot_group_bytes([counted()] * 8), "tensor"),
    "bytes and formula": (lambda: plots.plot_group_bytes([counted()], [{"tp": 400}]), "formula"),
    "crossing": (lambda: plots.plot_crossing(SECONDS, 105, "a step", "nominal"), "130 s"),
    "crossing, no step": (lambda: plots.plot_crossing(SECONDS), "2.7 s"),
    "topologies": (topologies, "published · somebody"),
    "two networks": (lambda: plots.plot_two_networks(PAIRS, "IDRIS"), "14B\n2.6× faster"),
    "experts": (lambda: plots.plot_expert_load([[3, 1], [2, 2]]), "fair share"),
    "experts, capacity": (lambda: plots.plot_expert_load([[3, 1], [2, 2]], capacity=5), "capacity 5"),
    "drops": (lambda: plots.plot_drops([1, 2], {"a": [0.2, 0], "b": [0, 0]}), "measured here"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name, large):
    draw, expected = FIGURES[name]
    assert expected in said_by(draw, large)


def test_the_grid_puts_pipelines_in_columns_and_stages_in_rows():
    ax = plots.plot_grid(GRID)
    places = {text.get_text(): text.get_position() for text in ax.texts if text.get_text().isdigit()}
    assert places == {"0": (0, 0), "1": (1, 0), "2": (0, 1), "3": (1, 1)}


def test_a_panel_joins_the_members_of_a_group_in_one_colour_and_dots_what_leaves_the_node():
    tensor, data, pipeline = plots.plot_mesh({"": CUBE}, node=4)[0]
    said = [ax.get_title(loc="left").split(": ")[1] for ax in (tensor, data, pipeline)]
    assert said == ["0 of 4 cross", "0 of 4 cross", "4 of 4 cross"]
    lines = {ax: [p for p in ax.patches if hasattr(p, "get_arrowstyle")] for ax in (tensor, pipeline)}
    assert [line.get_linestyle() for line in lines[tensor]] == ["-"] * 4
    assert [line.get_linestyle() for line in lines[pipeline]] == [":"] * 4
    assert len({to_hex(line.get_edgecolor()) for line in lines[tensor]}) == 4
    squares = [to_hex(collection.get_facecolor()[0]) for collection in tensor.collections]
    assert squares[0] == squares[1] != squares[2] == squares[3]


def test_the_cluster_marks_the_groups_of_a_rank_and_frames_every_tensor_group():
    ax = plots.plot_cluster(BLOOM, node=8, mark=96)
    lines = {line.get_label(): line for line in ax.lines}
    pipeline = [8 * x + y for x, y in zip(*lines["pipeline group of rank 96"].get_data(), strict=True)]
    data = [8 * x + y for x, y in zip(*lines["its data group"].get_data(), strict=True)]
    assert pipeline == [32 * stage for stage in range(12)]
    assert data == [96 + 4 * i for i in range(8)]
    green = to_hex(dimension_color("tp"))
    frames = [patch for patch in ax.patches if to_hex(patch.get_edgecolor()) == green]
    assert len(frames) == 96 and sum(frame.get_linewidth() == 3 for frame in frames) == 1


def test_a_tensor_group_that_leaves_its_node_has_no_frame():
    ax = plots.plot_cluster({"tp": 4, "dp": 8, "pp": 12}, node=8)
    green = to_hex(dimension_color("tp"))
    assert not [patch for patch in ax.patches if to_hex(patch.get_edgecolor()) == green]


def test_bytes_are_stacked_by_group_up_to_what_the_formula_says():
    ax = plots.plot_group_bytes([counted()] * 2, [{"tp": 400, "pp": 100, "dp": 50}] * 2)
    tops = [bar.get_y() + bar.get_height() for container in ax.containers for bar in container]
    goals = [segment[0][1] for lines in ax.collections for segment in lines.get_segments()]
    assert tops == pytest.approx(goals) and tops[-1] == pytest.approx(550)


def test_dots_of_crossing_are_the_seconds_on_a_log_axis():
    ax = plots.plot_crossing(SECONDS, 105)
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [2.7, 0.1, 130, 4.8]
    assert ax.get_xscale() == "log"
    assert math.isclose(ax.lines[-1].get_xdata()[0], 105)


def test_a_time_whose_log_warns_is_hatched():
    axes = plots.plot_two_networks(PAIRS, "IDRIS")
    hatches = [patch.get_hatch() for ax in axes for patch in ax.patches]
    assert hatches == [None, None, None, "//", "//"]  # the last is the legend's


def test_experts_are_stacked_by_source_and_the_fair_share_is_the_mean():
    ax = plots.plot_expert_load([[3, 1], [2, 2]])
    tops = [bar.get_y() + bar.get_height() for bar in ax.containers[1]]
    assert tops == [5, 3]
    assert ax.lines[0].get_ydata()[0] == 4
