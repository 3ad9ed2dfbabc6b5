"""Run the live path as a room sees it: what each cell shows, and how long it takes."""

import base64
import io
import os
import tempfile
from datetime import datetime
from pathlib import Path

from fidle_utils.classroom.live_path import NOTEBOOKS
from fidle_utils.classroom.view import _link, live_notebook

ANSWER_SECONDS = 5.0  # within which a live cell should answer
CELL_TIMEOUT_SECONDS = 120
LARGEST_TEXT = 30_000  # characters of one output that are kept
COLORS = 64  # of a kept picture


def run_live(path):
    """Execute the live cells of a lesson alone, with large figures; returns the executed notebook.

    Raises nbclient's CellExecutionError where a cell raises that is not tagged `raises-exception`.
    """
    from nbclient import NotebookClient

    notebook = live_notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        _link(Path(folder), NOTEBOOKS)
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_SECONDS,
            record_timing=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=dict(os.environ, FIDLE_PRESENTATION="1"))
    return notebook


def seconds_of(cell):
    """How long an executed cell took, from its first sign to its answer."""
    times = cell.metadata["execution"]
    start, end = (
        datetime.fromisoformat(times[name]) for name in ("iopub.status.busy", "shell.execute_reply")
    )
    return (end - start).total_seconds()


def timing_table(notebook, lesson):
    """Return lines: each code cell with its seconds, those over ANSWER_SECONDS marked, and the sum."""
    lines, total = [], 0.0
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        seconds = seconds_of(cell)
        total += seconds
        mark = "  ← more than 5 s" if seconds > ANSWER_SECONDS else ""
        first = next((line for line in cell.source.splitlines() if line.strip("# %")), "")
        lines.append(f"  {seconds:6.1f} s  {first[:70]}{mark}")
    return [f"{lesson}: {total:.0f} s of cells", *lines]


def kept_outputs(cell):
    """What a recorded file keeps of an executed cell: texts, small HTML, pictures in few colours."""
    kept = []
    for output in cell.outputs:
        output = dict(output)
        if "data" in output:
            output["data"] = _kept_data(output["data"])
            if not output["data"]:
                continue
        output.pop("execution_count", None)
        output.pop("transient", None)
        kept.append(output)
    return kept


def _kept_data(data):
    kept = {}
    for kind, value in data.items():
        if kind == "image/png":
            kept[kind] = _few_colors(value)
        elif kind.startswith("text/") and len(value) <= LARGEST_TEXT:
            kept[kind] = value
    if "image/png" in kept:  # the text of a figure says nothing
        kept.pop("text/html", None)
    return kept


def _few_colors(png):
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    smaller = io.BytesIO()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()
