"""A published run beside its plan."""

from dataclasses import dataclass

from fidle_utils.planner.layout import Layout
from fidle_utils.planner.machine import Machine
from fidle_utils.planner.model import Transformer
from fidle_utils.planner.plan import plan
from fidle_utils.planner.software import Software

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A row of a table: what was printed, and the plan of the same run."""

    source: str
    name: str
    model: Transformer
    machine: Machine
    layout: Layout
    software: Software
    seconds: float | None
    gib: float | None
    calibrates: bool = False
    assumed: str = ""
    flag: str = ""

    def plan(self):
        """Return the Plan of this run."""
        return plan(self.model, self.machine, self.layout, software=self.software)

    @property
    def gist(self):
        """What makes two runs the same run, whatever they measured."""
        return self.model, self.machine.name, self.layout, self.software
