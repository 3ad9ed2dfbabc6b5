"""The live path as data: the sections of each lesson that are shown to a room, and their minutes."""

import re
from dataclasses import dataclass, field
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class PathError(ValueError):
    """A lesson whose live path is not whole; says which cell, and what belongs there."""


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


def is_live(cell):
    """True for a cell of the live path."""
    return "live" in cell.metadata.get("tags", [])


def live_path(folder=NOTEBOOKS):
    """Return the Sections of all lessons in `folder`, in order; PathError where a cell belongs to none."""
    import nbformat

    sections = []
    for path in lessons(folder):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if not is_live(cell):
                continue
            minutes = cell.metadata.get("fidle", {}).get("minutes")
            if minutes is not None:
                sections.append(Section(path.stem, _heading(path, i, cell), _minutes(path, i, minutes)))
            elif not sections or sections[-1].lesson != path.stem:
                raise PathError(
                    f"{path.name}, cell {i}: live, but before any live heading that has its minutes, "
                    'such as fidle={"minutes": 2}'
                )
            sections[-1].cells.append(cell)
    return sections


def _heading(path, i, cell):
    found = re.match(r"#+ (.+)", cell.source)
    if cell.cell_type != "markdown" or not found:
        raise PathError(f"{path.name}, cell {i}: it has minutes, but does not begin with a heading")
    return found[1].strip()


def _minutes(path, i, minutes):
    number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if not number or minutes <= 0 or 2 * minutes % 1:
        raise PathError(f"{path.name}, cell {i}: minutes are whole or halves, not {minutes!r}")
    return float(minutes)


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
