"""Recording what this process does, with PyTorch's profiler: `record()` before, `collect()` after."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

from fidle_utils.measure.trace import read

__all__ = ["collect", "record", "stop"]

_running = _stopped = None
_cuda_is_warm = False


def record():
    """Start to record this process, until `collect`, or until a notebook's next cell raises."""
    global _running, _stopped
    from fidle_utils.measure import hooks

    stop()
    _running, _stopped = _profile(), None
    hooks.install()
    _stop_if_the_next_cell_fails()
    with _silent():
        _running.start()


def stop():
    """Stop to record, if this process is recorded; what was recorded is kept for `collect`."""
    global _running, _stopped
    import torch

    from fidle_utils.measure import hooks

    hooks.remove()
    if _running is not None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        with _silent():
            _running.stop()
        _running, _stopped = None, _running


def collect():
    """Stop to record; return a dict: rank, events and operators, which are lists of `trace.Event`."""
    global _stopped
    stop()
    if _stopped is None:
        raise RuntimeError("nothing was recorded; call record() before what you want to see.")
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        _stopped.export_chrome_trace(path)
        with open(path) as file:
            trace = json.load(file)
    finally:
        _stopped = None
        os.remove(path)
    rank = int(os.environ.get("RANK", 0))
    events, operators = read(trace, _groups_of_gloo(), rank)
    return {"rank": rank, "events": events, "operators": operators}


def _stop_if_the_next_cell_fails():
    """Or all cells until the next timeline would be recorded: a cell that fails is not collected."""
    from IPython import get_ipython

    if (shell := get_ipython()) is None:
        return
    ended = []

    def look(result):
        ended.append(result)
        if len(ended) == 2:  # the first that ends is the one that called record()
            shell.events.unregister("post_run_cell", look)
            if not result.success:
                stop()

    shell.events.register("post_run_cell", look)


@contextlib.contextmanager
def _silent():
    """Keep what C++ writes on standard error from the reader: the profiler announces what it does."""
    null, kept = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _profile():
    """A profiler of the CPU, and of CUDA where this process uses it."""
    global _cuda_is_warm
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_initialized():
        return profile(activities=[ProfilerActivity.CPU])
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    if not _cuda_is_warm:
        with profile(activities=activities):  # the first time, CUPTI loads and would miss kernels
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
        _cuda_is_warm = True
    torch.cuda.synchronize()  # what was asked for before must not be counted
    return profile(activities=activities)


def _groups_of_gloo():
    """The ranks that a thread of gloo serves, by the thread's number; {None: ranks} if there is one group.

    Gloo makes two threads with each group, so threads and groups have one order. Empty if that is not so.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return {}
    groups = [tuple(dist.get_process_group_ranks(group)) for group in dist.distributed_c10d._world.pg_map]
    if len(set(groups)) == 1:
        return {None: groups[0]}
    try:
        threads = sorted(int(task.name) for task in Path("/proc/self/task").iterdir() if _is_gloo(task))
    except OSError:  # not Linux
        return {}
    if len(threads) != 2 * len(groups):
        return {}
    return {thread: groups[i // 2] for i, thread in enumerate(threads)}


def _is_gloo(task):
    return (task / "comm").read_text().strip() == "pt_gloo_runloop"
