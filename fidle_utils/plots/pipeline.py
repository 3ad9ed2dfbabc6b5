"""Gantt charts of pipelines: what each rank does and when, simulated or measured."""

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from fidle_utils.plots.style import RANK_COLORS, course_style, ink_on, points, source_note

__all__ = ["draw_gantt", "plot_measured_schedule", "plot_schedule", "plot_schedules"]

COLORS = {"F": RANK_COLORS[0], "B": RANK_COLORS[1], "W": RANK_COLORS[2], "BW": RANK_COLORS[5]}
_NAMES = {
    "F": "F: forward",
    "B": "B: input's gradient",
    "W": "W: weights' gradient",
    "BW": "BW: whole backward",
}
_LIGHT_STAGES = (0.0, 0.42, 0.62, 0.72)  # how pale the first, second, third … stage of a rank is


@course_style()
def plot_schedule(simulation, title=None, until=None, unit="F", kind="simulated", note=None, ax=None):
    """Draw a `Simulation` as a Gantt chart: a row a rank, a box an operation, its micro-batch in the box.

    White is idle. The later stages of a rank that holds several are paler. `until`: the end of the time axis,
    `unit`: what its unit is; `kind` and `note`: what `source_note` says.
    """
    n_ranks = simulation.schedule.n_ranks
    if ax is None:
        ax = plt.subplots(figsize=(10.5, 1.75 + 0.36 * n_ranks))[1]
    draw_gantt(ax, simulation, until)
    ax.set_title(gantt_title(simulation) if title is None else title)
    ax.set_xlabel(_time(unit))
    _legend(ax.figure, [ax], [simulation])
    source_note(ax, kind, note)
    return ax


@course_style()
def plot_schedules(simulations, until=None, unit="F", note=None):
    """Draw several simulations one under the other on the same time axis; `simulations`: title → Simulation.

    Titles may be None: the schedule's own name, with its time and bubble.
    """
    if not isinstance(simulations, dict):
        simulations = {gantt_title(simulation): simulation for simulation in simulations}
    end = max(simulation.total for simulation in simulations.values()) if until is None else until
    heights = [simulation.schedule.n_ranks for simulation in simulations.values()]
    size = (10.5, 1.1 + sum(0.62 + 0.25 * height for height in heights))
    options = {"figsize": size, "sharex": True, "squeeze": False, "height_ratios": heights}
    axes = plt.subplots(len(simulations), 1, **options)[1][:, 0]
    for ax, (title, simulation) in zip(axes, simulations.items(), strict=True):
        draw_gantt(ax, simulation, end)
        ax.set_title(title, fontsize=points(11.5), pad=4)
    axes[-1].set_xlabel(_time(unit))
    _legend(axes[0].figure, axes, simulations.values())
    source_note(axes[-1], "simulated", note)
    return axes


@course_style()
def plot_measured_schedule(measured, simulated, unit="F", note=None):
    """Draw what stages that sleep really did above what the simulation says, on one time axis.

    `measured` and `simulated` are `Simulation`s; the first holds the events that ranks recorded.
    """
    end = 1.01 * max(measured.total, simulated.total)
    height = 1.9 + 0.5 * simulated.schedule.n_ranks
    axes = plt.subplots(2, 1, figsize=(10.5, height), sharex=True)[1]
    for ax, one, how in zip(
        axes, (measured, simulated), ("measured, stages sleep", "simulated"), strict=True
    ):
        draw_gantt(ax, one, end)
        ax.set_title(f"{how}: {gantt_title(one)}", fontsize=points(11.5), pad=4)
    axes[1].set_xlabel(_time(unit))
    _legend(axes[0].figure, axes, [simulated])
    source_note(
        axes[1], "emulated", note or "above: PyTorch's order and messages are real, the work is a sleep"
    )
    return axes


def gantt_title(simulation):
    """Return a title: name, sizes, time, bubble."""
    schedule, m = simulation.schedule, simulation.schedule.n_micro_batches
    return (
        f"{schedule.name}, {m} micro-batch{'es' * (m > 1)}: time {_digits(simulation.total)}, "
        f"bubble {simulation.bubble_of_total:.0%} of it"
    )


def draw_gantt(ax, simulation, until=None):
    """Draw the boxes of a simulation on `ax`, without title, labels and legend."""
    schedule = simulation.schedule
    n_ranks, end = schedule.n_ranks, simulation.total if until is None else until
    ax.set(xlim=(0, end), ylim=(n_ranks - 0.45, -0.55))
    ax.set_yticks(range(n_ranks), [f"rank {rank}" for rank in range(n_ranks)])
    ax.grid(axis="y", visible=False)
    held = {}  # rank -> its stages, from the first
    for stage, rank in enumerate(schedule.rank_of_stage):
        held.setdefault(rank, []).append(stage)
    spans = {}
    for event in simulation.events:
        color = box_color(event.kind, held[event.rank].index(event.stage))
        spans.setdefault((event.rank, color), []).append((event.start, event.end - event.start))
    for (rank, color), bars in spans.items():
        ax.broken_barh(bars, (rank - 0.42, 0.84), facecolor=color, edgecolor="white", linewidth=0.8, zorder=2)
    _number(ax, simulation, held, end)


def _number(ax, simulation, held, end):
    """Write the micro-batches into the boxes that have room for any of their numbers."""
    box, dot = ax.get_window_extent(), 72 / ax.figure.dpi
    per_unit = 0.86 * box.width * dot / end  # the layout will take some of the width for the labels
    row = 0.8 * box.height * dot / simulation.schedule.n_ranks
    digits = len(str(simulation.schedule.n_micro_batches - 1))
    for event in simulation.events:
        text = str(event.micro_batch)
        size = min(points(9), row, 0.9 * per_unit * (event.end - event.start) / (0.62 * digits))
        if size >= 5.5 and event.end <= end + 1e-9:
            color = box_color(event.kind, held[event.rank].index(event.stage))
            look = {"color": ink_on(color), "fontsize": size, "clip_on": True, "zorder": 3}
            middle = (event.start + event.end) / 2
            ax.text(middle, event.rank, text, ha="center", va="center_baseline", **look)


def box_color(kind, place):
    """Return the colour of an operation: its kind's, paler for the second, third … stage of a rank."""
    pale = _LIGHT_STAGES[min(place, len(_LIGHT_STAGES) - 1)]
    return tuple(part + pale * (1 - part) for part in to_rgb(COLORS[kind]))


def legend_entries(simulations):
    """Return a patch for each kind of work, and one for the stages of a rank if it holds several."""
    kinds = {event.kind for simulation in simulations for event in simulation.events}
    entries = [Patch(facecolor=COLORS[kind], label=name) for kind, name in _NAMES.items() if kind in kinds]
    if any(one.schedule.n_stages > one.schedule.n_ranks for one in simulations):
        entries.append(Patch(facecolor=box_color("F", 1), label="paler: later stage"))
    return entries


def _legend(figure, axes, simulations):
    entries = legend_entries(list(simulations))
    options = {
        "loc": "outside upper left",
        "ncols": len(entries),
        "handleheight": 1.0,
        "columnspacing": 1.2,
        "handlelength": 1.5,
    }
    figure.legend(handles=entries, borderaxespad=0.2, fontsize=points(10), **options)


def _time(unit):
    return f"time (one {unit} = 1)" if unit == "F" else f"time ({unit})"


def _digits(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
