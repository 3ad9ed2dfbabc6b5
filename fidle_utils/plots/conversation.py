"""Figures of lesson 03: what ranks hold before and after they talk, who sends to whom, and what it costs.

Buffers carry labels: element j of rank r starts as (j+1)·10ʳ. Adding never carries, so the digits of a value
say what went into it: 1200 is element 1 of rank 3 and element 2 of rank 2.
"""

import statistics

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import EngFormatter

from fidle_utils.measure.alpha_beta import ALGORITHMS
from fidle_utils.measure.film import frames
from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    binary,
    course_style,
    in_style,
    points,
    rank_color,
    source_note,
)

_GAP = 1.1  # between two panels, in boxes
_HEIGHT = 0.8  # of a box; a row is 1 high


def contributors(value):
    """Return the ranks whose labels are part of `value`, in the order of its digits: the highest first."""
    digits = str(abs(int(value)))
    return [len(digits) - 1 - i for i, digit in enumerate(digits) if digit != "0"]


# ------------------------------------------------------------------------------------- before and after


def plot_collective(before, after, title, ax=None):
    """Draw what each rank holds before and after a collective, in the colours of the ranks it comes from.

    `before[rank]`, `after[rank]`: tensors or lists of labelled values; None or 0 where there is nothing.
    """
    return plot_buffers({"before": before, "after": after}, title, ax=ax)


@course_style()
def plot_buffers(moments, title, ax=None):
    """Draw what each rank holds at several moments: `moments` is a dict, name → one tensor or list a rank."""
    panels = {name: [_values(row) for row in buffers] for name, buffers in moments.items()}
    widths = [max(len(row or ()) for row in panel) for panel in panels.values()]
    rows, right = len(next(iter(panels.values()))), sum(widths) + _GAP * (len(widths) - 1)
    if ax is None:
        ax = plt.subplots(figsize=(1.5 + 0.62 * right, 1.3 + 0.42 * rows))[1]
    left = 0
    for (name, panel), width in zip(panels.items(), widths, strict=True):
        if left:
            ends = (left - _GAP + 0.1, rows / 2), (left - 0.18, rows / 2)
            look = {"arrowstyle": "-|>", "mutation_scale": 16, "color": GREY, "linewidth": 2}
            ax.add_patch(FancyArrowPatch(*ends, **look))
        _panel(ax, panel, left, 0, name)
        left += width + _GAP
    _frame(ax, right, rows, title)
    source_note(ax, "measured here", "the values that came back from the ranks")
    return ax


@course_style()
def plot_film(films, title="Step by step", columns=4, ax=None):
    """Draw an algorithm made of messages: what each rank holds at the start and after each step.

    `films`: the `Film` of each rank, rank 0 first. A thick frame marks what a step has changed.
    """
    steps = frames(films)
    n_ranks, width = len(steps[0]["buffers"]), max(len(row) for row in steps[0]["buffers"])
    columns = min(columns, len(steps))
    lines = -(-len(steps) // columns)
    height = n_ranks + 1.0
    if ax is None:
        size = (1.2 + 0.5 * columns * (width + _GAP), 0.9 + 0.36 * lines * height)
        ax = plt.subplots(figsize=size)[1]
    for k, step in enumerate(steps):
        left, top = k % columns * (width + _GAP), k // columns * height
        was = steps[k - 1]["buffers"] if k else step["buffers"]
        _panel(ax, step["buffers"], left, top, _caption(k, step), was, names=k % columns == 0)
    _frame(ax, columns * (width + _GAP) - _GAP, lines * height - 1.0, title)
    source_note(ax, "measured here", "what the ranks held before each message that they sent")
    return ax


def _caption(k, step):
    sizes = {message["n_bytes"] for message in step["messages"]}
    return f"step {k} · {sizes.pop()} bytes each" if len(sizes) == 1 else f"step {k}" if k else "start"


def _values(row):
    return None if row is None else [int(value) for value in row]


def _panel(ax, buffers, left, top, name, was=None, names=True):
    """Draw the buffers of all ranks, one row each, its first box at (`left`, `top`)."""
    ax.text(left, top - 0.12, name, ha="left", va="bottom", color=GREY, fontsize=points(10))
    for rank, row in enumerate(buffers):
        y = top + rank
        if names and left == 0:
            words = {"ha": "right", "va": "center", "color": rank_color(rank), "weight": "bold"}
            ax.text(left - 0.15, y + _HEIGHT / 2, f"rank {rank}", fontsize=points(11), **words)
        if row is None:
            ax.text(left + 0.1, y + _HEIGHT / 2, "–", va="center", color=GREY, fontsize=points(11))
        for j, value in enumerate(row or ()):
            _box(ax, left + j, y, value, changed=was is not None and was[rank][j] != value)


def _box(ax, x, y, value, changed):
    """Draw one value on stripes in the colours of the ranks that it comes from, under their digits."""
    ranks = contributors(value)
    width = 0.92
    for i, rank in enumerate(ranks):
        corner = (x + i * width / len(ranks), y)
        ax.add_patch(Rectangle(corner, width / len(ranks), _HEIGHT, color=_tint(rank), linewidth=0))
    look = {"edgecolor": INK, "linewidth": 2} if changed else {"edgecolor": "#999999", "linewidth": 0.8}
    dotted = {} if ranks else {"linestyle": ":"}
    ax.add_patch(Rectangle((x, y), width, _HEIGHT, facecolor="none", zorder=3, **look, **dotted))
    if ranks:
        size = points(10 if len(str(value)) < 5 else 7)
        ax.text(x + width / 2, y + _HEIGHT / 2, value, ha="center", va="center", fontsize=size, color=INK)


def _tint(rank, share=0.45):
    """The colour of a rank, pale enough for dark digits."""
    return tuple(1 - share * (1 - part) for part in to_rgb(rank_color(rank)))


def _frame(ax, right, bottom, title):
    ax.set(xlim=(-1.45, right + 0.1), ylim=(bottom + 0.1, -0.75), title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)


# ------------------------------------------------------------------------------------------ who to whom


@course_style()
def plot_links(algorithms, n_bytes, node=2, axes=None):
    """Draw how much each rank sends to each other, a panel for each algorithm; returns the Axes.

    `algorithms`: name → the `Film` of each rank; `n_bytes`: of the tensor, S. Thick lines part nodes of
    `node` ranks; the title of a panel says how much crosses them.
    """
    if axes is None:
        axes = plt.subplots(1, len(algorithms), figsize=(4.1 * len(algorithms), 3.9), squeeze=False)[1][0]
    for ax, (name, films) in zip(axes, algorithms.items(), strict=True):
        steps = frames(films)
        n = len(steps[0]["buffers"])
        sent = [[0.0] * n for _ in range(n)]
        for message in (message for step in steps for message in step["messages"]):
            sent[message["source"]][message["destination"]] += message["n_bytes"] / n_bytes
        ax.imshow(sent, cmap="Blues", vmin=0, vmax=2.5)
        for source, row in enumerate(sent):
            for destination, share in enumerate(row):
                text = f"{share:.3g} S" if share else ("" if source != destination else "–")
                ax.text(destination, source, text, ha="center", va="center", fontsize=points(11))
        for border in range(node, n, node):
            ax.axhline(border - 0.5, color=INK, linewidth=2.5)
            ax.axvline(border - 0.5, color=INK, linewidth=2.5)
        crossing = sum(sent[i][j] for i in range(n) for j in range(n) if i // node != j // node)
        ax.set(xlabel="to rank", ylabel="from rank", xticks=range(n), yticks=range(n))
        ax.set_title(f"{name}\n{len(steps) - 1} steps, {crossing:.3g} S between nodes", fontsize="medium")
        ax.grid(False)
    source_note(axes[0], "measured here", "")
    return axes


# ------------------------------------------------------------------------------------------ what it costs


@course_style()
def plot_alpha_beta(samples, model, n_ranks=2, predicted=(), ax=None):
    """Draw measured all_reduce times against bytes, and what the fitted α–β model says.

    `samples`: bytes → list of seconds; the median, and a bar from the 10th to the 90th percentile.
    `predicted`: bytes → seconds measured afterwards, which the fit has not seen.
    """
    ax = plt.subplots(figsize=(9.5, 4))[1] if ax is None else ax
    n_bytes = sorted(samples)
    medians = [statistics.median(samples[size]) for size in n_bytes]
    low, high = ([_percentile(samples[size], p) for size in n_bytes] for p in (10, 90))
    errors = [
        [max(0, m - a) for m, a in zip(medians, low, strict=True)],
        [max(0, b - m) for m, b in zip(medians, high, strict=True)],
    ]
    ax.errorbar(n_bytes, medians, errors, fmt="o", label="measured: median, 10–90 %", zorder=3)
    grid = [n_bytes[0] * (n_bytes[-1] / n_bytes[0]) ** (i / 100) for i in range(101)]
    ax.plot(grid, [model.all_reduce(n_ranks, s) for s in grid], color=INK, label="fitted: α and β together")
    messages = 2 * (n_ranks - 1)
    ax.axhline(messages * model.alpha, color=GREY, linestyle=":", label=f"{messages} α alone")
    slope = 2 * (n_ranks - 1) / n_ranks * model.beta
    ax.plot(grid, [slope * size for size in grid], color=GREY, linestyle="--", label="bytes · β alone")
    if predicted:
        sizes = sorted(predicted)
        look = {"color": RANK_COLORS[5], "markersize": 10, "linestyle": "none", "zorder": 4}
        ax.plot(sizes, [predicted[s] for s in sizes], "D", label="measured later, not fitted", **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_ylim(bottom=min(*low, messages * model.alpha or min(low)) / 3)
    ax.set_xticks([size for size in (2**power for power in range(10, 31, 3)) if size <= n_bytes[-1]])
    ax.xaxis.set_major_formatter(binary)
    ax.yaxis.set_major_formatter(EngFormatter("s"))
    ax.set(xlabel="bytes of the tensor", ylabel="seconds", title=f"all_reduce on {n_ranks} ranks: α, then β")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")
    return ax


@in_style
def plot_algorithms(model, n_ranks, ax=None):
    """Draw the seconds of three all_reduce algorithms on `n_ranks` against bytes, by the α–β model."""
    grid = [2 ** (i / 4) for i in range(40, 121)]
    for algorithm, color in zip(ALGORITHMS, RANK_COLORS, strict=False):
        seconds = [model.all_reduce(n_ranks, size, algorithm) for size in grid]
        ax.plot(grid, seconds, label=algorithm, color=color)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks([2**power for power in range(10, 31, 5)])
    ax.xaxis.set_major_formatter(binary)
    ax.yaxis.set_major_formatter(EngFormatter("s"))
    ax.set(xlabel="bytes of the tensor", ylabel="seconds", title=f"all_reduce on {n_ranks} ranks, three ways")
    ax.legend()
    source_note(ax, "computed", f"α–β model, {model}")


def _percentile(values, percent):
    values = sorted(values)
    place = percent / 100 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
