"""Play, pause and step through what ranks send to each other."""

from fidle_utils.collective_steps import Steps, recorded_steps
from fidle_utils.plots.steps import bytes_text, plot_step, plot_steps, step_title
from fidle_utils.plots.style import course_style
from fidle_utils.widgets.show import Live, png

__all__ = ["StepThrough", "step_through"]


def step_through(steps, seconds=1.5):
    """Show `Steps` of a collective one by one, with play, pause, next, previous: what ranks hold and send.

    `steps`: from `ring_all_reduce_steps` and its like, or rows of what ranks really sent, as
    `recorded_steps` takes them. `seconds`: how long a step stays while it plays. Headless: all steps at once.
    """
    return StepThrough(steps if isinstance(steps, Steps) else recorded_steps(steps), seconds)


class StepThrough(Live):
    """`slider`, `play`, `previous`, `next` are its widgets; `axes` the Axes of the step that is shown."""

    def __init__(self, steps, seconds=1.5):
        self.steps, self.seconds = steps, seconds

    def static(self):
        from matplotlib import pyplot as plt

        figure = plot_steps(self.steps)[0].figure
        plt.close(figure)  # it stays whole, only pyplot forgets it
        return figure

    def text(self):
        return repr(self.steps)

    def _build(self):
        import ipywidgets as w

        n = len(self.steps)
        self.play = w.Play(max=n, interval=int(1000 * self.seconds), show_repeat=False, tooltip="play")
        self.slider = w.IntSlider(max=n, description="step", layout=w.Layout(width="22em"))
        self.previous = w.Button(icon="step-backward", tooltip="previous step", layout=w.Layout(width="3em"))
        self.next = w.Button(icon="step-forward", tooltip="next step", layout=w.Layout(width="3em"))
        self.says = w.HTML()
        w.jslink((self.play, "value"), (self.slider, "value"))
        self.previous.on_click(lambda _: self._go(self.slider.value - 1))
        self.next.on_click(lambda _: self._go(self.slider.value + 1))
        self.slider.observe(self._draw, "value")
        self.axes = self._axes()
        self.image = w.Image(value=png(self.axes[0].figure), format="png", layout=w.Layout(max_width="100%"))
        self._draw()
        controls = w.HBox([self.play, self.previous, self.next, self.slider])
        return w.VBox([controls, self.says, self.image])

    def _axes(self):
        from matplotlib import pyplot as plt

        with course_style():
            axes = plot_step(self.steps, len(self.steps))  # the longest texts: the layout must hold them
        figure = axes[0].figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough, and it takes longer than the drawing
        plt.close(figure)
        return axes

    def _go(self, k):
        self.play.playing = False
        self.slider.value = min(max(k, 0), len(self.steps))

    def _draw(self, _=None):
        k = self.slider.value
        plot_step(self.steps, k, self.axes)
        self.image.value = png(self.axes[0].figure)
        self.says.value = f'<div role="status">{self.words(k)}</div>'

    def words(self, k):
        """Return step `k` in words."""
        messages = self.steps.messages[k - 1] if k else []
        sent = sum(self.steps.bytes_sent(k))
        if not messages:
            return "start: each rank holds its own values, nothing is sent yet"
        said = f"{step_title(self.steps, k)}; {len(messages)} message{'s' * (len(messages) > 1)} of "
        sizes = sorted({message.n_bytes for message in messages})
        said += " to ".join(bytes_text(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        whole = k == len(self.steps) and self.steps.complete()
        end = "; every rank holds the whole sum" if whole else ""
        return f"{said}; {bytes_text(sent)} sent so far, by all ranks{end}"
