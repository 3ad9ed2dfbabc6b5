"""What every rank did and when, on one clock, from PyTorch's profiler: `%%ranks --timeline`.

`record()` and `collect()` run in a rank around the cell; `Timeline` is what the notebook makes of it.
"""

import json
import os
import tempfile

import pandas as pd

KINDS = ("forward", "backward", "optimizer", "data loading", "compute", "communication")
_COMMUNICATION = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel", "mpi:")

_profiler = None


def record():
    """Start to record this process."""
    global _profiler
    import torch
    from torch.profiler import ProfilerActivity, profile

    if _profiler is not None:  # the cell before failed
        _profiler.stop()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # what was asked for before must not be counted
        activities.append(ProfilerActivity.CUDA)
    _profiler = profile(activities=activities, acc_events=True)
    _profiler.start()


def collect():
    """Stop to record; returns a list of (name, category, thread, start, end, recorded by autograd), in ns."""
    global _profiler
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    profiler, _profiler = _profiler, None
    profiler.stop()
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        profiler.export_chrome_trace(path)
        with open(path) as file:
            trace = json.load(file)
    finally:
        os.remove(path)
    base = trace.get("baseTimeNanoseconds", 0)  # of the machine's clock, which all its ranks share
    events = []
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in (
            "cpu_op",
            "user_annotation",
            "kernel",
            "gpu_memcpy",
        ):
            start = base + round(event["ts"] * 1e3)
            end = start + round(event["dur"] * 1e3)
            differentiable = event.get("args", {}).get("Sequence number", -1) >= 0
            events.append((event["name"], event["cat"], str(event["tid"]), start, end, differentiable))
    return events


class Timeline:
    """The events of all ranks on one clock.

    `events` is a pandas.DataFrame with columns rank, kind (one of KINDS), name, thread, start_ms and end_ms
    (from the first event of any rank). Only outermost events are kept.
    """

    def __init__(self, events):
        self.events = events

    @classmethod
    def of_ranks(cls, events_of_ranks):
        """From what `collect` returned on each rank, rank 0 first."""
        rows = []
        for rank, events in enumerate(events_of_ranks):
            for thread in {event[2] for event in events}:
                mine = [event for event in events if event[2] == thread]
                rows += [(rank, *row) for row in _outermost(mine)]
        columns = ["rank", "kind", "name", "thread", "start_ms", "end_ms"]
        table = pd.DataFrame(rows, columns=columns)
        first = table.start_ms.min() if len(table) else 0  # integers so far: a double has no room for them
        table[["start_ms", "end_ms"]] = (table[["start_ms", "end_ms"]] - first) / 1e6
        return cls(table.sort_values(["rank", "start_ms"], ignore_index=True))

    def __repr__(self):
        ranks = self.events["rank"].nunique()
        span = self.events.end_ms.max() if len(self.events) else 0.0
        return f"Timeline of {ranks} ranks: {len(self.events)} events in {span:.1f} ms"


def _kind(name, category):
    """The kind of an event, None for a wrapper whose content counts instead."""
    if name.startswith(_COMMUNICATION):
        return "communication"
    if name.startswith(("autograd::engine::evaluate_function", "torch.distributed.ddp.reducer")):
        return "backward"
    if name.startswith(("Optimizer.step", "Optimizer.zero_grad")):
        return "optimizer"
    if "DataLoader" in name:
        return "data loading"
    if category == "user_annotation":
        return name if name in KINDS else None
    return None if name.startswith("c10d::") else "compute"


def _outermost(events):
    """[kind, name, thread, start, end] of the events of one thread that lie in no other event of a kind."""
    rows = []
    for name, category, thread, start, end, differentiable in sorted(
        events, key=lambda row: (row[3], -row[4])
    ):
        kind = _kind(name, category)
        inside = rows and end <= rows[-1][4]
        if kind is not None and not inside:
            rows.append([kind, name, thread, start, end])
        if differentiable and rows and end <= rows[-1][4] and rows[-1][0] == "compute":
            rows[-1][0] = "forward"  # autograd wrote it down, to differentiate it later
    return rows
