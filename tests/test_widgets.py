"""Widgets without a browser, and the steps behind one of them: closed forms, a simulation, Axes read back."""

import base64
import re

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_hex
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

from fidle_utils import collective_steps as cs
from fidle_utils import plots
from fidle_utils.measure.roofline import Roofline
from fidle_utils.plots.steps import plot_step, plot_steps
from fidle_utils.reference import table
from fidle_utils.widgets import roofline_sliders, show, step_through
from fidle_utils.widgets.roofline import KINDS

S = 840_001  # bytes; no number of ranks below divides it
MACHINE = Roofline("a test", {"fp32": 1e11, "bf16": 2e11}, {"memory": 1e10})


def log2_up(n):
    return (n - 1).bit_length()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16])
def test_ring_and_tree_reach_their_closed_forms_for_any_number_of_ranks(n):
    ring, tree = cs.ring_all_reduce_steps(n, S), cs.tree_all_reduce_steps(n, S)
    assert (len(ring), ring.n_messages, ring.n_bytes) == (2 * (n - 1), 2 * n * (n - 1), 2 * (n - 1) * S)
    assert all(abs(sent - 2 * (n - 1) / n * S) <= 2 for sent in ring.bytes_sent())  # chunks of unequal bytes
    assert all(b == (a + 1) % n for a, b in ring.link_bytes())
    assert (len(tree), tree.n_messages, tree.n_bytes) == (2 * log2_up(n), 2 * (n - 1), 2 * (n - 1) * S)
    assert max(tree.bytes_sent()) == tree.bytes_sent()[0] == log2_up(n) * S
    assert ring.complete() and tree.complete()
    assert n == 1 or not (ring.complete(len(ring) - 1) or tree.complete(len(tree) - 1))


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_doubling_algorithms_reach_their_closed_forms(n):
    doubling, halving = cs.recursive_doubling_steps(n, S), cs.halving_doubling_steps(n, S)
    assert (len(doubling), doubling.n_messages) == (log2_up(n), n * log2_up(n))
    assert doubling.bytes_sent() == [log2_up(n) * S] * n
    assert (len(halving), halving.n_messages) == (2 * log2_up(n), 2 * n * log2_up(n))
    assert halving.n_bytes == 2 * (n - 1) * S
    assert all(abs(sent - 2 * (n - 1) / n * S) <= 2 * n for sent in halving.bytes_sent())
    assert doubling.complete() and halving.complete()


ALGORITHMS = [cs.ring_all_reduce_steps, cs.tree_all_reduce_steps]
ALGORITHMS += [cs.recursive_doubling_steps, cs.halving_doubling_steps]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_numbers_sent_as_the_steps_say_add_up_on_every_rank(algorithm):
    steps = algorithm(8, S)
    held = np.random.default_rng(0).integers(0, 1000, (8, steps.n_chunks))
    total = held.sum(0)
    for step in steps.messages:
        sent = held.copy()
        for m in step:
            for chunk in m.chunks:
                added = held[m.destination, chunk] if m.verb == "add" else 0
                held[m.destination, chunk] = added + sent[m.source, chunk]
    assert (held == total).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS[2:])
def test_what_needs_a_power_of_two_says_so(algorithm):
    for n in (0, 3, 6):
        with pytest.raises(ValueError, match="power of two|at least"):
            algorithm(n, S)


def test_a_chunk_added_twice_is_seen_and_is_no_sum():
    steps = cs.Steps("wrong", 2, 1, [[(0, 1, (0,), 4), (1, 0, (0,), 4)], [(0, 1, (0,), 4)]])
    assert steps.complete(1) and not steps.complete()
    assert steps.states[2][1][0] == {0: 2, 1: 2}
    assert "×2" in [text.get_text() for text in plot_step(steps, 2)[0].texts]
    with pytest.raises(ValueError, match="ranks 0 to 1"):
        cs.Steps("wrong", 2, 1, [[(0, 2, (0,), 4)]])


def test_recorded_messages_are_steps_too():
    ring = cs.ring_all_reduce_steps(3, 300)
    rows = [(k, *m[:2], m.n_bytes, m.chunks[0], m.verb) for k, step in enumerate(ring.messages) for m in step]
    recorded = cs.recorded_steps(rows)
    assert recorded.states == ring.states and recorded.link_bytes() == ring.link_bytes()
    named = [dict(step=s, source=a, destination=b, n_bytes=n) for s, a, b, n, *_ in rows]
    heard = cs.recorded_steps(named)
    assert set(heard.states[1][1][0]) == {0, 1} and set(heard.states[2][1][0]) == {0, 1, 2}
    assert heard.kind == "measured here" and step_through(named).steps.bytes_sent() == ring.bytes_sent()
    for wrong in ([], [(0, 1)], [(0, 0, 1, 4, 0), (1, 1, 0, 4)]):
        with pytest.raises(ValueError, match="each needs|some rows"):
            cs.recorded_steps(wrong)


# ---------------------------------------------------------------------------------------------- figures


def inside(figure, axes):
    """Everything that is written is within the figure."""
    show.png(figure)
    frame = figure.bbox.padded(2)
    for ax in axes:
        for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts):
            box = text.get_window_extent()
            within = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            assert within or not text.get_text() or not text.get_visible(), text


def cells(ax):
    """The colours of the cells of each rank's square."""
    return [[to_hex(c) for c in held.get_facecolor()] for held in ax.collections[::2]]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_steps_stand_side_by_side(algorithm, large):
    steps = algorithm(4, S)
    with plots.presentation(large):
        axes = plot_steps(steps)
    inside(axes[0].figure, axes[0].figure.axes)
    panels = axes[:-1]
    assert len(panels) == len(steps) + 1
    colors = [plots.rank_color(rank).lower() for rank in range(4)]
    for k, ax in enumerate(panels):
        assert ax.get_title("left").startswith(f"step {k}" if k else "start")
        for rank, held in enumerate(steps.states[k]):
            drawn = [color in colors for color in cells(ax)[rank]]
            assert drawn == [contributors[r] > 0 for contributors in held for r in range(4)]
    assert set(cells(panels[-1])[2]) == set(colors)
    plt.close("all")


def test_many_steps_are_cut_and_the_figure_says_so():
    axes = plot_steps(cs.ring_all_reduce_steps(12, S))
    assert len(axes) == 17 and "the first 15 are shown" in axes[0].figure.get_suptitle()
    plt.close("all")


# ---------------------------------------------------------------------------------------------- widgets


def test_next_previous_and_the_slider_change_the_step():
    live = step_through(cs.ring_all_reduce_steps(4, 4000))
    assert live.widget is live.widget
    state, links = live.axes
    before, first = cells(state), live.image.value
    live.next.click()
    assert live.slider.value == 1 and state.get_title("left") == "step 1 of 6: add what arrives"
    assert cells(state) != before and live.image.value != first
    assert "4 messages of 1 kB" in live.says.value
    assert [bar.get_width() for bar in links.containers[-1]] == [1000] * 4
    live.slider.value = 6
    assert [bar.get_width() for bar in links.containers[-1]] == [6000] * 4
    assert "every rank holds the whole sum" in live.says.value
    live.next.click()
    assert live.slider.value == 6
    live.previous.click()
    assert live.slider.value == 5 and plt.get_fignums() == []
    inside(state.figure, live.axes)


def test_a_slider_moves_the_roof_and_the_operation():
    live = roofline_sliders(MACHINE)
    assert live.widget and live.verdict()["bound"] == "compute"
    ax, controls, first = live.figure.axes[0], live.controls, live.image.value
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["peak"].get_ydata()) == [1e11, 1e11] and lines["peak"].get_xdata()[0] == 10
    assert lines["operation"].get_xdata()[0] == pytest.approx(1024 / 6)
    controls["size"].value = 32
    assert lines["operation"].get_xdata()[0] == pytest.approx(32 / 6)
    assert lines["operation"].get_ydata()[0] == pytest.approx(32 / 6 * 1e10)
    assert "memory-bound" in live.says.value and live.image.value != first
    controls["bandwidth"].value = 1e11
    assert lines["peak"].get_xdata()[0] == 1 and "compute-bound" in live.says.value
    assert live.figure.parts["note"].get_text() == "computed · ceilings that you chose"
    assert plt.get_fignums() == []
    inside(ax.figure, live.figure.axes)


def test_a_preset_is_the_published_device_and_is_called_so():
    live = roofline_sliders(MACHINE)
    assert live.widget
    live.controls["machine"].value = "A100-SXM4-80GB, published"
    live.controls["dtype"].value = "bf16"
    (row,) = table("gpu_specs", gpu="A100-SXM4-80GB")
    assert live.peak == 1e12 * row["bf16_tflops"] and "312 TFLOP/s" in live.controls["peak"].description
    assert live.bandwidth == 1e9 * row["memory_gb_per_second"]
    live.controls["bandwidth"].value = 2e12  # a front end rounds to the steps of a slider and says so
    assert live.bandwidth == 2039e9 and live.controls["bandwidth"].value == 2e12
    assert "published: A100" in live.figure.parts["note"].get_text().replace("\n", " ")
    live.controls["operation"].value = "linear layer"  # one token: matrix × vector
    assert all(control.layout.visibility != "hidden" for control in live.controls.values())
    live.controls["operation"].value = "matmul n × n × n"
    hidden = [name for name, control in live.controls.items() if control.layout.visibility == "hidden"]
    assert hidden == ["size2"]
    live.controls["operation"].value = "linear layer"
    v = live.verdict()
    assert v["bound"] == "memory" and v["intensity"] == pytest.approx(1, rel=1e-2)
    assert v["seconds"] == pytest.approx(2 * 4096**2 / 2039e9, rel=1e-2)


@pytest.mark.parametrize("operation", KINDS)
def test_every_operation_can_be_chosen_and_nothing_is_cut_off(operation):
    live = roofline_sliders(operation=operation, dtype="bf16", gpus=["H100-SXM5-80GB"])
    inside(live.static(), live.figure.axes)
    assert live.text().startswith(operation)


def test_what_does_not_exist_is_refused():
    for wrong in (dict(operation="cooking"), dict(gpus=["abacus"]), dict(gpus=[]), dict(dtype="fp3")):
        with pytest.raises(LookupError):
            roofline_sliders(**wrong)


# ------------------------------------------------------------------------------------- where nobody is

HEADLESS = [
    "from fidle_utils.collective_steps import ring_all_reduce_steps\n"
    "from fidle_utils.widgets import roofline_sliders, step_through",
    "step_through(ring_all_reduce_steps(4, 4000))",
    "roofline_sliders()",
]


def test_a_notebook_run_by_itself_and_its_html_hold_the_figures():
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in HEADLESS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for cell in notebook.cells[1:]:
        (output,) = cell.outputs
        assert set(output.data) == {"image/png", "text/plain"}
    assert "widgets" not in notebook.metadata
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert len(re.findall(r"<img[^>]+data:image/png", page)) == 2


def test_a_saved_live_notebook_gives_its_figures_to_html(monkeypatch):
    monkeypatch.setattr(show, "_somebody_is_there", lambda: True)
    monkeypatch.setattr(show, "_replace_in_cell", lambda live: None)
    data = step_through(cs.ring_all_reduce_steps(2, 8))._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    data["image/png"] = base64.b64encode(data["image/png"]).decode()
    output = nbformat.v4.new_output("display_data", data)
    notebook = new_notebook(cells=[new_code_cell("x", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert len(re.findall(r"<img[^>]+data:image/png", page)) == 1
