"""What all widgets share: a figure that follows its controls, and stands alone where nobody is."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg

__all__ = ["Live", "png"]


def png(figure):
    """Return a figure as PNG; quick to make rather than small."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    return file.getvalue()


class Live:
    """Controls and the figure that follows them; the last expression of a cell, or `display()`, shows it.

    A kernel that a person talks to gets the widgets. One that runs a notebook by itself (nbconvert, nbval,
    papermill) gets `static()` as an image, and so does an HTML page made of a saved notebook.
    A class gives `_build() -> ipywidgets.Widget`, which is called once, `static() -> Figure`, and `text()`,
    the same in words. Its figures are not pyplot's: nothing collects there.
    """

    _widget = None

    @property
    def widget(self):
        """The controls and the figure, an ipywidgets.Widget."""
        if self._widget is None:
            self._widget = self._build()
        return self._widget

    def close(self):
        """End the widgets; shown once more, new ones are made."""
        if self._widget is not None:
            _close(self._widget)
            self._widget = None

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/plain": self.text(), "image/png": png(self.static())}
        if _somebody_is_there():
            bundle = self.widget._repr_mimebundle_() | bundle
            _replace_in_cell(self)
        return bundle

    def __repr__(self):
        return self.text()


def _close(widget):
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def _somebody_is_there():
    """Whether the front end that runs this cell has a person: it says if it could answer `input()`."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


_shown = {}  # id of a cell → (the execution, what it showed)


def _replace_in_cell(live):
    """Close what an earlier run of this cell showed: no page shows it any more, and Play would go on."""
    from IPython import get_ipython

    message = get_ipython().get_parent()
    cell, execution = message.get("metadata", {}).get("cellId"), message.get("header", {}).get("msg_id")
    if cell is None:
        return
    before, shown = _shown.get(cell, (None, []))
    if before != execution:
        for earlier in shown:
            if earlier is not live:
                earlier.close()
        shown = []
    _shown[cell] = execution, [*shown, live]
