"""Figures of the deck 06: schedules of pipelines, and meshes of ranks on nodes."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from fidle_utils import plots, schedules
from fidle_utils.plots import mesh, mesh_costs, style
from fidle_utils.reference import table

from ._recorded import load_record, note_record

# ------------------------------------------------------------------------------------------- pipelines


def one_batch():
    """One batch through four stages and back."""
    ax = plots.plot_schedule(schedules.gpipe(4, 1).simulate(), title="")
    ax.figure.set_size_inches(10.5, 3.8)
    return ax


def micro_batches():
    """The same batch in one piece, and in eight."""
    whole, cut = schedules.gpipe(4, 1).simulate(8, 8, 8), schedules.gpipe(4, 8).simulate()
    titles = (f"one piece: time {whole.total:g}", f"eight micro-batches: time {cut.total:g}")
    axes = plots.plot_schedules(
        dict(zip(titles, (whole, cut), strict=True)), note="one unit: F of a micro-batch"
    )
    axes[0].figure.set_size_inches(10.5, 4.1)
    _readable(axes)
    return axes[0].figure


def bubble_of_two_times():
    """The bubble against micro-batches, of the ideal and of the total time."""
    simulated = {m: schedules.gpipe(4, m).simulate() for m in (1, 2, 4, 8, 16, 32)}
    pairs = {m: (done.bubble_of_ideal, done.bubble_of_total) for m, done in simulated.items()}
    ax = plots.plot_bubble(4, pairs)
    ax.figure.set_size_inches(10.5, 4.0)
    ax.set_title("", loc="left")
    return ax


def one_forward_one_backward():
    """GPipe and 1F1B, and what each rank holds at most."""
    return _compare([schedules.gpipe(4, 8), schedules.one_f_one_b(4, 8)])


def interleaved_stages():
    """1F1B, and its interleaved form with two stages on each rank."""
    return _compare([schedules.one_f_one_b(4, 8), schedules.interleaved(4, 8, 2)])


def zero_bubbles():
    """Three schedules that put W off, written by hand."""
    made = (schedules.zb_h1, schedules.zb_h2, schedules.zb_v)
    return _compare([make(4, 8) for make in made], height=4.5, kept=0.9)


def _compare(made, height=4.2, kept=0.0):
    """Draw schedules under each other; at the right of each row, the micro-batches that the rank holds."""
    done = [one.simulate() for one in made]
    titles = {
        f"{one.schedule.name}: time {one.longest_rank:g} on a rank, {one.bubble_rate:.0%} bubble": one
        for one in done
    }
    axes = plots.plot_schedules(titles, note="F = B = W = 1")
    for ax, one in zip(axes, made, strict=True):
        for rank, held in enumerate(one.peak_activations(kept)):
            look = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": style.points(10)}
            ax.text(1.015, rank, f"{held:.2g}", **look)
    look = {"transform": axes[0].transAxes, "va": "bottom", "ha": "center", "fontsize": style.points(10)}
    axes[0].text(1.03, 1.03, "holds", **look)
    axes[0].figure.set_size_inches(10.5, height)
    _readable(axes)
    return axes[0].figure


def _readable(axes, smallest=8):
    """Leave the numbers of the micro-batches out of a chart where some are too small to read."""
    for ax in axes:
        numbers = [text for text in ax.texts if text.get_text().isdigit() and text.get_clip_on()]
        if any(text.get_fontsize() < smallest for text in numbers):
            for text in numbers:
                text.remove()


def published_zero_bubble():
    """Throughput against bubble, as the zero-bubble paper measured them."""
    ax = plots.plot_published_bubbles(table("zero_bubble", parameters_billion=6.2))
    ax.figure.set_size_inches(10.5, 4.2)
    ax.set_title("6.2 billion parameters, 8 stages", loc="left", weight="bold")
    return ax


def stale_weights():
    """Losses with fresh and with stale weights, recorded from lesson 06."""
    record = load_record("06")
    axes = plots.plot_staleness(record["values"]["losses"])
    note_record(axes[0], record, "mean of 9 steps")
    axes[0].figure.set_size_inches(10.5, 4.1)
    return axes[0].figure


# ---------------------------------------------------------------------------------------------- meshes


@style.course_style()
def mesh_cube():
    """Eight ranks as a cube of pipeline × data × tensor, on two nodes of four GPUs."""
    ax = plt.subplots(figsize=(10.5, 3.8))[1]
    place = {(p, d, t): (1.15 * t + 3.0 * p, 1.05 * d + 0.42 * p) for p, d, t in np.ndindex(2, 2, 2)}
    for node, (x, y) in enumerate((place[0, 0, 0], place[1, 0, 0])):
        look = {"boxstyle": "round,pad=0.36", "facecolor": style.PALE, "edgecolor": "#bbbbbb"}
        ax.add_patch(FancyBboxPatch((x, y), 1.15, 1.05, **look))
        ax.text(x + 0.57, y + 1.5, f"node {node}, stage {node}", ha="center", weight="bold")
    for one, start in place.items():
        for axis, name in enumerate(("pp", "dp", "tp")):
            if one[axis] == 0:
                end = place[tuple(1 if i == axis else value for i, value in enumerate(one))]
                line = (0, (1, 1.2)) if name == "pp" else "-"
                look = {"color": mesh.dimension_color(name), "linestyle": line, "linewidth": 5}
                ax.plot(*zip(start, end, strict=True), zorder=2, **look)
    for rank, (x, y) in enumerate(place.values()):
        ax.scatter(x, y, s=820, color=plots.rank_color(rank), zorder=3)
        ax.text(x, y, rank, color="white", weight="bold", ha="center", va="center", fontsize=15, zorder=4)
    words = {
        "tp": "tensor (last): sums of activations,\nin every block of every micro-batch",
        "dp": "data: gradients of weights,\nonce a step",
        "pp": "pipeline (first): activations,\nonce a micro-batch; leaves the node",
    }
    for name, text in words.items():
        line = ":" if name == "pp" else "-"
        ax.plot([], [], color=mesh.dimension_color(name), linestyle=line, linewidth=5, label=text)
    ax.legend(loc="center left", bbox_to_anchor=(0.66, 0.5), labelspacing=1.4)
    ax.set(xlim=(-0.55, 7.6), ylim=(-0.5, 2.15), xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    plots.source_note(ax, "computed", "rank = (pp · 2 + dp) · 2 + tp")
    return ax


def _bloom():
    """BLOOM's published row, and the bytes that a GPU of a middle stage sends by group in a step."""
    row = table("jeanzay_bigscience_a100", model="BLOOM-176B")[0]
    tp, dp, micro = row["tp"], row["dp"], row["micro_batch"]
    n_micro, blocks = row["global_batch"] // (dp * micro), 6  # blocks on a middle stage: tr11's README
    activation = micro * row["sequence_length"] * row["hidden"] * 2  # bf16
    weights = blocks * 12 * row["hidden"] ** 2 / tp
    return row, {
        "tp": 6 * blocks * n_micro * 2 * (tp - 1) / tp * activation,  # full recomputation: 3 × 2 a block
        "pp": 2 * n_micro * activation,
        "dp": 2 * (dp - 1) / dp * 4 * weights,  # fp32 gradients are assumed
    }


def crossing_the_network():
    """Seconds of each group's messages in one step of BLOOM, inside a node and between nodes."""
    row, sends = _bloom()
    nvlink = {gpu["gpu"]: gpu["gpu_link_gb_per_second"] for gpu in table("gpu_specs")}
    nodes = {node["gpu"]: node for node in table("jeanzay_links")}
    links = {}
    for gpu, network in (("A100-SXM4-80GB", "Omni-Path"), ("H100-SXM5-80GB", "InfiniBand")):
        node = nodes[gpu]
        each = node["network_links"] * node["network_gb_per_second"] / node["gpus_per_node"]
        links |= {f"{gpu[:4]}: NVLink": nvlink[gpu], f"{gpu[:4]}: {network}": each}
    seconds = {
        f"{link}\n{speed:g} GB/s": {name: n_bytes / 1e9 / speed for name, n_bytes in sends.items()}
        for link, speed in links.items()
    }
    published = "BLOOM's step\non A100\n(published)"
    ax = mesh_costs.plot_crossing(
        seconds, row["seconds_per_iteration"], published, "nominal links, BLOOM's bytes"
    )
    ax.figure.set_size_inches(10.5, 4.3)
    ax.set_title("", loc="left")
    return ax


def bloom_on_its_nodes():
    """Where BLOOM's groups lived on its 48 nodes of eight A100."""
    row, _ = _bloom()
    sizes = {name: row[name] for name in ("pp", "dp", "tp")}
    assert math.prod(sizes.values()) == row["n_gpus"]
    ax = plots.plot_cluster(sizes, node=8, mark=32 * 3)
    ax.figure.set_size_inches(10.5, 4.6)
    return ax
