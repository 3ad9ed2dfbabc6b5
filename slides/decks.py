"""A deck as data: its slides, their minutes, the cells behind them, their figures."""

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
_NOTE = re.compile(r"<!--\s*\n(.*?)-->", re.DOTALL)
_DIRECTIVE = re.compile(r'<!-- _(\w+): "?(.*?)"? -->')
_MINUTES = re.compile(r"(\d+(?:\.5)?) min\.")
_CELL = re.compile(r"▶ (\d\d) · ([^|]+?)\s*(?:\||$)")


@dataclass(frozen=True)
class Slide:
    """`text`: what the room sees; `note`: what the speaker sees; `footer`: cell and sources."""

    number: int
    text: str
    note: str
    footer: str
    classes: tuple

    @property
    def title(self):
        """Its heading, without the sign."""
        found = re.search(r"^#+ (.+)$", self.text, re.MULTILINE)
        return found[1] if found else ""

    @property
    def minutes(self):
        """How long it stays, its cells included; None where the note does not begin with it."""
        found = _MINUTES.match(self.note)
        return float(found[1]) if found else None

    @property
    def cells(self):
        """(number of the lesson, heading of the live section) of the cells behind it."""
        return [(number, heading.strip()) for number, heading in _CELL.findall(self.footer)]

    @property
    def images(self):
        """The paths of its pictures."""
        return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", self.text)


@dataclass(frozen=True)
class Deck:
    """One `slides/NN_topic.md`."""

    path: Path
    front: str
    slides: tuple

    @property
    def name(self):
        """01_jean_zay_and_the_gpu"""
        return self.path.stem

    @property
    def title(self):
        """What its front matter says."""
        return re.search(r"^title: (.+)$", self.front, re.MULTILINE)[1].strip("\"'")

    @property
    def minutes(self):
        """Of all its slides."""
        return sum(slide.minutes or 0 for slide in self.slides)


def read(path):
    """Return the Deck in a Markdown file."""
    _, front, body = Path(path).read_text(encoding="utf-8").split("---\n", 2)
    slides = []
    for number, source in enumerate(re.split(r"^---$", body, flags=re.MULTILINE), start=1):
        directives = dict(_DIRECTIVE.findall(source))
        shown = _DIRECTIVE.sub("", source)
        notes = [note.strip() for note in _NOTE.findall(shown)]
        slides.append(
            Slide(
                number,
                text=_NOTE.sub("", shown).strip(),
                note="\n\n".join(notes),
                footer=directives.get("footer", ""),
                classes=tuple(directives.get("class", "").split()),
            )
        )
    return Deck(Path(path), front, tuple(slides))


def all_decks():
    """Every deck, in order."""
    return [read(path) for path in sorted(FOLDER.glob("[0-9][0-9]_*.md"))]
