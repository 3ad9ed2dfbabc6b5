"""The trace of PyTorch's profiler, read as events of a kind: forward, backward, communication, …

Without a GPU, the threads that run operators compute, and gloo's own threads communicate. Where there are GPU
kernels, the streams do both; a kernel is of the kind of the operator that launched it.

Format: the profiler's JSON, written by libkineto/src/output_json.cpp of github.com/pytorch/kineto.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import NamedTuple

from fidle_utils.measure.intervals import subtract, union

KINDS = ("forward", "backward", "optimizer", "compute", "data loading", "data transfer", "communication")
COMPUTING = KINDS[:4]
WAIT, PEERS = "fidle: wait", "fidle: from rank {} to rank {}"  # annotations that `hooks.py` writes

_CPU, _GPU = ("cpu_op", "user_annotation"), ("kernel", "gpu_memcpy", "gpu_memset")
_WAITS = (WAIT, "_c10d_functional::wait_tensor", "c10d::monitored_barrier_")
_TO_ONE = ("send", "recv")
_LAUNCHERS = ("cuda_runtime", "cuda_driver")
_ON_CPU, _ON_GPU = ("gloo:", "mpi:", "ucc:"), ("ncclDevKernel", "ncclKernel")
# Letters in the name of a collective → the field's word. The first that fits: "allreduce" holds "reduce".
_WORDS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "monitoredbarrier": "",  # made of sends and receives
    "barrier": "barrier",
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
    "sendrecv": "send and recv",
    "send": "send",
    "recv": "recv",
}


class Event(NamedTuple):
    """A stretch of time of one lane: a thread or a GPU stream. `start` and `end` in ns since 1970.

    `what` and `group` are set for communication: the collective, and the ranks that take part; (source,
    destination) for a send or recv; None if not known.
    """

    kind: str
    what: str
    name: str
    lane: str
    group: tuple | None
    start: int
    end: int


class _Slice(NamedTuple):
    name: str
    category: str
    thread: tuple  # (process, thread), or (GPU, stream)
    start: int
    end: int
    args: dict


def read(trace, group_of_thread=None, rank=0):
    """Return the outermost events of a kind, and all operators, as two lists of Event.

    `trace`: what is in the file of `export_chrome_trace`. `group_of_thread`: the ranks served by a thread of
    gloo, by its number; {None: ranks} if there is one group. Operators have no kind.
    """
    slices = _slices(trace)
    threads, streams, gloo = defaultdict(list), defaultdict(list), []
    for one in slices:
        if one.category in _CPU and one.name.startswith(_ON_CPU):
            gloo.append(one)
        elif one.category in _CPU:
            threads[one.thread].append(one)
        elif one.category in _GPU:
            streams[one.thread].append(one)
    for one in gloo:
        if collective(one.name) not in _TO_ONE and not _is_main(one.thread):
            threads.pop(one.thread, None)  # gloo's own: copies in there are part of the collective
    arrows = _arrows(trace)
    outermost = {thread: _outermost(ours, arrows) for thread, ours in threads.items()}
    lanes = {thread: _lane(thread, i, len(threads)) for i, thread in enumerate(sorted(threads))}
    events = _gloo_events(gloo, threads, group_of_thread or {})
    for thread, ours in outermost.items():
        if streams:  # the CPU only launches what the GPU computes
            ours = [one for one in ours if one[0] == "data loading"]
        waits = [(one.start, one.end) for one in threads[thread] if one.name in _WAITS]
        events += _cut(ours, waits, lanes[thread])
    launch = _launches(slices, outermost) if streams else {}
    gpus = {gpu for gpu, _ in streams}
    for (gpu, stream), ours in streams.items():
        lane = f"GPU {gpu} stream {stream}" if len(gpus) > 1 else f"stream {stream}"
        events += [_gpu_event(one, lane, launch, rank) for one in ours]
    operators = [
        Event("", "", one.name, lanes[thread], None, one.start, one.end)
        for thread, ours in threads.items()
        for one in ours
        if not one.name.startswith("fidle:")
    ]
    return sorted(events, key=lambda event: event.start), operators


def collective(name):
    """Return the field's word for a collective that some library calls `name`; "" if it is none."""
    letters = re.sub("[^a-z]", "", name.lower())
    return next((word for part, word in _WORDS.items() if part in letters), "")


def _start(trace, event):
    base = trace.get("baseTimeNanoseconds", 0)  # of the machine's clock, which all its ranks share
    return base + round(event["ts"] * 1e3)


def _slices(trace):
    slices = []
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in (*_CPU, *_GPU, *_LAUNCHERS):
            start = _start(trace, event)
            end = start + round(event.get("dur", 0) * 1e3)
            thread = event["pid"], event["tid"]
            slices.append(_Slice(event["name"], event["cat"], thread, start, end, event.get("args", {})))
    return sorted(slices, key=lambda one: (one.start, -one.end))


def _arrows(trace):
    """Where the profiler's arrows from an operator to its backward start: (process, thread, ns)."""
    events = (one for one in trace["traceEvents"] if one.get("ph") == "s" and one.get("cat") == "fwdbwd")
    return {(one["pid"], one["tid"], _start(trace, one)) for one in events}


def _lane(thread, number, n_threads):
    return "main thread" if _is_main(thread) or n_threads == 1 else f"thread {number}"


def _is_main(thread):
    process, number = thread
    return number == process  # so it is on Linux


# ------------------------------------------------------------------------------------------ on a thread


def _kind(one):
    """The kind of an operator or annotation; None for a wrapper, whose content counts instead."""
    name = one.name
    if name.startswith(("autograd::engine::evaluate_function", "torch.distributed.ddp.reducer")):
        return "backward"
    if name.startswith(("Optimizer.step", "Optimizer.zero_grad")):
        return "optimizer"
    if name.startswith("enumerate(DataLoader)"):
        return "data loading"
    if one.category == "user_annotation":
        return name if name in KINDS else None
    return None if name.startswith(("c10d::", "_c10d_functional::", "record_param_comms")) else "compute"


def _outermost(slices, arrows):
    """[kind, name, start, end] of the slices of one thread that lie in no other slice of a kind."""
    rows = []
    recorded = _recorded_by_autograd(slices, arrows)
    for one in slices:
        inside = rows and one.end <= rows[-1][3]
        if not inside and (kind := _kind(one)) is not None:
            rows.append([kind, one.name, one.start, one.end])
            inside = True
        if inside and one.start in recorded and rows[-1][0] == "compute" != rows[-1][1]:
            rows[-1][0] = "forward"  # a block that is called compute stays
    return rows


def _recorded_by_autograd(slices, arrows):
    """The starts of the operators of one thread that autograd wrote down, to differentiate them later.

    An operator carries the number that autograd would give it next; the following one's is greater if it did.
    For the last one there is the profiler's arrow, if its backward was recorded too.
    """
    numbered = [one for one in slices if "Sequence number" in one.args and not one.args.get("Fwd thread id")]
    number = [one.args["Sequence number"] for one in numbered]
    starts = {one.start for one, n, after in zip(numbered, number, number[1:], strict=False) if n < after}
    return starts | {one.start for one in numbered if (*one.thread, one.start) in arrows}


def _cut(rows, waits, lane):
    """Events of one thread, without the times at which it waited for a collective."""
    waits = union(waits)
    starts, ends = zip(*waits, strict=True) if waits else ((), ())
    events = []
    for kind, name, start, end in rows:
        inside = waits[bisect_right(ends, start) : bisect_left(starts, end)]
        parts = subtract([(start, end)], inside) if inside else [(start, end)]
        events += [Event(kind, "", name, lane, None, *part) for part in parts]
    return events


def _gloo_events(slices, threads, group_of_thread):
    """Gloo communicates on its own threads; a send or recv bears the number of the thread that called it."""
    operators = sorted((one for ours in threads.values() for one in ours), key=lambda one: one.start)
    called = [collective(one.name) for one in operators if one.name.startswith("c10d::")]
    called = [what for what in called if what and what not in _TO_ONE]
    peers = [one for one in operators if one.name.startswith("fidle: from")]
    own = [one for one in slices if collective(one.name) not in _TO_ONE]
    numbers = {thread: i for i, thread in enumerate(sorted({one.thread for one in own}))}
    events = []
    for one in slices:
        what = collective(one.name)
        if what in _TO_ONE:
            group, lane = _peers(one, peers), "gloo, send and recv"
        else:
            group = group_of_thread.get(one.thread[1], group_of_thread.get(None))
            lane = f"gloo {numbers[one.thread]}"
        events.append(Event("communication", what, one.name, lane, group, one.start, one.end))
    if len(called) == len(own):  # gloo makes a reduce_scatter of an all_reduce: what was called counts
        words = iter(called)
        events = [e if e.what in _TO_ONE else e._replace(what=next(words) or e.what) for e in events]
    return events


def _peers(one, annotations):
    """(source, destination) of a send or recv, from the annotation around its start; None if not known."""
    around = [at.name for at in annotations if at.start <= one.start <= at.end and at.thread == one.thread]
    ranks = tuple(map(int, re.findall(r"-?\d+", around[-1]))) if around else (-1,)
    return None if -1 in ranks else ranks


# ------------------------------------------------------------------------------------------- on a stream


def _launches(slices, outermost):
    """The kind of what launches kernels: by the correlation of the launch, by the operator's external id."""
    starts = {thread: [row[2] for row in rows] for thread, rows in outermost.items()}
    kinds = {}
    for one in slices:
        if one.category in _GPU or one.thread not in outermost:
            continue
        i = bisect_right(starts[one.thread], one.start) - 1
        if i < 0 or one.start > outermost[one.thread][i][3]:
            continue
        key = "correlation" if one.category in _LAUNCHERS else "External id"
        if key in one.args:
            kinds[key, one.args[key]] = outermost[one.thread][i][0]
    return kinds


def _gpu_event(one, lane, launch, rank):
    start, end, args = one.start, one.end, one.args
    if one.name.startswith(_ON_GPU):
        what = collective(args.get("Collective name", "")) or collective(one.name.split("(")[0])
        return Event("communication", what, one.name, lane, _group(args, what, rank), start, end)
    if one.category == "gpu_memcpy" and any(way in one.name for way in ("HtoD", "DtoH", "PtoP")):
        return Event("data transfer", "", one.name, lane, None, start, end)
    keys = [(key, args[key]) for key in ("correlation", "External id") if key in args]
    kind = next((launch[key] for key in keys if key in launch), "compute")
    return Event(kind if kind in COMPUTING else "compute", "", one.name, lane, None, start, end)


def _group(args, what, rank):
    """The ranks of a kernel of NCCL, from "[0, 1, 2, 3]", or (source, destination).

    PyTorch writes only the other end: the destination of a send, the source of a recv.
    """
    ranks = tuple(map(int, re.findall(r"\d+", str(args.get("Process Group Ranks", "")))))
    if what in _TO_ONE:
        if what == "send":
            return (rank, int(args["Dst Rank"])) if "Dst Rank" in args else None
        return (int(args["Src Rank"]), rank) if "Src Rank" in args else None
    return ranks or None
