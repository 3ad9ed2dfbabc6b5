"""Figures of measurements: machine, moments, bytes, loss, throughput, timeline."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from fidle_utils.measure.timeline import KINDS as KINDS_OF_WORK
from fidle_utils.plots.style import (
    GREY,
    INK,
    PALE,
    RANK_COLORS,
    course_style,
    in_style,
    rank_color,
    source_note,
)


@in_style
def plot_machine(report, world_size=4, rank_to_rank=None, ax=None):
    """Draw a machine: its memory, its cores or GPUs, the ranks on them, and the two speeds measured.

    `report` comes from `device_report()`; `rank_to_rank` is in bytes per second.
    """
    gpus, n_cores = report.gpus, report.physical_cores or report.logical_cores
    on_gpus = len(gpus) >= world_size
    ax.set(xlim=(0, 12), ylim=(0, 6.2), xticks=[], yticks=[], title="Your machine and your ranks")
    ax.grid(False)
    ax.spines[:].set_visible(False)

    _box(ax, 0.2, 0.3, 11.6, 0.9, f"memory: {report.memory_bytes / 1e9:.0f} GB")
    places = len(gpus) if on_gpus else n_cores
    shown = min(places, 8)
    width = 11.6 / shown
    for i in range(shown):
        name = f"GPU {i}" if on_gpus else f"core {i}"
        last = i == shown - 1 and places > shown
        _box(ax, 0.2 + i * width + 0.08, 2.4, width - 0.16, 0.9, f"… {places}" if last else name)
    _arrow(ax, (6, 1.2), (6, 2.4))
    ax.text(6.2, 1.8, f"a copy: {_rate(report.copy_bytes_per_second)}, read and written", va="center")

    xs = [0.2 + 11.6 * (rank + 0.5) / world_size for rank in range(world_size)]
    for rank, x in enumerate(xs):
        ax.scatter(x, 4.1, s=900, color=rank_color(rank), zorder=3)
        ax.text(x, 4.1, str(rank), color="white", ha="center", va="center", weight="bold", zorder=4)
    ax.text(xs[0] - 0.55, 4.1, "rank", ha="right", va="center", color=GREY)
    if rank_to_rank and world_size > 1:
        _arrow(ax, (xs[0] + 0.1, 4.55), (xs[1] - 0.1, 4.55), "arc3,rad=-0.35")
        ax.text((xs[0] + xs[1]) / 2, 5.25, f"rank to rank: {_rate(rank_to_rank)}", ha="center")
    source_note(ax, "measured here", report.name)


def _box(ax, x, y, width, height, text):
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE, edgecolor="#999999"))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def _arrow(ax, start, end, connection="arc3"):
    style = {"arrowstyle": "<->", "color": INK, "linewidth": 1.5, "connectionstyle": connection}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


@in_style
def plot_moments(moments, title="Who spoke when", ax=None):
    """Draw when each rank did something: `moments[rank]` in seconds, on the clock that all ranks share."""
    first, n = min(moments), len(moments)
    milliseconds = [1e3 * (moment - first) for moment in moments]
    ax.hlines(range(n), 0, milliseconds, colors=[rank_color(rank) for rank in range(n)], linewidth=1)
    for rank, moment in enumerate(milliseconds):
        ax.scatter(moment, rank, s=140, color=rank_color(rank), zorder=3)
        ax.annotate(f"{moment:.1f} ms", (moment, rank), (10, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(n), [f"rank {rank}" for rank in range(n)])
    last = max(milliseconds) or 1
    ax.set(xlim=(-0.03 * last, 1.2 * last), ylim=(n - 0.5, -0.5), title=title)
    ax.set_xlabel("milliseconds after the first")
    ax.grid(axis="y", visible=False)
    source_note(ax, "measured here")


@in_style
def plot_bytes_sent(bytes_sent, tensor_bytes, title="Bytes sent by one all_reduce", ax=None):
    """Draw what each rank sent beside what a ring all_reduce must send: 2(n−1)/n of the tensor's S bytes.

    `bytes_sent[rank]` and `tensor_bytes` are in bytes. The formula: Patarasuk and Yuan, Bandwidth optimal
    all-reduce algorithms for clusters of workstations, J. Parallel Distrib. Comput. 69, 2009.
    """
    n = len(bytes_sent)
    expected = 2 * (n - 1) / n * tensor_bytes
    unit, factor = _byte_unit(max(expected, *bytes_sent))
    heights, colors = [sent / factor for sent in bytes_sent], [rank_color(rank) for rank in range(n)]
    bars = ax.bar(range(n), heights, 0.6, color=colors)
    ax.bar_label(bars, fmt="{:.3g}", padding=4)
    ax.axhline(expected / factor, color=INK, linestyle="--")
    formula = rf"$2\,(n-1)/n \cdot S$ = {expected / factor:.3g} {unit}"
    ax.text(1, 1.02, formula, ha="right", va="bottom", transform=ax.transAxes)
    ax.set_xticks(range(n), [f"rank {rank}" for rank in range(n)])
    ax.set(ylabel=f"{unit} sent", title=title, ylim=(0, 1.18 * max(expected, *bytes_sent) / factor))
    ax.grid(axis="x", visible=False)
    source_note(ax, "measured here")


@in_style
def plot_loss(curves, title="Loss", ax=None):
    """Draw losses step by step: `curves` is a dict, label → list of losses. Equal curves stay visible."""
    for i, (label, losses) in enumerate(curves.items()):
        # Each curve is thinner than the one it may hide.
        width = 2 + 5 * (len(curves) - 1 - i) / max(len(curves) - 1, 1)
        ax.plot(range(1, len(losses) + 1), losses, linewidth=width, label=label, alpha=0.9)
    ax.set(xlabel="step", ylabel="loss", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    source_note(ax, "measured here")


@in_style
def plot_scaling(throughput, one_process=None, unit="samples", title="Throughput", ax=None):
    """Draw throughput against ranks with the ideal line, n times one rank.

    `throughput` is a dict, number of ranks → list of measurements in `unit` per second: the median is drawn,
    the bars reach from the least to the greatest. `one_process` is a list of measurements too, of one process
    that uses all the threads of the machine: what several ranks have to beat.
    """
    counts = sorted(throughput)
    medians = [statistics.median(throughput[n]) for n in counts]
    ideal = [n / counts[0] * medians[0] for n in counts]
    ax.plot(counts, ideal, color=GREY, linestyle=":", label="ideal")
    ax.errorbar(counts, medians, _spread(throughput, counts, medians), marker="o", label="measured")
    if one_process:
        best = statistics.median(one_process)
        ax.axhline(best, color=RANK_COLORS[5], linestyle="--", label="one process, all threads")
        ax.axhspan(min(one_process), max(one_process), color=RANK_COLORS[5], alpha=0.15, linewidth=0)
    ax.set_xticks(counts)
    ax.set(xlabel="ranks", ylabel=f"{unit} per second", title=title)
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")


def _spread(throughput, counts, medians):
    low = [median - min(throughput[n]) for n, median in zip(counts, medians, strict=True)]
    high = [max(throughput[n]) - median for n, median in zip(counts, medians, strict=True)]
    return [low, high]


def _byte_unit(n_bytes):
    """Return the decimal unit in which `n_bytes` reads well, and its size in bytes."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
    return next((unit for unit in units if n_bytes >= unit[1]), units[-1])


def _rate(bytes_per_second):
    unit, factor = _byte_unit(bytes_per_second)
    return f"{bytes_per_second / factor:.3g} {unit}/s"


@course_style()
def plot_timeline(timeline, ax=None):
    """Draw a Gantt chart of a `Timeline`: when each rank computed and when it communicated."""
    events = timeline.events
    ranks = sorted(events["rank"].unique())
    if ax is None:
        ax = plt.subplots(figsize=(9.5, 1.4 + 0.75 * len(ranks)))[1]
    colors = dict(zip(KINDS_OF_WORK, RANK_COLORS, strict=False))
    for (rank, kind), group in events.groupby(["rank", "kind"]):
        low = rank + (0.05 if kind == "communication" else -0.4)
        spans = list(zip(group.start_ms, group.end_ms - group.start_ms, strict=True))
        # Two reductions may be under way at once: their edges show through.
        look = {"alpha": 0.8, "edgecolor": "white", "linewidth": 0.8} if kind == "communication" else {}
        ax.broken_barh(spans, (low, 0.36), facecolor=colors[kind], label=kind, **{"linewidth": 0, **look})
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [kind for kind in KINDS_OF_WORK if kind in handles]
    ax.legend([handles[kind] for kind in shown], shown, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    ax.set(xlabel="milliseconds", title="What each rank did: computing above, communicating below")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    source_note(ax, "measured here")
    return ax
