"""`ranks`: what a notebook does with its ranks. Runs cells and functions, fetches and sets variables."""

import linecache
import os
import pickle

import cloudpickle
from IPython import get_ipython

from fidle_utils.ranks.cell import CellRun
from fidle_utils.ranks.errors import RankError, RanksStopped
from fidle_utils.ranks.group import IN_RANK, Group
from fidle_utils.ranks.link import DEAD
from fidle_utils.ranks.locate import locate, names
from fidle_utils.ranks.report import causes, report


class Ranks(Group):
    """The ranks of this notebook. There is one such object, `fidle_utils.ranks`.

    `len(ranks)` is the world size; `ranks["loss"]` is a list of one value a rank, rank 0 first. `outputs`:
    what each rank printed in the last cell. `timeline`: of the last cell that was run with one.
    `throughput`: what `track()` recorded in the last cell that used it. `job`: of the last `%ranks submit`.
    """

    def __init__(self):
        super().__init__()
        self._busy = False
        self.outputs = []
        self.timeline = self.throughput = self.job = None

    @property
    def placement(self):
        """The Placement of the ranks: devices, backend, threads; None if there are no ranks."""
        return self._options

    def cell(self, source, *, only=None, timeout=None, timeline=False, shown=None):
        """Run the text of a cell on every rank, or on those in `only`; raises RankError if one fails.

        `timeout` in seconds. `shown`: the cell as the learner wrote it, kept for `export`.
        """
        with _InUse(self):
            links = self._choose(only)
            entry = self.history.cell(shown if shown is not None else source, only)
            if timeline:
                self.timeline = None  # a cell that fails leaves none, and not an old one
                self._quietly("timeline_start()", links, values=False)
            run = CellRun(links, self._server, timeout=timeout)
            run.run(source, execution_count=execution_count())
            entry.echoed = run.echoed
            self._finish(run)
            entry.failed = False
            if timeline:
                from fidle_utils.measure.timeline import Timeline

                self.timeline = Timeline.of_ranks(self._quietly("timeline_stop()", links))

    def run(self, function, *args, timeout=None, only=None, **kwargs):
        """Call `function(*args, **kwargs)` on every rank; returns the results, rank 0 first.

        The function may use `rank`, `device` and whatever `%%ranks` cells defined. Raises RankError.
        """
        data = _pickled(((function, args, kwargs), _source(function)), "the function or one of its arguments")
        with _InUse(self):
            links = self._choose(only)
            if not (name := getattr(function, "__name__", repr(function))).startswith("_"):
                self.history.note(f"ranks.run({name}, …) ran here, from the notebook")
            key = os.urandom(8).hex()
            for link in links:
                link.push(key, data)
            run = CellRun(links, self._server, timeout=timeout)
            run.run(f"{IN_RANK}.call({key!r})")
            self._finish(run)
            return [pickle.loads(run.values[link.rank]) for link in links]

    def push(self, **values):
        """Set variables on every rank."""
        data = _pickled(values, "a value")
        with _InUse(self):
            links = self._choose(None)
            self.history.push(values)
            key = os.urandom(8).hex()
            for link in links:
                link.push(key, data)
            self._quietly(f"push({key!r})", links, values=False)

    def __getitem__(self, name):
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f'ranks["name"] takes the name of a variable, not {name!r}')
        with _InUse(self):
            return self._quietly(f"fetch({name!r})", self._choose(None))

    def _quietly(self, call, links, values=True):
        """Run a function of `calls` on `links`, showing nothing; returns what they sent."""
        run = CellRun(links, self._server, quiet=True)
        run.run(f"{IN_RANK}.{call}")
        for failure in run.failures.values():  # of our own code: the message says it all
            failure.place, failure.traceback = None, ""
        self._finish(run, keep_outputs=False)
        return [pickle.loads(run.values[link.rank]) for link in links] if values else None

    def _choose(self, only):
        """The links of the ranks in `only`, all by default; starts ranks if there are none."""
        if not self._links:
            self._say("No ranks yet: starting a sensible number (%ranks N starts as many as you like).")
            self.start()
        self._note_deaths()
        if only is None:
            return list(self._links)
        unknown = sorted(set(only) - set(range(len(self))))
        if unknown:
            raise ValueError(f"there is no rank {unknown[0]}: the ranks are 0 to {len(self) - 1}")
        return [self._links[rank] for rank in sorted(set(only))]

    def _note_deaths(self):
        """Replace ranks that died since the last cell, and say so instead of running a cell without them."""
        self._bury()
        if dead := [link for link in self._links if link.state == DEAD]:  # `status` may have buried them
            gone = names([link.rank for link in dead])
            report = [f"{gone} died between two cells (exit code {dead[0].exit_code}); this cell did not run"]
            raise RankError(report, advice=self._repair(disconnected=False))

    def _finish(self, run, keep_outputs=True):
        """After a run: put the group in order again, then raise what went wrong."""
        if keep_outputs:
            self.outputs = run.output.outputs
            self.throughput = run.tracked.throughput() or self.throughput
        if not (run.failures or run.stopped or run.timed_out):
            return
        lines = report(run)
        advice = self._repair(run.disconnected)
        failures = [failure for failure in causes(run) if not (failure.is_a_consequence and run.hang)]
        if run.stopped:
            raise RanksStopped(lines, advice)
        raise RankError(lines, failures, advice)

    def script(self, name="train.py"):
        """The cells run so far as a script for torchrun, and a sentence on what was left out."""
        return self.history.script(len(self), self._options.threads, name)

    def status(self):
        """One dict a rank: rank, pid, device, state, place (in the cell), memory_mb (its own part)."""
        if self._server is not None and not self._busy:
            self._bury()
        places = locate(self._links)
        rows = []
        for link in self._links:
            row = dict(
                rank=link.rank, pid=link.pid, device=self._options.devices[link.rank], state=link.state
            )
            row["place"] = str(places.get(link.rank, ""))
            row["memory_mb"] = link.memory_mb()
            rows.append(row)
        return rows

    def __repr__(self):
        if not self._links:
            return "no ranks yet: %ranks 4 starts four"
        status = self.status()
        rows = [list(status[0]), *([str(value) for value in row.values()] for row in status)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([f"{len(self)} ranks · {self._options}", *table])


class _InUse:
    """Refuses a second cell while one runs, from a subshell of the notebook for instance."""

    def __init__(self, ranks):
        self.ranks = ranks

    def __enter__(self):
        if self.ranks._busy:
            raise RuntimeError("the ranks are running another cell; %ranks shows where they are")
        self.ranks._busy = True

    def __exit__(self, *_):
        self.ranks._busy = False


def _pickled(value, what):
    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(f"{what} cannot be sent to the ranks: {error}") from None


def _source(function):
    """The path and lines of the notebook's cell that defines `function`, None if it is not from a cell."""
    path = getattr(getattr(function, "__code__", None), "co_filename", "")
    return (path, linecache.getlines(path)) if "ipykernel_" in path else None


def execution_count():
    """The number of the notebook's cell that runs now, None outside of a notebook."""
    shell = get_ipython()
    return len(shell.user_ns["In"]) - 1 if shell is not None else None
