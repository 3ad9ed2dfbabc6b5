"""Figures of how fast collectives are."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator

from fidle_utils.plots.style import binary, course_style, overlay, source_note


@course_style()
def plot_bus_bandwidth(rows=(), recorded=(), published=(), operation="all_reduce", ax=None):
    """Draw the bus bandwidth of a collective against the size of its message: what a link carries.

    `rows`: dicts with operation, ranks, n_bytes and bus_bandwidth in bytes per second, as `link_speed()`
    returns them; of several samples the median is drawn. `recorded`: a list of `Record` of such rows.
    `published`: rows of `table("nccl_allreduce_busbw")`; a system with one size only is left out.
    With n ranks and S bytes in t seconds, all_reduce: 2(n−1)/n · S/t; all_gather, reduce_scatter:
    (n−1)/n · S/t; broadcast: S/t. Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.
    """
    ax = plt.subplots(figsize=(9.5, 4.2))[1] if ax is None else ax
    for ranks, group in _groups(_of(rows, operation), "ranks"):
        ax.plot(*_medians(group), marker="o", label=f"measured · {ranks} ranks")
    for record in recorded:
        for ranks, group in _groups(_of(record.rows, operation), "ranks"):
            overlay(ax, *_medians(group), record, f"{ranks} ranks")
    sized = [row for row in published if row["n_bytes"] and row["collective"] == operation]
    for _, group in _groups(sized, "system"):
        points = sorted((row["n_bytes"], 1e9 * row["bus_gb_per_second"]) for row in group)
        if len(points) > 1:
            overlay(ax, *zip(*points, strict=True), group)
    if not ax.lines:
        raise ValueError(f"no row of {operation} to draw: give `rows`, `recorded` or `published`.")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(LogLocator(base=2**5))
    ax.xaxis.set_major_formatter(binary)
    ax.yaxis.set_major_formatter(EngFormatter("B/s"))
    ax.set(xlabel="bytes of the message", ylabel="bus bandwidth", title=f"What a link carries in {operation}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    kinds = [("measured here", rows, None), ("recorded", recorded, ""), ("published", published, "")]
    source_note(ax, *next((kind, text) for kind, given, text in kinds if given))
    return ax


def _of(rows, operation):
    return [row for row in rows if row["operation"] == operation]


def _groups(rows, key):
    """The rows by the value of `key`, in the order in which the values appear."""
    return [
        (value, [row for row in rows if row[key] == value]) for value in dict.fromkeys(r[key] for r in rows)
    ]


def _medians(rows):
    samples = _groups(sorted(rows, key=lambda row: row["n_bytes"]), "n_bytes")
    return zip(
        *((n, statistics.median(row["bus_bandwidth"] for row in group)) for n, group in samples), strict=True
    )
