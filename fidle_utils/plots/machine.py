"""Figures of a machine: its parts with their speeds, its memory by the size of what is read."""

from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator

from fidle_utils.measure.processor import cache_text
from fidle_utils.plots.style import (
    GREY,
    INK,
    PALE,
    binary,
    byte_unit,
    in_style,
    ink_on,
    points,
    rank_color,
    source_note,
)

__all__ = ["plot_machine", "plot_memory_sweep"]


@in_style
def plot_machine(report, world_size=4, rank_to_rank=None, ax=None):
    """Draw a machine: its memory, its cores or GPUs, the ranks on them, and the speeds measured.

    `report` comes from `device_report()`; a full one also shows matmul rates and, with GPUs, copies between
    host and device. `rank_to_rank` is in bytes per second.
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
    if on_gpus:
        pinned = [speed for speed in report.speeds if speed["name"].endswith("pinned")]
        beside = "\n".join(f"{speed['name']}: {_rate(speed['best'])}" for speed in pinned)
    else:
        beside = "\n".join(cache_text(cache) for cache in report.caches[-2:])
    ax.text(5.8, 1.8, beside, va="center", ha="right", color=GREY, fontsize=points(11))
    if matmul := _matmul(report, "cuda" if on_gpus else "cpu"):
        ax.text(11.7, 3.36, matmul, ha="right", va="bottom", color=GREY, fontsize=points(11))

    xs = [0.2 + 11.6 * (rank + 0.5) / world_size for rank in range(world_size)]
    for rank, x in enumerate(xs):
        color = rank_color(rank)
        ax.scatter(x, 4.3, s=900, color=color, zorder=3)
        ax.text(x, 4.3, str(rank), color=ink_on(color), ha="center", va="center", weight="bold", zorder=4)
    ax.text(xs[0] - 0.55, 4.3, "rank", ha="right", va="center", color=GREY)
    if rank_to_rank and world_size > 1:
        _arrow(ax, (xs[0] + 0.1, 4.75), (xs[1] - 0.1, 4.75), "arc3,rad=-0.35")
        ax.text((xs[0] + xs[1]) / 2, 5.45, f"rank to rank: {_rate(rank_to_rank)}", ha="center")
    source_note(ax, "measured here", report.name)


def _matmul(report, device):
    """The matmul rates of a full report as text: "matmul: fp32 0.18, bf16 0.4 TFLOP/s"."""
    rates = [speed for speed in report.speeds if (speed["quantity"], speed["device"]) == ("matmul", device)]
    text = ", ".join(f"{speed['name']} {speed['best'] / 1e12:.3g}" for speed in rates)
    whose = "one GPU" if device == "cuda" else "all cores together"
    return f"matmul, {whose}: {text} TFLOP/s" if rates else ""


def _box(ax, x, y, width, height, text):
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE, edgecolor="#999999"))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def _arrow(ax, start, end, connection="arc3"):
    style = {"arrowstyle": "<->", "color": INK, "linewidth": 1.5, "connectionstyle": connection}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def _rate(bytes_per_second):
    unit, factor = byte_unit(bytes_per_second)
    return f"{bytes_per_second / factor:.3g} {unit}/s"


@in_style
def plot_memory_sweep(rates, caches=(), title="Small data is served from a cache", ax=None):
    """Draw the speed of memory against the size of the working set, the caches' sizes as vertical lines.

    `rates` come from `memory_sweep()`, `caches` from `device_report().caches`. The best and the median.
    """
    sizes = [rate["n_bytes"] for rate in rates]
    for which, look in {"best": {"marker": "o"}, "median": {"color": GREY, "linestyle": ":"}}.items():
        ax.plot(sizes, [rate[which] / 1e9 for rate in rates], label=which, **look)
    ax.set(xscale="log", xlabel="working set", ylabel="GB/s", title=title)
    ax.set_ylim(0, 1.2 * max(rate["best"] for rate in rates) / 1e9)
    for row, cache in enumerate(caches):
        total = cache["n_bytes"] * (cache["count"] or 1)
        if min(sizes) <= total <= max(sizes):
            ax.axvline(total, color=INK, linestyle="--", linewidth=1)
            side = "right" if total**2 > sizes[0] * sizes[-1] else "left"  # towards the middle of the figure
            name = f" {cache_text(cache)} "
            ax.text(total, 0.99 - 0.09 * row, name, ha=side, va="top", transform=ax.get_xaxis_transform())
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.xaxis.set_minor_locator(LogLocator(base=2, numticks=30))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    ax.xaxis.set_major_formatter(FuncFormatter(binary))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")
