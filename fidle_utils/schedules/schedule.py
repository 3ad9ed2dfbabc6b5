"""The order of operations of each rank of a pipeline."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fidle_utils.schedules.clock import Simulation, run

__all__ = ["Operation", "Schedule"]


class Operation(NamedTuple):
    """A piece of work of one rank: one kind, one micro-batch, one stage.

    `F` is forward, `B` the gradient of the input, `W` the gradient of the weights, `BW` both in one (the
    classic backward). The names are those of the zero-bubble paper, arXiv:2401.10241, Section 1.
    """

    kind: str
    micro_batch: int
    stage: int

    def __str__(self):
        return f"{self.kind} of micro-batch {self.micro_batch} on stage {self.stage}"


@dataclass(frozen=True)
class Schedule:
    """The order of operations of every rank, and nothing else.

    `order[rank]` lists the operations of a rank. `rank_of_stage[stage]` says who holds a stage; left out, it
    is read from the order. Raises ValueError where an operation is missing, done twice or on the wrong rank.
    """

    name: str
    order: Sequence[Sequence[Operation]]
    rank_of_stage: Sequence[int] | None = None

    def __post_init__(self):
        order = tuple(tuple(Operation(*operation) for operation in mine) for mine in self.order)
        object.__setattr__(self, "order", order)
        homes = {operation.stage: rank for rank, mine in enumerate(order) for operation in mine}
        if sorted(homes) != list(range(len(homes))) or not homes:
            raise ValueError(f"stages {sorted(homes)}: number them 0, 1, 2 … without a gap")
        ranks = self.rank_of_stage
        ranks = [homes[stage] for stage in range(len(homes))] if ranks is None else ranks
        object.__setattr__(self, "rank_of_stage", tuple(ranks))
        _check_complete(self)

    @property
    def n_ranks(self):
        return len(self.order)

    @property
    def n_stages(self):
        return len(self.rank_of_stage)

    @property
    def n_micro_batches(self):
        return 1 + max(operation.micro_batch for mine in self.order for operation in mine)

    @property
    def n_messages(self):
        """The activations and gradients that cross from one rank to another in a step, of all ranks together.

        Two a micro-batch at each border between stages of two ranks: 2m(p−1), interleaved 2m(pv−1).
        """
        borders = zip(self.rank_of_stage, self.rank_of_stage[1:], strict=False)
        return 2 * self.n_micro_batches * sum(here != there for here, there in borders)

    def simulate(self, forward=1.0, backward_input=1.0, backward_weight=1.0, communication=0.0, overlap=True):
        """Run the schedule on a clock: each operation starts when its rank is free and its input is there.

        The durations are those of one micro-batch on *one rank*, in any unit of time; a rank that holds v
        stages spends 1/v of them on each. A list gives one duration a stage instead, not divided.

        `communication` is the time that an activation or a gradient travels between two ranks. With `overlap`
        it delays the receiver and occupies nobody, as with asynchronous sends and receives that were posted
        before (the T_comm of arXiv:2401.10241, Section 3). Without, the receiver takes each message when it
        comes to it and does nothing else meanwhile; to send costs nothing. Links are never shared.

        Raises DeadlockError, with rank and operation, where the order can never be carried out.
        """
        durations = {
            "F": _per_stage(self, "forward", forward),
            "B": _per_stage(self, "backward_input", backward_input),
            "W": _per_stage(self, "backward_weight", backward_weight),
        }
        durations["BW"] = [b + w for b, w in zip(durations["B"], durations["W"], strict=True)]
        if not any(durations["F"] + durations["BW"]):
            raise ValueError("every duration is 0: give one that is more, or there is no time to share")
        if communication < 0:
            raise ValueError(f"communication={communication}: a time is 0 or more")
        return Simulation(self, tuple(run(self, durations, communication, overlap)))

    def peak_activations(self, kept_for_w=0.0):
        """Return the most activations that each rank holds at once, one number a rank.

        The unit is one micro-batch through all the layers of a rank: a stage of a rank that holds v of them
        counts 1/v. F takes a unit; BW gives it back; B gives back 1 − `kept_for_w` and W the rest. With 1,
        B frees nothing. The paper counts 34·b·s·h + 5·a·b·s² bytes a layer, of which 32·b·s·h wait for W
        (arXiv:2401.10241, Section 2.3). The order alone decides: durations change nothing.
        """
        if not 0 <= kept_for_w <= 1:
            raise ValueError(f"kept_for_w={kept_for_w}: it is the share, 0 to 1, that stays until W")
        change = {"F": 1, "BW": -1, "B": kept_for_w - 1, "W": -kept_for_w}
        stages_held = Counter(self.rank_of_stage)
        peaks = []
        for rank, mine in enumerate(self.order):
            held = peak = 0
            for operation in mine:
                held += change[operation.kind]
                peak = max(peak, held)
            peaks.append(peak / stages_held[rank])
        return peaks


def _per_stage(schedule, name, duration):
    """A duration for each stage: a number is shared out over a rank's stages, a list is taken as it is."""
    if isinstance(duration, Sequence):
        if len(duration) != schedule.n_stages:
            raise ValueError(
                f"{name} has {len(duration)} durations: give one for each of {schedule.n_stages} stages"
            )
        durations = list(duration)
    else:
        held = Counter(schedule.rank_of_stage)
        durations = [duration / held[rank] for rank in schedule.rank_of_stage]
    if min(durations) < 0:
        raise ValueError(f"{name}={duration}: a time is 0 or more")
    return durations


def _check_complete(schedule):
    """Every stage does F, then B and W or BW, once for each micro-batch, on its rank."""
    n_found = len({operation.stage for mine in schedule.order for operation in mine})
    if n_found != schedule.n_stages:
        raise ValueError(f"rank_of_stage has {schedule.n_stages} ranks for {n_found} stages")
    kinds = {}
    for rank, mine in enumerate(schedule.order):
        if not mine:
            raise ValueError(f"rank {rank} of {schedule.name} has nothing to do: leave it out")
        for operation in mine:
            if schedule.rank_of_stage[operation.stage] != rank:
                home = schedule.rank_of_stage[operation.stage]
                raise ValueError(f"rank {rank} cannot do {operation}: that stage is on rank {home}")
            if operation.micro_batch < 0:
                raise ValueError(f"{operation}: count micro-batches from 0")
            kinds.setdefault((operation.micro_batch, operation.stage), []).append(operation.kind)
    for stage in range(schedule.n_stages):
        for micro_batch in range(schedule.n_micro_batches):
            found = sorted(kinds.get((micro_batch, stage), []))
            if found not in (["B", "F", "W"], ["BW", "F"]):
                raise ValueError(
                    f"stage {stage} does {', '.join(found) or 'nothing'} for micro-batch {micro_batch}: "
                    "it must do F, B and W, or F and BW, once each"
                )
