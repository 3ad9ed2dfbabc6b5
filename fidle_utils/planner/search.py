"""Try every layout, keep those that fit, fastest first."""

import itertools

from fidle_utils.measure.table import Table
from fidle_utils.planner.errors import PlanError, check_counts
from fidle_utils.planner.layout import Layout
from fidle_utils.planner.machine import MACHINES
from fidle_utils.planner.model import MODELS
from fidle_utils.planner.plan import _named, plan
from fidle_utils.planner.software import SOFTWARE

__all__ = ["Found", "search"]


class Found(list):
    """Plans, fastest first, that print as a table."""

    def table(self):
        """Return the Table of the plans: layout, memory, seconds of a step, MFU."""
        rows = [
            {
                "TP": p.layout.tensor,
                "CP": p.layout.context,
                "PP": p.layout.pipeline,
                "DP": p.layout.data,
                "ZeRO": p.layout.zero,
                "micro-batch": p.layout.micro_batch,
                "schedule": _schedule(p.layout),
                "checkpointing": p.layout.checkpointing,
                "GiB": round(p.memory_bytes / 2**30, 1),
                "s/step": round(p.seconds_per_step, 3),
                "tokens/s/GPU": round(p.tokens_per_second_per_gpu),
                "MFU %": round(100 * p.mfu, 1),
            }
            for p in self
        ]
        table = Table(rows)
        table.index += 1
        return table

    def __repr__(self):
        return repr(self.table())


def search(model, machine, n_gpus, global_batch, software="today", best=10, by_degrees=False, **choices):
    """Return the `best` plans that fit on `n_gpus`, fastest first, as Found.

    `choices` narrows or widens what is tried, by field of Layout: `pipeline=(1, 2)`,
    `checkpointing="full"`. `by_degrees`: of each (TP, CP, PP, DP) only the fastest, to see different
    layouts. Tensor parallelism stays inside a node unless `tensor=` says otherwise. Raises PlanError where
    nothing fits, with what comes closest.
    """
    model, machine, software = _named(model, MODELS), _named(machine, MACHINES), _named(software, SOFTWARE)
    check_counts(GPUs=n_gpus, global_batch=global_batch)
    found, tightest, reason = [], None, None
    for layout in _layouts(model, machine, software, n_gpus, global_batch, choices):
        try:
            one = plan(model, machine, layout, n_gpus, software)
        except PlanError as error:
            reason = error
            continue
        if one.fits:
            found.append(one)
        elif tightest is None or one.memory_bytes < tightest.memory_bytes:
            tightest = one
    if not found:
        raise PlanError(_nothing(model, machine, n_gpus, tightest, reason))
    found.sort(key=lambda one: one.seconds_per_step)
    return Found((_fastest_of_each(found) if by_degrees else found)[:best])


def _layouts(model, machine, software, n_gpus, global_batch, choices):
    """Every layout worth trying: those that cannot be are dropped by its own checks."""
    given = {
        name: values if isinstance(values, (tuple, list)) else (values,) for name, values in choices.items()
    }
    powers = [2**i for i in range(12)]
    inside = [t for t in powers if t <= machine.gpus_per_node]
    fields = {
        "tensor": inside,
        "context": [c for c in powers if model.sequence_length // c >= 16384] or [1],
        "pipeline": _divisors(n_gpus),
        "zero": (0, 1, 2, 3),
        "micro_batch": powers[:6],
        "checkpointing": ("none", "full") if software.flash else ("none", "selective", "full"),
        "schedule": ("1F1B", "interleaved"),
        "virtual_stages": (2, 3, 4, 6, 8),
    } | given
    others = {name: values for name, values in given.items() if name not in fields or name == "data"}
    for name in ("data", "global_batch"):
        others.pop(name, None)
    names = [name for name in fields if name not in ("schedule", "virtual_stages", "data")]
    names += [name for name in others if name not in names]
    for values in itertools.product(*((fields | others)[name] for name in names)):
        layout = dict(zip(names, values, strict=True))
        part = layout["tensor"] * layout["context"] * layout["pipeline"]
        if n_gpus % part or model.heads % layout["tensor"] or layout["pipeline"] > model.layers:
            continue
        layout["data"] = n_gpus // part
        if "data" in given and layout["data"] not in given["data"]:
            continue
        if not _sensible(layout, global_batch):
            continue
        layout.setdefault("sequence_parallel", layout["tensor"] > 1)
        for schedule, virtual in _schedules(fields, layout):
            try:
                yield Layout(**layout, global_batch=global_batch, schedule=schedule, virtual_stages=virtual)
            except PlanError:
                continue


def _sensible(layout, global_batch):
    """Leave out what only repeats another layout, or what nobody runs: ZeRO-2 and 3 with a pipeline."""
    shards = layout["data"] * layout["context"]
    if layout["zero"] and shards == 1:
        return False
    if layout["zero"] > 1 and layout["pipeline"] > 1:
        return False  # gradients or parameters would travel for each micro-batch of each stage
    return global_batch % (layout["data"] * layout["micro_batch"]) == 0


def _schedules(fields, layout):
    if layout["pipeline"] == 1:
        return [("1F1B", 1)]
    pairs = []
    for schedule in fields["schedule"]:
        virtual = fields["virtual_stages"] if schedule == "interleaved" else (1,)
        pairs += [(schedule, v) for v in virtual]
    return pairs


def _fastest_of_each(found):
    seen = {}
    for one in found:
        seen.setdefault((one.layout.tensor, one.layout.context, one.layout.pipeline, one.layout.data), one)
    return list(seen.values())


def _divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def _schedule(layout):
    if layout.pipeline == 1:
        return "-"
    return layout.schedule + (f" × {layout.virtual_stages}" if layout.virtual_stages > 1 else "")


def _nothing(model, machine, n_gpus, tightest, reason):
    where = f"{model.name} on {n_gpus} × {machine.gpu.name}"
    if tightest is None:
        return f"no layout of {where} is possible: {reason or 'no degree divides the GPUs and the batch'}"
    need, room = tightest.memory_bytes / 2**30, tightest.room_bytes / 2**30
    return (
        f"{where} fits in no layout: the smallest needs {need:.0f} GiB a GPU and there are {room:.0f} "
        f"({tightest.layout}); take more GPUs, shorter sequences or a smaller model"
    )
