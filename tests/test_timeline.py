"""Timelines: what counts as what, one clock for all ranks, and the reductions of a real DDP step."""

import pytest

from fidle_utils.measure.timeline import Timeline
from fidle_utils.plots import plot_timeline
from fidle_utils.ranks import RankError, Ranks

BASE = 1_790_000_000_000_000_000  # ns of a clock that counts from 1970: more digits than a double holds


def event(name, start_us, end_us, category="cpu_op", thread="main", differentiable=False):
    return (name, category, thread, BASE + 1000 * start_us, BASE + 1000 * end_us, differentiable)


def kinds(*events):
    return list(Timeline.of_ranks([list(events)]).events.kind)


def test_only_outermost_events_are_kept_and_autograd_tells_forward_from_compute():
    step = [
        event("aten::linear", 0, 10),
        event("aten::addmm", 1, 9, differentiable=True),
        event("aten::copy_", 10, 12),
        event("autograd::engine::evaluate_function: AddmmBackward0", 12, 20),
        event("aten::mm", 13, 19),
        event("Optimizer.step#SGD.step", 20, 25, "user_annotation"),
        event("aten::add_", 21, 22),
    ]
    assert kinds(*step) == ["forward", "compute", "backward", "optimizer"]


def test_communication_stands_on_its_own_thread_beside_backward():
    backward = event("autograd::engine::evaluate_function: MmBackward0", 0, 10)
    gloo = event("gloo:all_reduce", 5, 30, "user_annotation", thread="gloo")
    launch = event("c10d::allreduce_", 4, 5)
    assert kinds(backward, gloo, launch) == ["backward", "communication"]
    assert kinds(event("ncclDevKernel_AllReduce_Sum_f32", 0, 1, "kernel")) == ["communication"]


def test_all_ranks_share_one_clock_to_the_microsecond():
    late, early = event("aten::mm", 1001, 1003), event("aten::mm", 1, 2)
    table = Timeline.of_ranks([[late], [early]]).events
    assert list(table["rank"]) == [0, 1]
    assert table.start_ms.tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert table.end_ms.tolist() == pytest.approx([1.002, 0.001], abs=1e-9)


def test_nothing_recorded_is_an_empty_table():
    assert len(Timeline.of_ranks([[], []]).events) == 0


STEP = """
optimizer.zero_grad()
model(x).square().mean().backward()
optimizer.step()
"""


def test_a_real_step_shows_every_bucket_on_every_rank():
    group = Ranks()
    try:
        group.start(2, device="cpu")
        group.cell(
            "layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(4)]\n"
            "model = torch.nn.Sequential(*layers)\n"
            "model = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=64 * 64 * 4 / 2**20)\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
            "x = torch.ones(8, 64)\n" + STEP * 3
        )
        with pytest.raises(RankError):
            group.cell("1 / 0", timeline=True)  # leaves the profiler running
        group.cell(STEP, timeline=True)
        events = group.timeline.events
        for rank in (0, 1):
            mine = events[events["rank"] == rank]
            assert {"forward", "backward", "optimizer", "communication"} <= set(mine.kind)
            sent = mine[mine.kind == "communication"]
            assert len(sent) == 4, "one all_reduce for each bucket of one layer"
            assert sent.start_ms.min() < mine[mine.kind == "backward"].end_ms.max()
            assert mine[mine.kind == "optimizer"].end_ms.max() > sent.start_ms.max()
        ax = plot_timeline(group.timeline)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["rank 0", "rank 1"]
    finally:
        group.stop()
