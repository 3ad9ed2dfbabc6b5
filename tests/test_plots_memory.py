"""Figures of memory: bars, marks and areas are those of the ledgers, and no text is cut off."""

import warnings

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from fidle_utils.measure.memory import PARTS, MemoryLedger
from fidle_utils.plots.memory import plot_memory, plot_memory_over_time

MB = 10**6


def ledger(rank=0, device="cpu", activations=12):
    """A made-up step: 10 MB of parameters and 20 of states, activations come, gradients follow them."""
    events = [(0.0, "parameters", device, 10 * MB), (0.0, "optimizer states", device, 20 * MB)]
    events += [
        (0.1, "activations", device, activations * MB),
        (0.2, "activations", device, -activations * MB),
    ]
    events += [(0.3, "gradients", device, 10 * MB)]
    names = {"start": (0.0, 2), "end of forward": (0.15, 3), "end of backward": (0.3, 5), "end": (0.301, 5)}
    moments = [{"moment": name, "seconds": s, "n_events": n} for name, (s, n) in names.items()]
    return MemoryLedger(rank, device, events, moments)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax):
    """Every text of a figure, drawn once: nothing may warn, and nothing may stick out of the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    frame = ax.figure.bbox.padded(2)
    for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *ax.get_legend().get_texts()):
        box = text.get_window_extent()
        inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
        assert inside or not text.get_text(), f"{text.get_text()!r} is cut off"
    return [t.get_text() for t in ax.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


def stacks(ax):
    """label → [(bottom, height) of each bar]"""
    return {
        bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars]
        for bars in ax.containers
        if len(bars)
    }


def test_the_parts_of_each_rank_are_stacked_and_the_peak_is_marked():
    ax = plot_memory([ledger(0), ledger(1, activations=22)])
    shown = texts(ax)
    assert {"rank 0", "rank 1", "52", "62", "MB"} <= set(shown)
    assert stacks(ax) == {
        "parameters": [(0, 10), (0, 10)],
        "gradients": [(10, 10), (10, 10)],
        "optimizer states": [(20, 20), (20, 20)],
        "activations": [(40, 12), (40, 22)],
    }
    marks = [segment[0, 1] for lines in ax.collections for segment in lines.get_segments()]
    assert marks == [42, 52], "activations have left when the gradients come"
    assert any(text.startswith("measured here") for text in shown)


def test_labelled_ledgers_are_compared_and_of_several_the_largest_is_drawn():
    ax = plot_memory({"one": ledger(None), "four": [ledger(0), ledger(1, activations=2), ledger(2)]})
    assert {"one", "four"} <= set(texts(ax))
    assert stacks(ax)["activations"] == [(40, 12), (40, 12)]
    assert "rank 3" in texts(plot_memory(ledger(3)))


def test_the_memory_of_the_device_is_a_line_within_the_axes():
    ax = plot_memory([ledger()] * 4, device_bytes=80e6)
    assert "the device: 80 MB" in texts(ax)
    assert ax.lines[0].get_ydata()[0] == 80 < ax.get_ylim()[1]


def test_over_time_the_areas_follow_the_events_and_the_moments_are_named():
    ax = plot_memory_over_time(ledger())
    shown = texts(ax)
    assert "end of forward" in shown and "end of backward" in shown
    assert "start" not in shown and "end" not in shown, "no room beside another"
    tops = {area.get_label(): area.get_paths()[0].get_extents().y1 for area in ax.collections}
    assert tops == {"parameters": 10, "gradients": 20, "optimizer states": 40, "activations": 42}
    assert [line.get_xdata()[0] for line in ax.lines] == [150, 300]


def test_bytes_without_data_are_computed():
    for draw in (plot_memory, plot_memory_over_time):
        assert any(text.startswith("computed") for text in texts(draw(ledger(device="meta"))))


def test_every_part_has_a_colour_of_its_own():
    one = MemoryLedger(0, "cpu", [(0.0, part, "cpu", MB) for part in PARTS])
    colours = {bars[0].get_facecolor() for bars in plot_memory(one).containers if len(bars)}
    assert len(colours) == len(PARTS)


def test_what_cuda_allocated_stands_beside_the_parts():
    on_gpu = ledger(device="cuda")
    on_gpu.allocated_peak = 2 * on_gpu.total
    ax = plot_memory([on_gpu, ledger(device="cuda")])
    (marks,) = (c for c in ax.collections if c.get_label() == "allocated by CUDA, most")
    ((x, y),) = marks.get_offsets()
    tallest = max(bar.get_y() + bar.get_height() for bar in ax.patches)
    assert x == 0 and y == pytest.approx(2 * tallest)
