"""How figures look: colours for every kind of eye, both sizes, units, where the numbers come from."""

import itertools
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from test_plots import CPU
from test_plots import FIGURES as SIMPLE
from test_plots_deepspeed import CURVE, HELD, SENT
from test_plots_mesh import FIGURES as MESH
from test_plots_sharding import FIGURES as SHARDING

from fidle_utils import plots
from fidle_utils.plots import memory, style
from fidle_utils.plots.style import GREY, INK, RANK_COLORS, points, presentation, source_note
from fidle_utils.reference import table

# ----------------------------------------------------------------------------------------------- colours

# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency,
# IEEE Trans. Vis. Comput. Graph. 15(6), 2009: severity 1.0, on linear RGB.
VISION = {
    "common": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# IEC 61966-2-1 (sRGB): linear RGB to CIE XYZ under D65.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
JUST_NOTICEABLE = 2.3  # in CIELAB: Mahy, Van Eycken and Oosterlinck, Color Res. Appl. 19(2), 1994


def linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(color, vision="common"):
    """CIELAB (CIE 15:2004) of a colour as somebody with this vision sees it."""
    seen = np.clip(np.asarray(VISION[vision]) @ linear(color), 0, 1)
    ratio = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other, vision):
    return np.linalg.norm(lab(one, vision) - lab(other, vision))


def test_lab_agrees_with_known_values():
    assert lab("white") == pytest.approx([100, 0, 0], abs=0.1)
    assert lab("red") == pytest.approx([53.24, 80.09, 67.20], abs=0.2)  # of sRGB's red


@pytest.mark.parametrize("vision", VISION)
def test_ranks_are_told_apart_whatever_the_vision(vision):
    neighbours = zip(RANK_COLORS, [*RANK_COLORS[1:], RANK_COLORS[0]], strict=True)
    assert min(distance(a, b, vision) for a, b in neighbours) > 7 * JUST_NOTICEABLE
    assert (
        min(distance(a, b, vision) for a, b in itertools.combinations(RANK_COLORS, 2)) > 4 * JUST_NOTICEABLE
    )
    assert min(distance(color, "white", vision) for color in RANK_COLORS) > 10 * JUST_NOTICEABLE


def test_red_and_green_would_fail():
    assert (
        distance("#b05030", "#708030", "deutan")
        < 7 * JUST_NOTICEABLE
        < distance("#b05030", "#708030", "common")
    )


@pytest.mark.parametrize("color", [INK, GREY, "#444444"])
def test_texts_have_contrast(color):
    """At least 4.5 to 1 on white: Web Content Accessibility Guidelines 2.2, criterion 1.4.3."""
    assert 1.05 / (TO_XYZ[1] @ linear(color) + 0.05) > 4.5


# ------------------------------------------------------------------------------------------- every figure


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def ledger():
    from fidle_utils.measure.memory import memory_ledger

    model = layers()
    optimizer = torch.optim.AdamW(model.parameters())
    with memory_ledger(model, optimizer) as counted:
        model(torch.ones(8, 64)).sum().backward()
        optimizer.step()
    return counted


def communication():
    from fractions import Fraction

    from fidle_utils.measure.collectives import Message
    from fidle_utils.measure.communication import Communication

    world = Message("all_reduce", "world", 10**6, Fraction(3 * 10**6, 2))
    return Communication([world, world._replace(collective="all_gather", group=(0, 1))])


def timeline():
    from test_timeline import STEPS
    from test_timeline import timeline as of

    return of(*STEPS)


def roofline():
    from test_roofline import OPERATIONS, ROOF

    return ROOF, OPERATIONS


def vital_signs(weights=5):
    row = dict(step=0, loss=2.0, waited_ms=1.5, weights=5, error="")
    return [[row, row | dict(step=1, loss=float("nan"), weights=weights)], [row, row | dict(step=1)]]


def throughput():
    from test_plots_throughput import recorded

    return recorded([0.01, 0.02])


def pipeline(name="1F1B"):
    from fidle_utils.schedules import SCHEDULES

    return SCHEDULES[name](4, 8).simulate(communication=0.1)
def plans():
    from fidle_utils.planner import Layout, plan

    layout = Layout(data=2, tensor=2, zero=1)
    small, large = ("Llama 3 8B", layout), ("Llama 3 70B", layout.with_(checkpointing="full"))
    return {name: plan(name, "Jean Zay H100", layout) for name, layout in (small, large)}


def found():
    from fidle_utils.planner import search

    return search("Llama 3 8B", "Jean Zay H100", 8, 64, best=None, by_degrees=True)


def errors():
    from fidle_utils.planner.validation import compare

    return compare()


def overlap():
    steps = [("backward", i, i / 9, (i + 1) / 9) for i in (0, 1)]
    return steps + [("communication", i, i / 9 + 0.1, i / 9 + 0.2) for i in (0, 1)]


BUSES = [dict(operation="all_reduce", ranks=2, n_bytes=2**k, bus_bandwidth=1e3 * 2**k) for k in (10, 20)]
RATES = [dict(name="copy", n_bytes=2**k, best=1e10, median=9e9, quantity="memory") for k in (16, 20, 24)]
LAYERS = [dict(link=f"link {i}", compute_ms=3, communication_ms=10**i) for i in range(3)]
MEGATRON = [table("megatron_2020_tensor_parallel", gpu=gpu, dp=1) for gpu in ("V100 DGX-2", "DGX-A100")]
KEPT = {rows[0]["gpu"]: ([1, 2, 4, 8], [100, 95, 88, 80]) for rows in MEGATRON}
FIGURES = {
    "plot_activation_terms": SHARDING["terms"][0],
    "plot_attempts": lambda: plots.plot_attempts(
        [[(0, 2), (1, 1.5)], [(1, 1.5), (2, 1)]], [(0, 2), (2, 1)], [1]
    ),
    "plot_batch_means": lambda: plots.plot_batch_means([[0.1, 0.2], [0.3, 0.1]], [0.2, 0.15]),
    "plot_batch_ramp": lambda: plots.plot_batch_ramp(
        [row for row in table("jeanzay_bigscience_a100") if "Batchsize Warmup" in row["source"]]
    ),
    "plot_batch_sizes": lambda: plots.plot_batch_sizes(
        {"linear": {16: [3, 4], 64: [4, 5]}, "unscaled": {16: [3, 4], 64: [30, 40]}}, table("goyal_minibatch")
    ),
    "plot_batch_split": lambda: plots.plot_batch_split(torch.rand(8, 1, 8, 8), 2),
    "plot_bubble": lambda: plots.plot_bubble(4, {1: (3, 0.75), 8: (3 / 8, 3 / 11)}),
    "plot_buckets": lambda: plots.plot_buckets([(1, 12.1), (4, 15.5)]),
    "plot_bus_bandwidth": lambda: plots.plot_bus_bandwidth(BUSES, published=table("nccl_allreduce_busbw")),
    "plot_bytes_sent": SIMPLE["bytes"],
    "plot_checkpoint_interval": lambda: plots.plot_checkpoint_interval(
        40, 6e5, {7e3: 0.012}, {"Young": 6.9e3}
    ),
    "plot_cluster": MESH["cluster"][0],
    "plot_communication": lambda: plots.plot_communication([communication()] * 2),
    "plot_crossing": MESH["crossing"][0],
    "plot_drift": lambda: plots.plot_drift({"One": [[0, 0], [1, 2]], "Two": [[0, 0], [1, 1]]}),
    "plot_drops": MESH["drops"][0],
    "plot_equal_losses": lambda: plots.plot_equal_losses([2, 1], [2, 1 + 1e-7], 1e-5),
    "plot_error_feedback": lambda: plots.plot_error_feedback(CURVE, CURVE, 2),
    "plot_estimates": lambda: plots.plot_estimates({"stage 3": lambda n: 18e9 / n}, "1B"),
    "plot_expert_load": MESH["experts, capacity"][0],
    "plot_files": lambda: plots.plot_files({"one file an image": (1438, 1.6e4), "shards": (8, 1.49e6)}),
    "plot_gathered": SHARDING["gathered"][0],
    "plot_grid": MESH["grid"][0],
    "plot_group_bytes": MESH["bytes and formula"][0],
    "plot_held_bytes": lambda: plots.plot_held_bytes(HELD, 100, {"stage 0": 16}),
    "plot_layer_times": lambda: plots.plot_layer_times(LAYERS, "One layer", "bytes over bandwidth"),
    "plot_layouts": lambda: plots.plot_layouts(found(), used=(1, 1)),
    "plot_loss": SIMPLE["loss"],
    "plot_machine": lambda: plots.plot_machine(CPU, 4, 9e8),
    "plot_matrix_split": lambda: plots.plot_matrix_split(4),
    "plot_measured_schedule": lambda: plots.plot_measured_schedule(pipeline("ZB-V"), pipeline("ZB-V")),
    "plot_memory": lambda: memory.plot_memory([ledger()] * 2),
    "plot_memory_over_time": lambda: memory.plot_memory_over_time(ledger()),
    "plot_memory_sweep": lambda: plots.plot_memory_sweep(RATES),
    "plot_mesh": MESH["mesh"][0],
    "plot_message_cost": lambda: plots.plot_message_cost(
        {
            "hidden": {"1F1B": [(0, 33), (1, 40)], "ZB-V": [(0, 25), (1, 39)]},
            "paid": {"1F1B": [(0, 33), (1, 60)]},
        }
    ),
    "plot_model_cuts": lambda: plots.plot_model_cuts(8, 4),
    "plot_moments": SIMPLE["moments"],
    "plot_node": lambda: plots.plot_node(
        table("jeanzay_links")[1], table("gpu_specs", gpu="A100-SXM4-80GB")[0]
    ),
    "plot_offload": SHARDING["offload"][0],
    "plot_overlap": lambda: plots.plot_overlap([overlap()] * 2, [overlap()] * 2),
    "plot_parallel_block": lambda: plots.plot_parallel_block(("f", "a", "b"), ("g", "b", "a")),
    "plot_peak_activations": lambda: plots.plot_peak_activations({"GPipe": [8] * 4, "1F1B": [4, 3, 2, 1]}, 5),
    "plot_plan_memory": lambda: plots.plot_plan_memory(plans()),
    "plot_plan_time": lambda: plots.plot_plan_time(plans()),
    "plot_planner_errors": lambda: plots.plot_planner_errors(errors()),
    "plot_published_bubbles": lambda: plots.plot_published_bubbles(
        table("zero_bubble", parameters_billion=6.2)
    ),
    "plot_published_gpipe": lambda: plots.plot_published_gpipe(
        table("gpipe_throughput", model="Transformer-48 TPUv3")
    ),
    "plot_ring_attention": lambda: plots.plot_ring_attention(4),
    "plot_ring_bytes": lambda: plots.plot_ring_bytes({2: 1, 4: 1.5}),
    "plot_roofline": lambda: plots.plot_roofline(*roofline()),
    "plot_scaling": lambda: plots.plot_scaling({1: [10, 11], 4: [20, 30]}, [33, 34]),
    "plot_schedule": lambda: plots.plot_schedule(pipeline("interleaved 1F1B")),
    "plot_schedules": lambda: plots.plot_schedules([pipeline("GPipe"), pipeline("ZB-H2"), pipeline("ZB-V")]),
    "plot_sent_bytes": lambda: plots.plot_sent_bytes(SENT, dict.fromkeys(SENT, 4), {"stage 3": 3}),
    "plot_shards": SHARDING["shards"][0],
    "plot_stages": SHARDING["stages"][0],
    "plot_staleness": lambda: plots.plot_staleness(
        {"slow": {"a": [2, 1], "b": [2, 1.5]}, "fast": {"a": [2, 3]}}
    ),
    "plot_tensor_parallel_scaling": lambda: plots.plot_tensor_parallel_scaling(MEGATRON, KEPT),
    "plot_throughput": lambda: plots.plot_throughput(throughput()),
    "plot_time_and_memory": lambda: plots.plot_time_and_memory({"1F1B": (33, 4), "ZB-V": (24, 4)}, (28, 5)),
    "plot_timeline": lambda: plots.plot_timeline(timeline()),
    "plot_topologies": MESH["topologies"][0],
    "plot_transfer_times": lambda: plots.plot_transfer_times(
        [dict(link="A link", kind="computed", seconds=0.3), dict(link="B", kind="published", seconds=(2, 7))],
        14e9,
    ),
    "plot_two_networks": MESH["two networks"][0],
    "plot_validation": lambda: plots.plot_validation(errors()),
    "plot_validation, memory": lambda: plots.plot_validation(errors(), "memory"),
    "plot_vital_signs": lambda: plots.plot_vital_signs(
        {"healthy": vital_signs(), "patient A": vital_signs(7)}
    ),
    "plot_who_holds_what": SHARDING["who"][0],
    "plot_zero_table": SHARDING["table"][0],
}


@pytest.fixture(autouse=True)
def usual():
    yield
    presentation(False)
    plt.close("all")


def test_every_figure_is_drawn_by_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    drawn = {name for name in plots.__all__ if name.startswith("plot_") and f"{name}(" in tests}
    assert drawn | set(FIGURES) >= {name for name in plots.__all__ if name.startswith("plot_")}


def axes_of(name):
    """The axes that a function draws; nothing may warn, and no text may stick out of the figure."""
    axes = list(np.ravel(FIGURES[name]()))
    figure = axes[0].figure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    frame = figure.bbox.padded(2)
    for ax in axes:
        legend = ax.get_legend().get_texts() if ax.get_legend() else []
        for part in (ax, *ax.texts, *legend):
            box = part.get_tightbbox() if part is ax else part.get_window_extent()
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            assert inside, f"{part} is cut off"
    return axes


def named(axis):
    """Whether an axis says what it shows: it has a label, words as ticks, or no ticks at all."""
    ticks = [label.get_text() for label in axis.get_ticklabels() if label.get_visible()]
    return axis.get_label_text() or any(c.isalpha() for c in "".join(ticks)) or not any(ticks)


@pytest.mark.parametrize("large", [False, True], ids=["usual", "presentation"])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_names_on_its_axes_and_nothing_is_cut_off(name, large):
    with presentation(large):
        axes = axes_of(name)
    assert to_hex(axes[0].figure.get_facecolor()) == "#ffffff"  # readable in a dark notebook too
    assert {to_hex(ax.get_facecolor()) for ax in axes} == {"#ffffff"}
    # Panels that share an axis name it once.
    assert any(named(ax.xaxis) for ax in axes) and any(named(ax.yaxis) for ax in axes), (
        "an axis without a name"
    )
    if name != "plot_batch_split":  # a picture of the data themselves
        notes = [text.get_text() for ax in axes for text in ax.texts]
        assert any(note.split(" ·")[0] in style.KINDS for note in notes)


# ------------------------------------------------------------------------------------------- presentation


def look():
    before = dict(plt.rcParams)
    ax = plots.plot_loss({"a": [2, 1]})
    assert dict(plt.rcParams) == before
    width = ax.figure.get_figwidth() * ax.figure.dpi
    return ax.xaxis.label.get_size(), ax.lines[0].get_linewidth(), ax.texts[0].get_size(), width


def test_presentation_enlarges_texts_and_figure_and_ends():
    usual = look()
    switch = presentation()
    assert "presentation(False)" in repr(switch)
    large = look()
    assert large[0] == pytest.approx(1.2 * usual[0]) and large[2] == pytest.approx(1.2 * usual[2])
    assert large[3] == pytest.approx(1.3 * usual[3])
    with presentation(False):
        assert look() == usual
    assert look() == large and points(10) == 12
    assert repr(presentation(False)) == "figures are as usual"
    assert look() == usual and points(10) == 10
    with pytest.raises(KeyError), presentation():
        raise KeyError
    assert look() == usual


def test_lines_that_follow_the_style_are_thicker():
    usual = plots.plot_ring_bytes({}).lines[0].get_linewidth()
    with presentation():
        assert plots.plot_ring_bytes({}).lines[0].get_linewidth() == pytest.approx(1.35 * usual)


def test_every_number_that_the_style_enlarges_is_in_the_style():
    assert set(style._LARGER) <= set(style._PARAMETERS)
    assert all(style._LARGER[name] > style._PARAMETERS[name] for name in style._LARGER)


# -------------------------------------------------------------------------------------------- the note


def test_a_long_note_goes_on_in_a_second_line_between_its_parts():
    ax = plt.subplots(figsize=(5, 3))[1]
    text = source_note(ax, "recorded", "8 × NVIDIA H100 80GB HBM3 · 2026-11-23 · torch 2.13").get_text()
    assert text == "recorded · 8 × NVIDIA H100 80GB HBM3 · 2026-11-23 ·\ntorch 2.13"
    endless = source_note(ax, "simulated", "a long part " * 20).get_text()
    assert max(map(len, endless.split("\n"))) <= 60
