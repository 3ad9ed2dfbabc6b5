"""Figures of the deck 00: two hours, four ranks, one that breaks."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from fidle_utils import plots
from fidle_utils.classroom import live_path
from fidle_utils.plots import style

CHAPTERS = {
    "00": "start",
    "01": "Jean Zay",
    "02": "one GPU",
    "03": "messages",
    "04": "data",
    "05": "model",
    "06": "pipelines",
    "07": "meshes",
    "08": "ZeRO, FSDP",
    "09": "DeepSpeed",
    "10": "practice",
    "11": "strategy",
}


@style.course_style()
def two_hours():
    """The lessons of the live path and their minutes."""
    minutes = dict.fromkeys(CHAPTERS, 0)
    for section in live_path():
        minutes[section.lesson[:2]] += section.minutes
    ax = plt.subplots(figsize=(10.5, 4.4))[1]
    bars = ax.barh(range(len(minutes)), minutes.values(), 0.7, color=_colors())
    ax.bar_label(bars, [f"{value:g} min" for value in minutes.values()], padding=5)
    ax.set_yticks(range(len(minutes)), [f"{number} · {CHAPTERS[number]}" for number in minutes])
    ax.set(xlabel="minutes", xlim=(0, 1.12 * max(minutes.values())), ylim=(len(minutes) - 0.4, -0.6))
    ax.set_xticks(range(0, 20, 5))
    ax.grid(axis="y", visible=False)
    return ax


def _colors():
    """A colour for each part: the machine, splitting, sharding, and doing it well."""
    parts = {"machine": 3, "split": 5, "shard": 2, "decide": 2}
    return [style.RANK_COLORS[part] for part, count in enumerate(parts.values()) for _ in range(count)]


@style.course_style()
def four_ranks():
    """A notebook, four processes, and the sum that an all_reduce leaves on each."""
    ax = plt.subplots(figsize=(10.5, 4.0))[1]
    _blank(ax, (0, 12), (0, 5))
    _box(ax, 0.1, 1.4, 2.3, 2.2, "the notebook\n\n%%ranks")
    for rank, y in enumerate((4.4, 3.2, 2.0, 0.8)):
        color = plots.rank_color(rank)
        ax.annotate("", (4.1, y), (2.45, 2.5), arrowprops={"arrowstyle": "-|>", "color": style.GREY})
        ax.scatter(4.6, y, s=1000, color=color, zorder=3)
        look = {"ha": "center", "va": "center", "weight": "bold", "zorder": 4}
        ax.text(4.6, y, rank, color=style.ink_on(color), **look)
        ax.text(5.2, y, f"holds {rank + 1}", va="center")
        ax.annotate("", (8.0, y), (6.6, y), arrowprops={"arrowstyle": "-", "color": color, "linewidth": 2.5})
        ax.annotate(
            "", (10.2, y), (9.0, y), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5}
        )
        ax.text(10.4, y, f"holds {1 + 2 + 3 + 4}", va="center", weight="bold")
    _box(ax, 8.0, 0.3, 1.0, 4.6, "all_reduce\n1 + 2 + 3 + 4", rotation=90)
    return ax


@style.course_style()
def one_breaks():
    """Rank 2 fails before a barrier, three wait and are freed; without a failure they would wait for ever."""
    ax = plt.subplots(figsize=(10.5, 3.9))[1]
    _blank(ax, (-0.6, 10.4), (4.0, -0.9))
    for rank in range(4):
        color, works = plots.rank_color(rank), 1.4 + 0.25 * rank
        ax.text(-0.15, rank, f"rank {rank}", ha="right", va="center", weight="bold")
        ax.barh(rank, works, 0.62, color=color)
        if rank == 2:
            ax.scatter(works, rank, marker="X", s=420, color=style.INK, zorder=4)
            ax.text(works + 0.35, rank, "ZeroDivisionError, line 1", va="center", weight="bold")
        else:
            ax.barh(rank, 7 - works, 0.62, works, facecolor=style.PALE, edgecolor=color, hatch="///")
            words = {"facecolor": "white", "edgecolor": "none", "pad": 3}
            ax.text(4.4, rank, "waits in barrier, line 2", ha="center", va="center", bbox=words)
    ax.axvline(7, color=style.INK, linestyle=":")
    ax.text(7.15, 1.5, "freed: the ranks and\ntheir variables stay", va="center")
    ax.annotate("", (7, 3.75), (0, 3.75), arrowprops={"arrowstyle": "-|>", "color": style.GREY})
    ax.text(0, -0.75, "share = 12 // (rank - 2);  dist.barrier()", family="monospace", va="center")
    ax.text(7.1, 3.75, "time", va="center", color=style.GREY)
    return ax


def _blank(ax, xlim, ylim):
    ax.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _box(ax, x, y, width, height, text, rotation=0):
    look = {"boxstyle": "round,pad=0,rounding_size=0.12", "facecolor": style.PALE, "edgecolor": "#999999"}
    ax.add_patch(FancyBboxPatch((x, y), width, height, **look))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", rotation=rotation)
