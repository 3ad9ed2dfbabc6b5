"""Timelines of real ranks, beside the ranks' own clocks: waiting and overlap known by construction."""

import contextlib
import warnings

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from test_plots import texts

from fidle_utils.measure.trace import KINDS
from fidle_utils.plots import plot_timeline
from fidle_utils.ranks import RankError, Ranks

SLACK_MS = 80  # on a busy machine a thread may start that late


@pytest.fixture(scope="module")
def group():
    group = Ranks()
    group.start(2, device="cpu")
    group.cell(SETUP)
    yield group
    group.stop()


SETUP = """
import time
from torch.profiler import record_function
layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(4)]
model = torch.nn.Sequential(*layers)
model = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=64 * 64 * 4 / 2**20)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.ones(8, 64), batch_size=8)
def step():
    for x in loader:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
for _ in range(3):
    step()
now = {}
def note(name):
    now[name] = time.time_ns() / 1e6
def work(kind, seconds):
    with record_function(kind):
        time.sleep(seconds)
small = torch.ones(10)
"""
LATE = """
work("forward", 0.05)
if rank == 1:
    time.sleep(0.3)
note("called")
request = dist.all_reduce(small, async_op=True)
work("backward", 0.12)
note("waits")
request.wait()
note("done")
work("optimizer", 0.02)
"""


def test_a_late_peer_and_an_overlap_known_by_construction(group):
    group.cell(LATE, timeline=True)
    summary, now = group.timeline.summary(), group["now"]
    first, second = now
    late = second["called"] - first["called"]
    assert late > 200
    close = {"abs": SLACK_MS}
    # Rank 0 called first: it hid 120 ms behind its backward, and waited for rank 1 all the while.
    assert summary.waiting_ms[0] == pytest.approx(late, **close)
    assert summary.overlap_ms[0] == pytest.approx(first["waits"] - first["called"], **close)
    assert summary.exposed_ms[0] == pytest.approx(first["done"] - first["waits"], **close)
    assert summary.waiting_ms[1] == 0 and summary.idle_ms[1] > 250 and summary.exposed_ms[1] < SLACK_MS
    events = group.timeline.events
    assert list(events.kind[events["rank"] == 0])[0] == "forward"  # the very first thing is there
    assert len(events[events.kind == "forward"]) == 2
    sums = summary.compute_ms + summary.exposed_ms + summary.idle_ms
    assert sums.tolist() == pytest.approx(summary.span_ms.tolist(), abs=1e-6)


def test_an_operator_that_waits_for_a_collective_does_not_compute(group):
    group.cell(
        "time.sleep(0.2 * rank)\nnote('called')\n"
        "with record_function('compute'):\n    dist.all_reduce(small)\nnote('done')\n"
        "future = dist.all_reduce(small, async_op=True).get_future()\nfuture.wait()",
        timeline=True,
    )
    summary, first = group.timeline.summary(), group["now"][0]
    assert summary.exposed_ms[0] == pytest.approx(first["done"] - first["called"], abs=SLACK_MS)
    assert summary.overlap_ms[0] < SLACK_MS and summary.compute_ms[0] < SLACK_MS


def test_groups_and_messages_are_told_apart(group):
    group.cell(
        "pair = dist.new_group([0, 1])\nalone = [dist.new_group([r]) for r in (0, 1)][rank]\n"
        "dist.all_reduce(small, group=pair)\ndist.all_reduce(small, group=alone)"
    )
    group.cell(
        "dist.all_reduce(small, group=alone)\n"
        "if rank == 0:\n    time.sleep(0.2)\n    dist.send(small, 1)\nelse:\n    dist.recv(small, 0)\n"
        "gathered = torch.empty(20)\n"
        "dist.all_gather([gathered[:10], gathered[10:]], small)\n"
        "dist.barrier(group=pair)\n",
        timeline=True,
    )
    events = group.timeline.events
    sent = events[events.kind == "communication"]
    assert [list(zip(mine.what, mine.group, strict=True)) for _, mine in sent.groupby("rank")] == [
        [("all_reduce", (0,)), ("send", (0, 1)), ("all_gather", (0, 1)), ("barrier", (0, 1))],
        [("all_reduce", (1,)), ("recv", (0, 1)), ("all_gather", (0, 1)), ("barrier", (0, 1))],
    ]
    received = sent[sent.what == "recv"].iloc[0]
    assert received.waiting_ms == pytest.approx(200, abs=2 * SLACK_MS)
    assert received.waiting_ms <= received.end_ms - received.start_ms


def test_a_real_step_shows_every_bucket_on_every_rank(group):
    group.cell("step()", timeline=True)
    events = group.timeline.events
    for rank in (0, 1):
        mine = events[events["rank"] == rank]
        assert set(mine.kind) == {*KINDS} - {"data transfer"}
        sent = mine[mine.kind == "communication"]
        assert len(sent) == 4, "one all_reduce for each bucket of one layer"
        assert set(sent.what) == {"all_reduce"} and set(sent.group) == {(0, 1)}
        assert sent.start_ms.min() < mine[mine.kind == "backward"].end_ms.max()
        assert mine[mine.kind == "optimizer"].end_ms.max() > sent.start_ms.max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts(plot_timeline(group.timeline))
    plt.close("all")


def test_a_cell_on_one_rank_keeps_its_number(group):
    group.cell("small @ torch.ones(10, 3)", only=[1], timeline=True)
    assert list(group.timeline.summary().index) == [1]


UNTOUCHED = """
import sys
recording = torch.autograd._profiler_enabled()
wrapped = [hasattr(f, "__code__") for f in (dist.Work.wait, dist.ProcessGroup.send, dist.ProcessGroup.recv)]
pandas = "pandas" in sys.modules
"""


@pytest.mark.parametrize("cell", ["dist.all_reduce(small)", "1 / 0"])
def test_a_recording_leaves_the_ranks_as_they_were(group, cell):
    with contextlib.suppress(RankError):
        group.cell(cell, timeline=True)
    group.cell(UNTOUCHED)
    for name, value in {"recording": False, "wrapped": [False] * 3, "pandas": False}.items():
        assert group[name] == [value] * 2
    group.cell("dist.send(small, 1) if rank == 0 else dist.recv(small, 0)")  # they bind `self` again
    group.cell("work('optimizer', 0.001)", timeline=True)
    assert list(group.timeline.events.kind) == ["optimizer"] * 2
