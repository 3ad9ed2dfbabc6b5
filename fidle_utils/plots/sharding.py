"""Figures of lesson 08: who holds what, what is gathered when, what activations are made of."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from fidle_utils.memory_formulas import MIXED, model_state_bytes
from fidle_utils.plots.memory import _COLORS
from fidle_utils.plots.style import (
    GREY,
    INK,
    byte_unit,
    course_style,
    in_style,
    ink_on,
    points,
    rank_color,
    source_note,
)

STATES = ("parameters", "gradients", "optimizer states")
STAGE_NAMES = ("data parallelism", "ZeRO-1: states", "ZeRO-2: + gradients", "ZeRO-3: + parameters")
_STAGE_COLORS = {1: rank_color(0), 2: rank_color(1), 3: rank_color(2)}


@in_style
def plot_who_holds_what(n_ranks=4, precision=MIXED, title="What each rank holds", ax=None):
    """Draw the bytes of parameters, gradients and optimizer states that each rank holds at each ZeRO stage.

    As figure 1 of ZeRO, arXiv:1910.02054: pale is what a rank no longer holds. The width of a part is its
    bytes for one parameter; the sum stands at the right.
    """
    full = sum(precision)
    ax.figure.set_size_inches(8.6, 2.2 + 0.72 * (n_ranks + 1.6) / 1.5)
    for stage in range(4):
        held = model_state_bytes(1, stage, n_ranks, precision)
        for rank in range(n_ranks):
            y, left = stage * (n_ranks + 1.6) + rank, 0
            for part, width in zip(STATES, precision, strict=True):
                cut = held[part] < width
                ax.add_patch(Rectangle((left, y), width, 0.86, facecolor="#eeeeee", edgecolor="white"))
                start = left + (rank * width / n_ranks if cut else 0)
                look = {"facecolor": _COLORS[part], "edgecolor": "white"}
                ax.add_patch(Rectangle((start, y), held[part], 0.86, **look))
                left += width
        middle = stage * (n_ranks + 1.6) + n_ranks / 2
        size = sum(held.values())
        ax.text(full + 0.2, middle, f"{size:.3g} bytes", va="center", fontsize=points(11))
        ax.text(0, stage * (n_ranks + 1.6) - 0.12, STAGE_NAMES[stage], va="bottom", fontsize=points(10))
    middles = [stage * (n_ranks + 1.6) + rank + 0.43 for stage in range(4) for rank in range(n_ranks)]
    ax.set_yticks(middles, [f"rank {rank}" for _ in range(4) for rank in range(n_ranks)], fontsize=points(8))
    ax.set(
        xlim=(0, full + 4),
        xticks=range(0, int(full) + 1, 2),
        ylim=(4 * (n_ranks + 1.6) - 1.4, -1.4),
        title=title,
    )
    ax.set_xlabel("bytes for each parameter")
    ax.grid(visible=False)
    handles = [Rectangle((0, 0), 1, 1, facecolor=_COLORS[part], label=part) for part in STATES]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", "after figure 1 of ZeRO, arXiv:1910.02054")


@course_style()
def plot_zero_table(rows, device_gb=None):
    """Draw Table 1 of ZeRO, arXiv:1910.02054: GB of model states a rank, a panel for each model.

    `rows`: `table("zero_table1")`, drawn as dots; the lines are `model_state_bytes`. `device_gb`: the memory
    of a device, drawn as a line. Returns the Axes of the panels.
    """
    models = sorted({row["parameters_billion"] for row in rows})
    figure, axes = plt.subplots(1, len(models), figsize=(10.5, 4), sharey=True)
    ranks = [2 ** (k / 4) for k in range(41)]
    for ax, billions in zip(axes, models, strict=True):
        for stage, color in _STAGE_COLORS.items():
            gb = [sum(model_state_bytes(billions, stage, n).values()) for n in ranks]
            ax.plot(ranks, gb, color=color, label=f"stage {stage}, computed")
            printed = [
                row for row in rows if (row["parameters_billion"], row["zero_stage"]) == (billions, stage)
            ]
            xy = [row["n_ranks"] for row in printed], [row["memory_gb"] for row in printed]
            ax.plot(*xy, "o", color=color, markeredgecolor="white", label=f"stage {stage}, published")
        if device_gb:
            ax.axhline(device_gb, color=GREY, linestyle="--")
            place = {"va": "top", "transform": ax.get_yaxis_transform(), "fontsize": points(10)}
            ax.text(0.02, 0.85 * device_gb, f"{device_gb} GB", color=GREY, **place)
        ax.set(xscale="log", yscale="log", title=f"{billions:g} billion")
        ax.set_xticks([1, 16, 256])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.15g}".replace(",", "\u202f")))
        ax.minorticks_off()
    axes[len(models) // 2].set_xlabel("ranks")
    axes[0].set_ylabel("GB of model states on a rank")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(axes[0], "published", "ZeRO, Table 1")
    return axes


@course_style()
def plot_stages(held, sent, predicted_held, predicted_sent):
    """Draw what a rank holds and sends at each stage: measured bars, and a mark where the formula says.

    `held`: stage → dict of parameters, gradients, optimizer states in bytes; `sent`: stage → bytes sent in a
    step; `predicted_…`: stage → bytes in all. Returns the two Axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4))
    names = [f"stage {stage}" for stage in held]
    unit, factor = byte_unit(max(predicted_held.values()))
    bottom = [0] * len(held)
    for part in STATES:
        heights = [parts[part] / factor for parts in held.values()]
        axes[0].bar(names, heights, 0.6, bottom, color=_COLORS[part], label=part, edgecolor="white")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes[0].set(title="Held at the end of backward", ylabel=f"{unit} on a rank")
    sent_unit, sent_factor = byte_unit(max(predicted_sent.values()))
    axes[1].bar(
        names, [n_bytes / sent_factor for n_bytes in sent.values()], 0.6, color=rank_color(5), label="sent"
    )
    axes[1].set(title="Sent in a step", ylabel=f"{sent_unit} by a rank")
    for ax, predicted, scale in ((axes[0], predicted_held, factor), (axes[1], predicted_sent, sent_factor)):
        marks = [n_bytes / scale for n_bytes in predicted.values()]
        low, high = [x - 0.4 for x in range(len(marks))], [x + 0.4 for x in range(len(marks))]
        ax.hlines(marks, low, high, colors=INK, linestyles=(0, (2, 1)), label="formula")
        for x, mark in enumerate(marks):
            ax.annotate(f"{mark:.3g}", (x, mark), (0, 3), textcoords="offset points", ha="center")
        ax.set_ylim(0, 1.15 * max(marks))
        ax.grid(axis="x", visible=False)
    axes[0].legend(loc="upper right")
    axes[1].legend(loc="upper left")
    source_note(axes[0], "measured here")
    return axes


@in_style
def plot_gathered(logs, whole=None, title="Full parameters on a rank, during one step", ax=None):
    """Draw how many bytes of full parameters a rank holds while a step goes on.

    `logs`: label → list of the bytes held after each gather and each free, in their order. `whole`: the
    bytes of all parameters, drawn as a line.
    """
    highest = max(whole or 0, *(max(log) for log in logs.values()))
    unit, factor = byte_unit(highest)
    for i, (label, log) in enumerate(logs.items()):
        levels = [0, *(n_bytes / factor for n_bytes in log)]
        color = rank_color(i)
        ax.fill_between(range(len(levels)), levels, step="post", color=color, alpha=0.25, linewidth=0)
        ax.step(range(len(levels)), levels, where="post", label=label, color=color, linewidth=2)
    if whole:
        ax.axhline(whole / factor, color=GREY, linestyle="--", label="all of them")
    ax.set(xlabel="gathers and frees, in their order", ylabel=f"{unit} of full parameters", title=title)
    ax.set_ylim(0, 1.1 * highest / factor)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")


@course_style()
def plot_shards(owners, rows, columns, n_ranks=4, note="read on each rank"):
    """Draw a layer of `rows` × `columns` weights and `rows` biases: the colour of a number is its rank's.

    `owners`: how it is cut → dict, number → rank; numbers count row by row, the biases last.
    Returns the Axes.
    """
    figure, axes = plt.subplots(1, len(owners), figsize=(10.5, 3.9))
    for ax, (title, owner) in zip(axes, owners.items(), strict=True):
        for number in range(rows * columns + rows):
            in_weight = number < rows * columns
            x = number % columns if in_weight else columns + 0.4
            y = number // columns if in_weight else number - rows * columns
            rank = owner[number]
            box = {"facecolor": rank_color(rank), "edgecolor": "white", "linewidth": 2}
            ax.add_patch(Rectangle((x, y), 1, 1, **box))
            look = {"ha": "center", "va": "center", "color": ink_on(rank_color(rank)), "fontsize": points(10)}
            ax.text(x + 0.5, y + 0.52, str(rank), **look)
        ax.set(xlim=(-0.1, columns + 2.1), ylim=(rows + 0.1, -0.1), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title.replace(": ", ":\n"), fontsize=points(11))
        ax.set_xlabel("weight" + 12 * " " + "bias" + 6 * " ", fontsize=points(10))
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=rank_color(rank), label=f"rank {rank}") for rank in range(n_ranks)
    ]
    axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(axes[0], "measured here", note)
    return axes


@in_style
def plot_activation_terms(predicted, measured, unit_bytes, title="What a layer keeps for backward", ax=None):
    """Draw what each operation of a layer saves: the formula's bytes beside the bytes that autograd holds.

    `predicted`: operation → bytes, in the order of forward; `measured`: a list of bytes in the same order.
    `unit_bytes`: the bytes of sbh, in which both are drawn.
    """
    names = list(predicted)
    ax.figure.set_size_inches(8.6, 5.2)
    pairs = ((predicted.values(), -0.2, rank_color(0), "formula"), (measured, 0.2, rank_color(1), "measured"))
    for sizes, shift, color, label in pairs:
        places = [y + shift for y in range(len(names))]
        ax.barh(places, [size / unit_bytes for size in sizes], 0.38, color=color, label=label)
    for y, size in enumerate(measured):
        text = f"{size / unit_bytes:.3g}"
        ax.annotate(text, (size / unit_bytes, y), (5, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="bytes, in units of s·b·h", title=title, ylim=(len(names) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right")
    source_note(ax, "measured here")


@in_style
def plot_offload(tokens, devices, title="Does the step hide the transfer?", ax=None):
    """Draw the time to compute a step against its tokens, and the time to move what offloading moves.

    `tokens`: tokens that a GPU reads in a step; `devices`: name → (seconds to compute for each, seconds to
    move). Where a line is above the dashed one of its colour, arithmetic could hide the transfer.
    """
    for i, (name, (computing, moving)) in enumerate(devices.items()):
        color = rank_color(i)
        ax.plot(tokens, computing, color=color, label=f"{name}: arithmetic")
        ax.axhline(moving, color=color, linestyle="--", label=f"{name}: transfer, {moving:.2g} s")
    ax.set(xscale="log", yscale="log", xlabel="tokens that a GPU reads in a step", ylabel="seconds")
    ax.set_title(title)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.15g}".replace(",", "\u202f")))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", "from published rates")
