"""Record what the live cells show: python notebooks/recorded/record_live.py [NN …], on a quiet machine.

Writes live/NN_name.json for each lesson, or those named; about a minute each. `%recorded` shows it.
"""

import dataclasses
import json
import sys

from fidle_utils.classroom.live_path import NOTEBOOKS, lessons, live_path
from fidle_utils.classroom.recorded import FOLDER
from fidle_utils.classroom.rehearse import kept_outputs, run_live, seconds_of
from fidle_utils.measure import records


def record(path):
    """Run the live cells of one lesson; returns what its file holds."""
    executed = [cell for cell in run_live(path).cells if cell.cell_type == "code"]
    headings = [s.heading for s in live_path() if s.lesson == path.stem for _ in s.code]
    rows = [{"cell": i, "seconds": seconds_of(cell)} for i, cell in enumerate(executed, start=1)]
    head = dataclasses.asdict(records.new("live", rows, {"cell": "1", "seconds": "s"}))
    cells = [
        {"id": cell.id, "heading": heading, "source": cell.source, "outputs": kept_outputs(cell)}
        for heading, cell in zip(headings, executed, strict=True)
    ]
    return {**head, "lesson": path.stem, "cells": cells}


def main(numbers):
    """Record the lessons of those numbers, or all."""
    FOLDER.mkdir(exist_ok=True)
    for path in lessons(NOTEBOOKS):
        if numbers and path.stem[:2] not in numbers:
            continue
        content = record(path)
        target = FOLDER / f"{path.stem}.json"
        target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        slowest = max(row["seconds"] for row in content["rows"])
        print(f"{target.name}: {len(content['cells'])} cells, slowest {slowest:.1f} s, "
              f"{target.stat().st_size / 1e3:.0f} kB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
