"""The two-hour path: its minutes, its cells run alone, its view, and the recorded results behind it."""

import base64
import io
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from IPython.core.error import UsageError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from ranks_helpers import Notebook
from test_notebooks import NEEDS

from fidle_utils.classroom import PathError, live_path, recorded, rehearse, write_view
from fidle_utils.classroom.live_path import as_text, chosen, lessons, live_minutes, read_path

ROOT = Path(__file__).parents[1]
LESSONS = lessons()
MINUTES = {"00": 5, "01": 10, "02": 10, "03": 8, "04": 17, "05": 10, "06": 15, "07": 10, "08": 8, "09": 17,
           "10": 8, "11": 7}  # fmt: skip


def heading(text, minutes, **more):
    return new_markdown_cell(text, metadata={"tags": ["live"], "fidle": {"minutes": minutes}, **more})


def live(source):
    return new_code_cell(source, metadata={"tags": ["live"]})


def write(folder, *cells, name="00_made.ipynb"):
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), folder / name)
    return folder


@pytest.fixture
def made(tmp_path):
    """A folder with one lesson: two live sections, and cells that are not."""
    return write(
        tmp_path / "notebooks",
        heading("# Made\n\nprose", 1),
        live("x = 1"),
        new_code_cell("x = 'not live'"),
        new_markdown_cell("not live"),
        heading("## Second", 1.5),
        live("print(x)"),
        live("x + 1"),
    )


# ------------------------------------------------------------------------------------------------ minutes


def test_the_path_takes_two_hours():
    of_lesson = {}
    for section in live_path():
        number = section.lesson[:2]
        of_lesson[number] = of_lesson.get(number, 0) + section.minutes
    assert of_lesson == MINUTES
    assert sum(MINUTES.values()) == 120 + 5  # the closing quiz comes after the two hours
    said = {path.stem[:2]: live_minutes(nbformat.read(path, as_version=4)) for path in LESSONS}
    assert said == MINUTES, "each opening says so: `10 min live`"


def test_the_readme_promises_the_same_minutes():
    rows = re.findall(r"^\| (\d\d) \|.*\| (\d+) / \d+ \|", (ROOT / "README.md").read_text(), flags=re.M)
    assert {number: int(minutes) for number, minutes in rows} == MINUTES


def test_a_minute_has_at_most_two_cells_beside_the_slides():
    for path in LESSONS:
        sections = [section for section in read_path()[0] if section.lesson == path.stem]
        n_cells = sum(len(section.code) for section in sections)
        assert n_cells <= 2 * sum(section.minutes for section in sections), path.stem


def test_sections_and_the_clock(made):
    first, second = live_path(made)
    assert (first.heading, first.minutes, len(first.code)) == ("Made", 1, 1)
    assert (second.heading, second.minutes, [c.source for c in second.code]) == (
        "Second",
        1.5,
        ["print(x)", "x + 1"],
    )
    assert as_text([first, second]).splitlines() == [
        "         00_made · 2.5 min",
        "  0:00:00  Made       1 min  1 cell",
        "  0:01:00  Second   1.5 min  2 cells",
        "  0:02:30  the end",
    ]


@pytest.mark.parametrize(
    "cells, said",
    [
        ([live("x")], "cell 0: live, but before any live heading"),
        (
            [new_code_cell("x"), heading("no sign", 1)],
            "cell 1: it has minutes, but does not begin with a heading",
        ),
        ([heading("# A", 0.3)], "minutes are whole or halves, not 0.3"),
        ([heading("# A", "2")], "whole or halves, not '2'"),
        ([heading("# A", True)], "whole or halves, not True"),
    ],
)
def test_a_path_that_is_not_whole(tmp_path, cells, said):
    with pytest.raises(PathError, match=f"00_made.ipynb, .*{said}"):
        live_path(write(tmp_path / "n", *cells))


def test_every_fault_is_named_at_once(tmp_path):
    folder = write(tmp_path / "n", live("x"), live("y"), heading("# A\n\n5 min live", 1), live("z"))
    late = new_markdown_cell("## B", metadata={"fidle": {"minutes": 2}})
    write(folder, heading("# B\n\n5 min live", 4.5), late, name="01_second.ipynb")
    with pytest.raises(PathError) as caught:
        live_path(folder)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "00_made.ipynb, cell 0",
        "01_second.ipynb, cell 1",
        "01_second.ipynb, its live sections take 4.5 min, its opening says 5 min live",
    ]
    assert [section.heading for section in read_path(folder)[0]] == ["A", "B"]  # a view needs no more


def test_lessons_are_chosen_by_number():
    assert [path.stem[:2] for path in chosen(["04", "00"])] == ["00", "04"] and chosen([]) == LESSONS
    with pytest.raises(PathError, match="no lesson 4, 77: there are 00 01"):
        chosen(["77", "4"])


def test_the_minutes_of_a_lesson_are_its_own(tmp_path):
    folder = write(tmp_path / "n", heading("# A", 1), live("x"))
    write(folder, live("y"), name="01_second.ipynb")
    with pytest.raises(PathError, match="01_second.ipynb, cell 0"):
        live_path(folder)


# --------------------------------------------------------------------------------------------- the view


def test_the_view_holds_live_cells_alone_and_keeps_what_you_changed(made, tmp_path):
    view = tmp_path / "view"
    written, kept = write_view(view, made)
    assert [path.name for path in written] == ["00_made.ipynb", "index.ipynb"] and not kept
    copy = nbformat.read(view / "00_made.ipynb", as_version=4)
    original = nbformat.read(made / "00_made.ipynb", as_version=4)
    assert [cell.id for cell in copy.cells] == [original.cells[i].id for i in (0, 1, 4, 5, 6)]
    assert (
        "| 0:01:00 |  | [Second](00_made.ipynb#Second) | 1.5 | 2 |"
        in nbformat.read(view / "index.ipynb", as_version=4).cells[0].source
    )

    copy.cells[1].outputs = [nbformat.v4.new_output("stream", text="run")]
    nbformat.write(copy, view / "00_made.ipynb")
    assert not write_view(view, made)[1]  # outputs are no change of yours

    copy = nbformat.read(view / "00_made.ipynb", as_version=4)
    copy.cells[1].source = "x = 3  # mine"
    nbformat.write(copy, view / "00_made.ipynb")
    written, kept = write_view(view, made)
    assert [path.name for path in kept] == ["00_made.ipynb"]
    assert "mine" in (view / "00_made.ipynb").read_text()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_live_cells_of_a_lesson_run_alone(path):
    if path.stem in NEEDS and not find_spec(NEEDS[path.stem]):
        pytest.skip(f"{NEEDS[path.stem]} is not installed")
    executed = rehearse.run_live(path)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert code and all(rehearse.seconds_of(cell) >= 0 for cell in code)
    raised = [cell.source for cell in code if any(o.output_type == "error" for o in cell.outputs)]
    meant = [cell.source for cell in code if "raises-exception" in cell.metadata.tags]
    assert set(raised) <= set(meant)


def test_figures_of_the_view_are_large():
    code = "from fidle_utils.plots.style import points; print(points(9))"
    sizes = [
        float(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout)
        for env in ({}, {"FIDLE_PRESENTATION": "1"})
    ]
    assert sizes[0] == 9 < sizes[1]


def test_a_lesson_names_the_cell_that_fails_alone(tmp_path):
    folder = write(tmp_path / "n", live("x = 1"), new_code_cell("y = 2"), live("\nx + y"), live("x"))
    with pytest.raises(rehearse.RehearsalError, match=r"00_made, at `x \+ y`: NameError: name 'y'"):
        rehearse.run_live(folder / "00_made.ipynb")


def test_a_slow_cell_is_marked():
    cell = live("%%ranks\nwork()")
    times = {"iopub.status.busy": "2026-11-25T10:00:00Z", "shell.execute_reply": "2026-11-25T10:00:06.5Z"}
    cell.metadata["execution"] = times
    expected = ["00_made: 6 s of cells, the slowest 6.5 s, 1 over 5 s"]
    row = "     1    6.5 s  work()  ← more than 5 s"
    assert rehearse.timing_table(new_notebook(cells=[heading("## Made", 2), cell]), "00_made") == [
        *expected,
        "  6 s of 2 min · Made",
        row,
    ]
    said = rehearse.timing_table(new_notebook(cells=[cell]), "00_made")
    assert said == [*expected, "  6 s · in no section", row]


def test_a_recorded_cell_keeps_texts_and_a_small_picture_on_white():
    clear = Image.effect_noise((300, 200), 90).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((300, 200)))
    file = io.BytesIO()
    clear.save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    shown = [
        new_output("stream", text="x" * 40_000),
        new_output("execute_result", {"text/html": "h" * 40_000, "text/plain": "a table"}, execution_count=3),
        new_output("display_data", {"image/png": picture, "text/plain": "<Figure>", "text/html": "also"}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
    ]
    text, table, figure = rehearse.kept_outputs(new_code_cell(outputs=shown))
    assert len(text["text"]) < 31_000 and text["text"].endswith("(40000 characters in all)")
    assert table == {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "a table"}}
    assert set(figure["data"]) == {"image/png", "text/plain"}
    kept = Image.open(io.BytesIO(base64.b64decode(figure["data"]["image/png"])))
    assert len(figure["data"]["image/png"]) < len(picture) / 2 and len(kept.getcolors()) <= 64
    assert min(kept.convert("L").crop((0, 0, 300, 5)).tobytes()) > 200  # there it was transparent


# --------------------------------------------------------------------------------------------- recorded


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_what_is_recorded_is_this_lesson(path):
    record = recorded.load(path.stem)
    now = [cell.source for section in read_path()[0] if section.lesson == path.stem for cell in section.code]
    how = f"the live cells have changed: {recorded.HOW.format(number=path.stem[:2])}"
    assert [cell["source"] for cell in record["cells"]] == now, how
    assert len(record["rows"]) == len(now) and record["versions"]["torch"] and record["machine"]["cpu"]
    assert (recorded.FOLDER / f"{path.stem}.json").stat().st_size < 1_000_000


RECORD = {
    "lesson": "00_made", "device": "a laptop", "date": "2026-11-25T10:00:00+00:00",
    "versions": {"torch": "2.13.0"},
    "cells": [
        {"id": "a", "heading": "Made", "source": "x = [1, 2, 3]", "outputs": []},
        {"id": "b", "heading": "Second", "source": "print('the sum of all is', sum(x))",
         "outputs": [{"output_type": "stream", "name": "stdout", "text": "the sum of all is 6\n"}]},
        {"id": "c", "heading": "Second", "source": "1 / 0",
         "outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": ["Traceback of it"]}]},
    ],
}  # fmt: skip


def test_find_by_what_ran_by_number_and_by_heading():
    first, second, third = RECORD["cells"]
    assert recorded.find(RECORD, "", second["source"]) == ([second], "")
    cells, remark = recorded.find(RECORD, "", "print('the sum of them all is', sum(x))")
    assert cells == [second] and "differs" in remark
    assert recorded.find(RECORD, "3", "anything") == ([third], "")
    assert recorded.find(RECORD, "seco", "")[0] == [second, third]
    for cell, name in zip(RECORD["cells"], "abc", strict=True):
        assert recorded.find(RECORD, "", cell["source"], name) == ([cell], "")
    cells, remark = recorded.find(RECORD, "", "import os; os.getcwd()", "b")
    assert cells == [second] and "differs" in remark, "the front end says which cell it was"
    for asked, last, said in [
        ("", "import os; os.getcwd()", "is not of the live path"),
        ("4", "", "has cells 1 to 3"),
        ("0", "", "has cells 1 to 3"),
        ("Third", "", "There are: Made · Second"),
    ]:
        with pytest.raises(UsageError, match=said):
            recorded.find(RECORD, asked, last)


def test_the_lesson_is_the_one_whose_cells_ran():
    other = {"lesson": "01_other", "cells": [{"source": "x = [1, 2, 3]"}, {"source": "y"}]}
    records = {"00_made": RECORD, "01_other": other}
    assert recorded.lesson_of(["x = [1, 2, 3]", "y", "z"], records) == "01_other"
    assert recorded.lesson_of(["x = [1, 2, 3]", "1 / 0"], records) == "00_made"
    assert recorded.lesson_of(["unknown"], records) is None


def test_the_magic_says_what_is_recorded(tmp_path):
    """In a kernel, after a live cell that was stopped or has failed."""
    first = (
        "%load_ext fidle_utils\n" + "from fidle_utils.classroom import recorded\nfrom pathlib import Path\n"
    )
    (tmp_path / "00_made.json").write_text(json.dumps(RECORD))
    notebook = Notebook(tmp_path, first=first + f"recorded.FOLDER = Path({str(tmp_path)!r})")
    try:
        assert notebook.run("%recorded").ename == "UsageError"
        assert notebook.run("print('the sum of all is', sum(x))").ename == "NameError"
        shown = notebook.run("%recorded")
        assert shown.ename is None, shown.error
        assert "Recorded on a laptop, 2026-11-25, torch 2.13.0 — not measured now." in shown.text
        assert "the sum of all is 6" in shown.text
        assert "Traceback of it" in notebook.run("%recorded 3").text
        assert "nothing" in notebook.run("%recorded Made").text
        (rich,) = (data["text/html"] for _, data in shown.displays)
        assert rich.startswith("<div") and rich.index("not measured now") < rich.index("the sum of all is 6")
        notebook.run("%recorded list")  # neither of these is the cell that ran last
        assert "the sum of all is 6" in notebook.run("%recorded").text
        notebook.run("import os; os.environ['JPY_SESSION_NAME'] = 'build/live/00_made.ipynb'")
        assert "not of the live path" in notebook.run("%recorded").text
        assert notebook.run("os.environ['JPY_SESSION_NAME'] = 'build/live/01_none.ipynb'").ename is None
        assert "nothing is recorded of 01_none: python notebooks" in notebook.run("%recorded 1").text
    finally:
        notebook.close()
