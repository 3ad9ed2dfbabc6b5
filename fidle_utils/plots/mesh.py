"""Figures of meshes: ranks on a grid, groups on nodes, a whole cluster, and what each group sends."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from fidle_utils.plots.style import (
    GREY,
    INK,
    RANK_COLORS,
    byte_unit,
    course_style,
    in_style,
    ink_on,
    points,
    rank_color,
    source_note,
)

DIMENSIONS = {"pp": "pipeline", "dp": "data", "tp": "tensor"}
_COLORS = {"pp": RANK_COLORS[5], "dp": RANK_COLORS[4], "tp": RANK_COLORS[2]}


def dimension_name(key):
    """Return the word for a mesh dimension: "tp" is "tensor"; other names stand for themselves."""
    return DIMENSIONS.get(key, key)


def dimension_color(key):
    """Return the colour of a mesh dimension, the same in every figure of the lesson."""
    return _COLORS.get(key, RANK_COLORS[3])


# ------------------------------------------------------------------------------------------ two dimensions


@in_style
def plot_grid(groups, ax=None):
    """Draw the ranks of a pipeline × data mesh as a grid: a column is a pipeline, a row holds one stage.

    `groups`: {"pp": a list of groups of ranks, "dp": the same}; a group is a list, in the order of the mesh.
    """
    column = {rank: x for row in groups["dp"] for x, rank in enumerate(row)}
    place = {rank: (column[rank], y) for ranks in groups["pp"] for y, rank in enumerate(ranks)}
    for name, style in (("pp", "-|>"), ("dp", "<|-|>")):
        for one, other in (pair for group in groups[name] for pair in pairwise(group)):
            _arrow(ax, place[one], place[other], style, dimension_color(name), 0.24)
    for rank, (x, y) in place.items():
        ax.scatter(x, y, s=points(1100), color=rank_color(rank), zorder=3)
        ink = ink_on(rank_color(rank))
        ax.text(x, y, rank, color=ink, weight="bold", ha="center", va="center", zorder=4)
    n_stages, n_replicas = len(groups["pp"][0]), len(groups["dp"][0])
    words = {"fontsize": points(10), "color": INK}
    ax.text(0.5, -0.09, "gradients of\nweights, averaged", ha="center", va="bottom", **words)
    ax.text(0.07, 0.5, "activations ↓\ntheir gradients ↑", va="center", **words)
    ax.set_xticks(range(n_replicas), [f"pipeline {i}\ndata share {i}" for i in range(n_replicas)])
    ax.set_yticks(range(n_stages), [f"stage {i}" for i in range(n_stages)])
    ax.set(xlim=(-0.5, n_replicas - 0.5), ylim=(n_stages - 0.6, -0.45), title="Who talks with whom")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for name in ("pp", "dp"):
        ax.plot([], [], color=dimension_color(name), linewidth=3, label=f"{dimension_name(name)} group")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", "from the numbers of the ranks")


def _arrow(ax, start, end, style, color, shrink):
    (x0, y0), (x1, y1) = start, end
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    dx, dy = shrink * (x1 - x0) / length, shrink * (y1 - y0) / length
    look = {"arrowstyle": style, "mutation_scale": 18, "linewidth": 3, "color": color, "zorder": 2}
    ax.add_patch(FancyArrowPatch((x0 + dx, y0 + dy), (x1 - dx, y1 - dy), shrinkA=0, shrinkB=0, **look))


# ------------------------------------------------------------------------------------------ groups on nodes


@course_style()
def plot_mesh(meshes, node=4):
    """Draw the groups of each mesh on nodes of `node` ranks: a panel for each dimension, one colour a group.

    `meshes`: title → {dimension: list of groups of ranks}. A dotted line leaves the node. Returns the Axes, a
    row for each mesh.
    """
    n_rows, n_columns = len(meshes), max(map(len, meshes.values()))
    size = (3.2 * n_columns + 0.4, 2.3 * n_rows)
    axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)[1]
    for row, (title, groups) in zip(axes, meshes.items(), strict=True):
        for ax, (name, members) in zip(row, groups.items(), strict=False):
            _panel(ax, members, node)
            crossing = sum(len({rank // node for rank in group}) > 1 for group in members)
            said = f"{crossing} of {len(members)} cross"
            ax.set_title(f"{dimension_name(name)}: {said}", fontsize=points(11), weight="normal")
        row[0].set_ylabel(title, weight="bold", fontsize=points(11))
    source_note(axes[-1][0], "computed", "a group crosses if it leaves its node")
    return axes


def _panel(ax, members, node):
    place = {rank: (rank % node, rank // node) for group in members for rank in group}
    n_nodes = 1 + max(y for _, y in place.values())
    for y in range(n_nodes):
        ax.add_patch(Rectangle((-0.45, y - 0.36), node - 0.1, 0.72, facecolor="#f3f3f3", edgecolor="#bbbbbb"))
    for i, group in enumerate(sorted(members)):
        color = rank_color(i)
        for one, other in pairwise(group):
            crosses = one // node != other // node
            bend = -0.42 if not crosses and abs(one - other) > 1 else 0
            look = {"linestyle": ":" if crosses else "-", "linewidth": 3, "color": color, "zorder": 2}
            arc = f"arc3,rad={bend if i % 2 == 0 else -bend}"
            patch = FancyArrowPatch(place[one], place[other], arrowstyle="-", connectionstyle=arc, **look)
            ax.add_patch(patch)
        for rank in group:
            x, y = place[rank]
            ax.scatter(x, y, s=points(330), marker="s", color=color, zorder=3)
            ink = "white" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) < 0.6 else INK
            ax.text(x, y, rank, color=ink, weight="bold", ha="center", va="center", zorder=4)
    ax.set_yticks(range(n_nodes), [f"node {y}" for y in range(n_nodes)])
    ax.set(xlim=(-0.6, node - 0.4), ylim=(n_nodes - 0.5, -0.5), xticks=[])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


@course_style()
def plot_cluster(sizes, node=8, mark=0, ax=None):
    """Draw every GPU of a large mesh, a column for each node: its stage, the tensor groups, two other groups.

    `sizes`: {"pp": …, "dp": …, "tp": …} in the order of the mesh, the last one on neighbouring ranks. Frames
    are tensor groups; dots mark the data group and a line the pipeline group of rank `mark`.
    """
    grid = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
    where = np.argwhere(grid == mark)[0]
    n_nodes, names = -(-grid.size // node), list(sizes)
    group = {
        name: np.moveaxis(grid, axis, -1)[tuple(np.delete(where, axis))] for axis, name in enumerate(names)
    }
    ax = plt.subplots(figsize=(10, 4.1))[1] if ax is None else ax
    stage = np.argwhere(grid >= 0)[:, names.index("pp")]
    for rank, which in enumerate(stage):
        place = (rank // node - 0.5, rank % node - 0.5)
        ax.add_patch(Rectangle(place, 1, 1, facecolor=("#d2d2d2", "#ececec")[which % 2], edgecolor="white"))
    frame = {"facecolor": "none", "edgecolor": dimension_color("tp")}
    for members in np.moveaxis(grid, names.index("tp"), -1).reshape(-1, sizes["tp"]):
        if members[-1] // node == members[0] // node:
            corner = (members[0] // node - 0.42, members[0] % node - 0.42)
            width = 3 if mark in members else 0.9
            ax.add_patch(Rectangle(corner, 0.84, np.ptp(members) + 0.84, linewidth=width, zorder=2, **frame))
    look = {"color": dimension_color("pp"), "markersize": 9, "linewidth": 2, "zorder": 3}
    ax.plot(group["pp"] // node, group["pp"] % node, "-D", label=f"pipeline group of rank {mark}", **look)
    look = {"color": dimension_color("dp"), "markersize": 7, "zorder": 4, "markeredgecolor": INK}
    ax.plot(group["dp"] // node, group["dp"] % node, "o", label="its data group", **look)
    ax.plot([], [], color=dimension_color("tp"), linewidth=3, label="its tensor group")
    ax.plot([], [], color=dimension_color("tp"), linewidth=0.9, label="other tensor groups")
    for which in range(sizes["pp"]):
        middle = np.mean(np.flatnonzero(stage == which) // node)
        ax.text(middle, -0.7, which, ha="center", va="bottom", fontsize=points(10), color=GREY)
    ax.set(xlim=(-0.6, n_nodes - 0.4), ylim=(node - 0.4, -1.6), xlabel="node", ylabel="GPU of the node")
    ax.set_yticks(range(node))
    title = " · ".join(f"{dimension_name(name)} {size}" for name, size in sizes.items())
    ax.set_title(f"{grid.size} GPUs: {title}. Above: the stage", fontsize=points(12))
    ax.figure.legend(loc="outside lower center", ncols=2)
    ax.grid(False)
    source_note(ax, "computed", "")
    return ax


# ------------------------------------------------------------------------------------------ bytes by group


@in_style
def plot_group_bytes(counted, expected=None, title="What each rank sends in one step, by group", ax=None):
    """Draw the bytes that each rank sends, stacked by the group in which it sends them.

    `counted`: a `Communication` for each rank; `expected`: for each rank a dict dimension → bytes of a
    formula, drawn as a dash at the height that the stack should reach.
    """
    totals = [one.bytes_sent() for one in counted]
    unit, factor = byte_unit(max(totals))
    bottom = np.zeros(len(counted))
    goal = np.zeros(len(counted))
    known = [name for name in ("tp", "pp", "dp") if any(one.calls(group=name) for one in counted)]
    others = dict.fromkeys(str(row["group"]) for one in counted for row in one.rows())
    for name in known + [name for name in others if name not in known]:
        heights = np.array([float(one.bytes_sent(group=name)) for one in counted]) / factor
        look = {"color": dimension_color(name), "edgecolor": "white", "label": dimension_name(name)}
        ax.bar(range(len(counted)), heights, 0.62, bottom, **look)
        bottom += heights
        if expected:
            goal += np.array([one.get(name, 0) for one in expected]) / factor
            label = "formula" if name == known[-1] else None
            ax.hlines(goal, np.arange(len(goal)) - 0.42, np.arange(len(goal)) + 0.42, color=INK, label=label)
    ax.set_xticks(range(len(counted)), [f"rank {i}" if len(counted) < 6 else i for i in range(len(counted))])
    ax.set(ylabel=f"{unit} sent", title=title, xlabel="rank" if len(counted) >= 6 else None)
    ax.grid(axis="x", visible=False)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, "computed", "calls counted here; bytes sent by ring algorithms")
