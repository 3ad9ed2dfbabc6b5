"""Draw the figures of the slides: python slides/draw.py [NAME …] writes slides/figures/NAME.svg."""

import importlib
import inspect
import sys
from pathlib import Path

import matplotlib

FOLDER = Path(__file__).parent
if str(FOLDER) not in sys.path:  # run as a script, it is there already
    sys.path.insert(0, str(FOLDER))


def drawings():
    """Name of a figure → the function that draws it, from every module of slides/drawings."""
    found = {}
    for path in sorted((FOLDER / "drawings").glob("[a-z]*.py")):
        module = importlib.import_module(f"drawings.{path.stem}")
        for name, draw in inspect.getmembers(module, inspect.isfunction):
            if draw.__module__ == module.__name__ and not name.startswith("_"):
                if name in found:
                    raise ValueError(f"two figures are called {name}: {found[name].__module__}, {path.stem}")
                found[name] = draw
    return found


def save(name, draw, folder):
    """Draw one figure to `folder`/NAME.svg; returns the path."""
    import matplotlib.pyplot as plt

    from fidle_utils.plots import presentation

    path = Path(folder) / f"{name}.svg"
    # The ids inside an SVG come from a salt: the same figure is the same file.
    with presentation(), matplotlib.rc_context({"svg.hashsalt": name}):
        drawn = draw()
        getattr(drawn, "figure", drawn).savefig(path, metadata={"Date": None})
    plt.close("all")
    return path


def main(names):
    """Draw those figures, or all; returns an exit code."""
    import decks

    matplotlib.use("agg")
    known = drawings()
    if unknown := [name for name in names if name not in known]:
        print(f"No such figure: {', '.join(unknown)}. There are: {', '.join(known)}", file=sys.stderr)
        return 1
    wanted = {
        Path(image).stem: deck.name for deck in decks.all_decks() for s in deck.slides for image in s.images
    }
    if missing := [f"{name} ({deck})" for name, deck in wanted.items() if name not in known]:
        print(f"Nobody draws: {', '.join(missing)}. Add a function to slides/drawings", file=sys.stderr)
        return 1
    (FOLDER / "figures").mkdir(exist_ok=True)
    for name in names or known:
        save(name, known[name], FOLDER / "figures")
    print(f"{len(names or known)} figures in slides/figures")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
