"""Figures of what a mesh costs: groups inside and across nodes, meshes of others, experts and their load."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from fidle_utils.plots.mesh import dimension_color, dimension_name
from fidle_utils.plots.style import INK, RANK_COLORS, course_style, in_style, points, rank_color, source_note


@course_style()
def plot_crossing(seconds, step_seconds=None, step_label="", note="", ax=None):
    """Draw the seconds that each group's messages take in one step, on each link that it may use; a log axis.

    `seconds`: link → {dimension: seconds}. `step_seconds`: a published time of the whole step, as a line.
    """
    values = [value for by_group in seconds.values() for value in by_group.values()]
    left, right = min(values) / 3, 5 * max(*values, step_seconds or 0)
    n_groups = len(next(iter(seconds.values())))
    ax = plt.subplots(figsize=(9, 0.9 + 0.34 * n_groups * len(seconds)))[1] if ax is None else ax
    for i, by_group in enumerate(seconds.values()):
        for j, (name, value) in enumerate(by_group.items()):
            y = i + (j - (n_groups - 1) / 2) * 0.75 / n_groups
            color, label = dimension_color(name), dimension_name(name) if i == 0 else None
            ax.plot([left, value], [y, y], color=color, linewidth=2)
            ax.plot(value, y, "o", color=color, markersize=9, label=label)
            place = {"textcoords": "offset points", "va": "center", "fontsize": points(10)}
            ax.annotate(f"{value:.2g} s" if value < 10 else f"{value:.0f} s", (value, y), (9, 0), **place)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlim(left, right)
    if step_seconds:
        ax.axvline(step_seconds, color=INK, linestyle=":", label=step_label)
    ax.set_yticks(range(len(seconds)), list(seconds))
    ax.set_ylim(len(seconds) - 0.45, -0.55)
    ax.grid(axis="y", visible=False)
    ax.set_title("Where a group lives decides what it costs")
    ax.set_xlabel("seconds of one step, if nothing overlaps")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", note)
    return ax


@course_style()
def plot_topologies(rows, computed, source):
    """Draw published step times of one model on several meshes, beside seconds that are computed for each.

    `rows`: published rows with tp, pp, dp and seconds_per_iteration; `computed`: for each row a dict name →
    seconds, stacked; `source`: who published. The two panels have different scales. Returns two Axes.
    """
    axes = plt.subplots(1, 2, figsize=(9.5, 1.6 + 0.4 * len(rows)), sharey=True)[1]
    names = [f"TP {row['tp']} · PP {row['pp']} · DP {row['dp']}" for row in rows]
    published = [row["seconds_per_iteration"] for row in rows]
    bars = axes[0].barh(range(len(rows)), published, 0.65, color="#888888")
    axes[0].bar_label(bars, [f"{value:.0f} s" for value in published], padding=3)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="seconds of one step", title="Published")
    axes[0].margins(x=0.18)
    axes[0].xaxis.set_major_locator(MaxNLocator(6, prune="upper"))  # the next panel starts with its 0
    left = np.zeros(len(rows))
    colors = (dimension_color("tp"), "#aaaaaa", dimension_color("dp"))
    for name, color in zip(computed[0], colors, strict=False):
        widths = np.array([one[name] for one in computed])
        axes[1].barh(range(len(rows)), widths, 0.65, left, color=color, edgecolor="white", label=name)
        left += widths
    axes[1].set(xlabel="seconds of one step", title="Computed: three losses")
    axes[0].figure.legend(loc="outside lower center", ncols=len(computed[0]))
    for ax in axes:
        ax.grid(axis="y", visible=False)
    source_note(axes[0], "published", source)
    source_note(axes[1], "computed", "")
    return axes


@course_style()
def plot_two_networks(pairs, source):
    """Draw published step times of a model with and without tensor parallelism, a panel for each network.

    `pairs`: network → list of (model, without, with), each of the two (seconds, flagged). A flagged time is
    hatched. `source`: who published. Returns the Axes.
    """
    axes = plt.subplots(1, len(pairs), figsize=(4.6 * len(pairs), 4.4), squeeze=False)[1][0]
    names, colors = ("FSDP2 alone", "tensor in the node,\nFSDP2 across"), map(dimension_color, ("dp", "tp"))
    kinds = list(zip(names, colors, strict=True))
    for ax, (network, rows) in zip(axes, pairs.items(), strict=True):
        for i, (_, *times) in enumerate(rows):
            for x, (value, flagged), (label, color) in zip((i - 0.2, i + 0.2), times, kinds, strict=True):
                look = {"color": color, "hatch": "//" if flagged else None, "edgecolor": "white"}
                bar = ax.bar(x, value, 0.38, label=label if i == 0 else None, **look)
                ax.bar_label(bar, [f"{value:.1f}"], padding=2, fontsize=points(10))
        ratios = [without[0] / with_tensor[0] for _, without, with_tensor in rows]
        said = [f"{r:.1f}× faster" if r > 1 else f"{1 / r:.1f}× slower" for r in ratios]
        ax.set_xticks(range(len(rows)), [f"{row[0]}\n{text}" for row, text in zip(rows, said, strict=True)])
        ax.set_title(network, fontsize=points(12))
        ax.set_ylabel("seconds of one step")
        ax.margins(y=0.12)
        ax.grid(axis="x", visible=False)
    axes[-1].bar(0, 0, color="#bbbbbb", hatch="//", edgecolor="white", label="its log warns of stalls")
    axes[0].figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    source_note(axes[0], "published", source)
    return axes


# ------------------------------------------------------------------------------------------ experts


@in_style
def plot_expert_load(tokens, capacity=None, title="Tokens that reach each expert", ax=None):
    """Draw how many tokens each expert receives, stacked by the rank that they come from.

    `tokens[source][expert]`: a count. `capacity`: the places of one expert, a line.
    """
    tokens = np.asarray(tokens)
    bottom = np.zeros(tokens.shape[1])
    for source, counts in enumerate(tokens):
        look = {"color": rank_color(source), "edgecolor": "white", "label": f"from rank {source}"}
        ax.bar(range(len(counts)), counts, 0.7, bottom, **look)
        bottom += counts
    seen = [withStroke(linewidth=5, foreground="white")]  # also in front of a dark bar
    fair = tokens.sum() / tokens.shape[1]
    ax.axhline(fair, color=INK, linestyle="--", label="fair share", path_effects=seen)
    if capacity:
        ax.axhline(capacity, color=INK, label=f"capacity {capacity:g}", path_effects=seen)
    ax.set_xticks(range(tokens.shape[1]))
    ax.set(xlabel="expert", ylabel="tokens", title=title)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "measured here")


@in_style
def plot_drops(factors, dropped, ax=None):
    """Draw the share of tokens dropped against the capacity factor; `dropped`: name → one for each factor."""
    for (name, shares), color in zip(dropped.items(), (RANK_COLORS[5], RANK_COLORS[2]), strict=True):
        ax.plot(factors, [100 * share for share in shares], "o-", color=color, label=name)
    ax.set(xlabel="capacity factor: places / fair share", ylabel="tokens dropped, %")
    ax.set_title("Who finds no place")
    ax.set_ylim(bottom=0)
    ax.legend()
    source_note(ax, "measured here")
