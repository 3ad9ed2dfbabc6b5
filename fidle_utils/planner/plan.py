"""A plan: memory and time of one layout, and what follows from them."""

from dataclasses import dataclass, field

from fidle_utils.measure.table import Table
from fidle_utils.planner import calibration
from fidle_utils.planner.energy import Training
from fidle_utils.planner.errors import PlanError
from fidle_utils.planner.layout import Layout
from fidle_utils.planner.machine import MACHINES, Machine
from fidle_utils.planner.memory import memory_by_part
from fidle_utils.planner.model import MODELS, Transformer
from fidle_utils.planner.software import SOFTWARE, Software
from fidle_utils.planner.step import step_by_part

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a layout costs: `memory` (part → bytes), `time` (part → seconds of a step), and what follows."""

    model: Transformer
    machine: Machine
    layout: Layout
    software: Software
    memory: dict = field(repr=False)
    time: dict = field(repr=False)

    @property
    def memory_bytes(self):
        """The bytes at the peak of the GPU that takes most."""
        return sum(self.memory.values())

    @property
    def room_bytes(self):
        """The bytes that a plan may take: 98 % of the GPU's, less what PyTorch does not count.

        An "80 GB" GPU has 80 GiB, of which CUDA keeps 1 to 2 %.
        """
        outside = 0 if self.software.nvidia_smi else 1e9 * calibration.CONTEXT_GB / 2
        return 0.98 * self.machine.gpu.memory_gb * 2**30 - outside

    @property
    def fits(self):
        return self.memory_bytes <= self.room_bytes

    @property
    def seconds_per_step(self):
        return sum(self.time.values())

    @property
    def tokens_per_step(self):
        return self.layout.global_batch * self.model.sequence_length

    @property
    def tokens_per_second(self):
        return self.tokens_per_step / self.seconds_per_step

    @property
    def tokens_per_second_per_gpu(self):
        return self.tokens_per_second / self.layout.n_gpus

    @property
    def model_tflops(self):
        """TFLOP/s a GPU, of the model's own FLOPs: attention counted as in arXiv:2205.05198, equation 7."""
        return 1e-12 * self.model.flops_per_token() * self.tokens_per_second_per_gpu

    @property
    def hardware_tflops(self):
        """TFLOP/s a GPU, with what is computed again: 8 a parameter instead of 6 where all layers are.

        The head is not computed again: arXiv:2104.04473, equation 3, 96·B·s·l·h²(1 + s/6h + V/16lh).
        Selective checkpointing computes the forward of attention again, 4·B·s²·h a layer; equation 8 of
        arXiv:2205.05198 counts three times as much, and HFU printed with it is higher.
        """
        model, layout = self.model, self.layout
        attention = 4 * model.layers * model.hidden * model.sequence_length
        whole = 2 * model.layers * model.layer_matrices + attention
        selective = 0 if self.software.flash else attention
        again = {"none": 0, "selective": selective, "full": whole}[layout.checkpointing]
        flops = model.flops_per_token() + layout.checkpointed * again
        return 1e-12 * flops * self.tokens_per_second_per_gpu

    @property
    def mfu(self):
        """Model FLOPs over the dense peak of the GPUs (PaLM, arXiv:2204.02311, Appendix B)."""
        return self.model_tflops / self.machine.gpu.peak_tflops[self.layout.precision]

    @property
    def hfu(self):
        """Hardware FLOPs, those computed again included, over the dense peak."""
        return self.hardware_tflops / self.machine.gpu.peak_tflops[self.layout.precision]

    def training(self, tokens, load=1.0):
        """Return what training on `tokens` tokens takes: hours, kWh, kg of CO₂e, with their assumptions.

        `load`: the part of its TDP that a GPU draws; 1 is the upper bound that BLOOM's footprint uses.
        """
        return Training.of(self, tokens, load)

    def memory_table(self):
        """Return the Table of memory: part, GB and GiB, largest first."""
        rows = [(part, n / 1e9, n / 2**30) for part, n in self._sorted(self.memory) if n]
        rows.append(("in all", self.memory_bytes / 1e9, self.memory_bytes / 2**30))
        return Table(rows, columns=["part", "GB", "GiB"]).round(1).set_index("part")

    def time_table(self):
        """Return the Table of a step: part, seconds and share, largest first."""
        step = self.seconds_per_step
        rows = [(part, t, 100 * t / step) for part, t in self._sorted(self.time) if t]
        rows.append(("in all", step, 100.0))
        return Table(rows, columns=["part", "seconds", "% of the step"]).round(3).set_index("part")

    @staticmethod
    def _sorted(parts):
        return sorted(parts.items(), key=lambda item: -item[1])

    def __repr__(self):
        room = f"{self.memory_bytes / 2**30:.1f} of {self.room_bytes / 2**30:.1f} GiB a GPU"
        fits = f"fits, {room}" if self.fits else f"DOES NOT FIT, {room}"
        return "\n".join(
            [
                f"{self.model.name} on {self.layout.n_gpus} × {self.machine.gpu.name} of {self.machine.name}",
                f"  {self.layout}",
                f"  {fits}",
                f"  {self.seconds_per_step:.3g} s a step · "
                f"{self.tokens_per_second_per_gpu:.4g} tokens/s a GPU",
                f"  {self.model_tflops:.0f} TFLOP/s of the model: MFU {self.mfu:.1%}, HFU {self.hfu:.1%}",
            ]
        )


def plan(model, machine, layout, n_gpus=None, software="today"):
    """Return the Plan of a model on a machine in a layout.

    `model`, `machine` and `software` are objects, or names in MODELS, MACHINES and SOFTWARE. `n_gpus`: the
    GPUs that you have, to check the layout against. Raises PlanError, one sentence, where the layout cannot
    be; a plan that needs more memory than there is is returned, with `fits` False.
    """
    model, machine, software = _named(model, MODELS), _named(machine, MACHINES), _named(software, SOFTWARE)
    layout.check(model, machine, n_gpus)
    memory = memory_by_part(model, machine, layout, software)
    return Plan(model, machine, layout, software, memory, step_by_part(model, machine, layout, software))


def _named(value, known):
    if not isinstance(value, str):
        return value
    if value not in known:
        raise PlanError(f"no {value!r}: there are {', '.join(known)}")
    return known[value]
