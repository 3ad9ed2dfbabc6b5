"""Figures of the planner: memory and time of plans, a map of layouts, how far it is from published runs."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, NullFormatter

from fidle_utils.planner import memory, step
from fidle_utils.plots.style import GREY, INK, PALE, RANK_COLORS, in_style, points, source_note

__all__ = [
    "MEMORY_COLORS",
    "TIME_COLORS",
    "plot_layouts",
    "plot_plan_memory",
    "plot_plan_time",
    "plot_planner_errors",
    "plot_validation",
]

_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED, _MID, _BLACK = RANK_COLORS
MEMORY_COLORS = dict(zip(memory.PARTS, (_BLUE, _ORANGE, _RED, _GREEN, _SKY, _PINK, _MID), strict=True))
# What computes is blue, what waits is grey, what communicates has the other colours.
TIME_COLORS = dict(
    zip(step.PARTS, (_BLUE, _SKY, _ORANGE, _PINK, _GREEN, _RED, "#c9c9c9", _BLACK), strict=True)
)
MARKERS = "osDv^<>dp"
BAND = 30  # per cent


@in_style
def plot_plan_memory(plans, title="Memory of the GPU that takes most", ax=None):
    """Draw the memory of plans by part, a bar each, and the room that a GPU has.

    `plans`: label → Plan, or one Plan. A bar that sticks out of the room is a plan that does not fit.
    """
    plans = _labelled(plans)
    labels = []
    for y, (label, plan) in enumerate(plans.items()):
        room, need = plan.room_bytes / 2**30, plan.memory_bytes / 2**30
        look = {"color": INK, "linestyles": (0, (3, 2)), "label": "room" if y == 0 else None}
        ax.vlines(room, y - 0.42, y + 0.42, zorder=4, **look)
        labels.append(f"{label}\n{need:.1f} of {room:.0f} GiB" + ("" if plan.fits else ": too much"))
    _bars(ax, [plan.memory for plan in plans.values()], labels, MEMORY_COLORS, 2**30)
    most = max(max(plan.memory_bytes, plan.room_bytes) / 2**30 for plan in plans.values())
    ax.set(xlim=(0, 1.05 * most), xlabel="GiB on a GPU", title=title)
    _finish(ax, plans)


@in_style
def plot_plan_time(plans, title="Time of a step", ax=None):
    """Draw the seconds of a step of plans by part, a bar each. `plans`: label → Plan, or one Plan."""
    plans = _labelled(plans)
    labels = [f"{label}\n{p.seconds_per_step:.3g} s, MFU {100 * p.mfu:.0f} %" for label, p in plans.items()]
    _bars(ax, [plan.time for plan in plans.values()], labels, TIME_COLORS, 1)
    most = max(plan.seconds_per_step for plan in plans.values())
    ax.set(xlim=(0, 1.05 * most), xlabel="seconds", title=title)
    _finish(ax, plans)


@in_style
def plot_layouts(
    found, title="The fastest plan of each layout", used=None, used_label="really used", ax=None
):
    """Draw a map: tensor parallelism across, pipeline up; each field says how fast its best plan is.

    `found`: plans of one model on one machine, such as `search(…, best=None, by_degrees=True)`; of each field
    the fastest is shown, with the seconds of its step and its data ranks. A field without a plan is pale:
    nothing there fits, or divides. `used`: a (tensor, pipeline) to frame, named
    `used_label` in the legend.
    """
    best = {}
    for plan in sorted(found, key=lambda plan: plan.seconds_per_step):
        best.setdefault((plan.layout.tensor, plan.layout.pipeline), plan)
    tensors, pipelines = (sorted({key[i] for key in best}) for i in (0, 1))
    seconds = np.full((len(pipelines), len(tensors)), np.nan)
    for (tensor, pipeline), plan in best.items():
        seconds[pipelines.index(pipeline), tensors.index(tensor)] = plan.seconds_per_step
    fastest = np.nanmin(seconds)
    shades = LinearSegmentedColormap.from_list("slower", ["#0072B2", "#8fc1de", "#eef4f8"])
    ax.imshow(
        fastest / seconds,
        cmap=shades.reversed().with_extremes(bad=PALE),
        vmin=0.4,
        vmax=1,
        aspect="auto",
        origin="lower",
    )
    for (tensor, pipeline), plan in best.items():
        x, y = tensors.index(tensor), pipelines.index(pipeline)
        color = "white" if fastest / plan.seconds_per_step > 0.8 else INK
        text = f"{plan.seconds_per_step:.3g} s\ndata {plan.layout.data}"
        ax.annotate(text, (x, y), ha="center", va="center", color=color, fontsize=points(9))
    for x in range(len(tensors)):
        for y in range(len(pipelines)):
            if np.isnan(seconds[y, x]):
                ax.annotate("–", (x, y), ha="center", va="center", color=GREY)
    if used is not None and used in best:
        x, y = tensors.index(used[0]), pipelines.index(used[1])
        edges = x + 0.47 * np.array([-1, 1, 1, -1, -1]), y + 0.46 * np.array([-1, -1, 1, 1, -1])
        ax.plot(*edges, color=_RED, linewidth=3, label=used_label)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_xticks(range(len(tensors)), [f"tensor {t}" for t in tensors])
    ax.set_yticks(range(len(pipelines)), [f"pipeline {p}" for p in pipelines])
    ax.grid(False)
    ax.set(title=title)
    plan = next(iter(best.values()))
    source_note(
        ax,
        "computed",
        f"{plan.model.name} · {plan.layout.n_gpus} × {plan.machine.gpu.name} · darker is faster",
    )


@in_style
def plot_validation(errors, quantity="time", title=None, ax=None):
    """Draw what the planner says against what was published, a mark a run and a look a source.

    `errors`: the Table of `planner.validation.compare()`; runs that calibrate it are hollow. `quantity`:
    "time", the seconds of a step, or "memory", GiB. On the line they agree; the band is ±30 %.
    """
    printed, planned = {"time": ("seconds", "planned seconds"), "memory": ("GiB", "planned GiB")}[quantity]
    errors = errors.dropna(subset=[printed])
    scale = "log" if quantity == "time" else "linear"
    low, high = (0.75 * errors[printed].min(), 1.35 * errors[printed].max()) if scale == "log" else (0, 180)
    line = np.array([max(low, 1e-9), high])
    ax.fill_between(line, line * (1 - BAND / 100), line * (1 + BAND / 100), color=PALE, label=f"±{BAND} %")
    ax.plot(line, line, color=GREY, linewidth=1)
    for i, (source, rows) in enumerate(errors.groupby("source", sort=False)):
        look = {"marker": MARKERS[i % len(MARKERS)], "s": 30, "linewidths": 0.8}
        color = RANK_COLORS[i % len(RANK_COLORS)]
        kept, fitted = rows[~rows["calibrates"]], rows[rows["calibrates"]]
        name = f"{source} ({len(kept)})"
        ax.scatter(
            kept[printed], kept[planned], color=color, edgecolors="white", label=name, zorder=3, **look
        )
        ax.scatter(fitted[printed], fitted[planned], facecolors="none", edgecolors=color, zorder=2, **look)
    ax.set(xscale=scale, yscale=scale, xlim=(low, high), ylim=(0.75 * low, 1.25 * high))
    unit = {"time": "seconds of a step", "memory": "GiB on a GPU"}[quantity]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    median = errors[~errors["calibrates"]][f"{quantity} error %"].abs().median()
    ax.set(xlabel=f"published, {unit}", ylabel="planned")
    ax.set_title(title or f"{quantity.capitalize()}: median error {median:.1f} %")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=points(9.5))
    source_note(ax, "computed", "beside published runs · hollow: used to calibrate")


@in_style
def plot_planner_errors(errors, quantity="time", title=None, ax=None):
    """Draw the error of each run, a row a source: left of 0 the planner says too little, right too much.

    `errors`: the Table of `planner.validation.compare()`; a stroke marks the median of the runs that
    calibrate nothing, hollow marks are those that do.
    """
    column = f"{quantity} error %"
    errors = errors.dropna(subset=[column])
    ax.axvspan(-BAND, BAND, color=PALE)
    ax.axvline(0, color=GREY, linewidth=1)
    names = []
    for y, (source, rows) in enumerate(errors.groupby("source", sort=False)):
        color = RANK_COLORS[y % len(RANK_COLORS)]
        kept, fitted = rows[~rows["calibrates"]][column], rows[rows["calibrates"]][column]
        # Spread the marks of a row a little, always in the same way: they would hide each other.
        spread = y + 0.5 * (((np.arange(len(kept)) * 0.618) % 1) - 0.5)
        ax.scatter(kept, spread, s=20, color=color, edgecolors="white", linewidths=0.4, zorder=3)
        ax.scatter(fitted, np.full(len(fitted), y), s=24, facecolors="none", edgecolors=color, zorder=2)
        if len(kept):
            ax.vlines(kept.median(), y - 0.38, y + 0.38, color=INK, linewidth=2, zorder=4)
        names.append(f"{source} ({len(kept)})")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(-50, 50)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="error of the planner (%)", title=title or f"How far it is: {quantity}")
    source_note(ax, "computed", "beside published runs · hollow: used to calibrate · stroke: median")


def _bars(ax, parts_of, labels, colors, unit):
    """Bars of parts, one a label, first label on top; parts too small to see everywhere are left out."""
    rows, left = range(len(labels)), np.zeros(len(labels))
    least = 0.004 * max(sum(parts.values()) for parts in parts_of) / unit
    for part, color in colors.items():
        widths = np.array([parts.get(part, 0) / unit for parts in parts_of])
        if widths.max() > least:
            ax.barh(rows, widths, 0.62, left, color=color, label=part, edgecolor="white", linewidth=0.6)
        left += widths
    ax.set_yticks(rows, labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def _finish(ax, plans):
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=points(10))
    said = dict.fromkeys(plan.model.name for plan in plans.values())
    said |= dict.fromkeys(f"{p.layout.n_gpus} × {p.machine.gpu.name}" for p in plans.values())
    source_note(ax, "computed", " · ".join(said) if len(said) <= 4 else "by the planner")


def _labelled(plans):
    return plans if isinstance(plans, dict) else {plans.model.name: plans}
