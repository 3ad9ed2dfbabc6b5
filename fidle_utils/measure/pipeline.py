"""When the stages of `torch.distributed.pipelining` work, and stages that sleep to emulate devices."""

import time
from contextlib import contextmanager

from fidle_utils.schedules import Event, Simulation

__all__ = ["measured_simulation", "record_stages"]


@contextmanager
def record_stages(stages, forward=0.0, backward_input=0.0, backward_weight=0.0):
    """Note every operation of this rank's `PipelineStage`s; gives a list of `Event`s that fills as they work.

    With durations, in seconds for one micro-batch on one rank, each operation sleeps until it has lasted that
    long: then several ranks that share a core behave as devices of their own, *emulated*. A rank with v
    stages spends 1/v of them on each, as in `Schedule.simulate`. Times are on the clock that all the ranks of
    one machine share.

    It puts itself before the methods `forward_one_chunk`, `backward_one_chunk` and
    `backward_weight_one_chunk` of each stage, and leaves them as they were.
    """
    lasts = {"F": forward, "B": backward_input, "W": backward_weight, "BW": backward_input + backward_weight}
    lasts = {kind: seconds / len(stages) for kind, seconds in lasts.items()}
    events = []
    for stage in stages:
        _watch(stage, "forward_one_chunk", lambda kwargs: "F", lasts, events)
        _watch(
            stage,
            "backward_one_chunk",
            lambda kwargs: "BW" if kwargs.get("full_backward", True) else "B",
            lasts,
            events,
        )
        _watch(stage, "backward_weight_one_chunk", lambda kwargs: "W", lasts, events)
    try:
        yield events
    finally:
        for stage in stages:
            for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                vars(stage).pop(name, None)


def _watch(stage, name, kind_of, lasts, events):
    method = getattr(stage, name)

    def watched(micro_batch, *args, **kwargs):
        kind = kind_of(kwargs)
        start = _now(stage.device)
        result = method(micro_batch, *args, **kwargs)
        end = _now(stage.device)
        if end < start + lasts[kind]:
            time.sleep(start + lasts[kind] - end)
            end = time.monotonic()
        events.append(Event(stage.group_rank, kind, micro_batch, stage.stage_index, start, end))
        return result

    setattr(stage, name, watched)


def _now(device):
    if device.type == "cuda":
        # What it works with must have arrived. Not the whole device: other streams still send.
        import torch

        torch.cuda.current_stream(device).synchronize()
    return time.monotonic()


def measured_simulation(events_of_ranks, schedule, seconds_per_unit=1.0):
    """Return the events that all ranks recorded as a `Simulation` of `schedule`: it has a total and a bubble.

    The clock starts with the first event, in units of `seconds_per_unit`. Raises ValueError where the order
    of operations is another one than the schedule's.
    """
    order = tuple(tuple(event[1:4] for event in events) for events in events_of_ranks)
    if order != tuple(tuple(map(tuple, mine)) for mine in schedule.order):
        rank = next(r for r, mine in enumerate(schedule.order) if order[r] != tuple(map(tuple, mine)))
        raise ValueError(f"rank {rank} did not work in the order of {schedule.name}: {order[rank][:6]} …")
    events = [Event(*event) for events in events_of_ranks for event in events]
    first = min(event.start for event in events)
    events = [
        event._replace(
            start=(event.start - first) / seconds_per_unit, end=(event.end - first) / seconds_per_unit
        )
        for event in events
    ]
    return Simulation(schedule, tuple(sorted(events, key=lambda event: (event.start, event.rank))))
