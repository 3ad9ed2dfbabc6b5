"""Figures of lesson 04: how data parallelism splits a batch and agrees on gradients."""

import math

import matplotlib.pyplot as plt

from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    course_style,
    in_style,
    ink_on,
    points,
    rank_color,
    source_note,
)


@course_style()
def plot_batch_split(images, n_ranks):
    """Draw a batch of images (n, 1, height, width), one row a rank, framed in the colour of the rank."""
    shares = images.squeeze(1).chunk(n_ranks)
    axes = plt.subplots(n_ranks, len(shares[0]), figsize=(8, 0.56 * n_ranks), squeeze=False)[1]
    for rank, share in enumerate(shares):
        for ax, image in zip(axes[rank], share, strict=True):
            ax.imshow(image.numpy(), cmap="gray_r", aspect="auto")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=True, color=rank_color(rank), linewidth=2)
        axes[rank][0].set_ylabel(f"rank {rank}", rotation=0, ha="right", va="center")
    return axes


@in_style
def plot_ring_bytes(measured, n_max=16, ax=None):
    """Draw what a rank sends in one all_reduce, as a multiple of the tensor; `measured`: ranks → multiple."""
    n = range(1, n_max + 1)
    ax.plot(n, [k - 1 for k in n], color=GREY, linestyle=":", label=r"to each other rank: $(n-1)\,S$")
    ax.plot(n, [2 * (k - 1) / k for k in n], color=GREY, label=r"ring: $2\,(n-1)/n \cdot S$")
    if measured:
        ax.plot(list(measured), list(measured.values()), "o", markersize=9, label="measured")
    ax.set(xlabel="ranks", ylabel="bytes sent by a rank / S", ylim=(0, 4), title="What one all_reduce sends")
    ax.legend(loc="upper right")
    source_note(ax, "measured here" if measured else "computed")


@course_style()
def plot_drift(runs):
    """Draw how far each rank's weights are from rank 0's; `runs`: title → one list of distances a rank."""
    axes = plt.subplots(1, len(runs), figsize=(9.5, 3.2), squeeze=False)[1][0]
    for ax, (title, distances) in zip(axes, runs.items(), strict=True):
        for rank, values in list(enumerate(distances))[1:]:
            # Thinner and thinner: a curve that hides another leaves its rim.
            width = 2 + 2 * (len(distances) - 1 - rank)
            ax.plot(values, color=rank_color(rank), linewidth=width, label=f"rank {rank}")
        top = max(max(values) for values in distances)
        ax.set(xlabel="step", ylim=(0, 1.15 * top if top else 1))
        ax.set_title(title.replace(", ", ",\n"), fontsize="medium")  # three on one line collide
    axes[0].set_ylabel("distance to rank 0")
    axes[-1].legend()
    source_note(axes[0], "measured here", "")  # a longer note would push the panels apart
    return axes


@course_style()
def plot_equal_losses(reference, losses, tolerance, names=("one process", "four ranks")):
    """Draw two loss curves that should be one, and under them their difference beside the tolerance."""
    axes = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True, height_ratios=[2, 1])[1]
    steps = range(1, len(reference) + 1)
    axes[0].plot(steps, reference, color="#bbbbbb", linewidth=7, label=names[0])
    axes[0].plot(steps, losses, label=names[1])
    # 0 has no logarithm
    difference = [abs(a - b) or math.nan for a, b in zip(reference, losses, strict=True)]
    axes[1].set(yscale="log", ylim=(1e-6 * tolerance, 10 * tolerance))
    axes[1].plot(steps, difference, ".", color=RANK_COLORS[0])
    axes[1].axhline(tolerance, color=RANK_COLORS[5], linestyle="--", label=f"tolerance {tolerance:g}")
    axes[0].set(ylabel="loss", title=f"{names[0][0].upper()}{names[0][1:]} and {names[1]}")
    axes[1].set(xlabel="step", ylabel="|difference|")
    if all(map(math.isnan, difference)):
        axes[1].text(0.5, 0.35, "equal to the last bit", transform=axes[1].transAxes, ha="center", color=GREY)
    for ax in axes:
        ax.legend()
    source_note(axes[1], "measured here")
    return axes


@in_style
def plot_buckets(rows, ax=None):
    """Draw the time of one gradient average against its messages; rows of (messages, milliseconds)."""
    bars = ax.bar(range(len(rows)), [milliseconds for _, milliseconds in rows], 0.6)
    ax.bar_label(bars, [f"{milliseconds:.1f} ms" for _, milliseconds in rows], padding=4)
    ax.set_xticks(range(len(rows)), [messages for messages, _ in rows])
    ax.set(xlabel="messages", ylabel="milliseconds", title="The same bytes in fewer messages")
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.15)
    source_note(ax, "measured here")


@course_style()
def plot_overlap(without, with_overlap):
    """Draw backward and communication of each rank, without and with overlap, on an emulated link.

    Each argument holds, for each rank, a list of (kind, layer, start, end) in seconds on one clock.
    """
    axes = plt.subplots(2, 1, figsize=(9.5, 5.2), sharex=True)[1]
    for ax, events_of_ranks, title in zip(axes, (without, with_overlap), ("Without", "With"), strict=True):
        zero = min(event[2] for events in events_of_ranks for event in events)
        rows = []
        for rank, events in enumerate(events_of_ranks):
            for kind, alpha in (("backward", 1), ("communication", 0.45)):
                y = 2.3 * rank + (kind == "communication")
                rows.append((y, f"rank {rank} {kind}"))
                for _, layer, start, end in (event for event in events if event[0] == kind):
                    left, width = 1e3 * (start - zero), 1e3 * (end - start)
                    ax.barh(y, width, 0.85, left, color=rank_color(rank), alpha=alpha, edgecolor="white")
                    ink = ink_on(rank_color(rank)) if alpha == 1 else INK
                    place = dict(ha="center", va="center", clip_on=True)
                    ax.text(left + width / 2, y, layer, color=ink, fontsize=points(10), **place)
        ax.set_yticks(*zip(*rows, strict=True))
        ax.invert_yaxis()
        ax.set_title(f"{title} overlap: the number is the layer")
        ax.grid(axis="y", visible=False)
    axes[1].set_xlabel("milliseconds")
    source_note(axes[1], "emulated", "the link sleeps; backward and all_reduce are measured here")
    return axes


@in_style
def plot_batch_means(local_means, mean, ax=None):
    """Draw the mean of each feature over every rank's share, and over the whole batch."""
    features = range(len(mean))
    ax.plot(features, mean, "_", color=INK, markersize=24, label="whole batch")
    for rank, local in enumerate(local_means):
        ax.plot(features, local, "o", color=rank_color(rank), label=f"rank {rank}")
    ax.set(xlabel="feature", ylabel="mean", xticks=features, title="The mean that each rank sees")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")
