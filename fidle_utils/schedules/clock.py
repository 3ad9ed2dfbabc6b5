"""A clock for schedules: when each operation starts and ends, and the sums over them."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["DeadlockError", "Event", "Simulation", "run"]


class Event(NamedTuple):
    """An operation that was simulated: who did what, from when to when, in the caller's unit of time."""

    rank: int
    kind: str
    micro_batch: int
    stage: int
    start: float
    end: float


class DeadlockError(ValueError):
    """No rank can go on: each waits for an operation that stands behind another one that waits."""


@dataclass(frozen=True)
class Simulation:
    """What a schedule costs: `events`, and the sums over them in the unit of the durations.

    The clock starts with the first forward of rank 0. *Ideal* is a rank's own work without any wait, that
    of the busiest rank where they differ.
    """

    schedule: object
    events: tuple[Event, ...]

    @cached_property
    def total(self):
        """The time from the first start to the last end of any rank."""
        return max(event.end for event in self.events)

    @cached_property
    def busy(self):
        """The time that each rank works, one number a rank."""
        return self._by_rank(lambda mine: sum(event.end - event.start for event in mine))

    @property
    def idle(self):
        """The time out of `total` that each rank waits, one number a rank."""
        return [self.total - busy for busy in self.busy]

    @cached_property
    def longest_rank(self):
        """The longest time from a rank's own first start to its own last end.

        Steps that follow each other without a barrier cost this, not `total`: the next step starts on rank 0
        while the last rank still works (arXiv:2401.10241, Sections 2.2 and 4). It is the paper's cost.
        """
        return max(self._by_rank(lambda mine: mine[-1].end - mine[0].start))

    @property
    def bubble_of_ideal(self):
        """The time lost, as a share of the ideal time: (p−1)/m for GPipe and 1F1B (arXiv:2104.04473, 2.2)."""
        return self.total / max(self.busy) - 1

    @property
    def bubble_of_total(self):
        """The time lost, as a share of all: (p−1)/(m+p−1) for GPipe and 1F1B (arXiv:1811.06965, 2.3)."""
        return 1 - max(self.busy) / self.total

    @property
    def bubble_rate(self):
        """The time lost, as a share of `longest_rank`: the bubble rate of arXiv:2401.10241, Table 5."""
        return 1 - max(self.busy) / self.longest_rank

    def _by_rank(self, measure):
        by_rank = [[] for _ in range(self.schedule.n_ranks)]
        for event in self.events:
            by_rank[event.rank].append(event)
        return [measure(mine) for mine in by_rank]


def run(schedule, durations, communication, overlap=True):
    """Return the events of a schedule, sorted by start; `durations[kind][stage]`, `communication` a transfer.

    Without `overlap` the receiver is occupied by the transfer: it takes place once the rank is free. Ranks
    advance in turn as far as their input allows: the times do not depend on who is looked at first.
    """
    ends = {}  # (kind, micro-batch, stage) -> end
    events, free_at, position = [], [0.0] * schedule.n_ranks, [0] * schedule.n_ranks
    advanced = True
    while advanced:
        advanced = False
        for rank, mine in enumerate(schedule.order):
            while position[rank] < len(mine) and not _missing(schedule, mine[position[rank]], ends):
                operation = mine[position[rank]]
                transfers = [
                    (ends[needed], communication if schedule.rank_of_stage[needed[2]] != rank else 0)
                    for needed in _needs(schedule, operation)
                ]
                if overlap:
                    start = max([free_at[rank], *(ready + travel for ready, travel in transfers)])
                else:
                    ready = max([free_at[rank], *(ready for ready, _ in transfers)])
                    start = ready + sum(travel for _, travel in transfers)
                free_at[rank] = start + durations[operation.kind][operation.stage]
                events.append(Event(rank, *operation, start, free_at[rank]))
                # BW delivers the gradient of the input like B.
                kind = operation.kind.replace("BW", "B")
                ends[kind, operation.micro_batch, operation.stage] = free_at[rank]
                position[rank] += 1
                advanced = True
    _check_finished(schedule, position, ends)
    return sorted(events, key=lambda event: (event.start, event.rank))


def _needs(schedule, operation):
    """The (kind, micro-batch, stage) that must have ended before an operation, on any rank."""
    kind, micro_batch, stage = operation
    if kind == "F":
        return [("F", micro_batch, stage - 1)] if stage else []
    if kind == "W":
        return [("B", micro_batch, stage)]
    after = [("B", micro_batch, stage + 1)] if stage + 1 < schedule.n_stages else []
    return [("F", micro_batch, stage), *after]


def _missing(schedule, operation, ends):
    return [needed for needed in _needs(schedule, operation) if needed not in ends]


def _check_finished(schedule, position, ends):
    stuck = [
        (rank, mine[at])
        for rank, (mine, at) in enumerate(zip(schedule.order, position, strict=True))
        if at < len(mine)
    ]
    if stuck:
        waits = []
        for rank, operation in stuck:
            kind, micro_batch, stage = _missing(schedule, operation, ends)[0]
            other = schedule.rank_of_stage[stage]
            waits.append(
                f"rank {rank} stands at {operation} and waits for {kind} of micro-batch {micro_batch} "
                f"on stage {stage} (rank {other})"
            )
        raise DeadlockError(
            f"{schedule.name} cannot go on: {'; '.join(waits)}. Move what is waited for to an earlier place"
        )
