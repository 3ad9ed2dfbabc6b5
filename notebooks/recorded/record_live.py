"""Record what the live cells show, on a quiet machine; `%recorded` shows it where a demonstration fails.

    python notebooks/recorded/record_live.py          # every lesson whose live cells changed since
    python notebooks/recorded/record_live.py 00 04    # these

Writes live/NN_name.json. Interrupted, it goes on where it was. A lesson that fails is named at the end,
and the others are recorded.
"""

import argparse
import dataclasses
import json
import sys

from fidle_utils.classroom import recorded
from fidle_utils.classroom.live_path import PathError, chosen
from fidle_utils.classroom.rehearse import RehearsalError, kept_outputs, run_live, seconds_of, timing_table
from fidle_utils.classroom.view import live_notebook
from fidle_utils.measure import records


def main():
    """Record; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", metavar="NN", help="of lessons; they are recorded again")
    numbers, failures = parser.parse_args().numbers, []
    for path in chosen(numbers):
        if not numbers and recorded.is_current(live_notebook(path), path.stem):
            print(f"{path.stem}: recorded as it is now", flush=True)
            continue
        try:
            executed = run_live(path)
        except RehearsalError as error:
            failures.append(error)
            continue
        target = save(content_of(executed, path.stem), path.stem)
        print(*timing_table(executed, path.stem), sep="\n")
        print(f"  {target.stat().st_size / 1e3:.0f} kB in {target.name}", flush=True)
    print(*failures, sep="\n", end="\n" * bool(failures), file=sys.stderr)
    return int(bool(failures))


def content_of(executed, lesson):
    """Return what the file of a lesson holds, a dict, from its executed live cells."""
    cells, heading = [], ""
    for cell in executed.cells:
        if "minutes" in cell.metadata.get("fidle", {}):
            heading = cell.source.partition("\n")[0].lstrip("# ").strip()
        if cell.cell_type == "code":
            cells.append(dict(id=cell.id, heading=heading, source=cell.source, outputs=kept_outputs(cell)))
    times = [seconds_of(cell) for cell in executed.cells if cell.cell_type == "code"]
    rows = [{"cell": i, "seconds": seconds} for i, seconds in enumerate(times, start=1)]
    command = f"python notebooks/recorded/record_live.py {lesson[:2]}"
    head = records.new("live", rows, {"cell": "1", "seconds": "s"}, command=command)
    return {**dataclasses.asdict(head), "lesson": lesson, "cells": cells}


def save(content, lesson):
    """Write the file of a lesson and return its path; an interrupted run leaves the older one whole."""
    target = recorded.FOLDER / f"{lesson}.json"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)
    return target


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PathError as error:
        sys.exit(str(error))
