"""What every rank did and when, on one clock, from PyTorch's profiler: `%%ranks --timeline`.

`record()` and `collect()` run in a rank around the cell; `Timeline` is what the notebook makes of it.
"""

import json
from collections import defaultdict

from fidle_utils.measure.intervals import length, subtract, tracks, union
from fidle_utils.measure.recording import collect, record
from fidle_utils.measure.trace import COMPUTING, KINDS

# pandas is imported where it is used: ranks import this module, and need none
__all__ = ["KINDS", "Timeline", "collect", "record"]


class Timeline:
    """The events of all ranks on one clock, in pandas DataFrames.

    `events` has the columns rank, kind (one of KINDS), what (for communication, the collective), name, lane
    (the thread or GPU stream), group (the ranks that take part, a tuple; (source, destination) of a send or
    recv; None if not known), start_ms and end_ms (from the first event of any rank) and waiting_ms. Only
    outermost events are kept. Where there are GPU kernels, computing means them, not what launches them.

    waiting_ms is the time from the start of a collective on this rank until its last participant started it
    too, and 0 if the rank was done before that: it did not have to wait. (A recv waits until its message is
    sent, or until it ends, if the stamp of the send came late.) The k-th call of a collective in a group is
    the k-th on each of its ranks; the k-th send from a to b meets the k-th recv on b from a.

    `operators`, with rank, name, lane, start_ms and end_ms, is all that the profiler saw on the CPU, nested.

    An operator that autograd wrote down is forward, another one compute. What stands in a block of
    `torch.profiler.record_function(kind)` is one event of that kind, less the times at which it waits for
    collectives. All ranks must run on one machine: one clock.
    """

    def __init__(self, events, operators=None, ranks=()):
        import pandas as pd

        self.events = events
        self.operators = pd.DataFrame(columns=_OPERATOR) if operators is None else operators
        self.ranks = list(ranks) or sorted(set(events["rank"]))

    @classmethod
    def of_ranks(cls, recordings):
        """From what `collect` returned on each rank."""
        import pandas as pd

        rows = [(one["rank"], *event) for one in recordings for event in one["events"]]
        rows = [(*row, waiting) for row, waiting in zip(rows, _waiting(rows), strict=True)]
        events = pd.DataFrame(rows, columns=["rank", *_EVENT, "waiting_ms"])
        operators = [(one["rank"], *event) for one in recordings for event in one["operators"]]
        operators = pd.DataFrame(operators, columns=["rank", *_EVENT])[_OPERATOR]
        first = min([table.start_ms.min() for table in (events, operators) if len(table)], default=0)
        for table in (events, operators):  # integers so far: a double has no room for them
            table[["start_ms", "end_ms"]] = (table[["start_ms", "end_ms"]] - first) / 1e6
        events["waiting_ms"] = events.waiting_ms / 1e6
        events = events.sort_values(["rank", "start_ms"], ignore_index=True)
        return cls(events, operators, sorted(one["rank"] for one in recordings))

    def summary(self, start_ms=None, end_ms=None):
        """Return a DataFrame with one row a rank, in milliseconds; times that overlap count once.

        span: from the rank's first event to its last, or from `start_ms` to `end_ms`.
        compute: forward, backward, optimizer or other computing. communication: inside of a collective.
        exposed: communication while this rank computed nothing. overlap: communication while it computed.
        waiting: the part of communication in which a participant had not arrived yet (see `waiting_ms`).
        idle: neither compute nor communication. data_loading: the part of idle in which data were loaded or
        copied between host and GPU. compute + exposed + idle = span; exposed + overlap = communication.
        """
        from fidle_utils.measure.table import Table

        rows = {rank: _sums(self._of(rank), start_ms, end_ms) for rank in self.ranks}
        return Table.from_dict(rows, orient="index").rename_axis("rank")

    def totals(self):
        """Return a DataFrame: (rank, kind, what) → calls, total_ms, waiting_ms; what overlaps counts once."""
        import pandas as pd

        from fidle_utils.measure.table import Table

        rows = {}
        for (rank, kind, what), group in self.events.groupby(["rank", "kind", "what"]):
            spans = list(zip(group.start_ms, group.end_ms, strict=True))
            waits = list(zip(group.start_ms, group.start_ms + group.waiting_ms, strict=True))
            rows[rank, kind, what] = (len(group), round(length(spans), 3), round(length(waits), 3))
        index = pd.MultiIndex.from_tuples(rows, names=["rank", "kind", "what"]) if rows else None
        return Table(rows.values(), index=index, columns=["calls", "total_ms", "waiting_ms"])

    def to_chrome(self, path):
        """Write a file for ui.perfetto.dev or chrome://tracing, a process for each rank; return `path`.

        Format: Trace Event Format, Google, 2016: complete events, "X", in microseconds; metadata events, "M".
        """
        written = [event for rank in self.ranks for event in self._chrome_events(rank)]
        with open(path, "w") as file:
            json.dump({"traceEvents": written, "displayTimeUnit": "ms"}, file)
        return path

    def _of(self, rank):
        return self.events[self.events["rank"] == rank]

    def _chrome_events(self, rank):
        lanes = {}
        yield from _named("process", rank, 0, f"rank {rank}", rank)
        for lane, mine in self._of(rank).groupby("lane"):
            numbers = tracks(list(zip(mine.start_ms, mine.end_ms, strict=True)))
            for event, number in zip(mine.itertuples(), numbers, strict=True):
                place = lanes.setdefault((lane, number), len(lanes))
                args = {"operator": event.name, "waiting_ms": event.waiting_ms}
                args |= {"ranks": list(event.group)} if event.group else {}
                yield _complete(event, event.what or event.name, event.kind, place, args)
        for event in self.operators[self.operators["rank"] == rank].itertuples():
            place = lanes.setdefault((f"{event.lane}: operators", 0), len(lanes))
            yield _complete(event, event.name, "operator", place, {})
        for (lane, number), place in lanes.items():
            yield from _named("thread", rank, place, f"{lane} ({number + 1})" if number else lane, place)

    def __repr__(self):
        span = self.events.end_ms.max() - self.events.start_ms.min() if len(self.events) else 0.0
        return f"Timeline of {len(self.ranks)} ranks: {len(self.events)} events in {span:.1f} ms"


_EVENT = ["kind", "what", "name", "lane", "group", "start_ms", "end_ms"]
_OPERATOR = ["rank", "name", "lane", "start_ms", "end_ms"]


def _complete(event, name, kind, lane, args):
    start, end = round(event.start_ms * 1e3, 3), round(event.end_ms * 1e3, 3)
    times = {"ts": start, "dur": round(end - start, 3)}
    return {"ph": "X", "name": name, "cat": kind, "pid": event.rank, "tid": lane, **times, "args": args}


def _named(what, rank, lane, name, place):
    """Two metadata events: the name of a process or thread, and its place in the list."""
    for key, args in ((f"{what}_name", {"name": name}), (f"{what}_sort_index", {"sort_index": place})):
        yield {"ph": "M", "name": key, "pid": rank, "tid": lane, "args": args}


def _waiting(rows):
    """How long each event waited for its last participant, in ns. `rows`: rank and what an Event holds."""
    calls = defaultdict(lambda: defaultdict(list))  # the same call on its ranks → rank → positions in `rows`
    for i, (rank, kind, what, _, _, group, start, _) in enumerate(rows):
        if kind == "communication" and what:
            to_one = what in ("send", "recv")
            if group is not None or not to_one:
                calls["message" if to_one else what, group][rank].append((start, i))
    recorded = {row[0] for row in rows}
    waiting = [0] * len(rows)
    for (_, group), of_rank in calls.items():
        expected = recorded & set(group) if group else set(of_rank)
        counts = {len(positions) for positions in of_rank.values()}
        if set(of_rank) != expected or (group is None and len(counts) > 1):
            continue  # not sure which calls belong together
        for call in zip(*(sorted(positions) for positions in of_rank.values()), strict=False):
            last = max(start for start, _ in call)
            for start, i in call:
                end = rows[i][-1]
                if rows[i][2] == "recv":
                    waiting[i] = min(last, end) - start  # nothing arrives before it is sent
                elif last <= end:
                    waiting[i] = last - start
    return waiting


def _sums(events, start_ms, end_ms):
    """The row of one rank in the summary."""
    spans = {"compute": [], "communication": [], "waiting": [], "data": []}
    start = events.start_ms.min() if start_ms is None else start_ms
    end = events.end_ms.max() if end_ms is None else end_ms
    start, end = (0, 0) if start != start or end != end else (_ns(start), max(_ns(end), _ns(start)))

    def clipped(from_ms, to_ms):
        return max(_ns(from_ms), start), min(_ns(to_ms), end)

    for event in events.itertuples():
        kind = "compute" if event.kind in COMPUTING else event.kind
        spans[kind if kind in spans else "data"].append(clipped(event.start_ms, event.end_ms))
        if event.waiting_ms:
            spans["waiting"].append(clipped(event.start_ms, event.start_ms + event.waiting_ms))
    compute, communication = union(spans["compute"]), union(spans["communication"])
    exposed = length(subtract(communication, compute))
    ns = {
        "span": end - start,
        "exposed": exposed,
        "overlap": length(communication) - exposed,
        "waiting": length(spans["waiting"]),
        "idle": end - start - length(compute) - exposed,
        "data_loading": length(subtract(spans["data"], compute + communication)),
    }
    us = {name: round(value / 1e3) for name, value in ns.items()}
    us["compute"] = us["span"] - us["exposed"] - us["idle"]  # so that what is printed adds up, too
    us["communication"] = us["exposed"] + us["overlap"]
    return {f"{name}_ms": us[name] / 1e3 for name in _SUMMARY}


_SUMMARY = ("span", "compute", "communication", "exposed", "overlap", "waiting", "idle", "data_loading")


def _ns(ms):
    return round(ms * 1e6)
