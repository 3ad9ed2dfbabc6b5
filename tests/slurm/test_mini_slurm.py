"""The mini Slurm itself: Jean Zay's names are there, and nothing is left of it, however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import mini_slurm
import psutil
import pytest
from waiting import wait_until

COMMAND = [sys.executable, mini_slurm.__file__]


def test_the_nodes_and_their_names(slurm):
    said = slurm.run("sinfo", "--noheader", "--format=%R %D %f %G").stdout.splitlines()
    partitions = {line.split()[0] for line in said}
    assert {"gpu_p13", "gpu_p2", "gpu_p5", "gpu_p6", "prepost"} <= partitions
    for line in said:
        _, nodes, features, gres = line.split()
        assert nodes == "2" and set(features.split(",")) == {"v100-16g", "v100-32g", "a100", "h100"}
        assert gres.startswith("gpu:8")
    assert slurm.run("srun", "--nodes=2", "hostname").stdout.split() in (["jz0", "jz1"], ["jz1", "jz0"])


def test_gpus_are_counted(slurm):
    """A job holds all eight GPUs of a node: another one that wants a GPU of that node must wait."""
    hold = [
        "sbatch",
        "--parsable",
        "--gres=gpu:8",
        "--nodelist=jz0",
        "--output=/dev/null",
        "--wrap=sleep 100",
    ]
    first = slurm.run(*hold).stdout.strip()
    second = slurm.run(*(word.replace("gpu:8", "gpu:1") for word in hold)).stdout.strip()
    state = ["squeue", "--noheader", "--format=%T", f"--jobs={first},{second}"]
    assert wait_until(lambda: sorted(slurm.run(*state).stdout.split()) == ["PENDING", "RUNNING"])
    slurm.run("scancel", first)
    assert wait_until(lambda: slurm.run(*state).stdout.split() == ["RUNNING"])
    slurm.run("scancel", second)


def test_a_constraint_leads_to_its_partition(slurm, tmp_path):
    said = slurm.run("srun", "--constraint=h100", "printenv", "SLURM_JOB_PARTITION").stdout.strip()
    assert said == "gpu_p6"


def ours(folder):
    """Processes that a cluster in that folder has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def command(slurm):
    """`make slurm` with a command that starts a job and then sleeps; (process, the cluster's folder)."""
    job = "sbatch -o /dev/null --wrap 'sleep 100' >/dev/null; srun true; echo $SLURM_CONF; exec sleep 100"
    with subprocess.Popen([*COMMAND, "bash", "-c", job], stdout=subprocess.PIPE, text=True) as process:
        words = [process.stdout.readline() for _ in range(3)]
        folder = Path(words[-1].strip()).parent
        assert folder.name.startswith("slurm-") and folder != slurm.folder, words
        assert len(ours(folder)) > 6
        yield process, folder
        for left in ours(folder):
            left.kill()


def names(folder):
    """Of our processes: the names of those that have not ended meanwhile."""
    found = set()
    for process in ours(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.name())
    return found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(command, how):
    process, folder = command
    hosts = Path("/etc/hosts").read_text()
    process.send_signal(how)
    process.wait(10)
    left = names(folder) - {"sleep"}
    assert how == signal.SIGKILL or not left  # when `make slurm` has ended, so has everything
    assert wait_until(lambda: names(folder) <= {"sleep"}, 5)
    assert wait_until(lambda: not folder.exists(), 5)
    assert "jz0" not in hosts and os.path.exists("/etc/hosts")


def test_the_exit_code_of_the_command_is_that_of_the_whole(slurm):
    done = subprocess.run([*COMMAND, "bash", "-c", "exit 3"], capture_output=True, text=True)
    assert done.returncode == 3 and "two virtual nodes" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="there the reason is another one")
def test_where_it_cannot_run_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mini_slurm.shutil, "which", lambda name, path=None: name)
    assert mini_slurm.main(["true"]) == 1
    assert "only root" in capsys.readouterr().err
    monkeypatch.setattr(
        mini_slurm.shutil, "which", lambda name, path=None: None if name == "munged" else name
    )
    assert mini_slurm.main(["true"]) == 1
    assert "munged not installed (Debian, Ubuntu: apt install slurm-wlm munge)" in capsys.readouterr().err
