"""Figures of lesson 05: who holds which part of a model, what is said between them, and what it costs."""

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    course_style,
    in_style,
    overlay,
    points,
    rank_color,
    source_note,
)

_WHOLE = "#d9d9d9"  # what every rank holds


def _tint(rank, share=0.55):
    """The colour of a rank, pale enough for dark letters."""
    return tuple(1 - share * (1 - part) for part in to_rgb(rank_color(rank)))


def _box(ax, x, y, width, height, face, text="", size=10, **kwargs):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor="white", linewidth=1.2))
    if text:
        place = {"ha": "center", "va": "center", "color": INK, "fontsize": points(size)}
        ax.text(x + width / 2, y + height / 2, text, **{**place, **kwargs})


def _arrow(ax, start, end):
    look = {"arrowstyle": "-|>", "mutation_scale": 14, "color": GREY, "linewidth": 1.6}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))


def _empty(ax, width, height, title):
    """A canvas without axes, y downwards; `title` in the size of a panel's."""
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.set_title(title, fontsize="medium")
    ax.spines[:].set_visible(False)
    ax.grid(False)


# ------------------------------------------------------------------------------------- who holds which part


@course_style()
def plot_model_cuts(n_layers=8, n_ranks=4):
    """Draw two ways to share a model out: whole layers to a rank, or a piece of every layer to each."""
    axes = plt.subplots(1, 2, figsize=(9.5, 3.6))[1]
    for ax, title in zip(axes, ("cut between the layers", "cut inside every layer"), strict=True):
        _empty(ax, n_ranks + 1.2, n_layers + 0.2, title)
        for layer in range(n_layers):
            place = {"ha": "right", "va": "center", "fontsize": points(10), "color": GREY}
            ax.text(1.05, layer + 0.45, f"layer {layer}", **place)
            if ax is axes[0]:
                rank = layer * n_ranks // n_layers
                _box(ax, 1.2, layer, n_ranks, 0.9, _tint(rank), f"rank {rank}")
            else:
                for rank in range(n_ranks):
                    _box(ax, 1.2 + rank, layer, 1, 0.9, _tint(rank), "" if layer else f"rank {rank}")
    source_note(axes[0], "computed", f"{n_layers} layers, {n_ranks} ranks")
    return axes


@course_style()
def plot_matrix_split(n_ranks=4, ax=None):
    """Draw X·A = Y with A cut in columns (above) and in rows (below); grey is whole on every rank.

    Source: Shoeybi et al., Megatron-LM, arXiv:1909.08053, 2019, section 3.
    """
    if ax is None:
        ax = plt.subplots(figsize=(9.5, 4.6))[1]
    _empty(ax, 14.6, 6.1, "")
    ax.set_title("One product X · A, cut in two ways")
    for top, name in ((0.5, "by columns"), (3.5, "by rows")):
        ax.text(0, top + 1, name, va="center", weight="bold", fontsize=points(11))
        for x, sign in ((4.25, "·"), (7.25, "=")):
            ax.text(x, top + 1, sign, ha="center", va="center", fontsize=points(16))
    words = {"ha": "center", "va": "bottom", "color": GREY, "fontsize": points(10)}
    for x, name in ((3, "X"), (5.75, "A"), (8.75, "Y")):
        ax.text(x, 0.4, name, **words)
        ax.text(x, 3.4, name if name != "Y" else "the sum of", **words)
    part = 2 / n_ranks
    _box(ax, 2, 0.5, 2, 2, _WHOLE, "whole")
    for rank in range(n_ranks):
        color = _tint(rank)
        _box(ax, 4.75 + rank * part, 0.5, part, 2, color, str(rank))  # columns of A
        _box(ax, 7.75 + rank * part, 0.5, part, 2, color, str(rank))  # columns of Y
        _box(ax, 2 + rank * part, 3.5, part, 2, color, str(rank))  # columns of X
        _box(ax, 4.75, 3.5 + rank * part, 2, part, color, str(rank))  # rows of A
        size, left = 6 / n_ranks, 7.75 + rank * 7 / n_ranks
        _box(ax, left, 3.5 + 1 - size / 2, size, size, color, str(rank))  # one term of Y
        if rank:
            ax.text(left - 0.5 / n_ranks, 4.5, "+", ha="center", va="center", fontsize=points(13))
    ax.text(10.0, 1.5, "each rank has its columns of Y;\nnothing to send", va="center", fontsize=points(10))
    ax.text(7.75, 5.45, "each rank has one term of every number: all_reduce", va="top", fontsize=points(10))
    source_note(ax, "computed", "the number is the rank that holds the block")
    return ax


@course_style()
def plot_parallel_block(enter, leave, parts=("columns of A", "GELU", "rows of B"), n_ranks=4, split=False):
    """Draw what happens between x and y in a block whose inside is shared out among the ranks.

    `enter`, `leave`: (name, what it does in forward, what it does in backward). With `split`, x and y are
    cut too, along the sequence, as in sequence parallelism.
    Sources: arXiv:1909.08053, figure 3; Korthikanti et al., arXiv:2205.05198, figure 5.
    """
    ax = plt.subplots(figsize=(9.5, 3.6))[1]
    _empty(ax, 15, n_ranks + 1.9, "")
    ax.set_title("forward → and ← backward through one block")
    middle, words = n_ranks / 2 + 0.1, {"ha": "center", "fontsize": points(10)}
    for x, name in ((0.1, "x"), (13.9, "y")):
        for rank in range(n_ranks if split else 1):
            _box(ax, x, 0.1 + rank, 1, 1 if split else n_ranks, _tint(rank) if split else _WHOLE)
        ax.text(x + 0.5, middle, name, ha="center", va="center", weight="bold")
    for x, (name, forward, backward) in ((3.1, enter), (11.9, leave)):
        _box(ax, x - 0.8, 0.1, 1.6, n_ranks, "#f3f3f3", name, size=13, weight="bold")
        ax.text(x, n_ranks + 0.25, f"→ {forward}", va="top", color=INK, **words)
        ax.text(x, n_ranks + 0.95, f"← {backward}", va="top", color=INK, **words)
    width = 6.6 / len(parts)
    for rank in range(n_ranks):
        for i, text in enumerate(parts):
            _box(ax, 4.2 + i * width, 0.15 + rank, width, 0.9, _tint(rank), text, size=9)
    for start in (1.15, 10.8):
        _arrow(ax, (start, middle), (start + (1.1 if start < 2 else 0.3), middle))
    _arrow(ax, (3.9, middle), (4.2, middle))
    _arrow(ax, (12.7, middle), (13.85, middle))
    ends = "x and y are cut along the sequence" if split else "grey is whole on every rank"
    source_note(ax, "computed", f"a colour is a rank; {ends}")
    return ax


# ------------------------------------------------------------------------------------------ what it costs


@course_style()
def plot_layer_times(rows, title, source, ax=None):
    """Draw computing and communicating of one layer as bars, one for each link.

    `rows`: dicts with link, compute_ms and communication_ms; `source`: the assumptions, for the note.
    """
    ax = plt.subplots(figsize=(9.5, 3.8))[1] if ax is None else ax
    for i, row in enumerate(rows):
        total = row["compute_ms"] + row["communication_ms"]
        ax.barh(i, row["compute_ms"], 0.6, color=RANK_COLORS[0], label="computing" if not i else None)
        look = {"color": RANK_COLORS[1], "label": "communicating" if not i else None}
        ax.barh(i, row["communication_ms"], 0.6, row["compute_ms"], **look)
        text = f"{row['communication_ms'] / total:.0%} communicating"
        ax.annotate(text, (total, i), (5, 0), textcoords="offset points", va="center", fontsize=points(10))
    longest = max(row["compute_ms"] + row["communication_ms"] for row in rows)
    ax.set_yticks(range(len(rows)), [row["link"] for row in rows])
    ax.set(xlabel="milliseconds", xlim=(0, 1.4 * longest), title=title)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper right")
    source_note(ax, "computed", source)
    return ax


@course_style()
def plot_tensor_parallel_scaling(published, computed, ax=None):
    """Draw published speed a GPU of tensor parallelism beside a computed one, relative to one GPU.

    `published`: rows of one table with `tp` and `weak_scaling_percent`, a list for each system; `computed`:
    name of the system → (list of tp, list of percent).
    """
    ax = plt.subplots(figsize=(9.5, 3.8))[1] if ax is None else ax
    for rows, color in zip(published, RANK_COLORS, strict=False):
        system, tp = rows[0]["gpu"], [row["tp"] for row in rows]
        percent = [100 if row["tp"] == 1 else row["weak_scaling_percent"] for row in rows]
        overlay(ax, tp, percent, rows, color=color)
        ax.plot(*computed[system], color=color, label=f"computed · {system}")
    ax.set_xticks(sorted({row["tp"] for rows in published for row in rows}))
    ax.set(xlabel="GPUs of one tensor-parallel group", ylabel="% of the speed of one GPU", ylim=(0, 105))
    ax.set_title("What tensor parallelism keeps of a GPU's speed")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", "bytes over bandwidth, no latency, no overlap")
    return ax


@in_style
def plot_ring_attention(n_ranks=4, causal=True, ax=None):
    """Draw which block of keys and values each rank looks at in each step of ring attention.

    Pale: the whole block lies in the future of this rank's queries. Source: Liu et al., arXiv:2310.01889.
    """
    for rank in range(n_ranks):
        for step in range(n_ranks):
            block = (rank - step) % n_ranks
            useful = block <= rank or not causal
            color = _tint(block) if useful else _tint(block, 0.1)
            text = f"block {block}" if useful else "masked"
            _box(ax, step - 0.48, rank - 0.46, 0.96, 0.92, color, text, color=INK if useful else GREY)
    ax.set(xlim=(-0.5, n_ranks - 0.5), ylim=(n_ranks - 0.5, -0.5), xlabel="step")
    ax.set_xticks(range(n_ranks))
    ax.set_yticks(range(n_ranks), [f"rank {rank}" for rank in range(n_ranks)])
    ax.set_title("Ring attention: whose keys and values, when?")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    source_note(ax, "computed", "causal: a block of the future is masked" if causal else "not causal")
