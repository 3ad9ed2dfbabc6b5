"""The live cells of each lesson, alone: seconds a cell, and those over five. `make bench` prints it.

Nothing is asserted: how long a room waits depends on the machine, and this is read by a person.
"""

import pytest

from fidle_utils.classroom.live_path import lessons
from fidle_utils.classroom.rehearse import run_live, timing_table

HEADS = []


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print("\n\nlive cells, measured here; wanted: each ≤ 5 s\n", *HEADS, sep="\n")


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_live_cells(path):
    lines = timing_table(run_live(path), path.stem)
    HEADS.append(lines[0])
    print("\n", *lines, sep="\n")
