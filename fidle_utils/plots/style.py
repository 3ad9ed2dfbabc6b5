"""What all figures share: style, size, colours of the ranks, where numbers come from, curves of others."""

import contextlib
import functools
import os
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from fidle_utils.measure.machine import machine_name

STYLE = Path(__file__).parents[1] / "fidle.mplstyle"
_PARAMETERS = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
RANK_COLORS = _PARAMETERS["axes.prop_cycle"].by_key()["color"]
KINDS = ("measured here", "recorded", "published", "simulated", "emulated", "computed")
INK, GREY, PALE = "#222222", "#666666", "#f3f3f3"

# More pixels an inch enlarge all there is. Where the width of the page is the limit, that gains nothing; so
# texts and lines also grow beside the figure.
_ZOOM, _TEXT, _LINE = 1.3, 1.2, 1.35
_ENLARGED = {
    _ZOOM: ("figure.dpi", "savefig.dpi"),
    _TEXT: ("font.size", "axes.titlesize", "axes.titlepad", "axes.labelsize", "legend.fontsize")
    + ("xtick.labelsize", "ytick.labelsize"),
    _LINE: ("lines.linewidth", "lines.markersize", "errorbar.capsize"),
}
_LARGER = {name: by * _PARAMETERS[name] for by, names in _ENLARGED.items() for name in names}
_large = bool(os.environ.get("FIDLE_PRESENTATION"))  # `make live` sets it


def rank_color(rank):
    """Return the colour of a rank, the same in every figure; after eight ranks the colours repeat."""
    return RANK_COLORS[rank % len(RANK_COLORS)]


def ink_on(color):
    """Return white or black, whichever reads better on a colour."""
    red, green, blue = to_rgb(color)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else INK


# ------------------------------------------------------------------------------------------------ style


def presentation(on=True):
    """Enlarge every figure drawn from now on, for the back of a room; `presentation(False)` ends it.

    `with presentation():` enlarges only what is drawn inside.
    """
    global _large
    before, _large = _large, bool(on)
    return _Presentation(before)


class _Presentation:
    def __init__(self, before):
        self._before, self._on = before, _large

    def __enter__(self):
        return self

    def __exit__(self, *_):
        presentation(self._before)

    def __repr__(self):
        return "figures are large now; presentation(False) ends it" if self._on else "figures are as usual"


def points(size):
    """Return a size in points, larger while `presentation()` is on: `fontsize=points(9)`."""
    return _TEXT * size if _large else size


def in_style(draw):
    """Make a drawing function use the style of the course, and a new figure where it is given no `ax`."""

    @functools.wraps(draw)
    def plot(*args, ax=None, **kwargs):
        with course_style():
            ax = plt.subplots()[1] if ax is None else ax
            draw(*args, ax=ax, **kwargs)
        return ax

    return plot


@contextlib.contextmanager
def course_style():
    """The style of the course: a context, or a decorator of a function that makes its own figure."""
    with plt.style.context([STYLE, _LARGER] if _large else STYLE):
        yield
        interactive = plt.isinteractive()
    # A notebook's first figure loads the backend, which turns this on; without it no later figure is shown.
    matplotlib.interactive(interactive)


# ---------------------------------------------------------------------------------- where numbers come from


def source_note(ax, kind, text=None):
    """Print under `ax`, in small type, where its numbers come from, and return the note.

    `kind`: "measured here", "recorded", "published", "simulated", "emulated" or "computed". `text` says the
    rest: the machine and date of a record, the assumptions of a simulation; for "measured here", this one.
    A note longer than `ax` is wide goes on in a second line.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: say which of {', '.join(KINDS)} it is.")
    text = machine_name() if text is None and kind == "measured here" else text
    size = points(9)
    width = 72 * ax.bbox.width / ax.figure.dpi / (0.55 * size)  # letters are about that wide
    return ax.annotate(
        _wrapped(f"{kind} · {text}" if text else kind, max(40, int(width))),
        xy=(0, 0),
        xycoords=("axes fraction", lambda renderer: ax.xaxis.get_tightbbox(renderer) or ax.bbox),
        xytext=(0, -6),
        textcoords="offset points",
        va="top",
        fontsize=size,
        color=GREY,
        annotation_clip=False,
    )


def _wrapped(text, width):
    """Break `text` between its parts, "a · b", and inside a part only if it is longer than half a line."""
    parts = (part.replace(" ", "\xa0") if len(part) <= width / 2 else part for part in text.split(" · "))
    return textwrap.fill("\xa0· ".join(parts), width, break_on_hyphens=False).replace("\xa0", " ")


def overlay_label(source):
    """Return the text that names a curve of others: of a `Record`, or of rows of a published table.

    "recorded · NVIDIA H100 · 2026-11-23"; "published · 8×A100, NVLink 3 · nccl-tests, ml-engineering".
    """
    if hasattr(source, "label"):
        return source.label
    what = {row.get("system") or row.get("gpu") or row.get("model") for row in source}
    sources = {row["source"] for row in source}
    if len(what) != 1 or len(sources) != 1:
        raise ValueError(
            "one label takes rows of one system from one source; draw each as a curve of its own."
        )
    return f"published · {what.pop()} · {sources.pop()}"


def overlay(ax, x, y, source, detail="", **kwargs):
    """Draw a recorded (dashed) or published (dotted) curve beside measured ones, named in the legend.

    `source` is a `Record` or rows of one published table; `detail` is added to its name. Returns the line.
    """
    label = overlay_label(source)
    recorded = label.startswith("recorded")
    look = {"linestyle": "--", "marker": "s"} if recorded else {"linestyle": ":", "marker": "."}
    label = _wrapped(f"{label} · {detail}" if detail else label, 36)  # beside the axes there is no more room
    return ax.plot(x, y, **{**look, "label": label, **kwargs})[0]


def binary(n_bytes, _=None):
    """Return a power of two as people say it, "32 KiB"; also a formatter of ticks."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:g} {unit}"
        n_bytes /= 1024


def byte_unit(n_bytes):
    """Return the decimal unit in which `n_bytes` reads well, and its size in bytes."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
    return next((unit for unit in units if n_bytes >= unit[1]), units[-1])
