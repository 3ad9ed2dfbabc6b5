"""The planner by hand: what the controls say is what the planner says; what cannot be is said in words."""

import matplotlib

matplotlib.use("agg")
import pytest
from figure_helpers import whole

from fidle_utils.planner import Layout, PlanError, plan, search
from fidle_utils.widgets import planner_controls

BLOOM = {"tensor": 4, "pipeline": 12, "zero": 1, "micro_batch": 2, "checkpointing": "full"}


def test_the_first_state_is_the_plan_asked_for():
    shown = planner_controls("BLOOM 176B", "Jean Zay A100", 384, global_batch=2048, **BLOOM)
    layout = Layout(data=8, global_batch=2048, sequence_parallel=True, **BLOOM)
    assert shown.text() == repr(plan("BLOOM 176B", "Jean Zay A100", layout))
    assert shown.plan().layout == layout
    said = whole(shown.static())
    assert "yours" in said and "tensor 4" in said and "pipeline 12" in said and "computed" in said


def test_controls_move_the_plan_and_the_map():
    shown = planner_controls()
    before = shown.widget and shown.image.value
    assert "DOES NOT FIT" in shown.says.value
    shown.controls["checkpointing"].value = "full"
    assert shown.image.value != before and "DOES NOT FIT" not in shown.says.value
    shown.controls["n_gpus"].value = 8
    assert shown.plan().layout.n_gpus == 8
    fastest = search("Llama 3 8B", "Jean Zay H100", 8, 64, best=None, by_degrees=True)
    assert [p.layout for p in shown.found()] == [p.layout for p in fastest]
    shown.close()


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("tensor", 8, "do not divide 4 GPUs"),
        ("global_batch", 2, "is not a multiple"),
        ("pipeline", 12, "divide"),
    ],
)
def test_what_cannot_be_is_said_and_drawn(name, value, says):
    shown = planner_controls()
    assert shown.widget
    shown.controls[name].value = value
    assert "not possible: " in shown.says.value and says in shown.says.value
    assert "not possible" in whole(shown.static())
    shown.close()


def test_a_model_that_fits_nowhere_leaves_no_map():
    assert "nothing fits" in whole(planner_controls("Llama 3 405B").static())


def test_a_v100_computes_in_fp16():
    assert planner_controls("Llama 3 8B", "Jean Zay V100").plan().layout.precision == "fp16"


def test_names_that_do_not_exist():
    for wrong in ({"model": "Llama 9"}, {"machine": "the moon"}, {"software": "mine"}):
        with pytest.raises(PlanError, match="there are"):
            planner_controls(**wrong)
