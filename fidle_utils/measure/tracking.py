"""`track()`: what a training loop did, step by step, at next to no cost for the loop."""

import itertools
import json
import os
import sys
import time
import weakref
from pathlib import Path

__all__ = ["track"]

RESERVED = {
    "rank",
    "loop",
    "name",
    "step",
    "start_s",
    "seconds",
    "data_seconds",
    "samples",
    "flops",
    "warmup",
}
SEND_SECONDS = 0.25  # between two reports of a loop
_numbers = itertools.count()
_running = weakref.WeakSet()
send_to = None  # in a rank: the function that takes a report to the notebook


def track(iterable, samples=None, *, name="", unit="samples", total=None, warmup=2, flops=None):
    """Iterate over `iterable` and record every step: `for x, y in track(loader): …`.

    In a rank the records go to the notebook, which shows one row a rank and keeps them as
    `ranks.throughput`. Elsewhere one row or a tqdm bar shows them, and `track(…).throughput` has them. A step
    lasts from the moment the loop asks for an item to the moment it asks for the next; one that `break` cuts
    short is not kept.

    `samples`: how many one item holds, a number or a function of the item; by default the length of the first
    tensor in it. `warmup`: the first steps, recorded but counted in no throughput. `flops`: floating-point
    operations of a step, or True to have torch.utils.flop_counter count those of the first step (matrix
    products, convolutions and attention, forward and backward; none are seen that a fused kernel hides).

    On a GPU a step is timed by CUDA events, which are read when they have passed: the loop never waits for
    the device, except once at its end. `log(loss=loss)` on what `track` returns adds values to the step.
    """
    return Track(iterable, samples, name, unit, total, warmup, flops)


class Track:
    """An iterable that records its steps; `rows` holds those that are over, in the order of COLUMNS."""

    def __init__(self, iterable, samples, name, unit, total, warmup, flops):
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self.iterable, self.samples, self.name, self.unit = iterable, samples, name, unit
        self.total, self.warmup, self.flops = total, warmup, None if flops is True else flops
        self._count_flops = flops is True
        self.number, self.rows, self._sent_rows, self._pending, self._metrics = None, [], 0, [], {}
        self._report = send_to or _Alone()

    def __len__(self):
        if self.total is None:
            raise TypeError("how many steps there will be is not known")
        return self.total

    def log(self, **metrics):
        """Keep numbers or tensors of one element with the current step; nothing waits for a GPU."""
        for name, value in metrics.items():
            if name in RESERVED:
                raise ValueError(f"log({name}=…): track() itself records {name!r}; choose another name.")
            self._metrics[name] = _copy(value, f"log({name}=…)")

    @property
    def throughput(self):
        """The steps recorded so far by this process, as a `Throughput`."""
        from fidle_utils.measure.throughput import Throughput

        return Throughput.of_reports([(my_rank(), self._as_report(self.rows))])

    def __iter__(self):
        _running.add(self)
        self.number, self.rows, self._sent_rows = (
            next(_numbers),
            [],
            0,
        )  # each time round is a loop of its own
        clock, pending, iterator, counter = time.perf_counter, self._pending, iter(self.iterable), None
        cuda = _uses_cuda()  # asked now and then: in a loop of long steps even this call takes microseconds
        event, begin = _event() if cuda else None, clock()
        self._origin, self._epoch, self._sent_at = (begin, event), time.time(), begin
        try:
            for step in itertools.count():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                arrived = clock(), _event() if cuda else None  # a GPU that still works does not wait
                self._metrics = {}
                if step == 0 and self._count_flops:
                    counter = _flop_counter()
                yield item
                if counter is not None:
                    counter.__exit__(None, None, None)
                    self.flops, counter = counter.get_total_flops(), None
                samples = self._samples_of(item)
                del item  # a batch may be large
                passed, end = _event() if cuda else None, clock()
                pending.append((step, (begin, event), (end, passed), arrived, samples, self._metrics))
                begin, event = end, passed
                if end - self._sent_at > SEND_SECONDS:
                    self.report()
                    cuda = _uses_cuda()
                    if not cuda:
                        begin = clock()  # what the report cost is no step's time
        finally:
            if counter is not None:
                counter.__exit__(None, None, None)
            self.report(done=True)

    def report(self, done=False):
        """Send what is over since the last report; `done`: wait for all of it, no more will come."""
        if done:
            _running.discard(self)
        self._read(wait=done)
        rows, self._sent_rows = self.rows[self._sent_rows :], len(self.rows)
        if rows or done:
            self._report(self._as_report(rows, done))
        self._sent_at = time.perf_counter()

    def _as_report(self, rows, done=True):
        return dict(
            number=self.number, name=self.name, unit=self.unit, total=self.total, rows=rows, done=done
        )

    def _read(self, wait):
        """Turn the steps that have passed on the device into rows."""
        done = 0
        for step, begin, end, arrived, samples, metrics in self._pending:
            if not _passed(end, wait):
                break
            done += 1
            start = self._epoch + _seconds(self._origin, begin)
            metrics = {name: float(value) for name, value in metrics.items()}
            samples = None if samples is None else float(samples)
            warm = step < max(self.warmup, int(self._count_flops))
            waited = _seconds(begin, arrived)
            self.rows.append([step, start, _seconds(begin, end), waited, samples, self.flops, warm, metrics])
        del self._pending[:done]

    def _samples_of(self, item):
        if self.samples is None:
            return _length(item)
        return _copy(self.samples(item), "samples") if callable(self.samples) else self.samples


# A moment is a pair: seconds of the processor's clock, and an event on the GPU's stream, if one is in use.


def _event():
    event = sys.modules["torch"].cuda.Event(enable_timing=True)
    event.record()
    return event


def _passed(moment, wait):
    _, event = moment
    if event is not None and wait:
        event.synchronize()
    return event is None or event.query()


def _seconds(earlier, later):
    """Seconds between two moments: the GPU's where both have an event."""
    if earlier[1] is None or later[1] is None:
        return later[0] - earlier[0]
    return earlier[1].elapsed_time(later[1]) / 1e3


def _uses_cuda():
    """True if this process has opened a GPU; asking opens none and imports nothing."""
    return (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized()


class _Alone:
    """Shows a loop of a process whose reports go nowhere: a row in a notebook, else a tqdm bar of rank 0.

    FIDLE_TRACK names a folder that gets the reports of every rank.
    """

    def __init__(self):
        from fidle_utils.measure.throughput import Progress

        self.rank, self.folder = my_rank(), os.environ.get("FIDLE_TRACK")
        self.progress, self.bar = Progress(), None

    def __call__(self, report):
        self.progress.receive(self.rank, report)
        loop = self.progress.loops[self.rank]
        if self.bar is None:
            # The log of a job needs no bar beside the records: the notebook that follows the job draws one.
            followed = bool(self.folder) and "SLURM_JOB_ID" in os.environ
            self.bar = _Row() if _in_notebook() else _Bar(report, hidden=self.rank > 0 or followed)
        self.bar.show(loop)
        if self.folder:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            with open(Path(self.folder) / f"rank{self.rank}.jsonl", "a") as file:
                file.write(json.dumps({"rank": self.rank, **report}) + "\n")


def my_rank():
    """What torchrun calls RANK, and srun SLURM_PROCID; 0 without either."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


class _Row:
    """One row of text in the notebook's cell, kept up to date."""

    handle = None

    def show(self, loop):
        from IPython.display import display

        if self.handle is None:
            self.handle = display({"text/plain": str(loop)}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": str(loop)}, raw=True)


class _Bar:
    """A tqdm bar on the terminal."""

    def __init__(self, report, hidden):
        from tqdm import tqdm

        self.bar = tqdm(total=report["total"], desc=report["name"] or None, unit="step", disable=hidden)

    def show(self, loop):
        self.bar.set_postfix_str(loop.speed(), refresh=False)
        self.bar.update(len(loop.rows) - self.bar.n)
        if loop.done:
            self.bar.close()


def _in_notebook():
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def report_all():
    """Report what loops that an exception has left behind still hold (a traceback keeps them open)."""
    for loop in list(_running):
        loop.report(done=True)


def _flop_counter():
    """A counter of FLOPs that counts from now on in this thread."""
    from fidle_utils.measure.flops import flop_counter

    counter = flop_counter()
    counter.__enter__()
    return counter


def _length(item):
    """The length of the first tensor or array in `item`, None if there is none."""
    shape = getattr(item, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return next((n for part in parts if (n := _length(part)) is not None), None)


def _copy(value, what):
    """A value that stays as it is now: the next step may write into the same tensor."""
    if not hasattr(value, "detach"):
        return value
    if value.numel() != 1:
        raise ValueError(f"{what} takes numbers and tensors of one element, not shape {tuple(value.shape)}.")
    value = value.detach()
    if not value.is_cuda:
        return value.item()
    # Asynchronous, and over before the event that ends the step: reading it then waits for nothing.
    import torch

    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
