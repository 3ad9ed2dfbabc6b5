"""What a pipeline costs: bubble, activations held, messages, stale weights, and what others published."""

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from fidle_utils.plots.style import GREY, INK, RANK_COLORS, course_style, in_style, points, source_note

__all__ = [
    "plot_batch_ramp",
    "plot_bubble",
    "plot_message_cost",
    "plot_peak_activations",
    "plot_published_bubbles",
    "plot_published_gpipe",
    "plot_staleness",
    "plot_time_and_memory",
]

_MARKERS = "os^DvPX*"


@in_style
def plot_bubble(n_ranks, simulated=None, m_max=32, ax=None):
    """Draw the bubble of GPipe and 1F1B against the micro-batches, in both conventions.

    `simulated`: micro-batches → (bubble of the ideal time, bubble of the total time), drawn as dots. The
    curves: (p−1)/m, arXiv:2104.04473, and (p−1)/(m+p−1), arXiv:1811.06965.
    """
    m = range(1, m_max + 1)
    names = ("of the ideal time: $(p-1)/m$", "of the total time: $(p-1)/(m+p-1)$")
    curves = [(n_ranks - 1) / k for k in m], [(n_ranks - 1) / (k + n_ranks - 1) for k in m]
    for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
        ax.plot(m, [100 * share for share in curve], color=RANK_COLORS[i], label=name)
        dots = {k: pair[i] for k, pair in (simulated or {}).items()}
        look = {"color": RANK_COLORS[i], "markersize": 8, "linestyle": "none"}
        ax.plot(list(dots), [100 * share for share in dots.values()], "o", **look)
    top = 100 * max(1, *(max(pair) for pair in (simulated or {0: (1,)}).values()))
    ax.set(xlabel="micro-batches m", ylabel="bubble (%)", ylim=(0, min(1.08 * top, 310)), xlim=(0, m_max + 1))
    ax.set_title(f"The bubble of GPipe and 1F1B on {n_ranks} ranks")
    ax.legend()
    source_note(ax, "simulated" if simulated else "computed", "curves: the formulas")


@in_style
def plot_peak_activations(peaks, limit=None, kind="computed", unit="micro-batches", ax=None):
    """Draw the most activations that each rank holds at once; `peaks`: name → one number a rank.

    `limit`: what fits, drawn as a line.
    """
    for (name, values), marker, color in zip(
        peaks.items(), cycle(_MARKERS), cycle(RANK_COLORS), strict=False
    ):
        ax.plot(range(len(values)), values, marker=marker, color=color, markersize=9, label=name)
    if limit is not None:
        ax.axhline(limit, color=GREY, linestyle="--", label="what fits")
    n_ranks = max(len(values) for values in peaks.values())
    highest = max(limit or 0, *(max(values) for values in peaks.values()))
    ax.set_xticks(range(n_ranks), [f"rank {rank}" for rank in range(n_ranks)])
    ax.set(
        ylabel=f"activations ({unit})", ylim=(0, 1.1 * highest), title="The most that each rank holds at once"
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, kind)


@in_style
def plot_time_and_memory(costs, targets=None, unit="F", kind="simulated", note=None, ax=None):
    """Draw each schedule as a point: its time and the activations of its fullest rank.

    `costs`: name → (time, activations). `targets`: the (time, activations) that must not be passed; what
    fits is a grey field.
    """
    corners = [*costs.values(), targets] if targets else list(costs.values())
    right, top = (1.16 * max(corner[i] for corner in corners) for i in (0, 1))
    left = min(time for time, _ in costs.values())
    left -= 0.1 * (right - left)
    if targets:
        corner, width = (left, 0), targets[0] - left
        ax.add_patch(Rectangle(corner, width, targets[1], facecolor="#e2e2e2", zorder=0, label="the target"))
    for (name, (time, held)), marker, color in zip(
        costs.items(), cycle(_MARKERS), cycle(RANK_COLORS), strict=False
    ):
        ax.plot(time, held, marker, color=color, markersize=11, label=name, zorder=3)
    ax.set(
        xlim=(left, right), ylim=(0, top), xlabel=f"time of a step (one {unit} = 1)" if unit == "F" else unit
    )
    ax.set(ylabel="activations (fullest rank)", title="Time against memory: down and left is better")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, kind, note)


@course_style()
def plot_message_cost(panels):
    """Draw the time of a step against that of a message; `panels`: title → name → rows (message, step)."""
    axes = plt.subplots(1, len(panels), figsize=(10, 3.8), sharey=True, squeeze=False)[1][0]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (name, rows), color, style in zip(
            curves.items(), cycle(RANK_COLORS), cycle(["-", "--", "-.", ":"]), strict=False
        ):
            ax.plot(*zip(*rows, strict=True), color=color, linestyle=style, label=name)
        ax.set_title(title, fontsize=points(12))
        ax.set_xlabel("time of one message (one F = 1)")
    axes[0].set_ylabel("time of a step")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(axes[0], "simulated")
    return axes


@course_style()
def plot_staleness(panels, window=9):
    """Draw losses of trainings with fresh and with stale weights; `panels`: title → name → losses.

    Every curve is the running mean of `window` steps.
    """
    axes = plt.subplots(1, len(panels), figsize=(10, 3.9), sharey=True, squeeze=False)[1][0]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for i, (name, losses) in enumerate(curves.items()):
            mean = [
                sum(losses[max(0, k + 1 - window) : k + 1]) / min(k + 1, window) for k in range(len(losses))
            ]
            ax.plot(mean, color=RANK_COLORS[i], linewidth=4.5 - 1.2 * min(i, 3), alpha=0.9, label=name)
        ax.set_title(title, fontsize=points(12))
        ax.set_xlabel("update")
    axes[0].set(ylabel="loss", ylim=(0, None))
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(axes[0], "measured here", f"mean of {window} steps")
    return axes


# --------------------------------------------------------------------------------------------- published


@in_style
def plot_published_bubbles(rows, ax=None):
    """Draw published throughput against the published bubble; `rows` of `table("zero_bubble")`, one model.

    The line goes through 1F1B with the fewest micro-batches: what removing the bubble alone would give.
    """
    rows = [row for row in rows if row["samples_per_second_per_gpu"]]
    schedules, sizes = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("schedule", "n_micro_batches")
    )
    for row in rows:
        marker, color = (
            _MARKERS[sizes.index(row["n_micro_batches"])],
            RANK_COLORS[schedules.index(row["schedule"])],
        )
        ax.plot(
            100 * row["bubble_rate"], row["samples_per_second_per_gpu"], marker, color=color, markersize=10
        )
    for name, color in zip(schedules, RANK_COLORS, strict=False):
        ax.plot([], [], "s", color=color, label=name)
    for size, marker in zip(sizes, _MARKERS, strict=False):
        ax.plot([], [], marker, color="white", markeredgecolor=INK, label=f"{size} micro-batches")
    base = min((row for row in rows if row["schedule"] == "1F1B"), key=lambda row: row["n_micro_batches"])
    full = base["samples_per_second_per_gpu"] / (1 - base["bubble_rate"])
    ends = [0, 1.1 * max(row["bubble_rate"] for row in rows)]
    label = "if only the bubble\ncounted"
    ax.plot([100 * end for end in ends], [full * (1 - end) for end in ends], ":", color=GREY, label=label)
    ax.set(xlabel="bubble (% of the total, estimated by the paper)", ylabel="samples/s on each GPU")
    ax.set_title(f"Zero bubble, {rows[0]['parameters_billion']} billion parameters, {rows[0]['pp']} stages")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "published", f"{rows[0]['gpu']} · {rows[0]['source']}")


@in_style
def plot_published_gpipe(rows, ax=None):
    """Draw GPipe's published speeds beside the bubble formula; `rows` of `table("gpipe_throughput")`.

    Speeds are relative to one micro-batch on the fewest stages: K·M/(M+K−1) by the formula.
    """
    stages = sorted({row["stages"] for row in rows})
    for k, color in zip(stages, RANK_COLORS, strict=False):
        mine = sorted((row for row in rows if row["stages"] == k), key=lambda row: row["micro_batches"])
        m = [row["micro_batches"] for row in mine]
        ax.plot(
            m,
            [row["normalized_throughput"] for row in mine],
            "o:",
            color=color,
            label=f"{k} stages, published",
        )
        grid = [2 ** (i / 8) for i in range(41)]
        ax.plot(
            grid, [k * x / (x + k - 1) for x in grid], color=color, alpha=0.5, label=f"{k} stages, formula"
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    ax.set(xlabel="micro-batches M", ylabel=f"speed (M = 1, {stages[0]} stages: 1)", ylim=(0, None))
    ax.set_title(f"GPipe, {rows[0]['model']}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "published", f"dotted · {rows[0]['source']} · lines: computed")


@in_style
def plot_batch_ramp(rows, ax=None):
    """Draw published TFLOP/s against micro-batches, beside what the bubble alone would make of them.

    `rows` of `table("jeanzay_bigscience_a100")` that differ in their global batch only. The curve is
    m/(m+p−1), through the largest batch.
    """
    p = rows[0]["pp"]
    m = [row["global_batch"] / row["dp"] / row["micro_batch"] for row in rows]
    speeds = [row["tflops_per_gpu"] for row in rows]
    last = max(range(len(m)), key=m.__getitem__)
    full = speeds[last] * (m[last] + p - 1) / m[last]
    grid = [1 + i * (1.05 * m[last] - 1) / 100 for i in range(101)]
    ax.plot(grid, [full * x / (x + p - 1) for x in grid], color=RANK_COLORS[0], label="the bubble alone")
    ax.plot(m, speeds, "o", color=RANK_COLORS[5], markersize=9, label="published")
    ax.axhline(full, color=GREY, linestyle="--", label="without a bubble")
    ax.set(xlabel="micro-batches in a step", ylabel="TFLOP/s on each GPU", ylim=(0, 1.12 * full))
    ax.set_title(f"Tuning BLOOM on Jean Zay: {p} stages")
    ax.legend(loc="lower right")
    source_note(
        ax, "published", f"{rows[0]['n_gpus']} A100 80 GB · BigScience, chronicles-prequel · line: computed"
    )
