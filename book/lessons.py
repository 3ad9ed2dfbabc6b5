"""Run the lessons for the book, in copies: what a lesson showed is kept until the lesson changes."""

import hashlib
import os
import platform
import re
import runpy
import shutil
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).parent.parent
NEEDS = runpy.run_path(str(ROOT / "conftest.py"))["NEEDS"]  # what a lesson needs and not every machine has
CELL_SECONDS = 900
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def outputs_of(lesson, kept, execute=True):
    """Return (the notebook `lesson` with its outputs, the line that says where they come from).

    `kept`: the folder of executed copies, one a lesson, used as long as the lesson is the same. Without
    `execute`, and where a package of the lesson is missing, a lesson that was not kept has no outputs.
    Raises SystemExit, which names lesson and cell, where a cell raises.
    """
    source = lesson.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    copy = kept / lesson.name
    if copy.exists():
        notebook = nbformat.read(copy, as_version=4)
        if notebook.metadata["book"]["digest"] == digest:
            return notebook, notebook.metadata["book"]["said"]
    notebook = nbformat.reads(source.decode(), as_version=4)
    missing = NEEDS.get(f"notebooks/{lesson.name}")
    if missing and find_spec(missing) is None:
        return notebook, f"Not executed: {missing} is not installed on the machine that made this book."
    if not execute:
        return notebook, "Not executed in this copy of the book."
    began = time.monotonic()
    _execute(notebook, lesson)
    said = f"Executed on {machine()}, {date.today()}, in {time.monotonic() - began:.0f} s."
    notebook.metadata["book"] = {"digest": digest, "said": said}
    kept.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, copy)
    print(f"{lesson.stem}: executed in {time.monotonic() - began:.0f} s", flush=True)
    return notebook, said


def machine():
    """Return this machine in words: "2 cores, no GPU, torch 2.13.0, Linux"."""
    import torch

    if gpus := torch.cuda.device_count():
        gpu = f"{gpus} × {torch.cuda.get_device_name(0)}"
    else:
        gpu = "no GPU"
    return f"{os.cpu_count()} cores, {gpu}, torch {version('torch').partition('+')[0]}, {platform.system()}"


def _execute(notebook, lesson):
    """Run every cell, in a copy of the lesson's folder, which is removed at the end."""
    begun = [0]
    with tempfile.TemporaryDirectory(prefix="fidle-book-") as copies:
        folder = shutil.copytree(lesson.parent, Path(copies) / "notebooks")
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            store_widget_state=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_execute=lambda cell, cell_index: begun.append(cell_index),
        )
        try:
            client.execute(
                env=dict(os.environ, FIDLE_PROGRESS="off")
            )  # not the progress of who makes the book
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            said = ANSI.sub("", str(error)).strip().splitlines()[-1]
            first = notebook.cells[begun[-1]].source.partition("\n")[0]
            sys.exit(
                f"{lesson.stem}, cell {begun[-1]} (the first is 0, Markdown counts), `{first}`: {said}\n"
                f"Run it in `make lab`, or `make test ARGS=notebooks/{lesson.name}`. "
                "`make book EXECUTE=` makes the book without running a cell."
            )
