"""`track()`: what a training loop did, step by step, at next to no cost for the loop."""

import itertools
import json
import os
import sys
import time
import weakref
from pathlib import Path

__all__ = ["track"]

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
        self.number = next(_numbers)
        self.rows, self._sent_rows, self._pending, self._metrics = [], 0, [], {}
        self._report = send_to or _Alone()

    def __len__(self):
        if self.total is None:
            raise TypeError("how many steps there will be is not known")
        return self.total

    def log(self, **metrics):
        """Keep numbers or tensors of one element with the current step; nothing waits for a GPU."""
        self._metrics.update({name: _copy(value) for name, value in metrics.items()})

    @property
    def throughput(self):
        """The steps recorded so far by this process, as a `Throughput`."""
        from fidle_utils.measure.throughput import Throughput

        return Throughput.of_reports([(int(os.environ.get("RANK", 0)), self._as_report(self.rows))])

    def __iter__(self):
        _running.add(self)
        begin = _Stamp()
        self._origin, self._epoch, self._sent_at = begin, begin.epoch, begin.host
        iterator, counter = iter(self.iterable), None
        try:
            for step in itertools.count():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                waited = time.perf_counter() - begin.host
                self._metrics = {}
                if step == 0 and self._count_flops:
                    counter = _flop_counter()
                yield item
                if counter is not None:
                    counter.__exit__(None, None, None)
                    self.flops, counter = counter.get_total_flops(), None
                end = _Stamp()
                self._pending.append((step, begin, end, waited, self._samples_of(item), self._metrics))
                begin = end
                if end.host - self._sent_at > SEND_SECONDS:
                    self.report()
                    begin = _Stamp() if end.event is None else end  # what the report cost is no step's time
        finally:
            if counter is not None:
                counter.__exit__(None, None, None)
            self.report(done=True)

    def report(self, done=False):
        """Send what is over since the last report; `done`: wait for all of it, no more will come."""
        self._read(wait=done)
        rows, self._sent_rows = self.rows[self._sent_rows :], len(self.rows)
        if rows or done:
            self._report(self._as_report(rows, done))
        self._sent_at = time.perf_counter()
        if done:
            _running.discard(self)

    def _as_report(self, rows, done=True):
        return dict(
            number=self.number, name=self.name, unit=self.unit, total=self.total, rows=rows, done=done
        )

    def _read(self, wait):
        """Turn the steps that have passed on the device into rows."""
        done = 0
        for step, begin, end, waited, samples, metrics in self._pending:
            if not end.passed(wait):
                break
            done += 1
            start = self._epoch + (begin - self._origin)
            metrics = {name: float(value) for name, value in metrics.items()}
            warm = step < max(self.warmup, int(self._count_flops))
            self.rows.append([step, start, end - begin, waited, samples, self.flops, warm, metrics])
        del self._pending[:done]

    def _samples_of(self, item):
        if self.samples is None:
            return _length(item)
        return self.samples(item) if callable(self.samples) else self.samples


class _Stamp:
    """A moment: of the processor, and of the GPU's current stream if this process uses one."""

    __slots__ = ("event", "host")

    def __init__(self):
        self.event = None
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.host = time.perf_counter()

    @property
    def epoch(self):
        """Seconds since 1970, comparable between the processes of a machine."""
        return time.time() - time.perf_counter() + self.host

    def passed(self, wait):
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or self.event.query()

    def __sub__(self, earlier):
        """Seconds from an earlier stamp to this one."""
        if self.event is None or earlier.event is None:
            return self.host - earlier.host
        return earlier.event.elapsed_time(self.event) / 1e3


class _Alone:
    """Shows a loop of a process whose reports go nowhere: a row in a notebook, else a tqdm bar of rank 0.

    FIDLE_TRACK names a folder that gets the reports of every rank.
    """

    def __init__(self):
        from fidle_utils.measure.throughput import Progress

        self.rank, self.folder = int(os.environ.get("RANK", 0)), os.environ.get("FIDLE_TRACK")
        self.progress, self.bar = Progress(), None

    def __call__(self, report):
        self.progress.receive(self.rank, report)
        loop = self.progress.loops[self.rank]
        if self.bar is None:
            self.bar = _Row() if _in_notebook() else _Bar(report, hidden=self.rank > 0)
        self.bar.show(loop)
        if self.folder:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            with open(Path(self.folder) / f"rank{self.rank}.jsonl", "a") as file:
                file.write(json.dumps({"rank": self.rank, **report}) + "\n")


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


def _copy(value):
    """A value that stays as it is now: the next step may write into the same tensor."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach()
    if not value.is_cuda:
        return value.item()
    # Asynchronous, and over before the event that ends the step: reading it then waits for nothing.
    import torch

    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
