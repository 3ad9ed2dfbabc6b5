"""What is said of a cell that failed: the cause first, then what the other ranks did."""

import os
import re
import signal
from dataclasses import dataclass

from fidle_utils.ranks.locate import INNER, Place, names

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CELL_LINE = re.compile(r"(?:Cell In\[\d+\], line |ipykernel_\d+\S*\.py:)(\d+)")
_COLLECTIVE = re.compile(r"torch/distributed/\S+:\d+, in (?:\S+\.)?(\w+)\(")
_LOST = re.compile(
    r"[Cc]onnection (was )?(likely )?(closed|reset)|closed by peer|Broken pipe|recvBytes|NCCL .*abort"
)


@dataclass
class Failure:
    """How one rank failed, and where (None if that is not known)."""

    rank: int
    ename: str
    evalue: str
    place: Place | None = None
    traceback: str = ""

    @property
    def line(self):
        """The line of the cell, None if it is not known."""
        return self.place and self.place.line

    @property
    def is_a_consequence(self):
        """True if the rank only lost its connection because another one failed or was freed."""
        return bool(_LOST.search(self.evalue)) or self.ename == "KeyboardInterrupt"

    @property
    def title(self):
        where = f" on line {self.line}" if self.line else ""
        first_line = self.evalue.strip().partition("\n")[0]
        return f"{self.ename}{where}: {first_line}".rstrip(": ")


def place_of_error(traceback):
    """The Place that IPython's traceback names last; None if no line of a cell is in it."""
    text = _ANSI.sub("", traceback).replace(os.sep, "/")
    lines = list(_CELL_LINE.finditer(text))
    if not lines:
        return None
    called = [name for name in _COLLECTIVE.findall(text, lines[-1].end()) if name not in INNER]
    if not called and "_engine_run_backward" in text:
        called = ["backward"]
    return Place(int(lines[-1][1]), called[0] if called else None)


def cause_of_death(exit_code, last_words):
    """How a rank died, and why if that can be told."""
    if exit_code >= 0:
        return f"exit code {exit_code}", "os._exit, exit or quit was called"
    name = signal.Signals(-exit_code).name
    if "EnforceNotMet" in last_words or "enforce fail" in last_words:
        return name, "ranks called one collective with different shapes or dtypes; gloo aborts then"
    hints = {
        "SIGKILL": "killed from outside, for lack of memory perhaps",
        "SIGABRT": "a library gave up; its last words are above",
        "SIGSEGV": "a library wrote outside its memory",
    }
    return name, hints.get(name, "")


def causes(run):
    """The failures that caused the others, earliest first."""
    failures = list(run.failures.values())
    return [failure for failure in failures if not failure.is_a_consequence] or failures


def report(run):
    """What every rank did in a CellRun that is over, as lines; the cause comes first."""
    lines, told = [], set()
    if run.stopped or run.timed_out:
        how = "stopped" if run.stopped else f"timed out after {run.timeout:g} s"
        lines.append(f"{how}: {run.hang}")
        told |= {rank for rank, failure in run.failures.items() if failure.is_a_consequence}
    lines += _grouped((failure.rank, failure.title) for failure in causes(run) if failure.rank not in told)
    told |= {failure.rank for failure in causes(run)}
    if not (run.stopped or run.timed_out):
        others = [link.rank for link in run.links if link.rank not in told]
        lines += _grouped((rank, _what(rank, run)) for rank in others)
    return lines


def _what(rank, run):
    """What a rank did that is not to blame."""
    failure, place = run.failures.get(rank), run.places.get(rank)
    if (place is None or place.line is None) and failure is not None:
        place = failure.place
    if place is not None and place.line is not None:
        return f"was waiting in {place}" if place.waits_in else f"was {place}"
    return "lost its connection" if failure is not None else "finished the cell"


def _grouped(told):
    """One line for all ranks of which the same is told."""
    groups = {}
    for rank, text in told:
        groups.setdefault(text, []).append(rank)
    lines = []
    for text, ranks in groups.items():
        if len(ranks) > 1:
            text = re.sub("^was ", "were ", text).replace("lost its connection", "lost their connection")
        lines.append(f"{names(ranks)}: {text}")
    return lines
