"""A layout: how a model is laid over GPUs, and whether it can be."""

from dataclasses import dataclass, replace

from fidle_utils.planner.errors import PlanError, check, check_counts

__all__ = ["CHECKPOINTING", "SCHEDULES", "Layout", "layers_by_stage"]

CHECKPOINTING = ("none", "selective", "full")
SCHEDULES = ("GPipe", "1F1B", "interleaved", "ZB-H1", "ZB-H2", "ZB-V")
PRECISIONS = ("bf16", "fp16", "fp8", "fp32")


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism and what goes with them; `data · tensor · context · pipeline` GPUs.

    `zero`: 0 to 3, the stage of ZeRO over the data and context ranks; FSDP is 3. `reshard`: FSDP frees the
    gathered parameters after forward and gathers them again (False: gathered once a step, held until its
    end). `sequence_parallel`: norms and dropout split over the tensor ranks (arXiv:2205.05198, Section
    4.2.2). `schedule`, `virtual_stages`: of the pipeline. `micro_batch`: sequences at a time.
    `global_batch`: sequences of a step over all ranks (left out: one micro-batch each); what is left is
    gradient accumulation. `checkpointing`: "none", "selective" (attention only) or "full", on
    `checkpointed` of the layers (0 to 1). `uneven`: let a stage have one layer more than another.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    zero: int = 0
    reshard: bool = True
    sequence_parallel: bool = False
    schedule: str = "1F1B"
    virtual_stages: int = 1
    micro_batch: int = 1
    global_batch: int | None = None
    checkpointing: str = "none"
    checkpointed: float = 1.0
    precision: str = "bf16"
    uneven: bool = False

    def __post_init__(self):
        degrees = ("data", "tensor", "pipeline", "context", "virtual_stages", "micro_batch")
        check_counts(**{name: getattr(self, name) for name in degrees})
        if self.global_batch is None:
            object.__setattr__(self, "global_batch", self.data * self.micro_batch)
        check_counts(global_batch=self.global_batch)
        each = self.data * self.micro_batch
        check(
            self.global_batch % each == 0,
            f"a global batch of {self.global_batch} is not a multiple of {self.data} data ranks × "
            f"micro-batch {self.micro_batch}: take {self.global_batch + -self.global_batch % each}",
        )
        for name, known in (
            ("zero", (0, 1, 2, 3)),
            ("checkpointing", CHECKPOINTING),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            check(value in known, f"{name}={value!r}: it is one of {', '.join(map(str, known))}")
        check(0 <= self.checkpointed <= 1, f"checkpointed={self.checkpointed}: a part of the layers, 0 to 1")
        virtual = self.virtual_stages > 1
        check(
            virtual == (self.schedule == "interleaved") or self.schedule == "ZB-V",
            f"{self.virtual_stages} virtual stages with {self.schedule}: 2 or more go with 'interleaved', "
            "1 with the others",
        )

    @property
    def n_gpus(self):
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def micro_batches(self):
        """How many micro-batches a data rank computes in a step."""
        return self.global_batch // (self.data * self.micro_batch)

    @property
    def shards(self):
        """The ranks over which ZeRO splits: data · context."""
        return self.data * self.context

    def with_(self, **changes):
        """Return the layout with some fields changed."""
        return replace(self, **changes)

    def check(self, model, machine, n_gpus=None):
        """Raise PlanError where the layout cannot carry this model on this machine."""
        asked = self.n_gpus if n_gpus is None else n_gpus
        check_counts(GPUs=asked)
        product = (
            f"data {self.data} × tensor {self.tensor} × context {self.context} × pipeline {self.pipeline}"
        )
        check(
            self.n_gpus == asked,
            f"{product} is {self.n_gpus} GPUs, not {asked}: change one degree of the layout",
        )
        if machine.nodes is not None:
            most = machine.nodes * machine.gpus_per_node
            check(asked <= most, f"{asked} GPUs, and {machine.name} has {most}: take fewer")
        check(
            self.tensor <= model.heads,
            f"tensor={self.tensor} for {model.heads} heads: a rank would have no head; take {model.heads} or "
            "less",
        )
        for what, size in (("heads", model.heads), ("feed-forward columns", model.ffn)):
            check(
                size % self.tensor == 0,
                f"{size} {what} do not divide over tensor={self.tensor}: take a divisor of {size}",
            )
        check(
            model.sequence_length % self.context == 0,
            f"a sequence of {model.sequence_length} does not divide over context={self.context}",
        )
        check(
            self.precision in machine.gpu.peak_tflops,
            f"{machine.gpu.name} has no {self.precision}: take one of {', '.join(machine.gpu.peak_tflops)}",
        )
        if self.schedule == "interleaved":
            check(
                self.micro_batches % self.pipeline == 0,
                f"interleaved goes by groups of {self.pipeline} micro-batches, and {self.micro_batches} is "
                "no multiple: change global_batch, or take 1F1B",
            )
        layers_by_stage(model, self)

    def __repr__(self):
        parts = [f"data {self.data}"]
        for name in ("tensor", "context", "pipeline"):
            if getattr(self, name) > 1:
                parts.append(f"{name} {getattr(self, name)}")
        parts.append(
            f"ZeRO-{self.zero}" if self.zero < 3 else "FSDP" + ("" if self.reshard else ", no reshard")
        )
        if self.pipeline > 1:
            parts.append(self.schedule + (f" × {self.virtual_stages}" if self.virtual_stages > 1 else ""))
        parts.append(f"{self.micro_batches} × micro-batch {self.micro_batch}")
        parts.append(
            {"none": "no checkpointing"}.get(self.checkpointing, f"{self.checkpointing} checkpointing")
        )
        return " · ".join(parts)


def layers_by_stage(model, layout):
    """Return the layers of each stage of the pipeline, first to last, all its virtual stages together.

    Equal shares where the layers divide. Where they do not, the embedding and the head count as one layer
    each, and take the place of one: 70 + 2 over 12 stages (BLOOM), 126 + 2 over 16 (Llama 3 405B).
    """
    p, pieces = layout.pipeline, layout.pipeline * layout.virtual_stages
    if pieces > model.layers + 2 or p > model.layers:
        raise PlanError(f"{pieces} stages for {model.layers} layers: take {model.layers} stages or fewer")
    if model.layers % pieces == 0:
        return [model.layers // p] * p
    if (model.layers + 2) % pieces == 0:
        share = (model.layers + 2) // p
        return [share - 1] + [share] * (p - 2) + [share - 1] if p > 1 else [model.layers]
    if layout.uneven:
        least, more = divmod(model.layers, p)
        return [least + (stage < more) for stage in range(p)]
    raise PlanError(
        f"{model.layers} layers (or {model.layers + 2}, with embedding and head) do not divide over {pieces} "
        f"stages: take a divisor, or uneven=True"
    )
