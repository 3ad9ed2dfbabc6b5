"""The figure of `roofline_sliders`: roof, operation, and the two times of which the longer one counts."""

import math

import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.ticker import EngFormatter, FuncFormatter

from fidle_utils.plots.style import GREY, INK, RANK_COLORS, course_style, points, source_note

__all__ = ["RooflineFigure", "si"]

COMPUTE, MEMORY = RANK_COLORS[0], RANK_COLORS[1]
_X, _Y = (0.1, 2e5), (1e9, 2e16)  # fixed: a roof that moves is seen to move
_HALO = [patheffects.withStroke(linewidth=3, foreground="white")]


class RooflineFigure:
    """`axes` are those of the roofline and of the times; `draw` brings both up to date."""

    @course_style()
    def __init__(self):
        figure, (ax, times) = plt.subplots(
            2, 1, figsize=(9.8, 5.6), height_ratios=[4, 1], layout="none", facecolor="white"
        )
        plt.close(figure)  # it stays whole, only pyplot forgets it
        figure.subplots_adjust(0.095, 0.09, 0.985, 0.94, hspace=0.42)
        ax.set(xscale="log", yscale="log", xlim=_X, ylim=_Y, ylabel="FLOP/s")
        ax.set_xlabel("arithmetic intensity (FLOP/byte)")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.15g}".replace(",", "\u202f")))
        ax.yaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
        ax.minorticks_off()  # half of the time of a redraw
        (x0, y0), (x1, y1) = ax.transData.transform([(1, 1e10), (10, 1e11)])
        along = {"rotation": math.degrees(math.atan2(y1 - y0, x1 - x0)), "rotation_mode": "anchor"}
        small = {"fontsize": points(10), "path_effects": _HALO}
        bold = {"fontsize": points(12), "fontweight": "bold", "path_effects": _HALO}
        self.parts = {
            "spans": [ax.axvspan(1, 2, color=color, alpha=0.08, linewidth=0) for color in (MEMORY, COMPUTE)],
            "before": ax.plot([], [], "--", color=GREY, linewidth=1.2, label="before you moved it")[0],
            "slope": ax.plot([], [], color=MEMORY, linewidth=3, label="memory")[0],
            "flat": ax.plot([], [], color=COMPUTE, linewidth=3, label="peak")[0],
            "guide": ax.plot([], [], ":", color=INK, linewidth=1.2)[0],
            "trail": ax.plot([], [], "o", color=INK, markersize=4, alpha=0.3, label="other sizes")[0],
            "dot": ax.plot([], [], "o", color=INK, markersize=11, zorder=5, label="operation")[0],
            "slope_name": ax.text(1, 1, "", color="#a36f00", va="bottom", **along, **small),
            "flat_name": ax.text(1, 1, "", color=COMPUTE, ha="right", va="bottom", **small),
            "ridge": ax.text(1, 1, "", color=GREY, ha="center", va="bottom", **small),
            "sides": [ax.text(1, 0.4 * _Y[1], f"{name}-bound", ha="center", color=color, **bold)
                      for name, color in (("memory", "#a36f00"), ("compute", COMPUTE))],
            "dot_name": ax.annotate("", (1, 1), (12, -7), textcoords="offset points", va="top", **bold),
            "bars": times.barh([0, 1], [1, 1], 0.7, color=[MEMORY, COMPUTE]),
            "bar_names": [times.text(0, row, "", va="center", fontsize=points(11)) for row in (0, 1)],
            "hint": ax.text(0.99, 0.03, "", transform=ax.transAxes, ha="right", color=GREY, **small),
            "title": ax.set_title(" ", y=1),
            "note": None,
        }  # fmt: skip
        times.set(xlim=(0, 1.32), ylim=(1.5, -0.5), xticks=[])
        times.set_yticks([0, 1], ["move", "compute"], fontsize=points(11))
        times.tick_params(length=0)
        times.grid(False)
        times.spines["bottom"].set_visible(False)
        times.set_title("the longer one is the least time it takes", fontsize=points(11), y=1, pad=3)
        self.axes = ax, times

    def draw(self, v, others, own, words):
        """Bring the figure up to date.

        `v`: the verdict of the operation, `others`: those of its other sizes; `own`: FLOP/s and bytes/s that
        the machine has by itself; `words`: title, operation, dtype, hint and note.
        """
        parts, peak, rate, ridge = self.parts, v["peak"], v["bandwidth"], v["ridge"]
        self._draw_roof(peak, rate, ridge, own, words["dtype"])
        x, y = v["intensity"], v["attainable"]
        parts["trail"].set_data([o["intensity"] for o in others], [o["attainable"] for o in others])
        parts["guide"].set_data([_X[0], x, x], [y, y, _Y[0]])
        parts["dot"].set_data([x], [y])
        parts["dot"].set_color(MEMORY if v["bound"] == "memory" else COMPUTE)
        parts["dot"].set_markeredgecolor(INK)
        parts["dot_name"].xy = x, y
        right = x > 2e3  # no room for the text
        parts["dot_name"].set(
            text=f"{words['operation']}\n{si(y, 'FLOP/s')}", ha="right" if right else "left"
        )
        parts["dot_name"].set_position((-12 if right else 12, -7))
        self._draw_times(v)
        parts["title"].set_text(words["title"])
        parts["hint"].set_text(words["hint"])
        if parts["note"] is not None:
            parts["note"].remove()
        parts["note"] = source_note(self.axes[1], "computed", words["note"])

    def _draw_roof(self, peak, rate, ridge, own, dtype):
        parts, moved = self.parts, own != (peak, rate)
        parts["slope"].set_data([_X[0], ridge], [_X[0] * rate, peak])
        parts["flat"].set_data([ridge, _X[1]], [peak, peak])
        before = [_X[0], own[0] / own[1], _X[1]], [_X[0] * own[1], own[0], own[0]]
        parts["before"].set_data(*before if moved else ([], []))
        edge = min(max(ridge, _X[0]), _X[1])
        for span, text, (a, b) in zip(
            parts["spans"], parts["sides"], ((_X[0], edge), (edge, _X[1])), strict=True
        ):
            span.set(x=a, width=b - a)
            text.set(x=math.sqrt(a * b), visible=math.log10(b / a) > 1.6)
        start = max(1.3 * _X[0], 1.5 * _Y[0] / rate)
        parts["slope_name"].set(x=start, y=1.25 * start * rate, text=si(rate, "B/s"))
        parts["flat_name"].set(x=0.9 * _X[1], y=1.15 * peak, text=f"{dtype} {si(peak, 'FLOP/s')}")
        parts["ridge"].set(x=ridge, y=1.3 * peak, text=f"ridge {ridge:.3g}")

    def _draw_times(self, v):
        did = {"memory": si(v["n_bytes"], "B"), "compute": si(v["flops"], "FLOP")}
        for row, name in enumerate(did):
            seconds = v[f"{name}_seconds"]
            self.parts["bars"][row].set_width(seconds / v["seconds"])
            said = f"{did[name]}: {si(seconds, 's')}"
            look = {"fontweight": "bold" if name == v["bound"] else "normal"}
            self.parts["bar_names"][row].set(x=seconds / v["seconds"] + 0.01, text=said, **look)


def si(value, unit):
    """Three digits and a prefix: 989 TFLOP/s, 139 µs."""
    return EngFormatter(unit)(float(f"{value:.3g}"))
