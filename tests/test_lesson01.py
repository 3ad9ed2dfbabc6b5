"""What lesson 01 tells its reader is so, and its recorded session answers every command of the lesson."""

import json
import re
from collections import Counter
from pathlib import Path

import jupytext
import pytest

from fidle_utils.cluster.request import Request
from fidle_utils.cluster.rules import charged_gpus, findings
from fidle_utils.reference import table

ROOT = Path(__file__).parent.parent
LESSON = jupytext.read(ROOT / "notebooks" / "01_meet_jean_zay.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]
RECORDED = json.loads((ROOT / "notebooks/recorded/slurm/meet_jean_zay.json").read_text())


def cells(words):
    return [(cell, cell.source) for cell in LESSON.cells if cell.cell_type == "code" and words in cell.source]


def wrong_answers(words):
    stub = next(cell for cell, _ in cells(words) if "exercise" in cell.metadata.get("tags", []))
    return stub.metadata["fidle"]["wrong"]


def hints(words, check_words, capsys, **names):
    """What the check says of each planted wrong answer, as a list."""
    from fidle_utils import cluster
    from fidle_utils.teach import check

    said = []
    for wrong in wrong_answers(words):
        space = {"findings": findings, "cluster": cluster, "check": check, **names}
        capsys.readouterr()
        exec(wrong, space)
        exec(cells(check_words)[0][1], space)
        said.append(capsys.readouterr().out)
    return said


@pytest.fixture
def broken():
    space = {"predict": lambda *args, **kwargs: None}
    exec(cells("broken = ")[0][1], space)
    return space["broken"]


def test_the_recorded_session_has_an_answer_for_every_command():
    asked = Counter(re.findall(r'slurm\.run\("(.*)"\)', "\n".join(SOURCES)))
    assert asked == Counter(step["command"] for step in RECORDED["steps"]) and len(asked) >= 8
    assert RECORDED["versions"]["slurm"] and RECORDED["date"] and RECORDED["command"]


def test_the_recorded_job_ran_on_two_nodes_and_the_other_was_cancelled():
    said = {step["command"]: step["said"] for step in RECORDED["steps"]}
    ranks = said["cat hello-{job}/rank*.out"]
    assert re.findall(r"rank (\d) of 4 on (jz\d): the sum of all ranks is 6", ranks) == [
        ("0", "jz0"), ("1", "jz0"), ("2", "jz1"), ("3", "jz1"),
    ]  # fmt: skip
    assert "CANCELLED" in next(text for command, text in said.items() if "(JobState|TimeLimit)" in command)
    assert "to start at" in said["sbatch --test-only repaired.slurm"]
    assert "to start at" not in said["sbatch --test-only broken.slurm"]
    assert "/tmp" not in str(RECORDED) and "/work" not in str(RECORDED)


def test_the_broken_file_has_nine_mistakes_and_the_solution_none(broken):
    space = {"broken": broken}
    exec(
        next(text for cell, text in cells("repaired = broken") if "solution" in cell.metadata["tags"]), space
    )
    assert findings(space["repaired"]) == []
    found = findings(broken.replace("h100-80g", "h100"))
    assert 1 + len(found) == 9 and len(found) == len({str(finding) for finding in found})
    assert "nine mistakes" in LESSON.cells[0].source.replace("\n", " ")


def test_each_wrong_file_gets_a_hint_of_its_own(broken, capsys):
    said = hints("repaired = ...", "def test_file", capsys, broken=broken)
    assert all("✗" in text for text in said)
    assert len(set(said)) == len(said) >= 14, "\n".join(said)


def test_each_wrong_count_of_hours_gets_a_hint_of_its_own(capsys):
    said = hints("def charged_hours", "def test_hours", capsys)
    assert all("✗" in text for text in said)
    assert len(set(said)) == len(said) == 5, "\n".join(said)


def test_the_hours_of_the_solution_are_those_of_the_rules():
    space = {}
    exec(next(text for cell, text in cells("each = node_gpus") if "solution" in cell.metadata["tags"]), space)
    for nodes, gpus in [(1, 1), (1, 3), (2, 2), (2, 4), (3, 1)]:
        text = f"#SBATCH --nodes={nodes}\n#SBATCH --gres=gpu:{gpus}\n#SBATCH --ntasks-per-node={gpus}"
        expected = charged_gpus(Request.of(text), "h100") * 3
        assert space["charged_hours"](nodes, gpus, 4, 20, 3) == expected


def test_numbers_of_the_prose():
    assert sum(row["nodes"] * row["gpus_per_node"] for row in table("jeanzay_nodes")) == 3704
    assert 14e9 / 12.5e9 == pytest.approx(1.12)
    kwh = 1_082_990 * 0.4
    assert kwh == pytest.approx(433_196) and kwh * 57 / 1e6 == pytest.approx(24.69, abs=0.005)
    assert 24.69 + 14.6 + 11.2 == pytest.approx(50.5, abs=0.05)
