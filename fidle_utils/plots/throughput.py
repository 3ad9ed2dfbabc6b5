"""Figures of speed: throughput over time, and against the number of ranks."""

import matplotlib.pyplot as plt
import numpy as np

from fidle_utils.measure.throughput import rate
from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    course_style,
    in_style,
    overlay,
    rank_color,
    source_note,
)

POINTS = 80  # of a curve over time
LOW, HIGH = 10, 90  # percentiles: where the bars of repeated measurements end


@in_style
def plot_throughput(throughput, peak_flops_per_second=None, title="Throughput", ax=None):
    """Draw the throughput of each rank, and of all together, over time.

    `throughput` is a `Throughput`, such as `ranks.throughput`; the warm-up of its first loop is left out.
    A point is what was done in the last 1/20 of the time, from the records: work between two loops shows as a
    gap. With `peak_flops_per_second`, of one rank's device, a second axis shows the model FLOPs utilisation
    (MFU); raises ValueError if the FLOPs of a step are not known.
    """
    steps, unit = throughput.steps, throughput.unit
    first = steps[(steps.loop == 0) & steps.warmup]
    begin = (first.start_s + first.seconds).max() if len(first) < len(steps) and len(first) else 0.0
    end = (steps.start_s + steps.seconds).max()
    window = max((end - begin) / 20, 2 * steps.seconds.median())
    times = np.linspace(min(begin + window, end), end, POINTS)
    rates = {rank: _rate_over_time(mine, times, window) for rank, mine in steps.groupby("rank")}
    total = sum(rates.values())
    for rank, values in rates.items():
        named = f"rank {rank}" if len(rates) <= len(RANK_COLORS) else None
        color = rank_color(rank) if named else GREY
        ax.plot(times - begin, values, color=color, linewidth=1.8, label=named)
    if len(rates) > 1:
        ax.plot(times - begin, total, color=INK, linewidth=2.6, label=f"all {len(rates)} ranks")
    mean = throughput.samples_per_second
    ax.axhline(mean, color=GREY, linestyle=":", label=f"while in a step: {rate(mean, unit)}")
    ax.set(xlabel="seconds", ylabel=f"{unit} per second", title=title)
    ax.set_ylim(0, 1.15 * max(total.max(), mean))
    ax.legend(loc="center left", bbox_to_anchor=(1.22 if peak_flops_per_second else 1, 0.5))
    if peak_flops_per_second:
        throughput.mfu(peak_flops_per_second)  # refuses what it cannot know
        share = steps.flops.sum() / steps.samples.sum() / (peak_flops_per_second * len(rates))
        side = ax.secondary_yaxis("right", functions=(lambda y: 100 * share * y, lambda y: y / (100 * share)))
        side.set_ylabel("MFU (%)")
    source_note(ax, "measured here")


def _rate_over_time(steps, times, window):
    """Samples per second of one rank in the `window` seconds before each of `times`; arrays of one shape."""
    ends = (steps.start_s + steps.seconds).to_numpy()
    corners = np.column_stack([steps.start_s.to_numpy(), ends]).ravel()
    done = np.cumsum(steps.samples.to_numpy())
    heights = np.column_stack([np.concatenate([[0], done[:-1]]), done]).ravel()
    order = np.argsort(corners, kind="stable")
    corners, heights = corners[order], heights[order]
    return (np.interp(times, corners, heights) - np.interp(times - window, corners, heights)) / window


@course_style()
def plot_scaling(throughput, one_process=None, unit="samples", recorded=(), title="Throughput", axes=None):
    """Draw throughput and efficiency against ranks, with the ideal line; returns both Axes.

    `throughput` is a dict, number of ranks → list of measurements in `unit` per second, or a `Throughput`
    (one measurement a step). The median is drawn; bars reach from the 10th to the 90th percentile.
    `one_process` is measurements too, of one process that uses all the threads of the machine: what several
    ranks have to beat. Efficiency is the median over n times the median of the least number of ranks.
    `recorded`: a list of `Record` of "scaling"; their efficiency is drawn, for their models may differ.
    """
    samples = {n: _measurements(values) for n, values in sorted(throughput.items())}
    counts = list(samples)
    low, medians, high = (np.array([np.percentile(samples[n], p) for n in counts]) for p in (LOW, 50, HIGH))
    ideal = np.array(counts) / counts[0] * medians[0]
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=[1.4, 1])[1]
    left, right = axes
    left.plot(counts, ideal, color=GREY, linestyle=":", label="ideal")
    left.errorbar(counts, medians, [medians - low, high - medians], marker="o", label="measured")
    if one_process is not None:
        alone = _measurements(one_process)
        left.axhline(np.median(alone), color=RANK_COLORS[5], linestyle="--", label="one process, all threads")
        left.axhspan(*np.percentile(alone, [LOW, HIGH]), color=RANK_COLORS[5], alpha=0.15, linewidth=0)
    left.set(xlabel="ranks", ylabel=f"{unit} per second", title=title)
    left.set_ylim(0, 1.4 * max(*ideal, *high, *left.get_ylim()) / 1.05)  # room for the legend
    left.legend(loc="upper left")
    errors = 100 * np.array([medians - low, high - medians]) / ideal
    right.axhline(100, color=GREY, linestyle=":")
    right.errorbar(counts, 100 * medians / ideal, errors, marker="o")
    right.set(xlabel="ranks", ylabel="efficiency (%)", title="Efficiency")
    for record in recorded:
        rows = [row for row in record.rows if row["mode"] == "ddp"]
        others = {
            n: _median(row for row in rows if row["ranks"] == n) for n in {row["ranks"] for row in rows}
        }
        ns = sorted(others)
        overlay(right, ns, [100 * others[n] / (n / ns[0] * others[ns[0]]) for n in ns], record)
    if recorded:
        right.legend(loc="lower left")
    right.set_ylim(bottom=0)
    for ax in axes:
        ax.set_xticks(counts)
    source_note(left, "measured here")
    return axes


def _median(rows):
    return np.median([row["samples_per_second"] for row in rows])


def _measurements(values):
    return np.asarray(values.by_step if hasattr(values, "by_step") else values, dtype=float)
