"""Progress: states, the file and what can happen to it, lessons run by hand and by Run All, a class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from fidle_utils import progress, progress_class, teach
from fidle_utils.exercises import checked, code_cells, defined, exercises, titles

ROOT = Path(__file__).parents[1]
STUB = "%%ranks\ndef average_gradients(model):\n    ..."
OWN = "%%ranks\ndef average_gradients(model):\n    pass  # my own"
CHECK = 'check("average_gradients", test_average, hint="sum, then divide")'
NAME = "average_gradients"


def ran(*sources, name=NAME):
    """(source, tags) as JupyterLab sends them."""
    solutions = exercises()[name].solutions
    return [(s, ["solution"] if s in solutions else [] if "check(" in s else ["exercise"]) for s in sources]


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "progress.json"
    monkeypatch.setenv("FIDLE_PROGRESS", str(path))
    monkeypatch.setattr(progress, "_trouble", [])
    return path


def state(file, name=NAME):
    return progress.load(file).get("exercises", {}).get(name, {}).get("state", "to do")


# ------------------------------------------------------------------------------------------- the exercises


def test_every_exercise_has_a_name_a_lesson_variables_and_a_solution():
    found = exercises()
    n_stubs = sum(
        "exercise" in cell["metadata"].get("tags", [])
        for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
    )
    assert len(found) == n_stubs, "two exercises of the course have one name"
    for name, exercise in found.items():
        assert name and exercise.variables and exercise.solutions, name
        assert any(exercise.variables & defined(source) for source in exercise.solutions), name
        assert any(checked(source) == name for source in exercise.solutions), name
    assert list(titles()) == sorted(titles()) and titles()["04_split_the_data"] == "Split the data"


@pytest.mark.parametrize(
    "source, name",
    [
        ("check(f, test)", "f"),
        ('check("g", test, timeout=3)', "g"),
        ("x = 1\ncheck(x, 2, name='x y')", "x y"),
    ],
)
def test_the_name_of_a_check(source, name):
    assert checked(source) == name


def test_what_a_cell_defines():
    assert defined("%%ranks 0\ndef f(): x = 1\nclass C: pass\na, (b, c.d) = 1, (2, 3)\ne: int = 4") == {
        *"fCabe", "c"
    }  # fmt: skip
    assert defined("%ranks 4\n!ls") == set() and defined("no python here") == set()


def test_a_solution_is_known_whatever_its_spaces_and_comments():
    exercise = exercises()["bubbles"]
    assert all(exercise.is_solved_by(source.replace("\n", "  # mine\n")) for source in exercise.solutions)
    assert not exercise.is_solved_by("def bubbles(p, m):\n    return 3, 4")
    assert not exercise.is_solved_by("not python")


# ----------------------------------------------------------------------------------------------- states


STEPS = [
    ([("to do", [STUB, CHECK])], "to do", 0),
    ([("wrong", [STUB, OWN, CHECK])], "tried", 1),
    ([("wrong", [OWN, CHECK]), ("right", [OWN, CHECK])], "solved", 2),
    ([("right", "solution")], "solution shown", 0),
    ([("to do", [STUB, CHECK]), ("right", "solution")], "solution shown", 0),
    ([("wrong", [OWN, CHECK]), ("right", "solution")], "solution shown", 1),
    ([("right", "solution"), ("right", "check again")], "solution shown", 0),
    ([("right", "solution"), ("right", [OWN, CHECK])], "solved after the solution", 1),
    ([("right", "solution"), ("wrong", [OWN, CHECK])], "solution shown", 1),
    ([("right", [OWN, CHECK]), ("right", "solution")], "solved", 1),
    ([("right", [OWN, CHECK]), ("wrong", [OWN, CHECK])], "solved", 2),
]


@pytest.mark.parametrize("steps, expected, tries", STEPS)
def test_states(file, steps, expected, tries):
    for verdict, cells in steps:
        if cells == "solution":
            cells = [STUB, CHECK, *exercises()[NAME].solutions]
        elif cells == "check again":  # the stub's check, after the solution defined the answer
            cells = [STUB, *exercises()[NAME].solutions, CHECK]
        progress.note(NAME, verdict, ran(*cells))
    assert state(file) == expected
    kept = progress.load(file).get("exercises", {}).get(NAME, {})
    assert kept.get("tries", 0) == tries
    assert not kept or kept["first"] <= kept["last"]


@pytest.mark.parametrize(
    "lesson", sorted((ROOT / "notebooks" / "py").glob("[0-9]*.py")), ids=lambda path: path.stem
)
@pytest.mark.parametrize("sends_tags", [True, False])
def test_run_all_solves_nothing_in_any_lesson(file, lesson, sends_tags):
    """Every cell in order: the stub's check says "to do", each check of a solution "right"."""
    cells = []
    for tags, source in code_cells(lesson):
        cells.append((source, tags if sends_tags else ()))
        if name := checked(source):
            progress.note(name, "right" if "solution" in tags else "to do", cells)
    states = {name: entry["state"] for name, entry in progress.load(file).get("exercises", {}).items()}
    mine = {name for name, exercise in exercises().items() if exercise.lesson == lesson.stem}
    assert states == dict.fromkeys(mine, "solution shown") and not progress._trouble


def test_an_own_answer_may_read_like_ours_where_the_front_end_sends_tags(file):
    answer, check = exercises()[NAME].solutions
    progress.note(NAME, "right", [(answer, ()), (check, ())])
    assert state(file) == "solution shown"
    file.unlink()
    progress.note(NAME, "right", [(answer, ["exercise", "live"]), (check, ["check"])])
    assert state(file) == "solved"


def test_what_is_no_exercise_of_the_course_is_not_kept(file):
    progress.note("my own thing", "right", ran("x"))
    assert not file.exists()


def test_without_a_front_end_nothing_is_kept(file):
    teach.check(1, 1, name=NAME)
    assert not file.exists()


# --------------------------------------------------------------------------------------------- the file


def test_a_damaged_file_is_put_aside_and_said(file, monkeypatch):
    for damage in (
        "\xff{",
        "{",
        "[]",
        '{"schema": 1, "exercises": {"a": {}}}',
        '{"schema": 0, "exercises": {}}',
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text(damage)
        with pytest.raises(progress.ProgressError, match="not a whole progress file"):
            progress.load(file)
    monkeypatch.setattr(progress, "_trouble", [])
    progress.note(NAME, "right", ran(OWN, CHECK))
    assert state(file) == "solved"
    (aside,) = file.parent.glob("progress.damaged-*.json")
    assert aside.read_text() == damage and "kept as progress.damaged" in progress._trouble[0]


def test_a_file_of_a_newer_course_and_one_that_cannot_be_read_are_left_alone(file):
    newer = '{"schema": 2, "exercises": {}}'
    file.parent.mkdir()
    file.write_text(newer)
    progress.note(NAME, "right", ran(OWN, CHECK))
    assert file.read_text() == newer and "update this one" in progress._trouble.pop()
    file.unlink()
    file.mkdir()
    progress.note(NAME, "right", ran(OWN, CHECK))
    assert file.is_dir() and "Progress is not kept: " in progress._trouble[-1]
    progress.show("04")
    assert not list(file.parent.glob("*damaged*"))


def test_a_lock_that_nobody_gives_back_does_not_stop_a_lesson(file, monkeypatch):
    monkeypatch.setattr(progress, "_LOCK_SECONDS", 0.2)
    file.parent.mkdir()
    with FileLock(file.with_suffix(".lock")):
        progress.note(NAME, "right", ran(OWN, CHECK))
    assert state(file) == "solved"


def test_a_place_where_nobody_can_write_stops_no_lesson(monkeypatch, capsys):
    monkeypatch.setenv("FIDLE_PROGRESS", "/proc/nowhere/progress.json")
    monkeypatch.setattr(progress, "_trouble", [])
    progress.note(NAME, "right", ran(OWN, CHECK))
    progress.show()
    assert "Progress is not kept: " in capsys.readouterr().out


def test_where_the_course_is_read_only_the_home_keeps_it(monkeypatch, tmp_path):
    monkeypatch.delenv("FIDLE_PROGRESS")
    assert progress.path() == ROOT / "progress.json"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    home = tmp_path / "fidle" / "progress.json"
    monkeypatch.setattr(progress.os, "access", lambda path, how: False)
    assert progress.path() == home
    monkeypatch.undo()
    monkeypatch.delenv("FIDLE_PROGRESS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(progress.os, "getuid", lambda: ROOT.stat().st_uid + 1)  # a colleague's folder
    assert progress.path() == home
    monkeypatch.setenv("FIDLE_PROGRESS", "off")
    assert progress.path() is None


def test_two_processes_lose_nothing(file):
    names = list(exercises())[:20]
    code = (
        "import sys; from fidle_utils import progress\n"
        "for name in sys.argv[1:]: progress.note(name, 'right', [('own', ())])"
    )
    halves = [names[::2], names[1::2]]
    running = [subprocess.Popen([sys.executable, "-c", code, *half], cwd=ROOT) for half in halves]
    assert [process.wait(60) for process in running] == [0, 0]
    assert set(progress.load(file)["exercises"]) == set(names)


# ------------------------------------------------------------------------------------- in a real lesson


HEAD = "from fidle_utils import progress\nfrom fidle_utils.teach import check"


def run(cells, folder, front_end):
    """Run cells in a kernel; `front_end` sends their ids, as JupyterLab does."""
    from jupyter_client.manager import start_new_kernel

    env = dict(os.environ, FIDLE_PROGRESS=str(folder / "progress.json"))
    env.pop("JPY_SESSION_NAME", None)
    manager, client = start_new_kernel(env=env, cwd=str(ROOT / "notebooks"))
    shown = []
    try:
        for i, (source, tags) in enumerate(cells):
            content = dict(
                code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False
            )
            message = client.session.msg("execute_request", content)
            if front_end:
                message["metadata"] = {"cellId": f"cell-{i}", "tags": tags}
            client.shell_channel.send(message)
            reply = client.get_shell_msg(timeout=60)
            assert reply["content"]["status"] == "ok", (source, reply["content"])
            while (seen := client.get_iopub_msg(timeout=60))["msg_type"] != "status" or seen["content"][
                "execution_state"
            ] != "idle":
                if seen["msg_type"] == "display_data":
                    shown.append(seen["content"]["data"]["text/plain"])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return shown


def lesson_06(role):
    """The cells of one exercise of lesson 06 in the order of the notebook: Run All, or up to the check."""
    solutions = exercises()["bubbles"].solutions
    stub = "def bubbles(p, m):\n    ..."
    test = "def test_bubbles(f):\n    assert f(4, 8)"
    check = "check(bubbles, test_bubbles, hint='of the stub')"
    sources = {
        "run all": [HEAD, test, stub, check, *solutions],
        "by hand": [HEAD, test, "def bubbles(p, m):\n    return True", check],
    }[role]
    return ran(*sources, name="bubbles")


@pytest.mark.parametrize(
    "role, front_end, expected",
    [("run all", True, "solution shown"), ("by hand", True, "solved"), ("by hand", False, "to do")],
)
def test_run_all_shows_and_only_an_own_answer_solves(tmp_path, role, front_end, expected):
    run(lesson_06(role), tmp_path, front_end)
    assert state(tmp_path / "progress.json", "bubbles") == expected


# ------------------------------------------------------------------------------------------- what is shown


def test_one_lesson_and_all(file, capsys):
    progress.note(NAME, "right", ran(OWN, CHECK))
    progress.note("accumulate", "right", ran(*exercises()["accumulate"].solutions, name="accumulate"))
    progress.show("04")
    said = capsys.readouterr().out
    assert "✓ average_gradients  solved" in said and "▸ accumulate         solution shown" in said
    assert "· accuracy           to do" in said
    assert "Left here: accumulate, accuracy. Next: 05 · Split the model." in said and str(file) in said
    progress.show()
    said = capsys.readouterr().out
    assert "04 · Split the data" in said and "1 of 3" in said and "1 shown" in said
    assert f"1 of {len(exercises())} exercises solved." in said
    progress.show("11")
    assert "Next" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"show\('99'\): one of 00, 01"):
        progress.show("99")


def test_every_lesson_ends_with_its_own_progress():
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        ending = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]][-3:]
        mine = ending[0] if path.stem.startswith("00") else ending[-1]
        assert mine.endswith(f'progress.show("{path.stem[:2]}")'), path.name
        assert not path.stem.startswith("00") or ending[-1] == "progress.show()"


# --------------------------------------------------------------------------------------------- a class


def learner(folder, name, solved, file=None, last="2026-11-25T10:00:00+00:00"):
    entries = {e: {"state": "solved", "tries": 2, "first": last, "last": last} for e in solved}
    path = folder / (file or f"{name}.json")
    path.write_text(json.dumps({"schema": 1, "name": name, "exercises": entries}))
    return path


def test_save_and_a_class_in_one_table(file, tmp_path, capsys):
    progress.note(NAME, "right", ran(OWN, CHECK))
    mine = progress.save("Ada L.", tmp_path)
    assert mine.name == "progress_Ada_L.json" and "of 1 exercise." in capsys.readouterr().out
    files = [
        mine,
        learner(tmp_path, "Bob", ["bubbles"], last="2026-11-01T10:00:00+00:00"),
        learner(tmp_path, "Bob", ["bubbles", NAME], "newer.json"),
        tmp_path / "missing.json",
    ]
    (tmp_path / "bad.json").write_text("no json")
    frame, complaints = progress_class.class_table([*files, tmp_path / "bad.json"])
    assert list(frame.index) == ["Ada L.", "Bob"] and frame.solved.tolist() == [1, 2]
    assert frame.loc["Bob", "06 bubbles"] == "solved" and frame.loc["Ada L.", "06 bubbles"] == "to do"
    assert frame.tries.tolist() == [1, 4]
    assert [
        len([c for c in complaints if word in c]) for word in ("missing", "bad.json", "two files of Bob")
    ] == [1] * 3
    counts = progress_class.per_exercise(frame)
    assert counts.loc[f"04 {NAME}"].tolist() == [2, 0, 0, 0] and (counts.sum(axis=1) == 2).all()


def test_learners_without_a_name_are_two_and_a_name_is_no_formula(file, tmp_path):
    progress.note(NAME, "right", ran(OWN, CHECK))
    for learner_name in ("ada", "bob"):
        (tmp_path / learner_name).mkdir()
        (tmp_path / learner_name / "progress.json").write_bytes(file.read_bytes())
    formula = learner(tmp_path, "=HYPERLINK(1)\né", [], "f.json")
    frame, complaints = progress_class.class_table([*tmp_path.glob("*/progress.json"), formula])
    assert not complaints and len(frame) == 4 - (file.parent.parent != tmp_path)
    assert "HYPERLINK(1) é" in frame.index


def test_export_writes_the_table(tmp_path):
    learner(tmp_path, "Bob", ["bubbles"])
    command = [sys.executable, "-m", "fidle_utils.progress", "export"]
    done = subprocess.run(
        [*command, "Bob.json", "-o", "class.csv"], cwd=tmp_path, capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert done.returncode == 0 and "06 bubbles" in done.stdout, done.stderr
    header, row = (tmp_path / "class.csv").read_text(encoding="utf-8-sig").splitlines()
    assert header.startswith("learner,solved,solution shown,tries,last,00 ") and row.startswith("Bob,1,0,2,")
    bad = subprocess.run([*command, "no.json"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 1 and "no.json does not exist" in bad.stderr and "Traceback" not in bad.stderr
