"""Figures of timelines: what each rank did, and when."""

from collections import defaultdict
from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from fidle_utils.measure.intervals import tracks
from fidle_utils.measure.timeline import KINDS
from fidle_utils.plots.style import INK, RANK_COLORS, course_style, points, source_note

COLORS = dict(zip(KINDS, (RANK_COLORS[i] for i in (0, 1, 2, 4, 3, 6, 5)), strict=True))
# The usual collectives are told apart in every figure; others take what is left.
_HATCHES = {
    "all_reduce": "",
    "all_gather": "///",
    "reduce_scatter": "\\\\\\",
    "broadcast": "...",
    "all_to_all": "xxx",
    "send": "---",
    "recv": "+++",
    "barrier": "|||",
}
_PALE = tuple(0.3 * part + 0.7 for part in to_rgb(COLORS["communication"]))


@course_style()
def plot_timeline(timeline, start_ms=None, end_ms=None, source="measured here", ax=None):
    """Draw a Gantt chart of a `Timeline`: above, when each rank computed; below, when it communicated.

    `start_ms`, `end_ms`: show only this part. White is idle; pale is waiting for a participant that came
    later. Collectives of one rank that overlap stand below each other. `source`: what `source_note` says.
    """
    events, ranks = timeline.events, timeline.ranks
    start = (events.start_ms.min() if len(events) else 0) if start_ms is None else start_ms
    end = (events.end_ms.max() if len(events) else 1) if end_ms is None else end_ms
    events = events[(events.end_ms > start) & (events.start_ms < end)]
    if ax is None:
        height = min(0.8, max(0.36, 5.5 / max(len(ranks), 1)))
        ax = plt.subplots(figsize=(10.5, max(3.3, 1.3 + height * len(ranks))))[1]
    hatches = _hatches(events)
    ax.set(xlim=(start, end), ylim=(len(ranks) - 0.45, -0.55), xlabel="milliseconds")
    ax.set(title="What each rank did: computing above, communicating below")
    for row, rank in enumerate(ranks):
        mine = events[events["rank"] == rank]
        _draw_computing(ax, row, mine)
        _draw_communicating(ax, row, mine[mine.kind == "communication"], hatches)
    for row in range(1, len(ranks)):
        ax.axhline(row - 0.5, color="#dddddd", linewidth=0.8, zorder=0.5)
    ax.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    ax.grid(axis="y", visible=False)
    _legend(ax, events, hatches)
    source_note(ax, source)
    return ax


def _draw_computing(ax, row, events):
    for order, kind in enumerate(reversed(KINDS[:-1])):  # loading data that computing hides lies behind it
        mine = events[events.kind == kind]
        spans = list(zip(mine.start_ms, mine.end_ms - mine.start_ms, strict=True))
        if spans:
            look = {"facecolor": COLORS[kind], "linewidth": 0, "zorder": 2 + order / 10}
            ax.broken_barh(spans, (row - 0.42, 0.4), label=kind, **look)


def _draw_communicating(ax, row, events, hatches):
    numbers = tracks(list(zip(events.start_ms, events.end_ms, strict=True)))
    n_tracks = min(max(numbers, default=0) + 1, 4)
    height = 0.4 / n_tracks
    spans = defaultdict(list)  # one collection for all bars that look alike: thousands would take seconds
    for event, number in zip(events.itertuples(), numbers, strict=True):
        low = row + 0.03 + (number % n_tracks) * height
        arrived, hatch = event.start_ms + event.waiting_ms, hatches[event.what]
        parts = [(event.start_ms, arrived, _PALE), (arrived, event.end_ms, COLORS["communication"])]
        for start, end, color in parts:
            if start < end:
                spans[event.what, low, color].append((start, end - start))
        _label(ax, event.what, parts, low, height, hatch)
    for (what, low, color), bars in spans.items():
        look = {
            "facecolor": color,
            "hatch": hatches[what],
            "edgecolor": "white",
            "linewidth": 0.6,
            "zorder": 2,
        }
        ax.broken_barh(bars, (low, 0.92 * height), label=what, **look)


def _label(ax, text, parts, low, height, hatch):
    """Write `text` into the longer part of a bar, if it fits there."""
    size = points(9)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    parts = [(max(start, left), min(end, right), color) for start, end, color in parts]
    start, end, color = max(parts, key=lambda part: part[1] - part[0])
    box, dot = ax.get_window_extent(), 72 / ax.figure.dpi
    wide = (end - start) / (right - left) * box.width * dot > (0.6 * len(text) + 1) * size
    high = height / abs(top - bottom) * box.height * dot > 1.15 * size
    if text and wide and high:
        ink = INK if color == _PALE else "white"
        place = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": ink, "clip_on": True}
        back = {"facecolor": color, "linewidth": 0, "pad": 1} if hatch else None  # hatches cross letters
        ax.text((start + end) / 2, low + 0.5 * height, text, **place, bbox=back, zorder=3)


def _hatches(events):
    """A hatch for each collective; those without a usual one get one that is free."""
    free = cycle(("++", "oo", "**", "\\\\//", "OO"))
    shown = sorted(set(events.what[events.kind == "communication"]))
    return {what: _HATCHES[what] if what in _HATCHES else next(free) for what in shown}


def _legend(ax, events, hatches):
    kinds = [kind for kind in KINDS if kind != "communication" and (events.kind == kind).any()]
    entries = [Patch(facecolor=COLORS[kind], label=kind) for kind in kinds]
    look = {"facecolor": COLORS["communication"], "edgecolor": "white", "linewidth": 0}
    shown = [what for what in _HATCHES if what in hatches]
    shown += [what for what in hatches if what not in shown]
    entries += [Patch(**look, hatch=hatches[what], label=what or "communication") for what in shown]
    if (events.waiting_ms > 0).any():
        entries.append(Patch(facecolor=_PALE, label="waiting for peers"))
    if entries:
        ax.legend(handles=entries, loc="center left", bbox_to_anchor=(1, 0.5), handleheight=1.1)
