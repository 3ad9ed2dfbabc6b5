"""Figures of Jean Zay: what a node is made of, and how long its links need for some bytes."""

from itertools import combinations

import numpy as np
from matplotlib.patches import FancyBboxPatch

from fidle_utils.plots.style import GREY, INK, PALE, in_style, ink_on, points, rank_color, source_note

__all__ = ["plot_node", "plot_transfer_times"]

_KIND_COLORS = {"computed": 0, "published": 1, "measured here": 2}  # → a colour of the ranks


@in_style
def plot_node(links, gpu, ax=None):
    """Draw a node of Jean Zay: GPUs, processors, and what joins them, with nominal speeds one way in GB/s.

    `links`: a row of the table "jeanzay_links"; `gpu`: the row of its GPU in "gpu_specs".
    """
    n, name = links["gpus_per_node"], gpu["gpu"]
    ax.figure.set_size_inches(8.6, 5.0)
    ax.set(xlim=(0, 12), ylim=(-0.1, 7.4), xticks=[], yticks=[])
    ax.set_title(f"A node with {n} {name.split('-')[0]}: nominal speeds, one way")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.add_patch(_rounded(0.1, 0.95, 11.8, 6.35, facecolor="none", linestyle="--"))

    width = 11.4 / n
    xs = [0.3 + width * (i + 0.5) for i in range(n)]
    _gpus(ax, xs, width, gpu)
    speed = _gb(gpu["gpu_link_gb_per_second"])
    title = f"{gpu['gpu_link']}: {speed} GB/s for one GPU"
    if links["gpu_to_gpu"] == "NVSwitch":
        _box(ax, 0.5, 5.75, 11, 0.5, "switches: any GPU to any other at full speed")
        for x in xs:
            ax.plot([x, x], [4.95, 5.75], color=INK, linewidth=2)
    else:
        title += f", {_gb(links['pair_gb_per_second'])} for one pair"
        for a, b in combinations(range(n), 2):
            style = {"arrowstyle": "-", "color": INK, "linewidth": 2}
            style["connectionstyle"] = f"arc3,rad={-0.3 if b - a == 1 else -0.22}"
            ax.annotate("", (xs[b], 4.95), (xs[a], 4.95), arrowprops=style)
    ax.text(6, 6.9, title, ha="center", va="center", weight="bold")

    for side in range(links["cpus"]):
        _box(ax, 0.5 + 5.7 * side, 2.3, 5.3, 0.75, f"processor {side} and its memory")
    for x in xs:
        ax.plot([x, x], [3.05, 4.05], color=GREY, linewidth=1.5)
    label = {"ha": "center", "va": "center", "fontsize": points(10)}
    text = f"PCIe {gpu['pcie'].split()[0]}: {_gb(gpu['pcie_gb_per_second'])} GB/s each"
    ax.text(6, 3.55, text, bbox={"facecolor": "white", "edgecolor": "none", "pad": 2}, **label)
    memory = f"each GPU: {gpu['memory_gb']:g} GB,\nread at {_gb(gpu['memory_gb_per_second'])} GB/s"
    ax.text(6, 1.6, memory, color=GREY, **label)
    _network(ax, links)
    who = "links as BigScience counts them, IDRIS draws 2" if "V100" in name else "links as IDRIS draws them"
    source_note(ax, "published", f"not to scale · {who} · speeds: vendors' sheets")


def _gpus(ax, xs, width, gpu):
    for i, x in enumerate(xs):
        color = rank_color(i)
        ax.add_patch(_rounded(x - 0.42 * width, 4.05, 0.84 * width, 0.9, facecolor=color))
        look = {"ha": "center", "va": "center", "weight": "bold", "fontsize": points(10)}
        ax.text(x, 4.5, f"GPU {i}", color=ink_on(color), **look)


def _network(ax, links):
    count = links["network_links"]
    for i in range(count):
        x = 0.5 + 5.7 * (i * links["cpus"] // count) + 5.3 * (i % 2 + 0.5) / 2
        ax.annotate("", (x, 0.5), (x, 2.3), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 2})
    each = links["network_gb_per_second"]
    total = f"{count} × {_gb(each)} = {_gb(count * each)} GB/s to other nodes"
    ax.text(6, 0.25, f"{links['network']}: {total}", ha="center", va="center", weight="bold")


@in_style
def plot_transfer_times(rows, n_bytes, ax=None):
    """Draw how long links need for `n_bytes`, one bar each, on a logarithmic axis in seconds.

    `rows`: dicts with `link`, `kind` ("computed", "published" or "measured here") and `seconds`, a number or
    a pair (shortest, longest).
    """
    ax.figure.set_size_inches(8.6, 0.42 * len(rows) + 1.9)
    spans = [tuple(np.broadcast_to(row["seconds"], 2)) for row in rows]
    left = 10 ** np.floor(np.log10(min(low for low, _ in spans)) - 0.3)
    ax.set_xscale("log")
    right = max(high for _, high in spans)
    for i, (row, (low, high)) in enumerate(zip(rows, spans, strict=True)):
        color = rank_color(_KIND_COLORS[row["kind"]])
        computed = row["kind"] == "computed"
        look = {"color": color} if computed else {"facecolor": PALE, "edgecolor": color, "hatch": "///"}
        ax.barh(i, high - left, left=left, height=0.66, **look)
        text = _duration(high) if low == high else f"{low:.3g} to {_duration(high)}"
        ax.text(
            high * 1.12, i, text if computed else f"{text}, {row['kind']}", va="center", fontsize=points(10)
        )
    ax.set_yticks(range(len(rows)), [row["link"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left, right * (right / left) ** 0.75)
    ax.set(xlabel="seconds", title=f"{n_bytes / 1e9:g} GB over one link")
    ax.grid(False, axis="y")
    here = any(row["kind"] == "measured here" for row in rows)
    text = "full bars: bytes over nominal bandwidth, latency left out · hatched: not computed, see its label"
    source_note(ax, "computed", text + (" · “here” is scaled up from 16 MiB" if here else ""))


def _duration(seconds):
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _gb(speed):
    return f"{speed:,g}".replace(",", "\u202f")


def _rounded(x, y, width, height, **look):
    style = "round,pad=0,rounding_size=0.12"
    return FancyBboxPatch((x, y), width, height, boxstyle=style, **{"edgecolor": "#999999", **look})


def _box(ax, x, y, width, height, text):
    ax.add_patch(_rounded(x, y, width, height, facecolor=PALE))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=points(11))
