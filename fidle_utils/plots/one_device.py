"""Figures of lesson 02: one device, its memory, its queue, its number formats, its data."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from fidle_utils.plots.style import GREY, INK, RANK_COLORS, course_style, in_style, points, source_note
from fidle_utils.plots.timeline import plot_timeline

__all__ = [
    "plot_accumulation",
    "plot_loss_scaling",
    "plot_memory_ladder",
    "plot_number_formats",
    "plot_orders",
    "plot_timelines",
    "plot_waves",
    "plot_workers",
]

LOOKS = {"measured here": (RANK_COLORS[0], ""), "published": ("#bbbbbb", "")}


@course_style()
def plot_memory_ladder(rows, source):
    """Draw bandwidths from the nearest memory to the farthest, on a logarithmic axis.

    `rows`: (name, bytes per second, "measured here" or "published"); `source`: of the published ones.
    """
    ax = plt.subplots(figsize=(9, 0.7 + 0.55 * len(rows)))[1]
    rates = [rate / 1e9 for _, rate, _ in rows]
    kinds = list(dict.fromkeys(kind for _, _, kind in rows))
    ys = [i + 0.5 * kinds.index(kind) for i, (_, _, kind) in enumerate(rows)]  # a gap between the machines
    bars = ax.barh(ys, rates, 0.62, color=[LOOKS[kind][0] for _, _, kind in rows])
    ax.bar_label(
        bars, [f"{rate:,.3g} GB/s" if rate < 1000 else f"{rate:,.0f} GB/s" for rate in rates], padding=5
    )
    ax.set_yticks(ys, [name for name, _, _ in rows])
    ax.invert_yaxis()
    ax.set(xscale="log", xlim=(min(rates) / 3, max(rates) * 9), xlabel="GB/s")
    ax.set_title("The farther, the slower, on every machine")
    ax.grid(axis="y", visible=False)
    handles = [Patch(facecolor=LOOKS[kind][0], label=kind) for kind in kinds]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "published", f"{source} · blue: measured here")
    return ax


@course_style()
def plot_orders(runs, kind):
    """Draw what host and device did; `runs`: title → (host, device), lists of (start, end) in milliseconds.

    `kind` is "measured here" or "emulated". The k-th order has one colour, on the host and on the device.
    """
    axes = plt.subplots(len(runs), 1, figsize=(9.5, 1.1 + 1.5 * len(runs)), sharex=True, squeeze=False)[1][
        :, 0
    ]
    for ax, (title, lanes) in zip(axes, runs.items(), strict=True):
        for row, spans in enumerate(lanes):
            for k, (start, end) in enumerate(spans):
                ax.barh(
                    row, end - start, 0.7, start, color=RANK_COLORS[k % len(RANK_COLORS)], edgecolor="white"
                )
        ax.axvline(lanes[0][-1][1], color=INK, linestyle=":", linewidth=1.5)
        ax.axvline(lanes[1][-1][1], color=INK, linewidth=1.5)
        ax.set_yticks([0, 1], ["host", "device"])
        ax.set_ylim(1.6, -0.6)
        ax.set_title(title, fontsize="medium")
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("milliseconds · dotted: the last order is given · solid: it is carried out")
    source_note(
        axes[-1],
        kind,
        "host work: a sleep"
        if kind == "measured here"
        else "device: a thread · its work and the host's: sleeps",
    )
    return axes


@in_style
def plot_number_formats(formats, gradients=None, ax=None):
    """Draw the range of positive numbers of each format, and where the gradients of a model lie in it.

    `formats`: name → torch.finfo. Pale: subnormal numbers, which have fewer digits. `gradients`: a tensor.
    Formats that reach beyond the figure say how far.
    """
    low, high = -15, 8
    if gradients is not None:
        sizes = gradients.abs().flatten()
        heights, edges = np.histogram(sizes[sizes > 0].log10().numpy(), bins=np.arange(low, high, 0.25))
        heights = (len(formats) - 0.1) * heights / heights.max()
        look = {"color": "#cfe3f3", "zorder": 0, "align": "edge"}
        ax.bar(edges[:-1], -heights, np.diff(edges), len(formats) - 0.5, **look)
        ax.text(low + 0.5, len(formats) - 1.5, "pale columns: the sizes\nof a model's gradients", color=GREY)
    for row, info in enumerate(formats.values()):
        color = RANK_COLORS[row]
        smallest, normal, largest = (
            math.log10(x) for x in (info.smallest_normal * info.eps, info.smallest_normal, info.max)
        )
        ax.barh(row, largest - normal, 0.45, normal, color=color, zorder=2)
        ax.barh(row, normal - smallest, 0.45, smallest, color=color, alpha=0.5, zorder=2)
        if largest > high:
            text = rf"← from $10^{{{smallest:.0f}}}$        to $10^{{{math.floor(largest)}}}$ →"
            place = {"ha": "center", "va": "center", "color": "white", "fontsize": points(11), "zorder": 3}
            ax.text((low + high) / 2, row, text, **place)
        ax.text(high + 0.4, row, f"1 + {info.eps:.2g}", va="center", color=color)
    ax.text(high + 0.4, -0.55, "next after 1", va="bottom", color=INK, fontsize=points(11))
    ax.set_yticks(range(len(formats)), list(formats))
    ax.set(xlim=(low, high), ylim=(len(formats) - 0.5, -0.5), xlabel="size of a number")
    ax.set_xticks(range(low, high + 1, 5), [rf"$10^{{{tick}}}$" for tick in range(low, high + 1, 5)])
    ax.set_title("What a format can hold")
    ax.grid(axis="y", visible=False)
    source_note(ax, "computed", None if gradients is None else "the gradients: measured here")


@course_style()
def plot_loss_scaling(scales, lost, overflown, curves):
    """Draw what fp16 loses at each loss scale, and loss curves with and without scaling.

    `lost`, `overflown`: shares of the gradients that became 0 or infinite, one for each of `scales`;
    `curves`: label → losses.
    """
    left, right = plt.subplots(1, 2, figsize=(10.5, 3.9), width_ratios=[1, 1.1])[1]
    powers = [math.log2(scale) for scale in scales]
    left.plot(powers, [100 * share for share in lost], "o-", label="became 0")
    left.plot(
        powers, [100 * share for share in overflown], "s-", color=RANK_COLORS[5], label="became infinite"
    )
    left.set(
        xlabel="loss scale, a power of 2",
        ylabel="% of the gradients",
        ylim=(-4, 108),
        title="Gradients in fp16",
    )
    left.legend(loc="center")
    looks = [{"color": "#bbbbbb", "linewidth": 7}, {"color": RANK_COLORS[5]}, {"color": RANK_COLORS[0]}]
    for (label, losses), look in zip(curves.items(), looks, strict=False):
        right.plot(range(1, len(losses) + 1), losses, label=label, **look)
    highest = max(losses[0] for losses in curves.values())  # a curve that leaves the figure has gone astray
    right.set(xlabel="step", ylabel="loss", title="The same training", ylim=(0, 2.2 * highest))
    right.legend(loc="lower left")
    source_note(left, "emulated", "fp16 by casts")
    return left, right


@in_style
def plot_workers(waits, ax=None):
    """Draw the share of a step spent waiting for data; `waits`: number of workers → share."""
    bars = ax.bar(range(len(waits)), [100 * wait for wait in waits.values()], 0.6)
    ax.bar_label(bars, [f"{wait:.0%}" for wait in waits.values()], padding=3)
    ax.set_xticks(range(len(waits)), list(waits))
    ax.set(xlabel="workers", ylabel="% of the time", ylim=(0, 112), title="Waiting for data")
    ax.grid(axis="x", visible=False)
    source_note(ax, "measured here", "the reading of an image is emulated by a sleep")


@in_style
def plot_waves(multiprocessors, tile=(128, 256), n_max=6144, ax=None):
    """Draw the share of a GPU's multiprocessors at work in an n×n matmul; `multiprocessors`: GPU → how many.

    One tile of the result goes to one multiprocessor; a wave is one tile for each of them. Also counted as
    lost is the part of tiles that hangs over the edge of the result. Source: NVIDIA, Matrix Multiplication
    Background User's Guide, sections on tile and wave quantization.
    """
    sides = np.arange(tile[0], n_max + 1, 32)
    for name, count in multiprocessors.items():
        ax.plot(sides, [100 * wave_efficiency(n, count, tile) for n in sides], linewidth=1.6, label=name)
    ax.axhline(100, color=GREY, linestyle=":")
    ax.set(xlabel="n", ylabel="% at work", ylim=(0, 106), title="Waves of tiles in an n × n matmul")
    ax.legend(loc="lower right")
    source_note(ax, "computed", f"tiles of {tile[0]} × {tile[1]}, one on each multiprocessor at a time")


def wave_efficiency(n, multiprocessors, tile=(128, 256)):
    """Return the useful share of the time of all multiprocessors in an n×n matmul, from 0 to 1."""
    tiles = math.ceil(n / tile[0]) * math.ceil(n / tile[1])
    waves = math.ceil(tiles / multiprocessors)
    return n * n / (tile[0] * tile[1]) / (waves * multiprocessors)


@in_style
def plot_accumulation(rows, ax=None):
    """Draw bytes against the number of micro-batches; `rows`: micro-batches → dict of part → bytes."""
    parts = list(next(iter(rows.values())))
    bottom = np.zeros(len(rows))
    for i, part in enumerate(parts):
        heights = np.array([row[part] / 1e6 for row in rows.values()])
        ax.bar(range(len(rows)), heights, 0.6, bottom, color=RANK_COLORS[i], label=part)
        bottom += heights
    ax.set_xticks(range(len(rows)), list(rows))
    ax.set(xlabel="micro-batches", ylabel="MB", title="The same batch, in smaller parts")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right")
    source_note(ax, "measured here")


@course_style()
def plot_timelines(timelines, span_ms=None):
    """Draw timelines of one process below each other; `timelines`: title → `Timeline`.

    Each shows its first `span_ms` milliseconds, or all of it.
    """
    figure, axes = plt.subplots(len(timelines), 1, figsize=(10, 0.4 + 1.75 * len(timelines)), squeeze=False)
    for ax, (title, timeline) in zip(axes[:, 0], timelines.items(), strict=True):
        plot_timeline(timeline, end_ms=span_ms, ax=ax)
        ax.set_title(title, fontsize="medium")
        ax.set_yticks([])
        ax.set_ylim(0.08, -0.52)  # one process: nothing to say to others
        for text in list(ax.texts):
            text.remove()
        if ax is not axes[-1, 0]:
            ax.set_xlabel("")
    source_note(axes[-1, 0], "measured here")
    return axes[:, 0]
