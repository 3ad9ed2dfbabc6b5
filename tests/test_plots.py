import dataclasses
import warnings

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from fidle_utils import plots
from fidle_utils.measure.machine import DeviceReport

CPU = DeviceReport("A processor", 4, 2, None, int(16e9), int(8e9), copy_bytes_per_second=31e9, copy_threads=2)
GPU = dataclasses.replace(CPU, gpus=[{"name": "H100", "memory_bytes": int(80e9)}] * 4)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax):
    """Every text of a figure, drawn once: nothing may warn, and nothing may stick out of the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    shown = [t for t in ax.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]
    frame = ax.figure.bbox.padded(2)
    for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts):
        box = text.get_window_extent()
        inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
        assert inside or not text.get_text(), f"{text.get_text()!r} is cut off"
    return "\n".join(text.get_text() for text in shown)


FIGURES = {
    "machine": lambda ax=None: plots.plot_machine(CPU, 4, 9e8, ax=ax),
    "moments": lambda ax=None: plots.plot_moments([5.0, 5.001, 5.5], ax=ax),
    "bytes": lambda ax=None: plots.plot_bytes_sent([6e6] * 4, 4e6, ax=ax),
    "loss": lambda ax=None: plots.plot_loss({"one": [3, 2], "four": [3, 2]}, ax=ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows_and_returns_its_axes(name):
    before = dict(plt.rcParams)
    ax = FIGURES[name]()
    assert "measured here · " in texts(ax)
    assert to_hex(ax.figure.get_facecolor()) == "#ffffff"  # readable in a dark notebook
    assert dict(plt.rcParams) == before
    _, mine = plt.subplots()
    assert FIGURES[name](ax=mine) is mine


def test_the_machine_shows_ranks_on_gpus_where_there_is_one_each():
    assert "core 1" in texts(plots.plot_machine(CPU)) and "31 GB/s" in texts(plots.plot_machine(CPU))
    assert "GPU 3" in texts(plots.plot_machine(GPU, 4, 3e11))
    assert "core 1" in texts(plots.plot_machine(GPU, 8))  # eight ranks do not fit on four GPUs


def test_the_bytes_stand_beside_the_formula():
    ax = plots.plot_bytes_sent([6e6, 6e6, 6e6, 5e6], 4e6)
    assert [bar.get_height() for bar in ax.patches] == [6, 6, 6, 5]
    assert ax.lines[0].get_ydata()[0] == 2 * 3 / 4 * 4
    assert "6 MB" in texts(ax)


def test_the_moments_count_from_the_first():
    shown = texts(plots.plot_moments([5.002, 5.0]))
    assert "0.0 ms" in shown and "2.0 ms" in shown


def test_ranks_have_colours_that_differ():
    assert len(set(plots.RANK_COLORS)) == 8
    assert plots.rank_color(9) == plots.rank_color(1)


def test_a_note_names_the_kind_of_number():
    ax = plt.subplots()[1]
    assert plots.source_note(ax, "recorded", "H200, 2026").get_text() == "recorded · H200, 2026"
    assert plots.source_note(ax, "simulated").get_text() == "simulated"
    with pytest.raises(ValueError, match="recorded"):
        plots.source_note(ax, "guessed")
