"""`%ranks 4 --slurm`: the ranks of `%%ranks` on two nodes, and everything released when they end."""

import os
import signal
import sys
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from fidle_utils import cluster
from fidle_utils.cluster.interactive import NodeServers
from fidle_utils.ranks import RankError, Ranks, output

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_helpers import FREED_SECONDS, Notebook, cell, run_failing  # noqa: E402


@pytest.fixture(scope="module")
def group(_mini):
    """Four ranks, two on each node, kept for the whole module."""
    patch, ranks = pytest.MonkeyPatch(), Ranks()
    patch.setattr(output, "get_ipython", lambda: None)
    for name, value in _mini.env.items():
        patch.setenv(name, value)
    ranks.start(4, slurm=dict(nodes=2))
    _mini.expected.update(_mini.jobs())
    yield ranks
    ranks.stop()
    patch.undo()
    left = wait_until(lambda: not {*_mini.jobs(), *_mini.steps()}, 10)
    _mini.expected.clear()
    assert left, "the allocation outlived the ranks"


def test_a_cell_runs_over_two_nodes(slurm, group):
    group.cell("import socket\nwhere = socket.gethostname(), local_rank\ntotal = torch.ones(2) * rank")
    group.cell("dist.all_reduce(total)")
    assert group["where"] == [("jz0", 0), ("jz0", 1), ("jz1", 0), ("jz1", 1)]
    assert [total.tolist() for total in group["total"]] == [[6.0, 6.0]] * 4
    assert str(group.placement) == "cpu, gloo (2 on each of jz0, jz1, for 1:00:00 h) · 1 thread each"
    assert [row["memory_mb"] > 10 for row in group.status()] == [True] * 4
    group.push(factor=3)
    assert group["factor"] == [3] * 4 and group.run(os.path.basename, "/a/b") == ["b"] * 4


def test_track_and_timeline_come_back(slurm, group):
    loop = "for _ in track(range(4), samples=8):\n    dist.all_reduce(torch.ones(1))"
    group.cell(f"from fidle_utils.measure import track\n{loop}", timeline=True)
    assert len(group.throughput) == 16 and sorted(group.throughput.steps["rank"].unique()) == [0, 1, 2, 3]
    assert sorted(group.timeline.summary().index) == [0, 1, 2, 3]


def test_a_rank_that_fails_frees_the_others_on_the_other_node(slurm, group):
    group.cell("kept = rank")
    error, seconds = run_failing(group, "if rank == 1:\n    1 / 0\ndist.all_reduce(torch.ones(1))")
    assert error.rank == 1 and error.line == 3 and "ranks 0, 2, 3: were waiting in all_reduce" in error.report
    assert seconds < FREED_SECONDS
    group.cell("again = torch.ones(1)\ndist.all_reduce(again)")
    assert group["kept"] == [0, 1, 2, 3] and group["again"][3].item() == 4


def test_a_hang_is_explained(slurm, group, capsys):
    error, _ = run_failing(group, "if rank != 2:\n    dist.all_reduce(torch.ones(1))", timeout=5)
    assert "ranks 0, 1, 3 wait in all_reduce, line 3; rank 2 finished the cell" in error.report
    assert "This looks like a hang" in capsys.readouterr().out


def test_a_rank_that_dies_is_replaced_on_its_node(slurm, group):
    group.cell("kept = socket.gethostname()")
    error, _ = run_failing(group, "import os\nif rank == 3:\n    os._exit(5)\ndist.all_reduce(torch.ones(1))")
    assert "rank 3: died (exit code 5)" in error.report and "rank 3 was replaced" in "".join(error.advice)
    group.cell("import socket\nhere = socket.gethostname()")
    assert group["here"] == ["jz0", "jz0", "jz1", "jz1"]
    group.cell("assert ('kept' in globals()) == (rank != 3)")


def test_only_the_node_s_address_listens(slurm, group):
    """Channels of kernels, the servers' ends and the store: nothing listens on every interface."""
    ours = [psutil.Process(), *psutil.Process(slurm.process.pid).children(recursive=True)]
    listening = [
        (process.name(), connection.laddr.ip)
        for process in ours
        if "python" in process.name() or process.pid == os.getpid()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 4 * 5 and {ip for _, ip in listening} == {"127.0.0.1"}, listening
    folder = group._links[0].files["errors"].rpartition("/")[0]
    assert os.stat(folder).st_mode & 0o077 == 0
    assert {os.stat(path).st_mode & 0o777 for path in Path(folder).glob("*.json")} == {0o600}


def test_restart_keeps_the_allocation(slurm, group):
    jobs, pids = slurm.jobs(), [row["pid"] for row in group.status()]
    group.restart()
    assert slurm.jobs() == jobs and not set(pids) & {row["pid"] for row in group.status()}
    group.cell("total = torch.ones(1)\ndist.all_reduce(total)")
    assert group["total"][0].item() == 4


def test_a_node_that_fails_is_said(slurm, group):
    """The last of those that share the group: its allocation ends here."""
    slurm.run("scontrol", "update", "NodeName=jz1", "State=DOWN", "Reason=test")
    try:
        with pytest.raises(RankError) as failure:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                group.cell(cell("import time\ntime.sleep(0.2)"))
    finally:
        slurm.run("scontrol", "update", "NodeName=jz1", "State=RESUME")
    said = "".join(failure.value.advice)
    assert "All ranks are gone" in said and said.endswith("A node failed.")
    assert len(group) == 0


def listening():
    """The addresses at which this process listens."""
    connections = psutil.Process().net_connections("tcp")
    return {tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN}


def test_who_waits_in_the_queue_can_give_up(slurm, monkeypatch):
    hold = slurm.run("sbatch", "--parsable", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 100")
    assert wait_until(lambda: slurm.run("squeue", "-ho%T").stdout.split() == ["RUNNING"])
    before, refused, shown = listening(), [], []
    monkeypatch.setattr("builtins.print", lambda *words, **_: shown.extend(words))

    def intrude_then_stop():
        """Somebody without the key knocks, and then the stop button is pressed."""
        try:
            (address,) = wait_until(lambda: listening() - before)
            Client(address, authkey=b"guessed")
        except AuthenticationError as error:
            refused.append(error)
        finally:
            wait_until(lambda: shown, 10)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=intrude_then_stop, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        NodeServers(2, dict(nodes=2))
    thread.join(10)
    assert refused and shown == ["Waiting in the queue; the stop button gives up."]
    assert wait_until(lambda: slurm.jobs() == [int(hold.stdout)])
    slurm.run("scancel", hold.stdout.strip())


def test_what_slurm_refuses_is_said_plainly(slurm):
    with pytest.raises(cluster.ClusterError, match="no such partition: nowhere"):
        Ranks().start(2, slurm=dict(partition="nowhere"))
    with pytest.raises(cluster.ClusterError, match="may not use this account: x@h100"):
        Ranks().start(2, slurm=dict(profile="h100", account="x"))


def test_everything_is_released_when_the_notebook_is_killed(slurm, tmp_path):
    notebook = Notebook(tmp_path)
    try:
        shown = notebook.run("%ranks 2 --slurm --nodes 2")
        assert "2 ranks ready" in shown.text and "1 on each of jz0, jz1" in shown.text, (
            shown.text + shown.error
        )
        shown = notebook.run("%%ranks\nimport socket\nprint(socket.gethostname())")
        assert "jz0" in shown.text and "jz1" in shown.text
        folder = Path(notebook.value("ranks._links[0].files['errors']")).parent
        assert folder.exists() and slurm.steps()
        os.kill(notebook.pid, signal.SIGKILL)
        assert wait_until(lambda: not slurm.jobs() and not slurm.steps() and not folder.exists(), 10)
    finally:
        notebook.close()
