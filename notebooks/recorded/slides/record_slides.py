"""Run parts of the lessons and keep what they measure, which the slides draw as recorded.

    python notebooks/recorded/slides/record_slides.py [03 04 05 06 09 10]

A part is a section of a lesson, named by its heading, with the solutions of its exercises. What is kept is
written beside this script: NN.json, with the machine, the date, the versions and every value.
"""

import ast
import datetime
import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from fidle_utils.measure.machine import machine_name

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1]

_EVENTS = "ranks.timeline.events[['rank', 'kind', 'what', 'start_ms', 'end_ms', 'waiting_ms']]"
TIMELINE = f"{_EVENTS}.round(3).values.tolist()"

# lesson → heading of a section to run → what to keep once it has run: name → expression in the notebook
KEPT = {
    "03": {
        "03 · Talk between ranks": {},
        "What does a message cost?": {"samples": "samples", "model": "[model.alpha, model.beta]"},
    },
    "04": {
        "04 · Split the data": {},
        "One batch, four ranks": {},
        "Make the four gradients agree": {
            "far": "max((a - reference).abs().max().item() for a in ranks['averaged'])"
        },
        "What did it cost? Count the bytes": {},
        "The same start, on every rank": {"drift": "{run: ranks[run] for run in 'ABC'}"},
        "Train by hand": {"alone": "losses", "shared": "ranks['losses'][0]"},
        "Buckets: fewer, larger messages": {"buckets": "slowest"},
        "The same in one line": {},
        "The timeline of a real step": {"step": TIMELINE},
        "Is it faster? An honest table": {"strong": "{n: one.by_step.tolist() for n, one in strong.items()}"},
    },
    "05": {
        "05 · Split the model": {},
        "Cut between the layers, naively": {"naive": TIMELINE, "busy": "busy.tolist()"},
        "Cut inside a layer": {},
        "What does backward need?": {},
        "An MLP on four ranks": {},
        "Equal to one process": {},
        "What it sends": {"mlp": "[ranks[name][0].sizes() for name in ('forward', 'backward')]"},
        "Attention: each rank takes some heads": {},
        "The vocabulary too": {},
        "A loss without the logits": {"loss": "[three.n_bytes(), everything.n_bytes()]"},
        "A whole GPT": {"gpt": "[forward.sizes(), backward.sizes()]", "S": "S"},
        "Sequence parallelism: what is still whole": {"sent": "[tensor.bytes_sent(), sequence.bytes_sent()]"},
        "What it saves": {"kept": "kept"},
    },
    "06": {
        "06 · Fill the pipeline": {},
        "GPipe on four ranks": {},
        "1F1B: the same bubble, less memory": {},
        "No bubble at all: asynchronous pipelines": {
            "losses": "panels",
            "age": "[ages[-10] for ages in ranks['age']]",
        },
    },
    "09": {
        "09 · Train with DeepSpeed": {},
        "Three lines of a training loop": {
            "alone": "alone.tolist()",
            "by default": "losses.tolist()",
            "without clipping": "ranks['losses'][0].tolist()",
        },
        "One field: the stage": {"curves": "{s: c.tolist() for s, c in ranks['curves'][0].items()}"},
        "Count the bytes that a rank keeps": {
            "held": "held",
            "n_parameters": "n_parameters",
            "formulas": "formulas",
        },
        "Count the bytes that a rank sends": {"sent": "sent", "calls": "calls", "published": "published"},
        "One bit for each number": {"known": "known", "trained": "trained"},
    },
    "10": {
        "10 · Train well": {},
        "The batch grows with the ranks": {"errors": "measured"},
        "Four patients": {"logs": "logs"},
        "A training that can stop": {},
        "What must a checkpoint hold?": {},
        "Save on four ranks, go on with two": {
            "resumed": "{'weight': (resumed - uninterrupted).abs().max().item()}"
        },
        "Kill a rank": {"attempts": "attempts", "reference": "reference"},
    },
}


def main(numbers):
    """Record the lessons with these numbers, all of them if there are none."""
    for number in numbers or KEPT:
        (path,) = (NOTEBOOKS / "py").glob(f"{number}_*.py")
        values = run(jupytext.read(path), KEPT[number])
        command = f"python {Path(__file__).relative_to(NOTEBOOKS.parent)} {number}"
        names = ("torch", "numpy", "deepspeed", "fidle-acceleration")
        record = {
            "machine": machine_name(),
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
            "command": command,
            "values": values,
        }
        out = HERE / f"{number}.json"
        out.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        print(f"{out}: {', '.join(values)}")


def run(lesson, kept):
    """Run these sections of a lesson in their order, and return the values to keep."""
    cells, values = [], {}
    missing = set(kept) - set(headings(lesson))
    if missing:
        raise SystemExit(f"no section {', '.join(sorted(missing))}: its heading has changed, change KEPT.")
    for heading, wanted in kept.items():
        cells += section(lesson, heading)
        if wanted:
            pairs = ", ".join(f"{name!r}: {expression}" for name, expression in wanted.items())
            cells.append(new_code_cell(f"import json; json.dumps({{{pairs}}})"))
    lesson.cells = cells
    NotebookClient(lesson, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    for cell in cells:
        if cell.source.startswith("import json; json.dumps("):
            values |= json.loads(ast.literal_eval(cell.outputs[-1].data["text/plain"]))
    return values


def headings(lesson):
    """Return every heading of a lesson, without its #."""
    text = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    return re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)


def section(lesson, heading):
    """Return the code cells between this heading and the next one, without stubs and checks of exercises."""
    inside, found = False, []
    for cell in lesson.cells:
        if cell.cell_type == "markdown":
            here = re.findall(r"^#{1,3} (.+)$", cell.source, re.MULTILINE)
            inside = here[-1] == heading if here else inside
        elif inside and not {"exercise", "check"} & set(cell.metadata.get("tags", [])):
            cell.source = re.sub(r"^check\(.*$", "", cell.source, flags=re.MULTILINE)
            found.append(cell)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
