"""The rules of a machine: a sound file breaks none, each mistake is found at its line with what to do."""

import json

import pytest

from fidle_utils.cluster import Batch, ClusterError, profile, profiles
from fidle_utils.cluster import session as sessions
from fidle_utils.cluster.request import Request
from fidle_utils.cluster.rules import charged_gpus, findings
from fidle_utils.cluster.session import Session
from fidle_utils.reference import table

SOUND = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=24
#SBATCH --hint=nomultithread
#SBATCH --constraint=h100
#SBATCH --account=abc@h100
#SBATCH --qos=qos_gpu_h100-dev
#SBATCH --time=00:30:00
module purge
module load arch/h100
module load pytorch-gpu/py3/2.8.0
srun python train.py
"""
CHANGES = [  # what is changed, into what, the line found (0: the whole file), words of the finding
    ("#!/bin/bash\n", "", 1, "#!/bin/bash"),
    ("--gres=gpu:4", "--gres=gpu:8", 4, "these nodes have 4"),
    ("--gres=gpu:4", "--gres=gpu:2", 3, "4 tasks and 2 GPUs"),
    ("#SBATCH --gres=gpu:4\n", "", 0, "no GPU is asked for"),
    ("node=4\n#SBATCH --gres=gpu:4", "node=2\n#SBATCH --gres=gpu:2", 4, "whole nodes are charged"),
    ("task=24", "task=10", 5, "10 cores a task leave"),
    ("task=24", "task=48", 5, "a node has 96"),
    ("#SBATCH --cpus-per-task=24\n", "", 0, "--cpus-per-task=24"),
    ("--cpus-per-task", "--cpu-per-task", 5, "You meant --cpus-per-task"),
    ("#SBATCH --hint=nomultithread\n", "", 0, "--hint=nomultithread"),
    ("=h100\n", "=h100-80g\n", 7, "no node has the constraint 'h100-80g'. Choose one of v100-16g"),
    ("=h100\n", "=a100\n", 7, "the nodes are a100, the account pays for h100"),
    ("#SBATCH --constraint=h100\n", "", 7, "Add #SBATCH --constraint=h100"),
    ("abc@h100", "abc", 8, "--account=abc@h100"),
    ("abc@h100", "abc@v100", 7, "the account pays for v100"),
    ("#SBATCH --account=abc@h100\n", "", 0, "no account is named"),
    ("qos_gpu_h100-dev", "qos_gpu-dev", 9, "no QoS 'qos_gpu-dev'"),
    ("00:30:00", "03:00:00", 10, "(as users report). On these nodes qos_gpu_h100-t3"),
    ("00:30:00", "half-an-hour", 10, "is no time for Slurm"),
    ("#SBATCH --time=00:30:00\n", "", 0, "10 minutes"),
    ("--nodes=2", "--nodes=16", 9, "64 GPUs are more than the 32"),
    ("load arch/h100", "load arch/a100", 12, "Write module load arch/h100"),
    ("module load arch/h100\n", "", 12, "before it"),
    ("srun python", "pip install x\nsrun python", 14, "internet"),
    ("srun python", "python", 14, "8 tasks were asked for"),
    ("#SBATCH --time", "# SBATCH --time", 10, "Slurm does not read"),
    ("#SBATCH --time", "cd x\n#SBATCH --time", 11, "stops reading at the first command"),
]  # fmt: skip


def test_a_sound_file_breaks_no_rule():
    assert findings(SOUND) == []


@pytest.mark.parametrize("name", [name for name in profiles() if name.startswith("jean-zay")])
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_what_we_write_ourselves_breaks_no_rule(name, launcher):
    batch = Batch.of("train.py", profile=name, nodes=2, account="abc", time="01:00:00", launcher=launcher)
    assert findings(batch.text) == []
    request = Request.of(batch.text)
    assert request.kind.gpus_per_node == profile(name).gpus_per_node
    assert charged_gpus(request, request.kind) == batch.world_size


@pytest.mark.parametrize("old, new, line, words", CHANGES, ids=[words for *_, words in CHANGES])
def test_a_mistake_is_found_at_its_line(old, new, line, words):
    assert SOUND.count(old) >= 1
    found = findings(SOUND.replace(old, new, 1))
    said = [str(finding) for finding in found if finding.line == line]
    assert any(words in text for text in said), "\n".join(map(str, found))


def test_modules_in_the_wrong_order_are_found():
    text = SOUND.replace("module load arch/h100\n", "").replace("2.8.0\n", "2.8.0\nmodule load arch/h100\n")
    (finding,) = findings(text)
    assert finding.line == 13 and "Load arch/" in finding.next


def test_options_are_read_as_sbatch_reads_them():
    request = Request.of(
        "#!/bin/bash\n#SBATCH -N 2 # two\n#SBATCH -t 10\n#SBATCH --requeue\nsrun x\n#SBATCH -n 9\n"
    )
    assert request.options == {"nodes": "2", "time": "10", "requeue": ""}
    assert request.lines == {"nodes": 2, "time": 3, "requeue": 4}
    assert request.strays[0][0] == 6
    assert Request.of("#SBATCH --nodes=2\n#SBATCH --ntasks=8").tasks == 4


@pytest.mark.parametrize("row", table("jeanzay_nodes"), ids=lambda row: row["node"])
def test_shares_of_cores_are_those_of_the_published_table(row):
    option, value = row["slurm"].replace("-C ", "constraint=").replace("--", "").split("=")
    (kind,) = (each for each in profiles().values() if each.sbatch.get(option) == value)
    assert kind.cpus_per_task == row["cpus_per_task"] == row["cores"] // row["gpus_per_node"]


def test_gpus_are_charged_as_reserved():
    one = "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n#SBATCH --gres=gpu:1\n#SBATCH --cpus-per-task="
    assert charged_gpus(Request.of(one + "24"), "h100") == 1
    assert charged_gpus(Request.of(one + "25"), "h100") == 2  # cores of another GPU
    assert charged_gpus(Request.of((one + "24").replace("nodes=1", "nodes=2")), "h100") == 8


# ------------------------------------------------------------------------------------------- a session


def recorded(tmp_path, steps):
    kept = {
        "machine": "a machine",
        "versions": {"slurm": "slurm 1"},
        "date": "2026-11-25T00:00",
        "steps": steps,
    }
    path = tmp_path / "session.json"
    path.write_text(json.dumps(kept))
    return path


def test_without_slurm_the_recorded_answers_come_in_order_and_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sessions.shutil, "which", lambda name: None)
    steps = [
        {"command": "sbatch --parsable a", "job": None, "said": "7\n"},
        {"command": "state {job}", "job": 7, "said": "PENDING"},
        {"command": "state {job}", "job": 7, "said": "RUNNING"},
        {"command": "sbatch --parsable b", "job": 7, "said": "8\n"},
        {"command": "state {job}", "job": 8, "said": "DONE"},
    ]
    session = Session(recorded(tmp_path, steps))
    session.run("sbatch --parsable a")
    session.wait()
    assert [session.run("state {job}") for _ in range(2)] == ["PENDING", "RUNNING"]
    session.run("sbatch --parsable b")
    assert session.run("state {job}") == "DONE" and session.job == 8
    assert session.run("state {job}") == "DONE"  # a cell that is run again
    shown = capsys.readouterr().out
    assert shown.count("[recorded · a machine, slurm 1 · 2026-11-25]") == 6 and "$ state 7" in shown
    with pytest.raises(ClusterError, match="was not recorded: scancel"):
        session.run("scancel {job}")
    with pytest.raises(ClusterError, match="no recorded session"):
        Session(tmp_path / "nothing.json")


def test_with_slurm_the_commands_are_run_and_kept(tmp_path, monkeypatch, capsys):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 41\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ClusterError, match="no recorded session"):  # commands, but no controller that answers
        (tmp_path / "sinfo").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
        (tmp_path / "sinfo").chmod(0o755)
        Session(tmp_path / "nothing.json", tmp_path)
    (tmp_path / "sinfo").write_text("#!/bin/sh\n")
    session = Session(tmp_path / "nothing.json", tmp_path)
    assert session.live
    assert session.run("sbatch --parsable x") == "41\n" and session.run("echo {job}") == "41\n"
    assert "measured here" in capsys.readouterr().out
    session.save(tmp_path / "kept.json", "m", "c")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [step["job"] for step in kept["steps"]] == [None, 41] and kept["versions"] == {"slurm": "41"}
