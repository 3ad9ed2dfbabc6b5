"""Run the live path as a room sees it: what each cell shows, and how long it takes."""

import base64
import io
import os
import tempfile
from datetime import datetime
from pathlib import Path

from fidle_utils.classroom.live_path import NOTEBOOKS, first_line
from fidle_utils.classroom.view import link_files, live_notebook

ANSWER_SECONDS = 5.0  # within which a live cell should answer
CELL_TIMEOUT_SECONDS = 120
LARGEST_TEXT = 30_000  # characters of one output that are kept
COLORS = 64  # of a kept picture


class RehearsalError(RuntimeError):
    """A live cell failed, or took longer than two minutes; says which."""


def run_live(path):
    """Execute the live cells of a lesson alone, with large figures; returns the executed notebook.

    Raises RehearsalError where a cell raises that is not tagged `raises-exception`.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    notebook = live_notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        link_files(Path(folder), NOTEBOOKS)
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_SECONDS,
            record_timing=True,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute(env=dict(os.environ, FIDLE_PRESENTATION="1"))
        except (CellControlSignal, DeadKernelError) as error:  # the cell's own, a timeout; a dead kernel
            failed = [
                cell for cell in notebook.cells if "iopub.status.busy" in cell.metadata.get("execution", {})
            ]
            line = first_line(failed[-1].source) if failed else "its first cell"
            said = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else str(error)
            raise RehearsalError(
                f"{path.stem}, at `{line}`: {said.strip().partition(chr(10))[0]}. "
                "Does it need a cell that is not tagged `live`?"
            ) from error
    return notebook


def seconds_of(cell):
    """How long an executed cell took, from its first sign to its answer."""
    times = cell.metadata["execution"]
    start, end = (
        datetime.fromisoformat(times[name]) for name in ("iopub.status.busy", "shell.execute_reply")
    )
    return (end - start).total_seconds()


def timing_table(notebook, lesson):
    """Return lines: each section's seconds and minutes, its code cells, those over ANSWER_SECONDS marked."""
    lines, spent = [], []
    for cell in notebook.cells:
        minutes = cell.metadata.get("fidle", {}).get("minutes")
        if minutes is not None:
            lines.append([0.0, f" of {minutes:g} min · {first_line(cell.source).lstrip('# ')}"])
        elif cell.cell_type == "code":
            lines = lines or [[0.0, " · in no section"]]  # a lesson that has no minutes yet
            seconds = seconds_of(cell)
            spent.append(seconds)
            next(line for line in reversed(lines) if isinstance(line, list))[0] += seconds
            mark = "  ← more than 5 s" if seconds > ANSWER_SECONDS else ""
            lines.append(f"    {len(spent):>2} {seconds:6.1f} s  {first_line(cell.source)[:70]}{mark}")
    slow = sum(seconds > ANSWER_SECONDS for seconds in spent)
    head = (
        f"{lesson}: {sum(spent):.0f} s of cells, the slowest {max(spent, default=0):.1f} s, {slow} over 5 s"
    )
    return [head, *(line if isinstance(line, str) else f"  {line[0]:.0f} s{line[1]}" for line in lines)]


def kept_outputs(cell):
    """What a recorded file keeps of an executed cell: texts, small HTML, pictures in few colours."""
    kept = []
    for output in cell.outputs:
        output = dict(output)
        if "data" in output:
            output["data"] = _kept_data(output["data"])
            if not output["data"]:
                continue
        if "text" in output:
            output["text"] = _cut(output["text"])
        output.pop("execution_count", None)
        output.pop("transient", None)
        kept.append(output)
    return kept


def _kept_data(data):
    kept = {}
    for kind, value in data.items():
        if kind == "image/png":
            kept[kind] = _few_colors(value)
        elif kind == "text/plain":
            kept[kind] = _cut(value)
        elif kind == "text/html" and len(value) <= LARGEST_TEXT:
            kept[kind] = value
    if "image/png" in kept:  # the text of a figure says nothing
        kept.pop("text/html", None)
    return kept


def _cut(text):
    return text if len(text) <= LARGEST_TEXT else f"{text[:LARGEST_TEXT]}\n… ({len(text)} characters in all)"


def _few_colors(png):
    """Return a base64 PNG on white in few colours, or as it was where that is smaller."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    smaller = io.BytesIO()
    flat.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return min(base64.b64encode(smaller.getvalue()).decode(), png.replace("\n", ""), key=len)
