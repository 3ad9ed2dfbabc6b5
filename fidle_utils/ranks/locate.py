"""Where ranks are: the line of the cell and the collective in which each one waits."""

import os
import re
import signal
import time
from dataclasses import dataclass

from fidle_utils.ranks.link import BUSY, DEAD, IDLE

FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$')
# Frames of torch.distributed that only pass a call on.
INNER = {"wrapper", "_wait_for_all", "inner", "wrapped_func"}


@dataclass(frozen=True)
class Place:
    """Where a rank is: `line` of the cell, None outside of it; `waits_in`, the collective if it is in one."""

    line: int | None
    waits_in: str | None

    def __str__(self):
        if self.line is None:
            return self.waits_in or "outside the cell"
        return f"{self.waits_in}, line {self.line}" if self.waits_in else f"on line {self.line}"


def locate(links, source="", patience=1.0):
    """Ask busy ranks where they are: {rank: Place}. A rank that does not answer is left out."""
    asked, seen, places = {}, {}, {}
    for link in links:
        if link.state == BUSY:
            asked[link.rank] = (link, len(link.stack()))
            link.signal(signal.SIGUSR1)  # faulthandler answers, even out of a blocked collective
    deadline = time.monotonic() + patience
    while asked and time.monotonic() < deadline:
        time.sleep(0.01)
        for rank, (link, start) in list(asked.items()):
            stack = link.stack(start).decode(errors="replace")
            if stack and seen.get(rank) == stack:  # it has been written to the end
                places[rank] = parse(stack, source)
                del asked[rank]
            seen[rank] = stack
    return places


def last_place(link, source=""):
    """Where a rank was when a fatal signal ended it, None if that is not known."""
    _, found, stack = link.stack().decode(errors="replace").rpartition("Fatal Python error")
    return parse(stack, source) if found else None


def parse(stack, source=""):
    """The Place that a stack of `faulthandler` shows, innermost frame first. `source`: the cell."""
    waits_in = None
    for match in filter(None, map(FRAME.match, stack.splitlines())):
        path, line, name = match["file"], int(match["line"]), match["name"]
        if f"{os.sep}ipykernel_" in path:
            text = source.splitlines()[line - 1 : line]
            if waits_in is None and text and ".wait(" in text[0]:
                waits_in = "wait()"
            return Place(line, waits_in)
        if f"torch{os.sep}distributed{os.sep}" in path and name not in INNER:
            waits_in = name  # the last one seen is the one that the cell called
        elif name == "_engine_run_backward":
            waits_in = "backward"  # hooks of DDP and others reduce gradients in there
    return Place(None, waits_in)


# Of a core, since the last look: less is the idle hum of a kernel's threads.
BUSY_SHARE = 0.08


class HangWatch:
    """Tells a hang from work: all busy ranks are inside collectives and used no processor time for a while.

    Ranks that wait on one another in gloo sleep; a rank that computes, copies or sends does not.
    """

    QUIET_SECONDS = 3.0

    def __init__(self, links, source=""):
        self.links, self.source, self.explained = links, source, False
        self.seconds = {}
        self.since = self.looked = time.monotonic()

    def look(self):
        """Returns {rank: Place} of the waiting ranks the first time that a hang is certain, else None."""
        if self.explained:
            return None
        now = time.monotonic()
        interval = now - self.looked
        busy = [link for link in self.links if link.state == BUSY]
        seconds = {link.rank: link.processor_seconds() for link in busy}
        moved = any(
            used - self.seconds.get(rank, -1) > BUSY_SHARE * interval for rank, used in seconds.items()
        )
        changed = seconds.keys() != self.seconds.keys()
        self.seconds, self.looked = seconds, now
        if moved or changed:
            self.since = now
            return None
        if not busy or now - self.since < self.QUIET_SECONDS:
            return None
        places = locate(busy, self.source)
        self.since = now
        if len(places) < len(busy) or any(place.waits_in is None for place in places.values()):
            return None
        self.explained = True
        return places


def explain(places, links):
    """One line: who waits in what, and what the others did."""
    groups = {}
    for rank, place in sorted(places.items()):
        groups.setdefault(place, []).append(rank)
    parts = []
    for place, ranks in groups.items():
        one = len(ranks) == 1
        verb = ("waits in" if one else "wait in") if place.waits_in else ("is" if one else "are")
        parts.append(f"{names(ranks)} {verb} {place}")
    for state, did in ((IDLE, "finished the cell"), (DEAD, "died")):
        if ranks := [link.rank for link in links if link.state == state]:
            parts.append(f"{names(ranks)} {did}")
    return "; ".join(parts)


def names(ranks):
    """`rank 2`, `ranks 0, 1, 3`, `ranks 0–3`."""
    ranks = sorted(ranks)
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}–{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))
