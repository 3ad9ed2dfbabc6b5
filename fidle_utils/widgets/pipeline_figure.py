"""The figure of `pipeline_sliders`: Gantt chart, activations of each rank, time of every schedule."""

import matplotlib.pyplot as plt

from fidle_utils.plots.pipeline import COLORS, draw_gantt, gantt_title, legend_entries
from fidle_utils.plots.style import GREY, INK, course_style, points, rank_color, source_note

__all__ = ["PipelineFigure"]


class PipelineFigure:
    """`axes`: those of the Gantt chart, of the activations, of the times; `draw` brings them up to date."""

    @course_style()
    def __init__(self):
        figure = plt.figure(figsize=(10.5, 6.2), layout="none", facecolor="white")
        plt.close(figure)  # it stays whole, only pyplot forgets it
        grid = figure.add_gridspec(2, 2, height_ratios=[3, 1.7], width_ratios=[1, 1.15])
        gantt = figure.add_subplot(grid[0, :])
        self.axes = gantt, figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
        figure.subplots_adjust(0.075, 0.115, 0.985, 0.875, wspace=0.42, hspace=0.62)

    @course_style()
    def draw(self, simulation, peaks, times, note):
        """`peaks`: activations that each rank holds at most; `times`: schedule → (work, time) of a step."""
        gantt, memory, compared = self.axes
        for ax in self.axes:
            ax.clear()
        figure = gantt.figure
        for legend in list(figure.legends):
            legend.remove()
        draw_gantt(gantt, simulation)
        gantt.set_title(gantt_title(simulation))
        gantt.set_xlabel("time", labelpad=1)
        # Ticks are made when the figure is rendered, by then outside of the style.
        gantt.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        for ax in self.axes:
            ax.tick_params(labelsize=points(10.5), labelcolor="#444444")
        entries = legend_entries([simulation])
        place = {"loc": "upper left", "bbox_to_anchor": (0.06, 1.0), "ncols": len(entries)}
        figure.legend(handles=entries, fontsize=points(10), borderaxespad=0.2, **place)
        self._draw_memory(memory, peaks)
        self._draw_times(compared, times, simulation.schedule.name)
        source_note(memory, "simulated", note)
        return self

    def _draw_memory(self, ax, peaks):
        n_ranks = len(peaks)
        colors = [rank_color(rank) for rank in range(n_ranks)]
        bars = ax.bar(range(n_ranks), peaks, 0.66, color=colors)
        ax.bar_label(bars, [f"{peak:.3g}" for peak in peaks], padding=2, fontsize=points(10))
        ax.set_xticks(range(n_ranks), [f"rank {rank}" if n_ranks < 6 else rank for rank in range(n_ranks)])
        ax.set(ylim=(0, 1.25 * max(peaks)), yticks=[], ylabel="micro-batches")
        ax.grid(False)
        ax.set_title("activations held at most", fontsize=points(11), y=1, pad=4)

    def _draw_times(self, ax, times, chosen):
        names = list(times)
        for row, name in enumerate(names):
            work, time = times[name]
            bold = {"fontweight": "bold" if name == chosen else "normal", "fontsize": points(10)}
            ax.barh(row, work, 0.7, color=COLORS["F"], alpha=1 if name == chosen else 0.4)
            ax.barh(row, time - work, 0.7, work, color="#d9d9d9")
            ax.text(time, row, f" {time:.3g}", va="center", color=INK, **bold)
            ax.text(
                0, row, f"{name} ", va="center", ha="right", color=INK if name == chosen else GREY, **bold
            )
        longest = max(time for _, time in times.values())
        ax.set(xlim=(0, 1.14 * longest), ylim=(len(names) - 0.5, -0.5), yticks=[], xticks=[])
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)
        ax.set_title("by every schedule (grey: bubble)", fontsize=points(11), y=1, pad=4)
