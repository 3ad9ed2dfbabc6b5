"""The figure of a roofline: ceilings, ridge points, the learner's operations, other machines."""

import itertools
import math
import textwrap

import matplotlib.pyplot as plt
import numpy
from matplotlib import patheffects
from matplotlib.ticker import EngFormatter, FuncFormatter
from matplotlib.transforms import Bbox

from fidle_utils.plots.style import GREY, INK, RANK_COLORS, course_style, points, source_note

__all__ = ["plot_roofline"]

DTYPE_COLORS = dict(zip(("fp32", "bf16", "fp16", "tf32"), RANK_COLORS, strict=False))
OTHER_LINES = (":", "-.", "--", (0, (5, 1, 1, 1, 1, 1)))
_HALO = [patheffects.withStroke(linewidth=3, foreground="white")]


@course_style()
def plot_roofline(roofline, operations=(), others=(), title="Roofline", ax=None):
    """Draw a `Roofline`, and each `Operation` under it with its percent of the roof that bounds it.

    A diamond marks the ridge of each dtype. `others`: machines to lay over it, dicts with name,
    flops_per_second, bytes_per_second and label, which says what the numbers are and where they come from
    ("published · NVIDIA data sheet"); the legend shows it. Source: Williams, Waterman, Patterson, Commun. ACM
    52(4), 2009.
    """
    ax = plt.subplots(figsize=(9.5, 6 if others else 5))[1] if ax is None else ax
    operations = list(operations)
    left, right = _scale(ax, roofline, operations, others)
    for other, style in zip(others, itertools.cycle(OTHER_LINES)):  # noqa: B905, the styles never end
        _draw_other(ax, other, style, left, right)
    labels = _draw_ceilings(ax, roofline, left, right) + _draw_operations(ax, roofline, operations)
    ax.set(xlabel="arithmetic intensity (FLOP/byte)", ylabel="FLOP/s", title=title)
    if others:
        ax.legend(loc="upper left", fontsize=points(10)).set_in_layout(False)
    busy = f" · other programs used {roofline.others_share:.0%} of its cores meanwhile"
    source_note(ax, roofline.kind, roofline.machine + busy * (roofline.others_share > 0.1))
    ax.figure.draw_without_rendering()  # the labels need to know where things are
    _place(ax, labels, _name_ceilings(ax, roofline, left, right))
    return ax


def _scale(ax, roofline, operations, others):
    """Set logarithmic axes that hold everything, with room above for the legend; return the limits of x."""
    peaks = [*roofline.compute.values(), *(other["flops_per_second"] for other in others)]
    ridges = [roofline.ridge(dtype, level) for dtype in roofline.compute for level in roofline.memory]
    ridges += [other["flops_per_second"] / other["bytes_per_second"] for other in others]
    xs = [operation.intensity for operation in operations]
    left, right = min([0.2, *ridges, *xs]) / 10, 16 * max([10, *ridges, *xs])  # for the names of ceilings
    lowest = min([left * min(roofline.memory.values()), *(op.flops_per_second / 2 for op in operations)])
    decades = math.log10(max(peaks) / lowest)
    ax.set(xscale="log", yscale="log", xlim=(left, right))
    ax.set_ylim(lowest, max(peaks) * 10 ** (decades * (0.17 + 0.09 * len(others))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.yaxis.set_major_formatter(EngFormatter())
    return left, right


def _draw_other(ax, other, style, left, right):
    peak, rate = other["flops_per_second"], other["bytes_per_second"]
    text = f"{other['name']}: {_si(peak, 'FLOP/s')}, {_si(rate, 'B/s')}"
    text += "\n" + textwrap.shorten(other["label"], 88, placeholder=" …")
    xs, ys = [left, peak / rate, right], [left * rate, peak, peak]
    ax.plot(xs, ys, linestyle=style, color=GREY, linewidth=1.5, label=text)


def _draw_ceilings(ax, roofline, left, right):
    """Draw the roof of each level and dtype and the ridges; return the labels of the ridges."""
    peak, fastest = max(roofline.compute.values()), max(roofline.memory.values())
    for name, rate in roofline.memory.items():
        look = {"color": GREY, "linestyle": "--", "linewidth": 1.5} if name != "memory" else {"color": INK}
        ax.plot([left, peak / rate], [left * rate, peak], label=f"_{name}", **look)
    labels = []
    for dtype, rate in roofline.compute.items():
        ridge, color = roofline.ridge(dtype), _color(dtype)
        ax.plot([rate / fastest, right], [rate, rate], color=color, label=f"_{dtype}")
        ax.plot(ridge, rate, "D", markersize=8, color="white", markeredgecolor=color, zorder=4)
        labels.append((ridge, rate, f"ridge {ridge:.3g}", color))
    return labels


def _draw_operations(ax, roofline, operations):
    """Draw each operation and a thin line from it to its roof; return the labels."""
    labels = []
    for operation in operations:
        verdict, x, y = roofline.judge(operation), operation.intensity, operation.flops_per_second
        color = _color(operation.dtype)
        ax.vlines(x, *sorted([y, verdict["attainable"]]), color=color, linewidth=1, alpha=0.5)
        ax.plot(x, y, "o", markersize=9, color=color, zorder=5, label=f"_{operation.name}")
        labels.append((x, y, f"{operation.name} {verdict['percent']:.0f} %", INK))
    return labels


def _color(dtype):
    return DTYPE_COLORS.get(dtype, GREY)


def _si(value, unit):
    """Return a value with three digits and a prefix: 989 TFLOP/s."""
    prefix, factor = next(
        ((p, f) for p, f in zip("PTGMk", (1e15, 1e12, 1e9, 1e6, 1e3), strict=True) if value >= f), ("", 1)
    )
    return f"{value / factor:.3g} {prefix}{unit}"


# ---------------------------------------------------------------------------------------------- labels


def _name_ceilings(ax, roofline, left, right):
    """Write each ceiling's name and number along its line; return the boxes they take, in pixels."""
    boxes, style = [], {"fontsize": points(10), "path_effects": _HALO, "in_layout": False}
    below = set()
    rates = sorted(roofline.compute.items(), key=lambda item: item[1])
    for (low, a), (_, b) in zip(rates, rates[1:], strict=False):
        if ax.transData.transform((1, b))[1] - ax.transData.transform((1, a))[1] < 2 * points(12):
            below.add(low)  # no room for its text between the two lines
    for name, rate in rates:
        text = ax.annotate(
            f"{name} {_si(rate, 'FLOP/s')}",
            (right, rate),
            (-4, -4 if name in below else 3),
            textcoords="offset points",
            ha="right",
            va="top" if name in below else "bottom",
            color=_color(name),
            **style,
        )
        boxes.append(text.get_window_extent())
    for name, rate in roofline.memory.items():
        (x0, y0), (x1, y1) = ax.transData.transform([(1, rate), (10, 10 * rate)])
        angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
        start = max(1.15 * left, 1.15 * ax.get_ylim()[0] / rate)
        text = ax.annotate(
            f"{name} {_si(rate, 'B/s')}",
            (start, start * rate),
            (-2, 3),
            textcoords="offset points",
            rotation=angle,
            rotation_mode="anchor",
            color=INK if name == "memory" else GREY,
            **style,
        )
        boxes += _along(text.get_window_extent(), angle)
    return boxes


def _along(box, angle, n=12):
    """Small boxes along a text that rises in `box`."""
    side = points(14)
    steps = [i / (n - 1) for i in range(n)]
    return [
        Bbox.from_bounds(box.x0 + t * (box.width - side), box.y0 + t * (box.height - side), side, side)
        for t in steps
    ]


def _place(ax, labels, boxes):
    """Write `labels`, (x, y, text, colour), each at the nearest place that hides no other and no point."""
    frame = ax.get_window_extent()
    dots = [ax.transData.transform((x, y)) for x, y, *_ in labels]
    boxes = boxes + [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in dots]
    boxes += [legend.get_window_extent()] if (legend := ax.get_legend()) else []
    lines = numpy.array([pixel for line in ax.lines for pixel in _pixels(ax, line)])
    look = {"fontsize": points(11), "path_effects": _HALO, "in_layout": False, "zorder": 6}
    for (x, y, text, color), dot in zip(labels, dots, strict=True):
        note = ax.annotate(text, (x, y), (0, 0), textcoords="offset points", color=color, **look)
        size, costs = note.get_window_extent().size, {}
        for offset in _offsets():
            box = _box(dot, size, *offset, ax.figure.dpi / 72)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            hidden = box.count_overlaps(boxes) + 10 * outside
            crossed = ((lines > box.min) & (lines < box.max)).all(axis=1).sum()
            costs[offset] = 100 * hidden + 2 * crossed + math.hypot(*offset)
        dx, dy = min(costs, key=costs.get)
        boxes.append(_box(dot, size, dx, dy, ax.figure.dpi / 72).padded(3))  # with its halo
        ha, va = _alignment(dx, dy)
        note.set(position=(dx, dy), ha=ha, va=va)
        if math.hypot(dx, dy) > 15:  # too far from its point to belong to it at a glance
            start = ax.transData.inverted().transform(
                dot + [dx * ax.figure.dpi / 72, dy * ax.figure.dpi / 72]
            )
            ax.plot([x, start[0]], [y, start[1]], color=GREY, linewidth=0.8, zorder=3, label="_to the label")


def _offsets():
    """Where to try a label, in points from its point: near places first."""
    for distance in (11, 22, 36, 52):
        for turn in range(16):
            yield distance * math.cos(turn * math.pi / 8), distance * math.sin(turn * math.pi / 8)


def _alignment(dx, dy):
    horizontal = "left" if dx > 4 else "right" if dx < -4 else "center"
    return horizontal, "bottom" if dy > 4 else "top" if dy < -4 else "center"


def _box(dot, size, dx, dy, scale):
    """The box of a text of `size` pixels at (dx, dy) points from a point at `dot`, in pixels."""
    ha, va = _alignment(dx, dy)
    x = dot[0] + dx * scale - size[0] * {"left": 0, "center": 0.5, "right": 1}[ha]
    y = dot[1] + dy * scale - size[1] * {"bottom": 0, "center": 0.5, "top": 1}[va]
    return Bbox.from_bounds(x, y, *size)


def _pixels(ax, line, n=60):
    """Points along a line, in pixels."""
    pixels = ax.transData.transform(line.get_xydata())
    for (x0, y0), (x1, y1) in zip(pixels, pixels[1:], strict=False):
        for i in range(n):
            yield x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n
