"""What the tests of figures share."""

import warnings

from matplotlib.text import Text


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
