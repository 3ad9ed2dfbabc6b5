"""What all figures share: style, colours of the ranks, the note that says where numbers come from."""

import contextlib
import functools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from fidle_utils.measure.machine import machine_name

STYLE = Path(__file__).parents[1] / "fidle.mplstyle"
_CYCLE = matplotlib.rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"]
RANK_COLORS = _CYCLE.by_key()["color"]
KINDS = ("measured here", "recorded", "simulated", "emulated", "computed")
INK, GREY, PALE = "#222222", "#666666", "#f3f3f3"


def rank_color(rank):
    """Return the colour of a rank, the same in every figure; after eight ranks the colours repeat."""
    return RANK_COLORS[rank % len(RANK_COLORS)]


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
    with plt.style.context(STYLE):
        yield
        interactive = plt.isinteractive()
    # A notebook's first figure loads the backend, which turns this on; without it no later figure is shown.
    matplotlib.interactive(interactive)


def source_note(ax, kind, text=None):
    """Print under `ax`, in small type, where its numbers come from, and return the note.

    `kind` is one of "measured here", "recorded", "simulated", "emulated", "computed". `text` says the rest:
    the machine and date of a record, the assumptions of a simulation; for "measured here", this machine.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: say which of {', '.join(KINDS)} it is.")
    text = machine_name() if text is None and kind == "measured here" else text
    return ax.annotate(
        f"{kind} · {text}" if text else kind,
        xy=(0, 0),
        xycoords=("axes fraction", lambda renderer: ax.xaxis.get_tightbbox(renderer) or ax.bbox),
        xytext=(0, -6),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=GREY,
        annotation_clip=False,
    )
