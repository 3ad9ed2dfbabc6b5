"""Figures of the deck 03: what ranks say to each other, what it costs, and data parallelism made of it."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.patches import FancyArrowPatch
from torch.utils.data import DistributedSampler

from fidle_utils import plots
from fidle_utils.collective_steps import ring_all_reduce_steps
from fidle_utils.data import digits
from fidle_utils.measure.alpha_beta import AlphaBeta
from fidle_utils.measure.timeline import Timeline
from fidle_utils.plots import steps, style
from fidle_utils.reference import table

from ._recorded import load_record, note_record


def _title(ax, text):
    """Give `ax` a title as large as those of the course, outside of its style."""
    ax.set_title(text, loc="left", fontsize=style.points(13), fontweight="bold")


# ------------------------------------------------------------------------------------ between the ranks


@style.course_style()
def collectives():
    """What four ranks hold before a collective, and after each of seven."""
    n = 4
    before = torch.stack([torch.arange(1, n + 1) * 10**rank for rank in range(n)])
    total, pieces = before.sum(0), before.diag()
    panels = {
        "before": before,
        "broadcast from 0": before[:1].expand(n, n),
        "scatter from 0": before[0].chunk(n),
        "gather on 0 *": [pieces, None, None, None],
        "all_reduce": [total] * n,
        "reduce_scatter": total.chunk(n),
        "all_gather *": [pieces] * n,
        "all_to_all": before.T,
    }
    axes = list(plt.subplots(2, 4, figsize=(10.5, 4.4), width_ratios=[1.4, 1, 1, 1])[1].flat)
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        plots.plot_buffers({"": rows}, "", ax=ax)
        ax.texts[-1].remove()  # its note: nothing here was measured
        first = ax in (axes[0], axes[4])
        for text in [text for text in ax.texts if text.get_text().startswith("rank") and not first]:
            text.remove()
        ax.set_title(name, fontsize=style.points(11))
        ax.set(xlim=(-1.6 if first else -0.1, n), ylim=(n, -0.2))
    style.source_note(axes[4], "computed", "* rank r gives its piece number r")
    return axes[0].figure


@style.course_style()
def deadlock():
    """Four ranks that all send first, and the same ring with even ranks first."""
    axes = plt.subplots(1, 2, figsize=(10.5, 4.1))[1]
    places = [(0, 1), (1, 1), (1, 0), (0, 0)]
    words = {"ha": "center", "va": "center", "fontsize": style.points(11), "fontweight": "bold"}
    for ax, title in zip(axes, ("all send first: a circle", "even ranks send first"), strict=True):
        ax.set(xlim=(-0.55, 1.55), ylim=(-0.35, 1.35))
        ax.set_axis_off()
        ax.set_title(title)
        for rank, (x, y) in enumerate(places):
            verb = "send" if ax is axes[0] or rank % 2 == 0 else "recv"
            color = style.rank_color(rank)
            box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "linewidth": 3}
            ax.text(x, y, f"rank {rank}\nin {verb}", color=style.INK, bbox=box, zorder=3, **words)
            after = places[(rank + 1) % 4]
            step = "waits for" if ax is axes[0] else "1" if rank % 2 == 0 else "2"
            level = after[1] == y
            shrink = 48 if level else 34
            look = {
                "arrowstyle": "-|>",
                "mutation_scale": 22,
                "shrinkA": shrink,
                "shrinkB": shrink,
                "linewidth": 2.5,
            }
            dashed = "--" if ax is axes[0] else "-"
            ax.add_patch(FancyArrowPatch((x, y), after, color=style.GREY, linestyle=dashed, **look))
            at = 0.5 * (x + after[0]) + (not level) * 0.05, 0.5 * (y + after[1]) + level * 0.1
            ax.text(*at, step, **{**words, "fontweight": "normal", "ha": "center" if level else "left"})
    return axes[0].figure


@style.course_style()
def ring():
    """Four of the six steps of a ring all_reduce on four ranks."""
    made = ring_all_reduce_steps(4, 2**20)
    axes = plt.subplots(1, 4, figsize=(10.5, 3.5))[1]
    for ax, k in zip(axes, (1, 3, 4, 6), strict=True):
        steps.draw_step(ax, made, k)
        ax.set_axis_off()
    text = "a column is a chunk, a filled row says whose values are in it · framed: just arrived"
    axes[0].figure.text(0.01, 0.01, f"computed · {text}", fontsize=style.points(9), color=style.GREY)
    return axes[0].figure


def alpha_beta():
    """all_reduce of two ranks, measured, with the fitted α and β."""
    record = load_record("03")
    samples = {int(n_bytes): seconds for n_bytes, seconds in record["values"]["samples"].items()}
    model = AlphaBeta(*record["values"]["model"])
    ax = plots.plot_alpha_beta(samples, model)
    ax.figure.set_size_inches(10.5, 4.3)
    _title(ax, f"two ranks: {model}")
    note_record(ax, record)
    return ax


def bus_bandwidth():
    """Published bus bandwidths of NCCL, by the size of the message."""
    ax = plots.plot_bus_bandwidth(published=table("nccl_allreduce_busbw", collective="all_reduce"))
    ax.figure.set_size_inches(10.5, 4.4)
    ax.set_title("", loc="left")
    return ax


# ---------------------------------------------------------------------------------------- data parallelism


def batch_split():
    """A batch of 64 digits, a quarter for each rank."""
    axes = plots.plot_batch_split(digits()[0][:64], n_ranks=4)
    axes[0][0].figure.set_size_inches(10.5, 2.6)
    return axes[0][0].figure


def equal_losses():
    """The loss of four ranks and of one process."""
    record = load_record("04")
    axes = plots.plot_equal_losses(record["values"]["alone"], record["values"]["shared"], tolerance=1e-3)
    axes[0].figure.set_size_inches(10.5, 4.0)
    axes[0].set_title("", loc="left")
    look = {"frameon": False, "fontsize": style.points(11)}
    axes[1].legend(loc="center right", bbox_to_anchor=(1, 0.62), **look)
    note_record(axes[1], record)
    return axes[0].figure


def drift():
    """How far the weights of ranks part: three trainings."""
    record = load_record("04")
    names = ("A: other seeds, averaged", "B: same seed, not averaged", "C: same seed, averaged")
    runs = dict(zip(names, record["values"]["drift"].values(), strict=True))
    axes = plots.plot_drift(runs)
    axes[0].figure.set_size_inches(10.5, 3.9)
    for ax in axes:
        ax.set_title(ax.get_title(loc="left"), fontsize=style.points(11), loc="left")
    note_record(axes[0], record)
    return axes[0].figure


@style.course_style()
def fewer_messages():
    """The same gradients in fewer messages; and four micro-batches that reduce each time, or once."""
    record = load_record("04")
    left, right = plt.subplots(1, 2, figsize=(10.5, 3.9), width_ratios=[1, 1.25])[1]
    plots.plot_buckets(record["values"]["buckets"], ax=left)
    left.set_title("buckets: 42 tensors")
    for text, (_, milliseconds) in zip(left.texts, record["values"]["buckets"], strict=False):
        text.set_text(f"{milliseconds:.0f}")
    note_record(left, record)
    for row, every in enumerate((True, False)):
        at = 0
        for k in range(4):
            parts = [("backward", 2, 0)] + [("reduce", 1, 1)] * (every or k == 3)
            for _, width, color in parts:
                right.barh(row, width, 0.55, at, color=style.RANK_COLORS[color], edgecolor="white")
                at += width
        right.text(at + 0.2, row, f"{at}", va="center", fontsize=style.points(11))
    for label, color in (("backward of a micro-batch", 0), ("reduction", 1)):
        right.barh(0, 0, color=style.RANK_COLORS[color], label=label)
    right.set_yticks([0, 1], ["every time", "no_sync,\nthen once"])
    right.set(xlabel="time", xlim=(0, 13.5), ylim=(3.1, -0.6), title="accumulation: 4 micro-batches")
    right.grid(axis="y", visible=False)
    right.legend(loc="lower left")
    style.source_note(right, "computed", "a reduction: 1, a backward: 2")
    return left.figure


def overlap():
    """Six layers whose buckets leave at the end, or as soon as each is ready: computed, one unit each."""
    order = range(5, -1, -1)
    backward = [("backward", layer, 1e-3 * i, 1e-3 * (i + 1)) for i, layer in enumerate(order)]

    def with_messages(start):
        sent = [
            ("communication", layer, 1e-3 * (start + i), 1e-3 * (start + i + 1))
            for i, layer in enumerate(order)
        ]
        return [backward + sent]

    axes = plots.plot_overlap(with_messages(6), with_messages(1))
    for ax, title in zip(axes, ("without overlap: 12", "with overlap: 7"), strict=True):
        _title(ax, f"{title} (the number is the layer)")
        ax.set_yticks([0, 1], ["backward", "all_reduce"])
        ax.set_xticks(range(13))
    axes[1].set_xlabel("time, in backwards of one layer")
    axes[1].texts[-1].remove()
    style.source_note(
        axes[1], "computed", "six layers; one all_reduce takes as long as the backward of one layer"
    )
    axes[0].figure.set_size_inches(10.5, 4.4)
    return axes[0].figure


def ddp_step():
    """One backward with DDP on four ranks, from PyTorch's profiler."""
    return _timeline("04", "step")


def _timeline(number, name):
    """Draw a recorded timeline: its rows are rank, kind, what, start, end and waiting in milliseconds."""
    record = load_record(number)
    columns = ["rank", "kind", "what", "start_ms", "end_ms", "waiting_ms"]
    ax = plots.plot_timeline(Timeline(pd.DataFrame(record["values"][name], columns=columns)))
    ax.figure.set_size_inches(10.5, 4.3)
    note_record(ax, record)
    return ax


@style.course_style()
def sampler_traps():
    """What DistributedSampler gives: rank 0 in three epochs; and ten images to four ranks."""
    shuffled = DistributedSampler(range(16), num_replicas=4, rank=0, shuffle=True)
    rows = {}
    for told in (False, True):
        for epoch in range(3):
            if told:
                shuffled.set_epoch(epoch)
            rows[f"epoch {epoch}" + ", set_epoch" * told] = list(shuffled)
    axes = plt.subplots(1, 2, figsize=(10.5, 3.5), width_ratios=[1, 1])[1]
    _indices(axes[0], rows, "rank 0 of four, 16 images", set())
    padded = {
        f"rank {rank}": list(DistributedSampler(range(10), num_replicas=4, rank=rank, shuffle=False))
        for rank in range(4)
    }
    seen = [index for i in range(3) for index in (row[i] for row in padded.values())]
    again = {(place % 4, place // 4) for place, index in enumerate(seen) if index in seen[:place]}
    _indices(axes[1], padded, "four ranks, 10 images", again)
    style.source_note(axes[0], "computed", "by DistributedSampler")
    style.source_note(axes[1], "computed", "framed: read a second time")
    return axes[0].figure


def _indices(ax, rows, title, marked):
    """A row of boxes for each name, with the images it reads; `marked` (row, column) are framed."""
    for y, (name, indices) in enumerate(rows.items()):
        rank = int(name.split()[1]) if name.startswith("rank") else 0
        for x, index in enumerate(indices):
            frame = (style.RANK_COLORS[5], 4) if (y, x) in marked else ("white", 1)
            look = {"edgecolor": frame[0], "linewidth": frame[1], "zorder": 2 + ((y, x) in marked)}
            ax.barh(y, 0.9, 0.8, x, facecolor=style.rank_color(rank) + "55", **look)
            ax.text(x + 0.45, y, index, ha="center", va="center", fontsize=style.points(11), zorder=4)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xticks=[], title=title, ylim=(len(rows) - 0.4, -0.6))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def scaling():
    """Strong scaling of DDP on two cores."""
    record = load_record("04")
    strong = {int(n): values for n, values in record["values"]["strong"].items()}
    axes = plots.plot_scaling(strong, unit="images", title="512 images a step")
    axes[0].figure.set_size_inches(10.5, 4.2)
    note_record(axes[0], record)
    return axes[0].figure
