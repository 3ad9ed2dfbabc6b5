"""Ranks that fail, die, hang or are stopped: what is said, how fast the others are free, what is kept."""

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from ranks_helpers import FREED_SECONDS, cell, gone, in_notebook, run_failing

from fidle_utils.ranks import RankError, Ranks, RanksStopped, output


@pytest.fixture(scope="module")
def started():
    ranks = Ranks()
    ranks.start(4, device="cpu")
    yield ranks
    ranks.stop()


@pytest.fixture
def group(started, monkeypatch):
    """Four ranks with a variable `kept`; after every test all four must answer together."""
    monkeypatch.setattr(output, "get_ipython", lambda: None)
    started.cell("kept = 100 + rank")
    yield started
    works_together(started)


def works_together(ranks):
    ranks.cell("total = torch.tensor(rank)\ndist.all_reduce(total)", timeout=30)
    assert [int(total) for total in ranks["total"]] == [6, 6, 6, 6]


def kept_everywhere(ranks):
    return ranks["kept"] == [100, 101, 102, 103]


# A rank raises


def test_one_raises_while_the_others_wait(group):
    error, seconds = run_failing(
        group,
        """
        x = torch.ones(3)
        if rank == 2:
            raise ValueError("bad batch")
        dist.all_reduce(x)
        """,
    )
    assert (error.rank, error.line, error.ename, error.evalue) == (2, 4, "ValueError", "bad batch")
    assert error.report.splitlines() == [
        "rank 2: ValueError on line 4: bad batch",
        "ranks 0, 1, 3: were waiting in all_reduce, line 5",
    ]
    assert seconds < FREED_SECONDS
    assert kept_everywhere(group)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error._render_traceback_()))
    assert shown.count("raise ValueError") == 1 and "fidle_utils" not in shown, "its own traceback, once"


def test_all_raise_the_same(group, capsys):
    error, seconds = run_failing(group, "\n1 / 0")
    assert error.report == "ranks 0–3: ZeroDivisionError on line 2: division by zero"
    assert error.line == 2 and seconds < FREED_SECONDS
    assert "ZeroDivisionError" not in capsys.readouterr().out, "it is in the error, once"
    assert kept_everywhere(group)


def test_ranks_raise_different_errors(group):
    error, _ = run_failing(group, "if rank == 1:\n    {}['key']\nif rank == 3:\n    [][0]")
    assert sorted(error.report.splitlines()) == [
        "rank 1: KeyError on line 3: 'key'",
        "rank 3: IndexError on line 5: list index out of range",
        "ranks 0, 2: finished the cell",
    ]
    assert [failure.rank for failure in error.failures] in ([1, 3], [3, 1])


def test_the_line_is_the_one_inside_a_function_of_the_cell(group):
    source = "def f(x):\n    return torch.ones(2) @ x\nif rank == 0:\n    f(torch.ones(3))"
    error, _ = run_failing(group, source)
    assert (error.rank, error.line, error.ename) == (0, 3, "RuntimeError")


def test_ranks_that_compute_when_another_raises_are_stopped(group):
    source = "import time\nif rank == 1:\n    raise OSError('disk')\ntime.sleep(60)"
    error, seconds = run_failing(group, source)
    assert (error.rank, error.ename) == (1, "OSError") and seconds < FREED_SECONDS
    assert "ranks 0, 2, 3" in error.report and "line 5" in error.report
    assert kept_everywhere(group)


def test_run_from_the_notebook_is_freed_too(group):
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        group.run(in_notebook("def f():\n if rank == 3:\n  raise ValueError('three')\n dist.barrier()")["f"])
    assert caught.value.rank == 3 and time.monotonic() - start < FREED_SECONDS
    assert "waiting in barrier" in caught.value.report
    assert kept_everywhere(group)


# A rank dies


@pytest.mark.parametrize(
    ("fatal", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1: died (SIGKILL)"),
        ("os._exit(0)", "rank 1: died (exit code 0)"),
        ("ctypes.string_at(0)", "rank 1: died (SIGSEGV) on line 4"),
    ],
)
def test_one_dies_in_a_cell(group, fatal, said):
    error, seconds = run_failing(
        group, f"import ctypes, os, signal\nif rank == 1:\n    {fatal}\ndist.all_reduce(torch.ones(2))"
    )
    assert error.rank == 1 and said in error.report and seconds < FREED_SECONDS
    # A rank notices by itself, or is freed while it waits for one that has noticed.
    for line in error.report.splitlines()[1:]:
        assert re.search("(lost (its|their) connection on|waiting in all_reduce,) line 5", line), line
    advice = "\n".join(error.advice)
    assert "rank 1 was replaced" in advice and "variables are gone" in advice
    assert group.run(in_notebook("def f():\n return kept")["f"], only=[0, 2, 3]) == [100, 102, 103]
    with pytest.raises(RankError, match="rank 1: NameError"):
        group["kept"]
    assert len(group) == 4 and {row["state"] for row in group.status()} == {"idle"}


def test_one_is_killed_while_it_computes(group):
    pid = group.status()[3]["pid"]
    timer = threading.Timer(1, os.kill, (pid, signal.SIGKILL))
    timer.start()
    error, seconds = run_failing(group, "import time\ntime.sleep(30 if rank == 3 else 0)")
    timer.join()
    assert error.rank == 3 and "SIGKILL" in error.report and seconds < 1 + FREED_SECONDS
    assert "ranks 0–2: finished the cell" in error.report


def test_one_is_killed_between_cells(group):
    pid = group.status()[2]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gone([pid]) == []
    deadline = time.monotonic() + FREED_SECONDS  # until the server has told; looking must not hide the death
    while group.status()[2]["state"] != "dead" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "dead" in repr(group).splitlines()[4]
    with pytest.raises(RankError, match="rank 2 died between two cells.*this cell did not run") as caught:
        group.cell("kept = 'touched'")
    assert "rank 2 was replaced" in "\n".join(caught.value.advice)
    assert group.run(in_notebook("def f():\n return kept")["f"], only=[0, 1, 3]) == [100, 101, 103]


def test_children_of_a_dead_rank_die(group):
    group.cell("import subprocess\nchild = subprocess.Popen(['sleep', '600']).pid if rank == 1 else None")
    child = group["child"][1]
    assert psutil.Process(child).name() == "sleep"
    run_failing(group, "import os\nif rank == 1:\n    os._exit(3)")
    assert gone([child]) == []


@pytest.mark.parametrize(
    "different",
    [
        "dist.all_reduce(torch.ones(3 + 100_000 * rank))",
        "dist.all_reduce(torch.ones(1000, dtype=torch.float64 if rank % 2 else torch.float32))",
    ],
)
def test_different_sizes_or_dtypes_abort(group, different):
    error, seconds = run_failing(group, different, timeout=20)
    assert "SIGABRT" in error.report and "different shapes or dtypes" in error.report
    assert seconds < FREED_SECONDS and "replaced" in "\n".join(error.advice)


def test_all_ranks_die(group):
    error, seconds = run_failing(group, "import os\nos._exit(7)")
    assert "ranks 0–3: died (exit code 7)" in error.report and seconds < FREED_SECONDS
    assert "All ranks were replaced: their variables are gone" in "\n".join(error.advice)


def test_the_server_is_killed(started, monkeypatch):
    """The ranks go with it; the next %ranks starts anew."""
    monkeypatch.setattr(output, "get_ipython", lambda: None)
    ranks = Ranks()
    try:
        ranks.start(2, device="cpu")
        pids, directory = [row["pid"] for row in ranks.status()], Path(ranks._server.directory)
        ranks._server.process.kill()
        assert gone(pids) == []
        with pytest.raises(RankError):
            ranks.cell("x = 1")
        ranks.start(2, device="cpu")
        ranks.cell("x = torch.ones(1)\ndist.all_reduce(x)")
        assert [int(x) for x in ranks["x"]] == [2, 2]
        assert not directory.exists()
    finally:
        ranks.stop()


# A cell that does not end


def test_timeout_of_an_endless_loop(group):
    error, seconds = run_failing(group, "while True: pass", timeout=1)
    assert error.report.startswith("timed out after 1 s: ranks 0–3 are on line 2")
    assert error.rank is None and seconds < 1 + FREED_SECONDS
    assert kept_everywhere(group) and error.advice == []


def test_a_rank_that_will_not_be_interrupted_is_replaced(group):
    error, seconds = run_failing(
        group,
        """
        import time
        while rank == 2:
            try:
                time.sleep(100)
            except KeyboardInterrupt:
                print("I stay")
        """,
        timeout=1,
    )
    assert "rank 2 is on line 5; ranks 0, 1, 3 finished the cell" in error.report
    assert "rank 2 was replaced" in "\n".join(error.advice) and seconds < 1 + FREED_SECONDS
    assert group.run(in_notebook("def f():\n return kept")["f"], only=[0, 1, 3]) == [100, 101, 103]


def test_stop_button(group):
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(RanksStopped) as caught:
        group.cell("if rank:\n    dist.barrier()")
    timer.join()
    assert time.monotonic() - start < 1 + FREED_SECONDS
    assert caught.value.report == "stopped: ranks 1–3 wait in barrier, line 2; rank 0 finished the cell"
    assert isinstance(caught.value, KeyboardInterrupt) and kept_everywhere(group)


HANGS = {
    "all_reduce": (
        "if rank != 2:\n    dist.all_reduce(torch.ones(2))",
        "ranks 0, 1, 3 wait in all_reduce, line 3; rank 2 finished the cell",
    ),
    "recv": (
        "if rank == 1:\n    dist.recv(torch.ones(2), src=0)",
        "rank 1 waits in recv, line 3; ranks 0, 2, 3 finished the cell",
    ),
    "new_group": (
        "if rank < 2:\n    dist.new_group([0, 1, 2])",
        "ranks 0, 1 wait in new_group, line 3; ranks 2, 3 finished the cell",
    ),
    "wait": (
        "work = dist.all_reduce(torch.ones(2), async_op=True) if rank else None\nif rank:\n    work.wait()",
        "ranks 1–3 wait in wait(), line 4; rank 0 finished the cell",
    ),
    "different collectives": (
        "if rank == 0:\n    dist.barrier()\nelse:\n    dist.broadcast(torch.ones(2), src=0)",
        "rank 0 waits in barrier, line 3",
    ),
}


@pytest.mark.parametrize("name", HANGS)
def test_timeout_explains_where_ranks_wait(group, name):
    source, expected = HANGS[name]
    error, seconds = run_failing(group, source, timeout=1.5)
    assert expected in error.report
    assert seconds < 1.5 + FREED_SECONDS
    assert "connected again" in "\n".join(error.advice) and kept_everywhere(group)


def test_a_hang_is_explained_while_it_lasts(group, capsys):
    error, _ = run_failing(group, HANGS["all_reduce"][0], timeout=8)
    shown = capsys.readouterr().out
    assert shown.count("This looks like a hang: " + HANGS["all_reduce"][1]) == 1
    assert HANGS["all_reduce"][1] in error.report


def test_a_hang_in_the_backward_of_ddp_is_explained(group, capsys):
    group.cell("import torch.nn.parallel.distributed, torch._dynamo")  # the first use imports for seconds
    error, _ = run_failing(
        group,
        """
        from torch.nn.parallel import DistributedDataParallel
        model = DistributedDataParallel(torch.nn.Linear(4, 1))
        loss = model(torch.ones(2, 4)).sum()
        if rank != 3:
            loss.backward()
        """,
        timeout=10,
    )
    expected = "ranks 0–2 wait in backward, line 6; rank 3 finished the cell"
    assert f"This looks like a hang: {expected}" in capsys.readouterr().out
    assert expected in error.report
    assert kept_everywhere(group)


@pytest.mark.parametrize(
    "work",
    [
        "end = time.monotonic() + 6\nwhile rank == 0 and time.monotonic() < end:\n    pass",
        "time.sleep(6 if rank == 0 else 0)",
        """
class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        time.sleep(3.5)
        return index
if rank == 0:
    seen = list(torch.utils.data.DataLoader(Slow(), num_workers=1, batch_size=None))""",
    ],
    ids=["loop", "sleep", "DataLoader"],
)
def test_no_false_alarm_while_a_rank_works(group, work, capsys):
    group.cell(cell(f"import time\n{work}\ndist.barrier()"))
    assert "hang" not in capsys.readouterr().out
    assert group.outputs == ["", "", "", ""]


# Again and again


def descriptors():
    """What this process holds: descriptors, and the sockets among them."""
    process = psutil.Process()
    return process.num_fds(), len(process.net_connections("all"))


def rank_descriptors(ranks):
    return [psutil.Process(row["pid"]).num_fds() for row in ranks.status()]


def test_twenty_failures_leave_nothing_behind(group):
    fails = [
        ("if rank == 1:\n    1 / 0\ndist.barrier()", {}),
        ("if rank == 1:\n    1 / 0", {}),
        ("if rank:\n    dist.barrier()", {"timeout": 0.2}),
        ("import os\nif rank == 0:\n    os._exit(1)\ndist.barrier()", {}),
    ]
    for source, options in fails:  # once of each: caches fill
        run_failing(group, source, **options)
    before, of_ranks, children = descriptors(), rank_descriptors(group), descendants()
    threads = threading.active_count()
    for source, options in fails * 5:
        _, seconds = run_failing(group, source, **options)
        assert seconds < 1 + FREED_SECONDS
    works_together(group)
    after = descriptors()
    # A store listens on one socket of ours and each rank connects to it; five more would be a leak.
    assert after[0] <= before[0] + 3 and after[1] <= before[1] + 3, (before, after)
    for used, first in zip(rank_descriptors(group)[1:], of_ranks[1:], strict=True):
        assert used <= first + 6, "descriptors of ranks that were never replaced"
    assert len(descendants()) == len(children) and threading.active_count() <= threads + 2
    directory = Path(group._server.directory)
    assert len(list(directory.glob("*-*.json"))) == 4, "files of replaced ranks are left"


def descendants():
    return [child.pid for child in psutil.Process().children(recursive=True)]


def test_sockets_of_ranks_are_private(group):
    """Nobody else can open what leads to a rank, and nothing of ours listens outside the loopback."""
    directory = Path(group._server.directory)
    assert directory.stat().st_mode & 0o077 == 0
    for row in group.status():
        for connection in psutil.Process(row["pid"]).net_connections("inet"):
            assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), connection


def test_stop_frees_the_port_of_the_store(monkeypatch):
    monkeypatch.setattr(output, "get_ipython", lambda: None)
    ranks = Ranks()
    try:
        ranks.start(2, device="cpu")
        port = int(ranks.run(in_notebook("import os\nf = lambda: os.environ['MASTER_PORT']")["f"])[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        ranks.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_matching_cell_is_as_one_process_says(group):
    """After everything above, the numbers are still right."""
    group.cell("x = torch.arange(4.) + rank\ndist.all_reduce(x)")
    for x in group["x"]:
        torch.testing.assert_close(x, 4 * torch.arange(4.0) + 6, rtol=0, atol=0)
