"""A pipeline to move by hand: its Gantt chart, its bubble and its memory, for any schedule of the course."""

from functools import partial

from fidle_utils.schedules import SCHEDULES
from fidle_utils.widgets.pipeline_figure import PipelineFigure
from fidle_utils.widgets.show import Live, png

__all__ = ["PipelineSliders", "pipeline_sliders"]

_SIZES = {"ranks": (1, 8), "micro_batches": (1, 32), "virtual_stages": (2, 4)}
_TIMES = {"forward": 1.0, "backward_input": 1.0, "backward_weight": 1.0, "communication": 0.0}
_NAMES = {
    "ranks": "ranks",
    "micro_batches": "micro-batches",
    "virtual_stages": "stages a rank",
    "forward": "F",
    "backward_input": "B (input)",
    "backward_weight": "W (weights)",
    "communication": "a message",
    "kept_for_w": "kept until W",
}


def pipeline_sliders(schedule="1F1B", ranks=4, micro_batches=8, virtual_stages=2, **times):
    """Show a pipeline with sliders for its schedule, its sizes and its times: Gantt chart, bubble, memory.

    `times`: `forward`, `backward_input`, `backward_weight` of one micro-batch on one rank, and
    `communication` of one message, in any unit. `kept_for_w`: the share of an activation that B leaves to W.
    `overlap=False`: the receiver is occupied by its messages. Interleaved takes micro-batches by groups of
    `ranks`: other numbers are rounded up. Headless: the first state. Raises LookupError and ValueError.
    """
    return PipelineSliders(schedule, ranks, micro_batches, virtual_stages, **times)


class PipelineSliders(Live):
    """`state` (a dict), its `simulation()` and `peaks()`; `controls`: the widgets, by name; `figure.axes`."""

    def __init__(self, schedule, ranks, micro_batches, virtual_stages, overlap=True, kept_for_w=0.9, **times):
        if schedule not in SCHEDULES:
            raise LookupError(f"no schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}.")
        if unknown := times.keys() - _TIMES.keys():
            raise LookupError(f"no time {min(unknown)!r}: there are {', '.join(_TIMES)}.")
        sizes = {"ranks": ranks, "micro_batches": micro_batches, "virtual_stages": virtual_stages}
        for name, value in sizes.items():
            low, high = _SIZES[name]
            if not low <= value <= high:
                raise ValueError(f"{value} {_NAMES[name]}: the slider goes from {low} to {high}.")
        self.state = {"schedule": schedule, **sizes, **_TIMES, **times}
        self.state |= {"overlap": overlap, "kept_for_w": kept_for_w}
        self.figure = None

    def made(self, name=None):
        """Return the `Schedule` of the state, or another one of the same sizes."""
        name, p, m = name or self.state["schedule"], self.state["ranks"], self.state["micro_batches"]
        if name == "interleaved 1F1B":
            return SCHEDULES[name](p, m + -m % p, self.state["virtual_stages"])
        return SCHEDULES[name](p, m)

    def simulation(self, name=None):
        times = {time: self.state[time] for time in _TIMES}
        return self.made(name).simulate(**times, overlap=self.state["overlap"])

    def peaks(self):
        """Return the most activations that each rank holds, in micro-batches of all its layers."""
        return self.made().peak_activations(self.state["kept_for_w"])

    def text(self):
        done, peaks = self.simulation(), self.peaks()
        made, m = done.schedule, self.state["micro_batches"]
        fullest = max(range(len(peaks)), key=peaks.__getitem__)
        rounded = made.n_micro_batches
        said = f" (groups of {made.n_ranks}: {m} became {rounded})" if rounded != m else ""
        return (
            f"{made.name}, {made.n_ranks} ranks, {rounded} micro-batches{said}: time {done.total:.4g}, "
            f"work {max(done.busy):.4g}. Bubble {done.bubble_of_ideal:.1%} of the ideal time, "
            f"{done.bubble_of_total:.1%} of the total. "
            f"Rank {fullest} holds {peaks[fullest]:.3g} micro-batches; "
            f"{made.n_messages} messages"
        )

    def static(self):
        return self._draw().axes[0].figure

    def _draw(self):
        """Bring the figure up to date, and return it."""
        self.figure = self.figure or PipelineFigure()
        times = {}
        for name in SCHEDULES:
            done = self.simulation(name)
            per = (
                self.state["micro_batches"] / done.schedule.n_micro_batches
            )  # what was rounded up, back to size
            times[name] = (per * max(done.busy), per * done.total)
        how = "messages overlap with work" if self.state["overlap"] else "each message occupies its receiver"
        return self.figure.draw(self.simulation(), self.peaks(), times, how)

    # ---------------------------------------------------------------------------------------- controls

    def _build(self):
        import ipywidgets as w

        state = self.state
        sizes = {name: w.IntSlider(state[name], min=low, max=high) for name, (low, high) in _SIZES.items()}
        times = {name: w.FloatSlider(state[name], min=0, max=3, step=0.1) for name in _TIMES}
        self.controls = {
            "schedule": w.Dropdown(options=list(SCHEDULES), value=state["schedule"], description="schedule"),
            **sizes,
            **times,
            "kept_for_w": w.FloatSlider(state["kept_for_w"], min=0, max=1, step=0.1),
            "overlap": w.Checkbox(state["overlap"], description="messages overlap with work", indent=False),
        }
        for name, control in self.controls.items():
            control.layout = w.Layout(width="48%", min_width="22em")
            control.description = _NAMES.get(name, control.description)
            control.style.description_width = "8em" if name != "overlap" else "initial"
            if hasattr(control, "continuous_update"):
                control.continuous_update = False  # a redraw for each pixel would lag behind the hand
            control.observe(partial(self._moved, name), "value")
        self.says, self.image = w.HTML(), w.Image(format="png", layout=w.Layout(max_width="100%"))
        self._show_state()
        rows = [
            ("schedule", "virtual_stages"),
            ("ranks", "micro_batches"),
            ("forward", "backward_input"),
            ("backward_weight", "communication"),
            ("overlap", "kept_for_w"),
        ]
        wrap = w.Layout(flex_flow="row wrap")
        boxes = [w.HBox([self.controls[name] for name in row], layout=wrap) for row in rows]
        return w.VBox([*boxes, self.says, self.image])

    def _moved(self, name, change):
        self.state[name] = change["new"]
        self._show_state()

    def _show_state(self):
        uses = {"virtual_stages": self.state["schedule"] == "interleaved 1F1B"}
        uses["kept_for_w"] = self.state["schedule"].startswith("ZB")
        for name, used in uses.items():  # a slider that changes nothing is not shown
            self.controls[name].layout.visibility = "visible" if used else "hidden"
        try:
            said = self.text()
            self.image.value = png(self.static())
        except ValueError as error:  # every duration is 0: the last figure stays
            said = str(error)
        self.says.value = f'<div role="status">{said}</div>'
