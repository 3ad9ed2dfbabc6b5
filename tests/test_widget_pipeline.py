"""The pipeline that is moved by hand: every control changes the simulation, the words and the figure."""

import re

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from test_widgets import inside

from fidle_utils.plots import presentation
from fidle_utils.schedules import SCHEDULES, interleaved, one_f_one_b
from fidle_utils.widgets import pipeline_sliders


def test_every_control_moves_the_simulation_and_the_figure():
    open_before = plt.get_fignums()
    live = pipeline_sliders()
    assert live.widget and live.widget is live.widget
    assert "time 33" in live.says.value and "37.5% of the ideal" in live.says.value
    assert "27.3% of the total" in live.says.value and "Rank 0 holds 4 " in live.says.value
    changes = {
        "ranks": 6,
        "micro_batches": 12,
        "forward": 1.5,
        "backward_input": 0.5,
        "backward_weight": 2.0,
        "communication": 0.3,
        "overlap": False,
    }
    for name, value in changes.items():
        before = live.image.value, live.says.value
        live.controls[name].value = value
        assert (live.image.value, live.says.value) != before, name
    done = one_f_one_b(6, 12).simulate(1.5, 0.5, 2, 0.3, overlap=False)
    assert f"time {done.total:.4g}" in live.says.value and live.simulation().total == done.total
    assert "receiver" in live.figure.axes[1].texts[-1].get_text()
    assert plt.get_fignums() == open_before


def test_choosing_a_schedule_changes_boxes_memory_and_the_bold_line():
    live = pipeline_sliders("ZB-H2")
    assert live.widget
    bars = [bar.get_height() for bar in live.figure.axes[1].patches]
    assert bars == pytest.approx(SCHEDULES["ZB-H2"](4, 8).peak_activations(0.9))
    live.controls["kept_for_w"].value = 0.0
    assert [bar.get_height() for bar in live.figure.axes[1].patches] == [7, 5, 3, 1]
    live.controls["schedule"].value = "GPipe"
    bold = [text.get_text() for text in live.figure.axes[2].texts if text.get_fontweight() == "bold"]
    assert bold == [" 33", "GPipe "]
    assert [bar.get_height() for bar in live.figure.axes[1].patches] == [8] * 4


def test_a_slider_that_changes_nothing_is_hidden():
    live = pipeline_sliders("1F1B")
    assert live.widget

    def hidden():
        return [name for name, control in live.controls.items() if control.layout.visibility == "hidden"]

    assert hidden() == ["virtual_stages", "kept_for_w"]
    live.controls["schedule"].value = "ZB-V"
    assert hidden() == ["virtual_stages"]
    live.controls["schedule"].value = "interleaved 1F1B"
    assert hidden() == ["kept_for_w"]
    live.controls["virtual_stages"].value = 4
    assert live.simulation().total == interleaved(4, 8, 4).simulate().total


def test_interleaved_rounds_micro_batches_up_and_says_so():
    live = pipeline_sliders("interleaved 1F1B", ranks=4, micro_batches=6)
    assert live.made().n_micro_batches == 8 and "6 became 8" in live.text()
    # Beside the others its time is that of 6: the same work.
    work = {round(bar.get_width(), 6) for bar in live._draw().axes[2].patches if bar.get_x() == 0}
    assert work == {18}


def test_without_any_time_the_last_figure_stays_and_the_reason_is_said():
    live = pipeline_sliders(backward_input=0, backward_weight=0)
    assert live.widget
    before = live.image.value
    live.controls["forward"].value = 0
    assert live.image.value == before and "every duration is 0" in live.says.value


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 8), (8, 32)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_is_cut_off(name, sizes, large):
    with presentation(large):
        live = pipeline_sliders(name, *sizes, communication=0.5)
        inside(live.static(), live.figure.axes)


def test_what_does_not_exist_is_refused():
    with pytest.raises(LookupError, match="no schedule 'ZB-9'"):
        pipeline_sliders("ZB-9")
    with pytest.raises(LookupError, match="no time 'coffee'"):
        pipeline_sliders(coffee=2)
    with pytest.raises(ValueError, match="9 ranks: the slider goes from 1 to 8"):
        pipeline_sliders(ranks=9)


def test_a_notebook_run_by_itself_holds_the_figure():
    cells = ["from fidle_utils.widgets import pipeline_sliders", "pipeline_sliders('ZB-V')"]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = notebook.cells[1].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert re.match(r"ZB-V, 4 ranks, 8 micro-batches: time 25\.5", output.data["text/plain"])
