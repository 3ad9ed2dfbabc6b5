"""Memory and time of a training before it runs: `plan(model, machine, layout)`, `search(model, machine, …)`.

Formulas stand in the docstrings of memory.py, compute.py, network.py and step.py with their papers; every
number that is fitted or assumed stands in calibration.py; validation.py compares with published runs.
"""

from fidle_utils.planner.energy import Training
from fidle_utils.planner.errors import PlanError
from fidle_utils.planner.layout import Layout
from fidle_utils.planner.machine import GPUS, MACHINES, Gpu, Machine
from fidle_utils.planner.memory import model_state_bytes
from fidle_utils.planner.model import MODELS, Transformer
from fidle_utils.planner.plan import Plan, plan
from fidle_utils.planner.search import Found, search
from fidle_utils.planner.software import SOFTWARE, Software

__all__ = [
    "GPUS",
    "MACHINES",
    "MODELS",
    "SOFTWARE",
    "Found",
    "Gpu",
    "Layout",
    "Machine",
    "Plan",
    "PlanError",
    "Software",
    "Training",
    "Transformer",
    "model_state_bytes",
    "plan",
    "search",
]
