"""The live path as data: the sections of each lesson that are shown to a room, and their minutes.

A lesson says once, in its opening, how long it takes ("17 min live"); its sections must add up to that.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from fidle_utils.exercises import NOTEBOOKS


class PathError(ValueError):
    """Lessons whose live path is not whole: a line for each cell, and what belongs there."""


@dataclass
class Section:
    """A live heading and the live cells up to the next one. `minutes`: slide, talk and cells together."""

    lesson: str  # 04_split_the_data
    heading: str
    minutes: float
    cells: list = field(default_factory=list)  # of nbformat, the heading first

    @property
    def code(self):
        """Its code cells."""
        return [cell for cell in self.cells if cell.cell_type == "code"]


def lessons(folder=NOTEBOOKS):
    """The notebooks of the course, in order."""
    return sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))


def chosen(numbers, folder=NOTEBOOKS):
    """The lessons with these numbers ("04"), all without any; PathError for a number that no lesson has."""
    there = lessons(folder)
    if unknown := sorted(set(numbers) - {path.stem[:2] for path in there}):
        raise PathError(f"no lesson {', '.join(unknown)}: there are {' '.join(p.stem[:2] for p in there)}")
    return [path for path in there if not numbers or path.stem[:2] in numbers]


def is_live(cell):
    """True for a cell of the live path."""
    return "live" in cell.metadata.get("tags", [])


def first_line(source):
    """The first line of a cell that says something, below `%%ranks`."""
    lines = [line for line in source.splitlines() if line.strip("# %")] or [""]
    return next((line for line in lines if not line.startswith("%%ranks")), lines[0])


def live_path(folder=NOTEBOOKS):
    """Return the Sections of all lessons in `folder`, in order; PathError names all that is not whole."""
    sections, faults = read_path(folder)
    if faults:
        raise PathError("\n".join(faults))
    return sections


def read_path(folder=NOTEBOOKS):
    """Return (Sections, faults): what there is, and a line for each thing that is not whole."""
    import nbformat

    sections, faults = [], []
    for path in lessons(folder):
        notebook = nbformat.read(path, as_version=4)
        own, wrong = _sections(path.stem, notebook.cells)
        total, promised = sum(section.minutes for section in own), live_minutes(notebook)
        if promised is not None and total != promised:
            wrong.append(f"its live sections take {total:g} min, its opening says {promised} min live")
        sections += own
        faults += [f"{path.name}, {fault}" for fault in wrong]
    return sections, faults


def live_minutes(notebook):
    """The live minutes that a lesson's opening promises, "17 min live"; None if it does not say."""
    said = re.search(r"(\d+) min live", notebook.cells[0].source) if notebook.cells else None
    return int(said[1]) if said else None


def _sections(lesson, cells):
    """Return (Sections, faults) of one lesson."""
    found, faults, before = [], [], False
    for i, cell in enumerate(cells):
        minutes = cell.metadata.get("fidle", {}).get("minutes")
        if not is_live(cell):
            if minutes is not None:
                faults.append(f"cell {i}: it has minutes, but is not tagged `live`")
        elif minutes is not None:
            heading = re.match(r"#+ (.+)", cell.source) if cell.cell_type == "markdown" else None
            if not heading:
                faults.append(f"cell {i}: it has minutes, but does not begin with a heading")
            if not _is_time(minutes):
                faults.append(f"cell {i}: minutes are whole or halves, not {minutes!r}")
            name = heading[1].strip() if heading else f"cell {i}"
            found.append(Section(lesson, name, float(minutes) if _is_time(minutes) else 0.0, [cell]))
        elif found:
            found[-1].cells.append(cell)
        elif not before:  # the first one says it
            before = True
            faults.append(
                f"cell {i}: live, but before any live heading that has its minutes, "
                'such as fidle={"minutes": 2}'
            )
    return found, faults


def _is_time(minutes):
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    return is_number and minutes > 0 and not 2 * minutes % 1


def clock(minutes):
    """75.5 as "1:15:30"."""
    seconds = round(minutes * 60)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def minutes_table(sections):
    """Return rows (starts at, lesson, section, minutes, code cells) and the total of minutes."""
    rows, now = [], 0.0
    for section in sections:
        rows.append((clock(now), section.lesson, section.heading, section.minutes, len(section.code)))
        now += section.minutes
    return rows, now


def as_text(sections):
    """The table for a terminal."""
    rows, total = minutes_table(sections)
    wide = max((len(heading) for _, _, heading, *_ in rows), default=0)
    lines, last = [], None
    for starts, lesson, heading, minutes, n_cells in rows:
        if lesson != last:
            of_lesson = sum(s.minutes for s in sections if s.lesson == lesson)
            lines.append(f"{'':>9}{lesson} · {of_lesson:g} min")
            last = lesson
        cells = "1 cell" if n_cells == 1 else f"{n_cells} cells"
        lines.append(f"{starts:>9}  {heading:<{wide}}  {minutes:>4g} min  {cells}")
    return "\n".join([*lines, f"{clock(total):>9}  the end"])
