"""Figures of lesson 10: large batches, sick runs, interrupted runs, checkpoints, small files."""

import math
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    course_style,
    in_style,
    points,
    rank_color,
    source_note,
)

RECIPES = ("linear, warm-up", "linear", "square root", "unscaled")
_PUBLISHED = {"no warmup": "linear", "sqrt LR scaling": "square root", "no LR scaling": "unscaled"}
DIFFERENT = RANK_COLORS[5]


# --------------------------------------------------------------------------------------- large batches


@course_style()
def plot_batch_sizes(measured, published):
    """Draw test errors against the batch: measured ones, and beside them Goyal's table; returns both Axes.

    `measured`: recipe → batch → errors of several seeds, in percent; means are drawn, with bars of one
    standard deviation. `published`: the rows of `table("goyal_minibatch")`.
    """
    axes = plt.subplots(1, 2, figsize=(9.5, 4.2))[1]
    for recipe, by_batch in measured.items():
        batches = sorted(by_batch)
        means, spreads = zip(*((np.mean(by_batch[b]), np.std(by_batch[b])) for b in batches), strict=True)
        axes[0].errorbar(batches, means, spreads, marker="o", label=recipe, color=_recipe_color(recipe))
    for recipe, rows in _goyal(published).items():
        batches, errors, spreads = zip(*sorted(rows), strict=True)
        axes[1].errorbar(batches, errors, spreads, marker="o", color=_recipe_color(recipe))
    for ax, title in zip(axes, ("Digits, 20 epochs", "ImageNet, 90 epochs"), strict=True):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda batch, _: f"{batch / 1024:g}k" if batch >= 1024 else f"{batch:g}")
        ax.set(xlabel="global batch", ylabel="test error (%)", title=title)
    axes[0].set_yscale("log")
    axes[0].set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes[0].minorticks_off()
    axes[1].set_ylim(20, 45)
    axes[0].legend()
    source_note(axes[0], "measured here", f"{_seeds(measured)} seeds")
    source_note(axes[1], "published", published[0]["source"])
    return axes


def _seeds(measured):
    return len(next(iter(next(iter(measured.values())).values())))


def _recipe_color(recipe):
    return RANK_COLORS[RECIPES.index(recipe)] if recipe in RECIPES else INK


def _goyal(rows):
    """The published rows by recipe: lists of (batch, error, spread). Constant warm-up is left out."""
    found = {recipe: [] for recipe in RECIPES}
    for row in rows:
        if row["notes"] != "constant warmup":
            recipe = _PUBLISHED.get(row["notes"], RECIPES[0])
            found[recipe].append((row["minibatch"], row["top1_error_percent"], row["std"] or 0))
    return found


# ------------------------------------------------------------------------------------------- sick runs


@course_style()
def plot_vital_signs(logs):
    """Draw loss, waiting and weights of several runs, a column for each; returns the Axes, a 2-D array.

    `logs`: name → for each rank the rows that `patients.visit` returned. A cross is a loss that is not a
    number. In the lowest row a square is one rank after one step: orange where its weights are not those that
    most ranks have.
    """
    figure, axes = plt.subplots(3, len(logs), figsize=(9.5, 6.2), sharex=True, sharey="row", squeeze=False)
    last = max(row["step"] for ranks in logs.values() for rows in ranks for row in rows)
    for column, (name, ranks) in zip(axes.T, logs.items(), strict=True):
        for rank, rows in enumerate(ranks):
            steps, color = [row["step"] for row in rows], rank_color(rank)
            losses = [row["loss"] for row in rows]
            column[0].plot(steps, losses, color=color, label=f"rank {rank}", linewidth=1.8)
            bad = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
            heights = [0.08 * (rank + 1)] * len(bad)
            column[0].plot(bad, heights, "x", color=color, transform=column[0].get_xaxis_transform())
            column[1].plot(steps, [row["waited_ms"] for row in rows], color=color, linewidth=1.8)
        squares = _different(ranks, last)
        look = dict(cmap=ListedColormap(["#dddddd", DIFFERENT]), vmin=0, vmax=1, aspect="auto")
        column[2].imshow(squares, **look, extent=(-0.5, last + 0.5, len(ranks) - 0.5, -0.5))
        column[2].set(xlabel="step", yticks=range(len(ranks)))
        column[2].grid(False)
        column[0].set_title(name)
    axes[1][0].set_yscale("log")
    for ax, label in zip(axes[:, 0], ("loss of a rank", "waited (ms)", "rank"), strict=True):
        ax.set_ylabel(label)
    figure.align_ylabels(axes[:, 0])
    axes[0][-1].legend(fontsize=points(9), loc="center left", bbox_to_anchor=(1, 0.5))
    axes[2][-1].annotate(
        "orange:\nother weights",
        (1.04, 0.5),
        xycoords="axes fraction",
        va="center",
        fontsize=points(9),
        color=DIFFERENT,
    )
    source_note(axes[2][0], "measured here", "")
    return axes


def _different(ranks, last):
    """An array, ranks × steps: 0 where a rank's weights are the most frequent ones, 1 where not, else NaN."""
    squares = np.full((len(ranks), last + 1), np.nan)
    for step in range(last + 1):
        here = {
            rank: row["weights"] for rank, rows in enumerate(ranks) for row in rows if row["step"] == step
        }
        here = {rank: weights for rank, weights in here.items() if weights is not None}
        usual = Counter(here.values()).most_common(1)
        for rank, weights in here.items():
            squares[rank, step] = weights != usual[0][0]
    return squares


# --------------------------------------------------------------------------------- stop and go on again


@in_style
def plot_attempts(attempts, reference=None, saved=(), ax=None):
    """Draw the losses of a run that was killed and went on: `attempts`, for each one its (step, loss) pairs.

    `reference`: (step, loss) pairs of a run that nobody killed. `saved`: the steps with a checkpoint.
    """
    if reference:
        ax.plot(*zip(*reference, strict=True), color="#bbbbbb", linewidth=7, label="never killed")
    for number, attempt in enumerate(attempts):
        name = f"attempt {number}: steps {attempt[0][0]}–{attempt[-1][0]}"
        ax.plot(*zip(*attempt, strict=True), marker=".", color=RANK_COLORS[number], label=name)
    for number, (before, after) in enumerate(zip(attempts, attempts[1:], strict=False)):
        lost = before[-1][0] - after[0][0] + 1
        ax.plot(*before[-1], "X", color=INK, markersize=11, zorder=5)
        ax.axvspan(after[0][0] - 0.5, before[-1][0] + 0.5, color=DIFFERENT, alpha=0.18, linewidth=0)
        label = None if number else f"done twice: {lost} steps"
        ax.plot([], [], "s", color=DIFFERENT, alpha=0.3, markersize=10, label=label)
    for step in saved:
        ax.axvline(step - 0.5, color=GREY, linestyle=":", linewidth=1)
    ax.plot([], [], color=GREY, linestyle=":", linewidth=1, label="a checkpoint")
    ax.set(xlabel="step", ylabel="loss", title="Killed, and started again")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")


@in_style
def plot_checkpoint_interval(save_seconds, seconds_between_failures, simulated=None, marks=None, ax=None):
    """Draw the share of time lost to checkpoints and failures against the interval between checkpoints.

    `simulated`: interval in seconds → share lost. `marks`: name → interval, drawn as vertical lines. Curve:
    C/W + W/2M, C seconds to save, W the interval, M between failures (Young, Commun. ACM 17(9), 1974, keeps
    these terms); least at W = √(2CM).
    """
    cost, between = save_seconds, seconds_between_failures
    best = math.sqrt(2 * cost * between)
    intervals = np.geomspace(best / 30, best * 30, 200)
    ax.loglog(intervals / 3600, 100 * (cost / intervals + intervals / 2 / between), color=INK, label="total")
    ax.loglog(intervals / 3600, 100 * cost / intervals, color=GREY, linestyle=":", label="saving")
    ax.loglog(intervals / 3600, 100 * intervals / 2 / between, color=GREY, linestyle="--", label="done twice")
    if simulated:
        x, y = np.array(list(simulated)) / 3600, 100 * np.array(list(simulated.values()))
        ax.loglog(x, y, "o", color=RANK_COLORS[0], label="simulated")
    for i, (name, seconds) in enumerate((marks or {}).items()):
        ax.axvline(seconds / 3600, color=RANK_COLORS[i + 1], linewidth=1.8, label=name)
    ax.set_ylim(bottom=100 * 0.3 * cost / best)
    ax.set(xlabel="hours between checkpoints", ylabel="time lost (%)", title="How often to save?")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    note = f"a save {cost:g} s · a failure every {between / 86400:g} days"
    source_note(ax, "computed", note + " · points simulated" * bool(simulated))


# ---------------------------------------------------------------------------------------- small files


@in_style
def plot_files(rates, ax=None):
    """Draw how fast the same samples are read; `rates`: way of storing → (files, samples per second)."""
    names = [f"{name}\n{_spaced(n)} file{'s' * (n > 1)}" for name, (n, _) in rates.items()]
    bars = ax.barh(names, [rate for _, rate in rates.values()], 0.55)
    ax.bar_label(bars, [_spaced(rate) for _, rate in rates.values()], padding=4)
    ax.set(xscale="log", xlabel="images read per second", title="The same images, stored in three ways")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    speeds = [rate for _, rate in rates.values()]
    ax.set_xlim(min(speeds) / 10, max(speeds) * 10)
    source_note(ax, "measured here", "local disk, and its cache in memory")


def _spaced(number):
    return f"{number:,.0f}".replace(",", "\u202f")
