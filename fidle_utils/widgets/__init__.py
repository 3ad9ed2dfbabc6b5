"""What a learner moves by hand; where nobody can, a figure stands in its place."""

from fidle_utils.widgets.pipeline import pipeline_sliders
from fidle_utils.widgets.planner import planner_controls
from fidle_utils.widgets.roofline import roofline_sliders
from fidle_utils.widgets.sharding import memory_calculator
from fidle_utils.widgets.steps import step_through

__all__ = [
    "memory_calculator",
    "pipeline_sliders",
    "planner_controls",
    "roofline_sliders",
    "step_through",
]
