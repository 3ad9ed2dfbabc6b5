"""Does a model fit? Its states on one rank, by ZeRO stage, for sizes that the learner moves by hand.

Source of the formulas: Rajbhandari et al., ZeRO, arXiv:1910.02054, 2020.
"""

from functools import partial

import matplotlib.pyplot as plt

from fidle_utils.measure.memory import human_size
from fidle_utils.memory_formulas import PRECISIONS, STAGES, model_state_bytes, step_bytes_sent
from fidle_utils.plots.memory import _COLORS
from fidle_utils.plots.sharding import STATES
from fidle_utils.plots.style import INK, course_style, points, rank_color, source_note
from fidle_utils.reference import table
from fidle_utils.widgets.show import Live, png

__all__ = ["MemoryCalculator", "memory_calculator"]

RANKS = [2**k for k in range(13)]
BILLIONS = [0.1, 0.35, 0.7, 1.3, 2.7, 7, 7.5, 8, 13, 20, 32, 40, 70, 100, 128, 176, 405, 671, 1000]
GPUS = ("V100-SXM2-32GB", "A100-SXM4-80GB", "H100-SXM5-80GB", "H200-SXM-141GB", "B200-SXM", "RTX 4090")
_FITS, _FULL = "#2e7d32", "#c62828"


def memory_calculator(billions=7.5, n_ranks=64, precision=None, gpu=None, reserve=0.2):
    """Show what a rank holds at each ZeRO stage, with sliders for model, ranks, optimizer and device.

    `billions` of parameters; `n_ranks` share the states; `precision`: a name of `memory_formulas.PRECISIONS`;
    `gpu`: a name of `table("gpu_specs")`; `reserve`: the share of its memory that is kept for activations and
    buffers. All GB are decimal; model states only. Headless: the first state. Raises LookupError.
    """
    return MemoryCalculator(billions, n_ranks, precision, gpu, reserve)


class MemoryCalculator(Live):
    """The state (`billions`, `n_ranks`, `precision`, `gpu`, `reserve`), its `verdict()`, its figure.

    `controls`: the widgets, by name. `axes`: the Axes of the bytes held and of the bytes sent.
    """

    def __init__(self, billions, n_ranks, precision, gpu, reserve):
        published = {row["gpu"]: row["memory_gb"] for row in table("gpu_specs") if row["memory_gb"]}
        self.memories = {name: published[name] for name in (*GPUS, gpu) if name in published}
        self.billions, self.n_ranks, self.reserve = billions, n_ranks, reserve
        self.precision = precision or next(iter(PRECISIONS))
        self.gpu = gpu or next(iter(self.memories))
        if self.precision not in PRECISIONS:
            raise LookupError(f"{self.precision!r}: choose one of {', '.join(PRECISIONS)}.")
        if self.gpu not in self.memories:
            raise LookupError(f"no published memory of {self.gpu!r}: take another of table('gpu_specs').")
        self.axes = None

    def verdict(self):
        """Return one dict a stage: stage, held (part → bytes), total, bytes_sent, fits."""
        precision, psi = PRECISIONS[self.precision], 1e9 * self.billions
        room = (1 - self.reserve) * self.memories[self.gpu] * 1e9
        rows = []
        for stage in STAGES:
            held = model_state_bytes(psi, stage, self.n_ranks, precision)
            total, sent = sum(held.values()), step_bytes_sent(psi, stage, self.n_ranks, precision)
            row = {"stage": stage, "held": held, "total": total, "bytes_sent": sent, "fits": total <= room}
            rows.append(row)
        return rows

    def text(self):
        said = [
            f"stage {row['stage']}: {human_size(row['total'])}, {'fits' if row['fits'] else 'does not fit'}"
            for row in self.verdict()
        ]
        ranks = f"{self.n_ranks} rank{'s' * (self.n_ranks > 1)}"
        return (
            f"{self.billions:g} billion parameters, {self.precision}, {ranks}, {self.gpu} "
            f"({self.memories[self.gpu]:g} GB, {self.reserve:.0%} kept free): {'; '.join(said)}"
        )

    def static(self):
        return self._draw()

    # ------------------------------------------------------------------------------------------ figure

    @course_style()
    def _draw(self):
        """Bring the figure up to date, and return it."""
        if self.axes is None:
            figure, self.axes = plt.subplots(1, 2, figsize=(9.8, 4.3), width_ratios=[2.2, 1], layout="none")
            plt.close(figure)  # it stays whole, only pyplot forgets it
            figure.set_facecolor("white")
            figure.subplots_adjust(0.085, 0.21, 0.985, 0.78, wspace=0.28)
        rows, (held, sent) = self.verdict(), self.axes
        memory = self.memories[self.gpu]
        for ax in self.axes:
            ax.clear()
            ax.grid(axis="x", visible=False)
            ax.set_xticks(range(4), [f"stage {row['stage']}" for row in rows])
        self._draw_held(held, rows, memory)
        gb = [row["bytes_sent"] / 1e9 for row in rows]
        bars = sent.bar(range(4), gb, 0.6, color=rank_color(5))
        sent.bar_label(bars, [_digits(value) for value in gb], padding=2, fontsize=points(10))
        sent.set_xticks(range(4), range(4))
        sent.set(xlabel="stage", ylabel="GB", ylim=(0, 1.2 * max(*gb, 1e-9)))
        sent.set_title("sent in a step", fontsize=points(12), y=1.16)
        source_note(held, "computed", "model states only, without activations · ZeRO, arXiv:1910.02054")
        held.figure.draw_without_rendering()  # ticks are made when they are drawn: in the style of the course
        return held.figure

    def _draw_held(self, ax, rows, memory):
        bottom = [0.0] * 4
        for part in STATES:
            heights = [row["held"][part] / 1e9 for row in rows]
            ax.bar(range(4), heights, 0.6, bottom, color=_COLORS[part], label=part, edgecolor="white")
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        top = 1.05 * min(max(*bottom, memory), 4 * memory)  # a bar that is far too high is cut off
        for x, (row, level) in enumerate(zip(rows, bottom, strict=True)):
            color, words = (_FITS, "fits") if row["fits"] else (_FULL, "does not fit")
            said = f"{_digits(level)} GB\n{words}"
            place = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            ax.text(x, 1.02, said, color=color, fontsize=points(10), **place)
        ax.axhline(memory, color=INK, linewidth=1.5, label=f"{memory:g} GB of memory")
        room = {"linewidth": 1.5, "linestyle": "--", "label": "less what is kept free"}
        ax.axhline((1 - self.reserve) * memory, color=INK, **room)
        ax.set(xlim=(-0.5, 3.5), ylim=(0, top), ylabel="GB on a rank")
        ax.legend(loc="upper right", fontsize=points(9))
        ranks = f"{self.n_ranks} rank{'s' * (self.n_ranks > 1)}"
        title = f"{self.billions:g} billion parameters, {ranks}, {self.gpu}"
        ax.set_title(title, fontsize=points(12), y=1.16)

    # ---------------------------------------------------------------------------------------- controls

    def _build(self):
        import ipywidgets as w

        billions, ranks = sorted({*BILLIONS, self.billions}), sorted({*RANKS, self.n_ranks})
        model = [(f"{value:g} billion", value) for value in billions]
        gpus = [(f"{name}, {memory:g} GB", name) for name, memory in self.memories.items()]
        self.controls = {
            "billions": w.SelectionSlider(options=model, value=self.billions, description="model"),
            "n_ranks": w.SelectionSlider(options=ranks, value=self.n_ranks, description="ranks"),
            "precision": w.Dropdown(options=list(PRECISIONS), value=self.precision, description="states"),
            "gpu": w.Dropdown(options=gpus, value=self.gpu, description="device"),
            "reserve": w.FloatSlider(self.reserve, min=0, max=0.9, step=0.05, description="kept free"),
        }
        for control in self.controls.values():
            control.layout, control.style.description_width = w.Layout(width="48%", min_width="20em"), "7em"
        self.controls["reserve"].readout_format = ".0%"
        self.says, self.image = w.HTML(), w.Image(format="png", layout=w.Layout(max_width="100%"))
        for name, control in self.controls.items():
            control.observe(partial(self._moved, name), "value")
        self._show_state()
        rows = [("billions", "n_ranks"), ("precision", "gpu"), ("reserve",)]
        wrap = w.Layout(flex_flow="row wrap")
        boxes = [w.HBox([self.controls[name] for name in row], layout=wrap) for row in rows]
        return w.VBox([*boxes, self.says, self.image])

    def _moved(self, name, change):
        setattr(self, name, change["new"])
        self._show_state()

    def _show_state(self):
        self.image.value = png(self._draw())
        self.says.value = f'<div role="status">{self.text()}</div>'


def _digits(value):
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 1000 else f"{value:.3g}"
