"""Jobs on a real Slurm of two virtual nodes: the numbers of the cell, and every way for a job to end."""

import sys
import textwrap
from importlib.resources import files

import pytest
from waiting import wait_until

from fidle_utils import cluster, plots
from fidle_utils.ranks import Ranks, output

FIRST = pytest.mark.usefixtures("job_that_takes_too_long")


def write(folder, source, name="train.py"):
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


SLEEPS = """\
    import os, time
    print("rank", os.environ["SLURM_PROCID"], "sleeps", flush=True)
    time.sleep(300)
    """

# What the cells of the data-parallel lesson do, with every loss printed in full.
CELLS = [
    """
    from torch import nn
    from fidle_utils.measure import track
    torch.manual_seed(0)
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    mine = data.chunk(world_size)[rank].to(device)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """,
    """
    for step in track(range(4), samples=len(mine), warmup=1):
        loss = model(mine).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"rank {rank} of {world_size} step {step} loss {loss.item():.9f}")
    """,
    "print('norm', rank, sum(p.square().sum() for p in model.parameters()).item())",
]


@pytest.fixture(scope="module")
def in_cells():
    """What the cells print on four ranks in the notebook, sorted lines, and the exported script."""
    patch, ranks = pytest.MonkeyPatch(), Ranks()
    patch.setattr(output, "get_ipython", lambda: None)
    printed = ""
    try:
        ranks.start(4, device="cpu")
        for source in CELLS:
            ranks.cell(textwrap.dedent(source).strip("\n"))
            printed += "".join(ranks.outputs)
        return lines(printed), ranks.script()[0]
    finally:
        ranks.stop()
        patch.undo()


def lines(text):
    return sorted(line for line in text.splitlines() if line.startswith(("rank", "norm")))


@pytest.fixture(scope="module")
def job_that_takes_too_long(_mini, tmp_path_factory):
    """Slurm counts in minutes, so this one is started first and looked at last."""
    folder = tmp_path_factory.mktemp("timeout")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _mini.env.items():
            patch.setenv(name, value)
        job = cluster.submit(write(folder, SLEEPS, "late.py"), time="00:01:00")
    _mini.expected.add(job.id)
    return job


@FIRST
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_two_nodes_print_the_losses_of_the_cell(slurm, in_cells, tmp_path, launcher):
    """tests/test_export.py compares with torchrun on this machine."""
    printed, text = in_cells
    assert len(printed) == 4 * 4 + 4
    job = cluster.submit(write(tmp_path, text), nodes=2, ntasks_per_node=2, launcher=launcher)
    job.wait(timeout=150)
    assert lines("".join(job.outputs)) == printed
    assert job.status.nodes == "jz[0-1]" and job.status.succeeded
    for rank, said in enumerate(job.outputs):
        assert {line.split()[1] for line in lines(said)} == {str(rank)}
    assert sorted(job.throughput.steps["rank"].unique()) == [0, 1, 2, 3]
    assert len(job.throughput) == 4 * 4 and len(job.throughput.steady) == 4 * 3
    plots.plot_throughput(job.throughput)


def who_am_i():
    """A script that says, without torch, what the first lines of every exported script find out."""
    launcher = files("fidle_utils.cluster").joinpath("launcher.py").read_text()
    return f"{launcher}\nimport socket\nprint(*(env[name] for name in {SAID}), socket.gethostname())"


SAID = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_srun_alone_tells_a_script_who_it_is(slurm, tmp_path):
    """Without a batch script nobody has said where to meet: the script asks Slurm."""
    path = write(tmp_path, who_am_i())
    shape = ("--nodes=2", "--ntasks=3", "--distribution=block")
    done = slurm.run("srun", *shape, "bash", "-c", f"echo $SLURM_JOB_ID; {sys.executable} {path}")
    words = [line.split() for line in done.stdout.splitlines()]
    (job_id,) = {int(line[0]) for line in words if len(line) == 1}
    port = str(10000 + job_id % 20000)
    assert sorted(line for line in words if len(line) > 1) == [
        ["0", "3", "0", "2", "jz0", port, "jz0"],
        ["1", "3", "1", "2", "jz0", port, "jz0"],
        ["2", "3", "0", "2", "jz0", port, "jz1"],
    ]


def test_a_batch_script_is_not_taken_for_a_rank(slurm, tmp_path):
    """`python` in a batch script of four tasks, without srun, is one process and waits for nobody."""
    path = write(tmp_path, who_am_i())
    (tmp_path / "plain.slurm").write_text(f"#!/bin/bash\n{sys.executable} {path}\n")
    slurm.run("sbatch", "--wait", "--ntasks=4", "--output=plain.out", "plain.slurm", cwd=tmp_path)
    assert (tmp_path / "plain.out").read_text().split() == ["0", "1", "0", "1", "localhost", "0", "jz0"]


def test_the_script_for_jean_zay_is_accepted_as_it_is(slurm, tmp_path):
    """sbatch takes the files for each kind of node: constraint, account, QoS, GPUs, cores and hint."""
    for name in cluster.profiles():
        if name.startswith("jean-zay"):
            project = dict(account="fidle", qos="dev", nodes=2)
            path = cluster.Batch.of(tmp_path / f"{name}.py", profile=name, **project).write()
            slurm.run("sbatch", "--test-only", path.name, cwd=tmp_path)


def test_cancel(slurm, tmp_path):
    job = cluster.submit(write(tmp_path, SLEEPS), nodes=2, ntasks_per_node=2)
    assert wait_until(lambda: all("sleeps" in said for said in job.outputs))
    assert job.state == "RUNNING" and "jz[0-1]" in repr(job)
    job.cancel()
    assert job.state == "CANCELLED"
    with pytest.raises(cluster.ClusterError, match=f"Job {job.id}: CANCELLED"):
        job.check()


def test_a_rank_that_fails_ends_the_job_and_is_named(slurm, tmp_path):
    source = """\
        import os, sys, time
        if os.environ["SLURM_PROCID"] == "2":
            raise ValueError("no such thing")
        time.sleep(300)
        """
    job = cluster.submit(write(tmp_path, source), nodes=2, ntasks_per_node=2)
    with pytest.raises(cluster.ClusterError) as failure:
        job.wait(timeout=60)
    words = str(failure.value).splitlines()
    assert words[0].startswith(f"Job {job.id}: FAILED on jz[0-1]") and "exit code 1" in words[0]
    assert words[1] == "rank 2:" and words[-1] == "ValueError: no such thing"


def test_a_node_that_fails(slurm, tmp_path):
    job = cluster.submit(write(tmp_path, SLEEPS), nodes=2, no_requeue=True)
    with down("jz1", slurm, when=lambda: all("sleeps" in said for said in job.outputs)):
        with pytest.raises(cluster.ClusterError, match=r"NODE_FAIL: one of jz\[0-1\] failed"):
            job.wait(timeout=60)


def test_a_job_starts_again_after_a_node_failed(slurm, tmp_path):
    source = """\
        import os, time
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        print("started", restarts, flush=True)
        time.sleep(0 if restarts == "1" else 300)
        """
    job = cluster.submit(write(tmp_path, source), nodes=2, requeue=True)
    logs = job.logs
    assert wait_until(lambda: all("started 0" in said for said in job.outputs))
    assert not logs.restarted() and list(logs.news()) == [(0, "started 0\n"), (1, "started 0\n")]
    with down("jz1", slurm):
        assert wait_until(lambda: job.state == "PENDING")
        assert "put back into the queue once" in str(job.status)
    job.wait(timeout=100)
    assert job.status.restarts == 1 and job.outputs == ["started 1\n", "started 1\n"]
    assert logs.restarted() and list(logs.news()) == [(0, "started 1\n"), (1, "started 1\n")]


class down:
    """Within, a node is down."""

    def __init__(self, node, slurm, when=lambda: True):
        self.node, self.slurm, self.when = node, slurm, when

    def __enter__(self):
        assert wait_until(self.when)
        self.slurm.run("scontrol", "update", f"NodeName={self.node}", "State=DOWN", "Reason=test")

    def __exit__(self, *_):
        self.slurm.run("scontrol", "update", f"NodeName={self.node}", "State=RESUME")


def test_jobs_of_two_users_wait_for_each_other(slurm, tmp_path):
    other = slurm.run(
        *("sbatch", "--parsable", "--uid=nobody", "--chdir=/tmp", "--output=/dev/null"),
        *("--nodes=2", "--gres=gpu:8", "--job-name=other", "--wrap=sleep 300"),
    ).stdout.strip()
    script = write(tmp_path, "import os\nprint('at last', os.environ['MASTER_ADDR'])")
    job = cluster.submit(script, profile="generic-gpu", nodes=2)
    assert wait_until(lambda: job.status.reason == "Resources"), job.status
    assert "waiting for free nodes (Resources)" in str(job.status)
    queue = slurm.run("squeue", "--noheader", "--format=%u %T").stdout.splitlines()
    assert {"nobody RUNNING", "root PENDING"} <= set(queue)
    slurm.run("scancel", other)
    job.wait(timeout=60)
    assert job.outputs == ["at last jz0\n"] * 2


def test_attach_finds_a_job_again(slurm, tmp_path, monkeypatch):
    job = cluster.submit(write(tmp_path, SLEEPS), nodes=2)
    assert wait_until(lambda: all("sleeps" in said for said in job.outputs))
    by_number, by_folder = cluster.attach(job.id), cluster.attach(job.folder)
    assert by_number.folder == by_folder.folder == job.folder
    assert by_number.outputs == job.outputs and by_folder.state == "RUNNING"
    by_number.cancel()
    assert cluster.attach(job.folder).state == job.state == "CANCELLED"
    # Slurm forgets a job in time; what it said last is kept beside the logs.
    monkeypatch.setattr(cluster.slurm, "show", lambda job_id: None)
    assert cluster.attach(job.folder).state == "CANCELLED"
    monkeypatch.chdir(tmp_path)
    assert cluster.attach(job.id).folder == job.folder
    with pytest.raises(cluster.ClusterError, match="attach\\(FOLDER\\)"):
        cluster.attach(1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            dict(profile="h100", account="other@h100"),
            r"may not use this account: other@h100",
        ),
        (dict(profile="h100", account="fidle@a100"), "may not use this account: fidle@a100"),
        (dict(qos="qos_of_nobody"), "no such QoS for you: qos_of_nobody"),
        (dict(partition="gpu_p9"), "no such partition: gpu_p9"),
        (dict(constraint="b200"), "no node has this feature: b200"),
        (dict(nodes=3), "fewer nodes|so many cores or GPUs"),
        (dict(profile="generic-gpu", nodes=2, ntasks_per_node=9), "so many cores or GPUs"),
        (dict(time="101:00:00"), "101:00:00, is more than"),
    ],
)
def test_what_slurm_refuses_is_said_plainly(slurm, tmp_path, asked, words):
    with pytest.raises(cluster.ClusterError, match=words) as refused:
        cluster.submit(write(tmp_path, "pass"), **asked)
    assert "Slurm: " in str(refused.value)
    assert not list(tmp_path.glob("train-*"))


def test_a_controller_that_is_gone(slurm, tmp_path, monkeypatch):
    conf = (slurm.folder / "slurm.conf").read_text()
    conf = conf.replace("SlurmctldPort=", "SlurmctldPort=1 #") + "MessageTimeout=2\n"
    (tmp_path / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(cluster.ClusterError, match="controller does not answer"):
        cluster.slurm.ask("squeue")


@FIRST
def test_time_runs_out(slurm, job_that_takes_too_long):
    job = job_that_takes_too_long
    with pytest.raises(cluster.ClusterError, match=f"Job {job.id}: TIMEOUT on jz0: its 1:00 min ran out"):
        job.wait(timeout=150)
    slurm.expected.clear()
    assert job.outputs[0].startswith("rank 0 sleeps\n")
