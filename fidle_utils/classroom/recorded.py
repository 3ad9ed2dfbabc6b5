"""`%recorded`: what a live cell showed when it was recorded, for the moment when it fails before a room."""

import difflib
import html
import json
import os
import re
from pathlib import Path

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from fidle_utils.classroom.live_path import NOTEBOOKS, first_line, is_live

FOLDER = NOTEBOOKS / "recorded" / "live"
ALIKE = 0.6  # of 1: the least likeness at which an edited cell is still taken for the recorded one
HOW = "python notebooks/recorded/record_live.py {number}"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_OWN = re.compile(r"\s*%recorded\b")

# ------------------------------------------------------------------------------------------------- find


def load(lesson):
    """Return what was recorded of a lesson, a dict; UsageError where there is nothing."""
    path = FOLDER / f"{lesson}.json"
    if not path.exists():
        raise UsageError(f"nothing is recorded of {lesson}: {HOW.format(number=lesson[:2])}")
    return json.loads(path.read_text(encoding="utf-8"))


def all_recorded():
    """Lesson → what was recorded of it."""
    return {path.stem: load(path.stem) for path in sorted(FOLDER.glob("*.json"))}


def is_current(notebook, lesson):
    """True if every live code cell of the notebook is recorded, in order, as it is now."""
    if not (FOLDER / f"{lesson}.json").exists():
        return False
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and is_live(cell)]
    return [cell["source"] for cell in load(lesson)["cells"]] == code


def open_lesson():
    """The lesson that the front end says is open (JupyterLab does, other front ends do not); else None."""
    found = re.search(r"\d\d_\w+$", Path(os.environ.get("JPY_SESSION_NAME", "")).stem)
    return found[0] if found else None


def lesson_of(history, records):
    """The lesson whose recorded cells were run most; None if none of them was."""
    run = {source.strip() for source in history if source.strip()}
    counts = {
        lesson: sum(cell["source"].strip() in run for cell in record["cells"])
        for lesson, record in records.items()
    }
    best = max(counts, key=counts.get, default=None)
    return best if best and counts[best] else None


def find(record, asked, last, last_id=None):
    """Return (cells, remark): the recorded cells meant by `asked`, a number or a heading, or like `last`.

    `last`: the source of the cell that ran last. Its id, where the front end tells it, goes first, then the
    same source, then the nearest; the remark says so if the cell differs.
    """
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
    likeness = [difflib.SequenceMatcher(None, cell["source"].strip(), last.strip()).ratio() for cell in cells]
    named = [i for i, cell in enumerate(cells) if last_id is not None and cell.get("id") == last_id]
    best = named[0] if named else max(range(len(cells)), key=likeness.__getitem__)
    if not named and likeness[best] < ALIKE:
        raise UsageError(
            "the cell that ran last is not of the live path. `%recorded 3` shows the third of its cells, "
            "`%recorded list` names them all"
        )
    differs = "Your cell differs from the recorded one." if likeness[best] < 1 else ""
    return [cells[best]], differs


# ------------------------------------------------------------------------------------------------- show


def label(record, remark=""):
    """Where and when: one line for all that follows."""
    said = (
        f"Recorded on {record['device']}, {record['date'][:10]}, torch {record['versions']['torch']} "
        f"— not measured now. {remark}"
    )
    return said.strip()


def listing(record):
    """Return a line for each recorded cell: its number, its section, its first line."""
    lines = [label(record)]
    for number, cell in enumerate(record["cells"], start=1):
        lines.append(f"{number:>3}  {cell['heading'][:30]:<30}  {first_line(cell['source'])[:44]}")
    return "\n".join(lines)


def show(record, cells, remark=""):
    """Display the recorded outputs of `cells` in one frame, whose first line says what they are."""
    from IPython.display import publish_display_data

    text = label(record, remark)
    outputs = [output for cell in cells for output in cell["outputs"]] or ["(it showed nothing)"]
    color = "var(--jp-warn-color1, #f57c00)"
    style = f"border: 2px dashed {color}; padding: 4px 12px; color: var(--jp-content-font-color1, inherit)"
    head = f'<b style="color: {color}">Recorded</b>{html.escape(text.removeprefix("Recorded"))}'
    body = "".join(map(_as_html, outputs))
    rich = f'<div style="{style}"><div style="font-size: 1.2em">{head}</div>{body}</div>'
    plain = "\n".join([text, *(_ANSI.sub("", _text(output)).rstrip() for output in outputs)])
    publish_display_data({"text/plain": plain, "text/html": rich})


def _as_html(output):
    data = output["data"] if "data" in output else {}
    if "image/png" in data:
        return f'<img style="max-width: 100%" src="data:image/png;base64,{data["image/png"]}">'
    if "text/html" in data:
        return f'<div class="jp-RenderedHTMLCommon">{data["text/html"]}</div>'
    from nbconvert.filters import ansi2html

    return f'<div class="jp-RenderedText"><pre>{ansi2html(_text(output))}</pre></div>'


def _text(output):
    """The words of an output; of a traceback with its colours."""
    if isinstance(output, str):
        return output
    if output["output_type"] == "error":
        return "\n".join(output["traceback"])
    return output["text"] if "text" in output else output["data"].get("text/plain", "")


# ------------------------------------------------------------------------------------------------ magic


@magics_class
class RecordedMagics(Magics):
    """Holds the magic, and the ids of the cells that ran, where the front end tells them."""

    def __init__(self, shell):
        super().__init__(shell)
        self.ids = {}  # source → id of the cell that ran it last
        shell.events.register("pre_run_cell", self._note)

    def _note(self, info):
        self.ids[info.raw_cell.strip()] = info.cell_id

    def close(self):
        """Forget the cells: the extension is unloaded."""
        self.shell.events.unregister("pre_run_cell", self._note)

    @line_magic
    def recorded(self, line):
        """Show what live cells of this lesson showed when they were recorded; nothing runs.

        %recorded                   the cell that ran last: it ended, failed or was stopped
        %recorded 3                 the third code cell of the live path
        %recorded Break one rank    all cells of the section with this heading
        %recorded list              the numbers, sections and first lines
        """
        raw = self.shell.history_manager.input_hist_raw
        ran = [source.strip() for source in raw if source.strip() and not _OWN.match(source)]
        record = self._record(ran)
        if line.strip() == "list":
            print(listing(record))
            return
        if not ran and not line.strip():
            raise UsageError("no cell has run yet. `%recorded 1` shows the first of the live path")
        last = ran[-1] if ran else ""
        cells, remark = find(record, line.strip(), last, self.ids.get(last))
        show(record, cells, remark)

    def _record(self, history):
        """What was recorded of the lesson that is open."""
        if lesson := open_lesson():
            return load(lesson)
        records = all_recorded()
        if lesson := lesson_of(history, records):
            return records[lesson]
        raise UsageError(
            "no cell of the live path has run in this notebook, so nothing recorded belongs here"
        )
