"""What a whole training takes: hours, energy and carbon, each with its assumption."""

from dataclasses import dataclass

from fidle_utils.measure.table import Table
from fidle_utils.planner.errors import check

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """Hours, kWh and kg of CO₂e of `tokens` tokens. No restart, no evaluation, no failed attempt is counted.

    Energy: GPUs · TDP · `load` · hours, times the PUE of the machine room; processors, network and storage
    are not in it. Carbon: energy · grams a kWh of the grid. Neither the making of the hardware nor idle
    nodes: for BLOOM the two added 52 % to what the GPUs took (arXiv:2211.02001: 24.7 t → 50.5 t).
    """

    tokens: float
    hours: float
    n_gpus: int
    watts_per_gpu: float
    pue: float | None
    grid_g_per_kwh: float | None

    @classmethod
    def of(cls, plan, tokens, load=1.0):
        """Return the Training of a plan."""
        check(tokens > 0, f"{tokens} tokens: train on more than none")
        check(0 < load <= 1, f"load={load}: the part of the TDP that a GPU draws, more than 0 and at most 1")
        hours = tokens / plan.tokens_per_second / 3600
        machine = plan.machine
        watts = load * machine.gpu.tdp_w
        return cls(tokens, hours, plan.layout.n_gpus, watts, machine.pue, machine.grid_g_per_kwh)

    @property
    def days(self):
        return self.hours / 24

    @property
    def gpu_hours(self):
        return self.hours * self.n_gpus

    @property
    def gpu_kwh(self):
        """The energy of the GPUs alone."""
        return self.gpu_hours * self.watts_per_gpu / 1000

    @property
    def kwh(self):
        """The energy of the GPUs and of cooling them; None where the machine's PUE is not known."""
        return None if self.pue is None else self.gpu_kwh * self.pue

    @property
    def kg_co2e(self):
        """Kilograms of CO₂ equivalent of `kwh`; None where the grid is not known."""
        return (
            None if self.kwh is None or self.grid_g_per_kwh is None else self.kwh * self.grid_g_per_kwh / 1000
        )

    def table(self):
        """Return the Table: what, how much, assumption."""
        unknown = "not known for this machine"
        rows = [
            ("days", f"{self.days:.3g}", f"{self.tokens:.3g} tokens, no stop"),
            ("GPU hours", f"{self.gpu_hours:,.0f}", f"{self.n_gpus} GPUs reserved all the time"),
            (
                "GPU energy, kWh",
                f"{self.gpu_kwh:,.0f}",
                f"{self.watts_per_gpu:.0f} W a GPU, no host, no network",
            ),
            (
                "energy, kWh",
                *((unknown, "") if self.kwh is None else (f"{self.kwh:,.0f}", f"PUE {self.pue:g}")),
            ),
        ]
        carbon = self.kg_co2e
        grid = f"{self.grid_g_per_kwh} g CO₂e a kWh, making of hardware not counted"
        rows.append(("kg CO₂e", *((unknown, "") if carbon is None else (f"{carbon:,.0f}", grid))))
        return Table(rows, columns=["what", "how much", "assumption"]).set_index("what")

    def __repr__(self):
        return repr(self.table())
