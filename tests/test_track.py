"""track(): what a step is, what it costs in samples and FLOPs, and how the records reach the notebook."""

import json
import subprocess
import sys
import types
import weakref

import pytest
import torch
from ranks_helpers import cell, run_failing

from fidle_utils.measure import track, tracking
from fidle_utils.measure.throughput import Progress, Throughput, rate
from fidle_utils.ranks import Ranks


class Clock:
    """A perf_counter that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(tracking.time, "perf_counter", lambda: self.now)

    def items(self, n, seconds):
        """`n` batches of four samples, each `seconds` late."""
        for _ in range(n):
            self.now += seconds
            yield torch.zeros(4, 2)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(tracking.time, "time", lambda: 1.79e9)
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No bar on the terminal, no records in a folder, and rank 0."""
    for name in ("RANK", "FIDLE_TRACK"):
        monkeypatch.delenv(name, raising=False)


# What a step is


def test_a_step_lasts_from_asking_to_asking_and_says_how_long_it_waited(clock):
    for x in (loop := track(clock.items(5, seconds=0.25), warmup=1)):
        clock.now += 0.75
        loop.log(loss=x.sum() + clock.now)
    steps = loop.throughput.steps
    assert steps.seconds.tolist() == pytest.approx([1.0] * 5)
    assert steps.data_seconds.tolist() == pytest.approx([0.25] * 5)
    assert steps.samples.tolist() == [4] * 5 and steps.warmup.tolist() == [True] + [False] * 4
    assert steps.loss.tolist() == pytest.approx([101, 102, 103, 104, 105])
    summary = loop.throughput.summary().loc[0]
    assert summary.steps == 4 and summary.samples_per_second == pytest.approx(4.0)
    assert summary.data_wait == pytest.approx(0.25) and summary.step_ms == pytest.approx(1000)


def test_the_time_of_a_report_belongs_to_no_step(clock, monkeypatch):
    reports = []

    def slow(report):
        clock.now += 10
        reports.append(report)

    monkeypatch.setattr(tracking, "send_to", slow)
    for _ in (loop := track(range(4))):
        clock.now += 1  # more than SEND_SECONDS: every step is reported
    assert [row[2] for row in loop.rows] == pytest.approx([1.0] * 4)
    assert [len(report["rows"]) for report in reports] == [1, 1, 1, 1, 0]
    assert [report["done"] for report in reports] == [False] * 4 + [True]


@pytest.mark.parametrize(
    "item, n",
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(5, 1), torch.zeros(7)), 5),
        ({"ids": [torch.zeros(2)], "mask": torch.zeros(9)}, 2),
        (torch.tensor(1.0), None),
        ("text", None),
    ],
)
def test_samples_are_the_length_of_the_first_tensor(item, n):
    assert tracking._length(item) == n


def test_samples_can_be_a_number_or_a_function():
    for given, expected in ((64, 64), (lambda item: 10 * item, [0, 10, 20])):
        for _ in (loop := track([0, 1, 2], given)):
            pass
        assert loop.throughput.steps.samples.tolist() == (expected if given != 64 else [64] * 3)


def test_without_samples_it_counts_steps():
    for _ in (loop := track(range(6))):
        pass
    assert loop.throughput.unit == "steps" and len(loop.throughput) == 6
    assert "steps/s" in repr(loop.throughput)


def test_a_step_that_break_or_an_error_cuts_short_is_not_kept():
    for i in (loop := track(range(10))):
        if i == 3:
            break
    assert len(loop.rows) == 3
    with pytest.raises(ZeroDivisionError):
        for i in (loop := track(range(10))):
            1 / (5 - i)
    tracking.report_all()  # what a rank does after each cell
    assert len(loop.rows) == 5


def test_each_time_round_is_a_loop_of_its_own(monkeypatch):
    reports = []
    monkeypatch.setattr(tracking, "send_to", reports.append)
    loop = track(range(3), samples=10)
    for _ in range(2):
        for _ in loop:
            pass
    throughput = Throughput.of_reports([(0, report) for report in reports])
    assert throughput.steps.groupby("loop").size().tolist() == [3, 3]
    assert len(loop.throughput) == 3


def test_what_cannot_be_recorded_is_refused_where_it_is_said():
    for _ in (loop := track(range(2), samples=lambda i: torch.tensor(i + 5))):
        with pytest.raises(ValueError, match="seconds"):
            loop.log(seconds=1.0)
        with pytest.raises(ValueError, match="one element"):
            loop.log(loss=torch.zeros(2))
    assert loop.throughput.steps.samples.tolist() == [5, 6]


def test_no_batch_is_kept_longer_than_its_step():
    class Batch:
        shape = (4,)

    kept, alive = weakref.WeakSet(), []
    for batch in (loop := track(Batch() for _ in range(5))):
        kept.add(batch)
        del batch
        alive.append(len(kept))
    assert alive == [1] * 5 and not kept, "track() holds the current batch only"
    assert loop.throughput.steps.samples.tolist() == [4] * 5


def test_a_metric_keeps_the_value_it_had():
    total = torch.zeros(())
    for _ in (loop := track(range(3))):
        total += 1
        loop.log(total=total, rate=0.5)
    assert loop.throughput.steps.total.tolist() == [1, 2, 3]
    assert set(loop.throughput.steps.rate) == {0.5}


# FLOPs


def test_flops_of_a_step_are_those_of_the_closed_form():
    batch, width, classes = 8, 16, 4
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, classes)
    )
    for x in (loop := track(torch.randn(3, batch, width), samples=batch, flops=True, warmup=0)):
        model(x).sum().backward()
    forward = 2 * batch * width * (width + classes)
    backward = 2 * batch * width * (width + 2 * classes)  # of weights; and of the input of the second layer
    steps = loop.throughput.steps
    assert steps.flops.tolist() == [forward + backward] * 3
    assert steps.warmup.tolist() == [True, False, False], "the step that is counted is slower than the others"


def test_flops_of_attention_count_on_a_cpu_too():
    batch, heads, length, width = 2, 4, 16, 8
    q = torch.randn(batch, heads, length, width, requires_grad=True)
    for _ in (loop := track(range(1), flops=True)):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    one_product = 2 * batch * heads * length * length * width
    assert loop.flops == (2 + 5) * one_product  # backward computes the scores again: 5 products


def test_mfu_is_flops_over_time_over_peak(clock):
    for _ in (loop := track(clock.items(4, seconds=0), flops=3e9)):
        clock.now += 0.5
    assert loop.throughput.mfu(peak_flops_per_second=24e9)[0] == pytest.approx(3e9 / 0.5 / 24e9)
    for _ in (loop := track(range(4))):
        clock.now += 0.5
    with pytest.raises(ValueError, match="flops=True"):
        loop.throughput.mfu(1e12)


# CUDA: constructed events, for no GPU is needed to test who waits for whom


class Event:
    """A CUDA event that passes when the test says so; the device needs `milliseconds` between two."""

    made, milliseconds, synchronized = [], 8.0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        self.number, self.over = len(Event.made), False
        Event.made.append(self)

    def record(self):
        pass

    def query(self):
        return self.over

    def synchronize(self):
        Event.synchronized += 1
        self.over = True

    def elapsed_time(self, later):
        return Event.milliseconds * (later.number - self.number)


def test_on_a_gpu_events_tell_the_time_and_the_loop_waits_only_at_its_end(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    reports = []
    monkeypatch.setattr(tracking, "send_to", reports.append)
    for i in (loop := track(range(4))):
        clock.now += 0.3  # the processor; a report is due at each step
        assert Event.synchronized == 0
        if i == 2:
            Event.made[2].over = True  # the first step has passed on the device
    assert Event.synchronized == 3
    assert [row[2] for row in loop.rows] == pytest.approx([0.016] * 4)
    assert [row[3] for row in loop.rows] == pytest.approx([0.008] * 4), "the GPU's wait, not the host's"
    starts = [row[1] - loop.rows[0][1] for row in loop.rows]
    assert starts == pytest.approx([0.0, 0.016, 0.032, 0.048], abs=1e-6)
    assert [len(report["rows"]) for report in reports] == [1, 3]


# Throughput and what shows it


def reports(seconds_of_ranks, steps=3, unit="images"):
    """One loop a rank, its steps as long as said, one after the other."""
    made = []
    for rank, seconds in enumerate(seconds_of_ranks):
        rows = [[k, 1e9 + k * seconds, seconds, 0.0, 10, None, k == 0, {}] for k in range(steps)]
        made.append((rank, dict(number=7, name="", unit=unit, total=steps, rows=rows, done=True)))
    return made


def test_the_ranks_add_up_and_a_step_ends_with_its_slowest():
    throughput = Throughput.of_reports(reports([0.5, 1.0]))
    assert throughput.samples_per_second == pytest.approx(10 / 0.5 + 10 / 1.0)
    assert throughput.by_step.tolist() == pytest.approx([20 / 1.0] * 2)
    assert throughput.steps.loop.tolist() == [0] * 6 and throughput.steps.start_s.min() == 0


def test_nothing_but_warm_up_is_said():
    assert "all of them warm-up" in repr(Throughput.of_reports(reports([1.0], steps=1)))


def test_the_rows_show_how_far_each_rank_is():
    progress = Progress()
    assert progress.rows() == {} and progress.throughput() is None
    for rank, report in reports([0.5, 1.0]):
        report = {**report, "done": rank == 0, "total": 6 if rank else 3, "name": "epoch 1"}
        report["rows"][-1][-1]["loss"] = 0.123456
        progress.receive(rank, report)
    rows = progress.rows()
    assert rows[0] == "epoch 1 · 100% ████████████████ 3/3 · 20 images/s · loss 0.123"
    assert rows[1] == "epoch 1 ·  50% ████████         3/6 · 10 images/s · loss 0.123"
    assert rows[None] == "30 images/s"


def test_the_rows_show_a_loop_that_starves():
    progress = Progress()
    rows = [[k, 1e9 + k, 1.0, 0.6, None, None, False, {}] for k in range(3)]
    progress.receive(0, dict(number=0, name="", unit="samples", total=None, rows=rows, done=False))
    assert progress.rows() == {0: "3 steps · 1 steps/s · 60% waiting for data"}


@pytest.mark.parametrize(
    "per_second, text",
    [
        (12345.6, "12 300 u/s"),
        (999.6, "1 000 u/s"),
        (1234567, "1 230 000 u/s"),
        (45.67, "45.7 u/s"),
        (0.5, "0.5 u/s"),
    ],
)
def test_a_throughput_has_three_digits(per_second, text):
    assert rate(per_second, "u") == text


# From ranks and from scripts


@pytest.fixture(scope="module")
def group():
    group = Ranks()
    try:
        group.start(2, device="cpu")
        group.cell(cell("from fidle_utils.measure import track\nimport time"))
        yield group
    finally:
        group.stop()


def test_the_steps_of_all_ranks_arrive(group, capsys):
    group.cell(
        cell("""
        for epoch in range(2):
            for x in (loop := track(torch.zeros(20, 8, 2).unbind(), unit="images")):
                time.sleep(0.02)
                loop.log(mine=10 * rank + epoch)
        held = len(loop.rows)
        """)
    )
    steps, shown = group.throughput.steps, capsys.readouterr().out
    assert steps.groupby(["rank", "loop"]).size().tolist() == [20] * 4
    assert steps.groupby(["rank", "loop"]).mine.first().tolist() == [0, 1, 10, 11]
    assert (steps.samples == 8).all() and (steps.seconds > 0.02).all()
    assert group["held"] == [20, 20]
    rows = shown.splitlines()[-3:]  # drawn again whenever something has changed: how often is chance
    assert "20/20" in rows[0] and "20/20" in rows[1] and "images/s" in shown and "ranks 0, 1" in rows[2]


def test_a_cell_that_fails_loses_no_step_and_one_without_track_keeps_the_last(group):
    run_failing(
        group,
        """
        for i in track(range(10)):
            if i == 4 + rank:
                raise ValueError("enough")
        """,
    )
    assert group.throughput.steps.groupby("rank").size().tolist() == [4, 5]
    before = group.throughput
    group.cell(cell("x = 1"))
    assert group.throughput is before


def test_a_loss_that_is_not_a_number_arrives(group):
    group.cell(cell("for i in (loop := track(range(3))):\n    loop.log(loss=torch.tensor(float('nan')))"))
    assert group.throughput.steps.loss.isna().all()


SCRIPT = """
from fidle_utils.measure import track
for x in track(range(5), samples=32):
    pass
"""


def test_a_script_leaves_its_records_in_a_folder(tmp_path):
    for rank in ("0", "1"):  # as torchrun would start it
        environment = {
            "RANK": rank,
            "FIDLE_TRACK": str(tmp_path / "records"),
            "PATH": "",
            "PYTHONPATH": ":".join(sys.path),
        }
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("5/5" in done.stderr) == (rank == "0"), "one bar, of rank 0"
    throughput = Throughput.load(tmp_path / "records")
    assert throughput.steps.groupby("rank").samples.sum().tolist() == [160, 160]
    with pytest.raises(FileNotFoundError, match="FIDLE_TRACK"):
        Throughput.load(tmp_path)


def test_a_report_is_plain_data():
    for _ in (loop := track(range(2))):
        loop.log(loss=torch.tensor(0.5))
    report = json.loads(json.dumps(loop._as_report(loop.rows)))
    assert report["rows"][0][-1] == {"loss": 0.5} and isinstance(types.SimpleNamespace(**report).total, int)
