"""The instructor's view: copies of the lessons with their live cells alone, and an index with the minutes."""

import hashlib
from pathlib import Path
from urllib.parse import quote

from fidle_utils.classroom.live_path import NOTEBOOKS, is_live, lessons, minutes_table, read_path

ROOT = NOTEBOOKS.parent
VIEW = ROOT / "build" / "live"
SLIDES = ROOT / "slides"


def live_notebook(path):
    """Return the lesson in `path` as a notebook with its live cells alone."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if is_live(cell)]
    notebook.metadata.pop("jupytext", None)  # a copy has no readable pair
    return notebook


def write_view(folder=VIEW, notebooks=NOTEBOOKS):
    """Write every lesson's live cells and index.ipynb to `folder`; returns (written, kept) paths.

    A copy whose cells you changed is kept as it is: delete it, or give it another name, to get it anew.
    """
    import nbformat

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    link_files(folder, notebooks)
    written, kept = [], []
    made = {path.name: live_notebook(path) for path in lessons(notebooks)}
    made["index.ipynb"] = _index(read_path(notebooks)[0])
    for name, notebook in made.items():
        path = folder / name
        if path.exists() and _changed(path):
            kept.append(path)
            continue
        notebook.metadata["fidle"] = {"written": _digest(notebook)}
        nbformat.write(notebook, path)
        written.append(path)
    return written, kept


def link_files(folder, notebooks):
    """What lessons read by a relative name stands beside the copies too."""
    for name in ("recorded", "images"):
        target, link = Path(notebooks) / name, folder / name
        if target.exists() and not link.exists():
            link.unlink(missing_ok=True)  # it points to where the course was before
            link.symlink_to(target.resolve(), target_is_directory=True)


def _digest(notebook):
    sources = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def _changed(path):
    """True if somebody edited the cells since we wrote them; outputs do not count."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    return _digest(notebook) != notebook.metadata.get("fidle", {}).get("written")


def _index(sections):
    from nbformat.v4 import new_markdown_cell, new_notebook

    rows, total = minutes_table(sections)
    decks = {path.stem[:2]: path.stem for path in SLIDES.glob("[0-9][0-9]_*.md")}
    lines = [
        f"# The path: {total:g} minutes",
        "",
        "Each lesson here holds its live cells alone; figures are large. If a demonstration fails, run "
        "`%recorded` in a cell below it: what the same cell showed when it was recorded. `%recorded 3` "
        "shows it for the third code cell of a lesson, `%recorded list` names them all.\n\n"
        "The slides: open `build/slides/index.html` in a browser (`make slides` writes it).",
        "",
        "| starts at | lesson | section | minutes | cells |",
        "|--:|:--|:--|--:|--:|",
    ]
    last = None
    for starts, lesson, heading, minutes, n_cells in rows:
        of_lesson = sum(section.minutes for section in sections if section.lesson == lesson)
        name = "" if lesson == last else f"**[{lesson}]({lesson}.ipynb)**, {of_lesson:g} min"
        if name and lesson[:2] in decks:
            name += f" · slides {decks[lesson[:2]]}"
        last = lesson
        link = f"[{heading}]({lesson}.ipynb#{quote(heading.replace(' ', '-'))})"
        lines.append(f"| {starts} | {name} | {link} | {minutes:g} | {n_cells} |")
    cell = new_markdown_cell("\n".join(lines))
    cell.id = "the-path"
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    }
    return new_notebook(cells=[cell], metadata=metadata)
