"""The planner by hand: choose a model, a machine and a layout; memory, time and the other layouts follow."""

from functools import partial

import matplotlib.pyplot as plt

from fidle_utils.planner import MACHINES, MODELS, SOFTWARE, Layout, PlanError, plan, search
from fidle_utils.plots.planning import plot_layouts, plot_plan_memory, plot_plan_time
from fidle_utils.plots.style import course_style
from fidle_utils.widgets.show import Live, png

__all__ = ["PlannerControls", "planner_controls"]

_POWERS = [2**i for i in range(13)]
_MACHINES = [name for name in MACHINES if "(" not in name]  # the others are for published runs


def planner_controls(model="Llama 3 8B", machine="Jean Zay H100", n_gpus=4, software="today", **layout):
    """Show a plan with controls for all that it depends on, and a map of the other layouts that fit.

    `model`, `machine`, `software`: names in MODELS, MACHINES, SOFTWARE of `fidle_utils.planner`. `layout`:
    fields of Layout to begin with, `tensor`, `pipeline`, `zero`, `micro_batch`, `global_batch` or
    `checkpointing`; data parallelism takes the GPUs that are left. A choice that cannot be is answered by
    the planner's own sentence. Headless: the first state. Raises PlanError for a name that does not exist.
    """
    return PlannerControls(model, machine, n_gpus, software, **layout)


class PlannerControls(Live):
    """The state (`model`, `machine`, `n_gpus`, `choices`), its `plan()`, `found()`, its figure.

    `controls`: the widgets, by name. `axes`: the Axes of memory, time and map that were drawn last.
    """

    def __init__(self, model="Llama 3 8B", machine="Jean Zay H100", n_gpus=4, software="today", **layout):
        for name, known in ((model, MODELS), (machine, MACHINES), (software, SOFTWARE)):
            if name not in known:
                raise PlanError(f"no {name!r}: there are {', '.join(known)}")
        self.model, self.machine, self.n_gpus, self.software = model, machine, n_gpus, software
        first = {"tensor": 1, "pipeline": 1, "zero": 3, "micro_batch": 1, "global_batch": 64}
        self.choices = first | {"checkpointing": "none"} | layout
        self.axes, self._map = None, (None, None)

    def layout(self):
        """Return the Layout of the state; data parallelism takes the GPUs that are left."""
        part = self.choices["tensor"] * self.choices["pipeline"]
        if self.n_gpus % part:
            raise PlanError(
                f"tensor {self.choices['tensor']} × pipeline {self.choices['pipeline']} do not divide "
                f"{self.n_gpus} GPUs: take a divisor"
            )
        return Layout(
            data=self.n_gpus // part,
            precision=self._precision(),
            sequence_parallel=self.choices["tensor"] > 1,
            **self.choices,
        )

    def plan(self):
        """Return the Plan of the state. Raises PlanError where it cannot be."""
        return plan(self.model, self.machine, self.layout(), self.n_gpus, self.software)

    def found(self):
        """Return the fastest plan of each layout that fits, or [] where none does."""
        asked = (self.model, self.machine, self.n_gpus, self.choices["global_batch"])
        if self._map[0] != asked:
            options = {"best": None, "by_degrees": True, "precision": self._precision()}
            try:
                self._map = asked, search(*asked, self.software, **options)
            except PlanError:
                self._map = asked, []
        return self._map[1]

    def _precision(self):
        return "bf16" if "bf16" in MACHINES[self.machine].gpu.peak_tflops else "fp16"

    def text(self):
        try:
            return repr(self.plan())
        except PlanError as error:
            return f"not possible: {error}"

    @course_style()
    def static(self):
        try:
            planned = self.plan()
        except PlanError:
            planned = None
        figure, self.axes = plt.subplots(3, 1, figsize=(9.8, 7.6), height_ratios=[1, 1, 2.6])
        plt.close(figure)  # it stays whole, only pyplot forgets it
        memory, time, layouts = self.axes
        if planned is None:
            for ax in (memory, time):
                ax.set_axis_off()
            memory.annotate("this layout is not possible", (0.02, 0.5), xycoords="axes fraction")
        else:
            plot_plan_memory({"your layout": planned}, ax=memory)
            plot_plan_time({"your layout": planned}, ax=time)
        if self.found():
            used = self.choices["tensor"], self.choices["pipeline"]
            plot_layouts(self.found(), used=used, used_label="yours", ax=layouts)
        else:
            layouts.set_axis_off()
            layouts.annotate("nothing fits on these GPUs", (0.02, 0.5), xycoords="axes fraction")
        return figure

    # ---------------------------------------------------------------------------------------- controls

    def _build(self):
        import ipywidgets as w

        gpus = sorted({*_POWERS, self.n_gpus, 384})
        options = {
            "model": list(MODELS),
            "machine": sorted({*_MACHINES, self.machine}),
            "n_gpus": gpus,
            "global_batch": sorted({*_POWERS, self.choices["global_batch"]}),
            "tensor": _POWERS[:5],
            "pipeline": sorted({*_POWERS[:7], 6, 12, 24, self.choices["pipeline"]}),
            "zero": [0, 1, 2, 3],
            "micro_batch": _POWERS[:6],
            "checkpointing": ["none", "selective", "full"],
        }
        names = {"n_gpus": "GPUs", "global_batch": "global batch", "micro_batch": "micro-batch"} | {
            "zero": "ZeRO"
        }
        self.controls = {}
        for name, values in options.items():
            named = names.get(name, name)
            control = w.Dropdown(options=values, value=self._value(name), description=named)
            control.layout, control.style.description_width = w.Layout(width="31%", min_width="15em"), "8em"
            control.observe(partial(self._moved, name), "value")
            self.controls[name] = control
        self.says, self.image = w.HTML(), w.Image(format="png", layout=w.Layout(max_width="100%"))
        self._show_state()
        wrap = w.Layout(flex_flow="row wrap")
        return w.VBox([w.HBox(list(self.controls.values()), layout=wrap), self.says, self.image])

    def _value(self, name):
        return self.choices[name] if name in self.choices else getattr(self, name)

    def _moved(self, name, change):
        if name in self.choices:
            self.choices[name] = change["new"]
        else:
            setattr(self, name, change["new"])
        self._show_state()

    def _show_state(self):
        lines = self.text().replace("<", "&lt;").split("\n")
        self.says.value = f'<div role="status">{"<br>".join(lines)}</div>'
        self.image.value = png(self.static())
