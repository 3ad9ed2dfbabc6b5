"""`%recorded`: what a live cell showed when it was recorded, for the moment when it fails before a room."""

import difflib
import html
import json

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from fidle_utils.classroom.live_path import NOTEBOOKS

FOLDER = NOTEBOOKS / "recorded" / "live"
ALIKE = 0.6  # of 1: the least likeness at which an edited cell is still taken for the recorded one
HOW = "python notebooks/recorded/record_live.py {number}"


def load(lesson):
    """Return what was recorded of a lesson, a dict; UsageError where there is nothing."""
    path = FOLDER / f"{lesson}.json"
    if not path.exists():
        raise UsageError(f"nothing is recorded of {lesson}: {HOW.format(number=lesson[:2])}")
    return json.loads(path.read_text(encoding="utf-8"))


def all_recorded():
    """Lesson → what was recorded of it."""
    return {path.stem: load(path.stem) for path in sorted(FOLDER.glob("*.json"))}


def lesson_of(history, records):
    """The lesson whose recorded cells were run most; None if none of them was."""
    run = {source.strip() for source in history if source.strip()}
    counts = {
        lesson: sum(cell["source"].strip() in run for cell in record["cells"])
        for lesson, record in records.items()
    }
    best = max(counts, key=counts.get, default=None)
    return best if best and counts[best] else None


def find(record, asked, last):
    """Return (cells, remark): the recorded cells meant by `asked`, a number or a heading, or like `last`."""
    cells = record["cells"]
    if asked.isdigit():
        if not 1 <= int(asked) <= len(cells):
            raise UsageError(f"%recorded {asked}: {record['lesson']} has cells 1 to {len(cells)}")
        return [cells[int(asked) - 1]], ""
    if asked:
        names = list(dict.fromkeys(cell["heading"] for cell in cells))
        close = [name for name in names if name.casefold() == asked.casefold()]
        close = close or [name for name in names if asked.casefold() in name.casefold()]
        if not close:
            raise UsageError(f"%recorded {asked}: no such section. There are: {' · '.join(names)}")
        return [cell for cell in cells if cell["heading"] == close[0]], ""
    likeness = [difflib.SequenceMatcher(None, cell["source"], last).ratio() for cell in cells]
    best = max(range(len(cells)), key=likeness.__getitem__)
    if likeness[best] < ALIKE:
        raise UsageError(
            "the cell that ran last is not of the live path. `%recorded 3` shows the third of its cells"
        )
    return [cells[best]], "" if likeness[best] == 1 else "Your cell differs from the recorded one."


def label(record, remark=""):
    """Where and when: one line for all that follows."""
    said = (
        f"Recorded on {record['device']}, {record['date'][:10]}, torch {record['versions']['torch']} "
        f"— not measured now. {remark}"
    )
    return said.strip()


def show(record, cells, remark=""):
    """Display the recorded outputs of `cells`, below a line that says what they are."""
    from IPython.display import publish_display_data

    text = label(record, remark)
    color = "var(--jp-warn-color1, #f57c00)"
    style = f"border-left: 4px solid {color}; padding: 4px 12px; color: var(--jp-ui-font-color1, inherit)"
    said = html.escape(text.removeprefix("Recorded"))
    rich = f'<div style="{style}"><b style="color: {color}">Recorded</b>{said}</div>'
    publish_display_data({"text/plain": text, "text/html": rich})
    for output in (output for cell in cells for output in cell["outputs"]):
        if output["output_type"] == "stream":
            print(output["text"], end="")
        elif output["output_type"] == "error":
            print("\n".join(output["traceback"]))
        else:
            publish_display_data(output["data"])


@magics_class
class RecordedMagics(Magics):
    """Holds the magic."""

    @line_magic
    def recorded(self, line):
        """The recorded result of the cell that ran last; of another: `%recorded 3`, `%recorded HEADING`."""
        raw = self.shell.history_manager.input_hist_raw
        history = [source for source in raw if not source.lstrip().startswith("%recorded")]
        records = all_recorded()
        lesson = lesson_of(history, records)
        if lesson is None:
            raise UsageError(
                "no cell of the live path has run in this notebook, so nothing recorded belongs here"
            )
        cells, remark = find(records[lesson], line.strip(), history[-1] if history else "")
        show(records[lesson], cells, remark)
