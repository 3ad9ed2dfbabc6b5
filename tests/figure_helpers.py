"""What the tests of figures share."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.text import Text

from fidle_utils import plots


def whole(figure):
    """All that a figure says, drawn once: nothing may warn, and no text may stick out at its sides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    frame = figure.bbox.padded(2)
    for text in (t for ax in figure.axes for t in (ax.title, ax._left_title, *ax.texts) if t.get_text()):
        box = text.get_window_extent()
        assert box.x0 >= frame.x0 and box.x1 <= frame.x1, f"{text.get_text()!r} is cut off"
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return "\n".join(text.get_text() for text in shown)


def said_by(draw, large=False):
    """All that a figure says, as `whole`; it is white, and the reader's own style is left as it was."""
    before = dict(plt.rcParams)
    with plots.presentation(large):
        figure = np.ravel(draw())[0].figure
    assert dict(plt.rcParams) == before
    assert to_hex(figure.get_facecolor()) == "#ffffff"
    return whole(figure)
