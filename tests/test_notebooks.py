"""Every notebook keeps the promises of CONTRIBUTING.md, and its exercises can be trusted."""

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.config import load_jupytext_config
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
KEPT_METADATA = ("tags", "jupyter", "fidle")  # what pyproject's cell_metadata_filter lets travel
FENCED_PYTHON = re.compile(r"^\s*(```|~~~)\s*\{?(python|py|ipython)", re.MULTILINE)
ROLES = ("exercise", "check", "solution")
NEEDS = {"09_train_with_deepspeed": "deepspeed"}  # which is installed on Linux only
OPENING = (r"\*\*You will", r"\*\*You learn", r"\*\*You need", r"\d+ min")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return jupytext.read(path, config=load_jupytext_config(str(path)))


def tags(cell):
    return cell.metadata.get("tags", [])


def stray_outputs(notebook):
    return [
        f"cell {i}: outputs or an execution count; run `make pair`"
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None)
    ]


def differences(notebook, script):
    """What keeps the two halves of a pair from saying the same."""

    def gist(nb):
        return [
            (cell.cell_type, cell.source.strip("\n"), [cell.metadata.get(key) for key in KEPT_METADATA])
            for cell in nb.cells
        ]

    left, right = gist(notebook), gist(script)
    both = enumerate(zip(left, right, strict=False))
    found = [f"cell {i} differs; run `make pair`" for i, (a, b) in both if a != b]
    if len(left) != len(right):
        found.append(f"{len(left)} cells in the .ipynb, {len(right)} in the .py; run `make pair`")
    return found


def bad_style(notebook):
    first = notebook.cells[0]
    found = [] if first.cell_type == "markdown" else ["the first cell is not Markdown"]
    found += [f"the opening lacks {marker}" for marker in OPENING if not re.search(marker, first.source)]
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and len(cell.source.splitlines()) > 25:
            found.append(f"cell {i}: more than 25 lines")
        if cell.cell_type == "markdown" and FENCED_PYTHON.search(cell.source):
            found.append(f"cell {i}: fenced Python, which nothing runs")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    return found


def exercises(notebook):
    """The (stub, check, solutions) of each exercise, as cell indices; AssertionError where one is broken."""
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    roles = [next((role for role in ROLES if role in tags(notebook.cells[i])), None) for i in code]
    found = []
    for i, before, role in zip(code, [None, *roles], roles, strict=False):
        if role == "exercise":
            assert before != "exercise", f"cell {i}: no check before this stub"
            assert "..." in notebook.cells[i].source, f"cell {i}: the stub has no `...` to complete"
            found.append((i, None, []))
        elif role == "check":
            assert before == "exercise", f"cell {i}: a check without a stub"
            found[-1] = (found[-1][0], i, [])
        elif role == "solution":
            assert before in ("check", "solution"), f"cell {i}: no check before this solution"
            assert notebook.cells[i].metadata.get("jupyter", {}).get("source_hidden"), f"cell {i}: not folded"
            found[-1][2].append(i)
    for stub, check, solutions in found:
        assert check, f"cell {stub}: no check after the stub"
        assert solutions, f"cell {stub}: no solution after the check"
    return found


@each_notebook
def test_a_notebook_carries_no_outputs(path):
    assert not stray_outputs(read(path))


@each_notebook
def test_a_notebook_and_its_script_say_the_same(path):
    script = FOLDER / "py" / f"{path.stem}.py"
    assert script.exists(), "no readable pair; run `make pair`"
    assert not differences(read(path), read(script))


def test_every_script_has_its_notebook():
    assert {p.stem for p in (FOLDER / "py").glob("*.py")} == {p.stem for p in NOTEBOOKS}


@each_notebook
def test_a_notebook_has_the_style_of_a_lesson(path):
    assert not bad_style(read(path))


@each_notebook
def test_exercises_are_whole_and_plant_a_wrong_answer(path):
    notebook = read(path)
    for stub, _, _ in exercises(notebook):
        planted = notebook.cells[stub].metadata.get("fidle", {}).get("wrong")
        assert planted, f"cell {stub}: no wrong answer planted"


def text_of(cell):
    """All that a cell shows, as one text."""
    shown = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            shown.append(output.text)
        elif output.output_type in ("display_data", "execute_result"):
            shown += [str(value) for kind, value in output.data.items() if kind.startswith("text/")]
    return "\n".join(shown)


@each_notebook
def test_checks_tell_a_stub_a_wrong_answer_and_a_solution_apart(path):
    notebook = read(path)
    found = exercises(notebook)
    if not found:
        pytest.skip("no exercise in this notebook")
    if path.stem in NEEDS and not find_spec(NEEDS[path.stem]):
        pytest.skip(f"{NEEDS[path.stem]} is not installed")
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}})

    def run(cell):
        notebook.cells.append(cell)
        client.execute_cell(cell, len(notebook.cells) - 1)
        return text_of(cell)

    with client.setup_kernel():
        done = 0
        for stub, check, solutions in found:
            for i in range(done, check + 1):
                if notebook.cells[i].cell_type == "code":
                    client.execute_cell(notebook.cells[i], i)
            said = text_of(notebook.cells[check])
            assert "to do" in said and "✓" not in said and "✗" not in said, f"stub, cell {check}: {said}"
            for wrong in notebook.cells[stub].metadata.get("fidle", {}).get("wrong", []):
                run(new_code_cell(wrong))
                said = run(new_code_cell(notebook.cells[check].source))
                assert "✗" in said and "✓" not in said, f"cell {check} on the wrong answer {wrong!r}: {said}"
            said = "\n".join(run(new_code_cell(notebook.cells[i].source)) for i in solutions)
            assert "✓" in said and "✗" not in said, f"solution, cell {solutions[0]}: {said}"
            done = solutions[-1] + 1


# The checkers themselves, on a notebook doctored to be wrong.


def sound_notebook():
    stub = {"tags": ["exercise"], "fidle": {"wrong": ["answer = 1"]}}
    solution = {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            new_markdown_cell("# Lesson\n**You will** … **You learn** … **You need** … 15 min"),
            new_code_cell("%%ranks\nanswer = ...", metadata=stub),
            new_code_cell("check(answer, 2)", metadata={"tags": ["check"]}),
            new_code_cell("answer = 2", metadata=solution),
        ],
    )


def test_a_sound_notebook_passes():
    notebook = sound_notebook()
    assert not stray_outputs(notebook) and not bad_style(notebook)
    assert exercises(notebook) == [(1, 2, [3])]
    assert not differences(notebook, copy.deepcopy(notebook))


def test_a_stray_output_and_a_stray_count_are_found():
    notebook = sound_notebook()
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    notebook.cells[3].execution_count = 7
    assert len(stray_outputs(notebook)) == 2


@pytest.mark.parametrize(
    "doctor",
    [
        lambda cells: cells[1].update(source="%%ranks\nanswer = 3"),
        lambda cells: cells[2].metadata.update(tags=[]),
        lambda cells: cells[1].metadata.update(fidle={}),
        lambda cells: cells.pop(),
    ],
)
def test_a_pair_out_of_step_is_found(doctor):
    notebook, script = sound_notebook(), sound_notebook()
    doctor(script.cells)
    assert differences(notebook, script) and differences(script, notebook)


def test_magics_and_metadata_survive_the_way_to_the_script_and_back():
    notebook = sound_notebook()
    config = load_jupytext_config(str(FOLDER / "py" / "00_x.py"))
    script = jupytext.writes(notebook, fmt="py:percent", config=config)
    assert "\n%%ranks\nanswer = ..." in script
    assert not differences(notebook, jupytext.reads(script, fmt="py:percent", config=config))


@pytest.mark.parametrize(
    "doctor, complaint",
    [
        (lambda cells: cells[0].update(source="# Lesson"), "opening"),
        (lambda cells: cells[2].update(source="x = 1\n" * 26), "25 lines"),
        (lambda cells: cells[0].update(source=cells[0].source + "\n```python\nx = 1\n```"), "fenced"),
    ],
)
def test_bad_style_is_found(doctor, complaint):
    notebook = sound_notebook()
    doctor(notebook.cells)
    assert complaint in " ".join(bad_style(notebook))


@pytest.mark.parametrize(
    "doctor, complaint",
    [
        (lambda cells: cells.pop(2), "no check"),
        (lambda cells: cells.pop(3), "no solution"),
        (lambda cells: cells.pop(1), "check without"),
        (lambda cells: cells[1].update(source="answer = 2"), "complete"),
        (lambda cells: cells[3].metadata.pop("jupyter"), "folded"),
    ],
)
def test_an_exercise_that_is_not_whole_is_found(doctor, complaint):
    notebook = sound_notebook()
    doctor(notebook.cells)
    with pytest.raises(AssertionError, match=complaint):
        exercises(notebook)
