import math
import os

import pytest
import torch

from fidle_utils import Ranks
from fidle_utils.measure import speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `tick(seconds)` moves."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def tick(seconds):
        now[0] += seconds

    return tick


def test_timings_leave_the_first_call_out_and_go_on_for_some_seconds(clock):
    costs = iter([9, 1, 2, 1, 1, 1, 1])
    assert speed.timings(lambda: clock(next(costs)), seconds=4.5) == [1, 2, 1, 1]


def test_timings_are_three_at_least_and_not_more_than_asked_for(clock):
    assert len(speed.timings(lambda: clock(10), seconds=1)) == 3
    assert len(speed.timings(lambda: clock(0.01), seconds=1, most=5)) == 5
    assert len(speed.timings(lambda: clock(10), seconds=1, most=1)) == 1


def well_formed(rates):
    for rate in rates:
        assert rate["best"] >= rate["median"] > 0 and math.isfinite(rate["best"])
        assert rate["samples"] >= 3 and rate["n_bytes"] > 0 and rate["device"] == "cpu"
        assert rate["threads"] == torch.get_num_threads()
    return rates


def test_memory_and_matmul_rates_are_positive_and_the_best_is_no_less_than_the_median():
    memory = well_formed(speed.memory_speed(seconds=0.01, n_bytes=1 << 20))
    assert [(rate["name"], rate["unit"]) for rate in memory] == [
        (n, "B/s") for n in ("copy", "triad", "read")
    ]
    matmul = well_formed(speed.matmul_speed(seconds=0.01, sides=[64, 128]))
    assert [(rate["name"], rate["unit"]) for rate in matmul] == [("fp32", "FLOP/s"), ("bf16", "FLOP/s")]
    sweep = well_formed(speed.memory_sweep(sizes=[1 << 16, 1 << 18], seconds=0.01))
    assert [rate["n_bytes"] for rate in sweep] == [1 << 16, 1 << 18]


def test_rates_count_all_bytes_that_are_read_and_written_and_two_flops_a_product(monkeypatch):
    touched = []

    def timings(function, *_, **__):
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "copy_", lambda a, b: touched.append([a, b]))
            patched.setattr(torch, "add", lambda b, c, alpha, out: touched.append([b, c, out]))
            patched.setattr(torch, "amax", lambda a, dim, out: touched.append([a]))
            function()
        return [0.5, 0.25, 1.0]

    monkeypatch.setattr(speed, "timings", timings)
    rates = speed.memory_speed(n_bytes=24_000)
    assert [sum(tensor.nbytes for tensor in tensors) for tensors in touched] == [24_000] * 3
    assert [(rate["best"], rate["median"]) for rate in rates] == [(96_000, 48_000)] * 3

    monkeypatch.setattr(speed, "timings", lambda *_, **__: [0.5, 0.25, 1.0])
    fp32, bf16 = speed.matmul_speed(seconds=1, sides=[8, 16])
    assert fp32["best"] == bf16["best"] == 2 * 16**3 / 0.25
    assert (fp32["n_bytes"], bf16["n_bytes"]) == (3 * 256 * 4, 3 * 256 * 2)


def test_a_gpu_is_asked_only_for_the_dtypes_that_it_has(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert speed._matmul_dtypes(gpu) == ["fp32", "fp16"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert speed._matmul_dtypes(gpu) == ["fp32", "tf32", "bf16", "fp16"]


def test_the_precision_of_matmul_is_put_back():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), speed.fp32_matmul("tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        1 / 0  # noqa: B018
    assert torch.backends.cuda.matmul.fp32_precision == before


class FakeCuda:
    """CUDA events on a clock that `seconds` moves: what _cuda_timings asks of a GPU, in which order."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        for name, value in {
            "Event": self.event,
            "synchronize": lambda: self.log.append("synchronize"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        properties = type("Properties", (), {"L2_cache_size": 100})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        cuda = self

        class Filler:
            def zero_(self):
                cuda.log.append("flush")
                cuda.now += 5000  # not counted: it comes before the first event

        self.filler_bytes = None

        def empty(n, **_):
            self.filler_bytes = n
            return Filler()

        monkeypatch.setattr(torch, "empty", empty)

    def event(self, enable_timing):
        cuda = self

        class Event:
            def record(self):
                self.at = cuda.now

            def elapsed_time(self, end):
                assert cuda.log[-1] == "synchronize"
                return end.at - self.at

        return Event()

    def work(self):
        self.log.append("work")
        self.now += 20  # milliseconds


def test_a_gpu_is_timed_between_events_after_its_cache_was_filled(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    assert speed._cuda_timings(cuda.work, None, 0.2, 1000, flush=True) == [0.02] * 10
    assert cuda.filler_bytes == 400
    assert cuda.log[:4] == ["work", "flush", "work", "flush"]
    assert cuda.log.count("synchronize") == 2  # after the estimate and at the end: never between two calls
    assert speed._cuda_timings(cuda.work, None, 0.2, 4, flush=False) == [0.02] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_all_its_rates():
    rates = speed.measure_speed("cuda", seconds=0.05)
    assert {rate["quantity"] for rate in rates} == {"memory", "matmul", "transfer"}
    assert all(rate["best"] >= rate["median"] > 0 and rate["threads"] is None for rate in rates)


def test_freed_pages_are_kept_and_then_given_back(monkeypatch):
    calls = []

    class Libc:
        def mallopt(self, option, value):
            calls.append((option, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(speed.ctypes, "CDLL", lambda name: Libc())
    monkeypatch.setattr(speed.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ZeroDivisionError), speed.kept_pages():
        assert calls == [(-4, 0), (-1, -1)]
        1 / 0  # noqa: B018
    assert calls[2:] == [(-4, 65536), (-3, 32 << 20), (-1, 64 << 20), "trim"]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")  # whoever runs this process has chosen
    calls.clear()
    with speed.kept_pages():
        assert calls == []


def test_link_speed_wants_ranks():
    with pytest.raises(RuntimeError, match="ranks.run"):
        speed.link_speed()


@pytest.fixture(scope="module")
def four():
    group = Ranks()
    group.start(4, device="cpu")
    yield group
    group.stop()


def test_all_ranks_agree_on_the_speed_of_their_links(four):
    answers = four.run(speed.link_speed, sizes=(8, 4096), repeats=3, calls=2)
    rows = answers[0]
    assert all(answer == rows for answer in answers)
    operations = ["send 0→1", "send 0→3", "all_reduce"]
    assert [(row["operation"], row["n_bytes"]) for row in rows] == [
        (o, n) for n in (8, 4096) for o in operations
    ]
    for row in rows:
        factor = 2 * 3 / 4 if row["operation"] == "all_reduce" else 1
        assert row["ranks"] == 4 and 0 < row["best_seconds"] <= row["seconds"]
        assert row["algorithm_bandwidth"] == pytest.approx(row["n_bytes"] / row["best_seconds"])
        assert row["bus_bandwidth"] == pytest.approx(factor * row["algorithm_bandwidth"])


def test_the_slowest_rank_counts(four):
    four.cell(
        "import time\nfrom fidle_utils.measure import speed\n"
        "slow = lambda: time.sleep(0.05 if rank == 2 else 0)\n"
        "seen = speed._slowest(slow, repeats=2, calls=2, device=device)"
    )
    assert all(0.05 <= seconds < 5 for seen in four["seen"] for seconds in seen)
    assert len({tuple(seen) for seen in four["seen"]}) == 1


def test_half_of_the_way_there_and_back_is_one_message(four):
    """A send that takes 200 ms each way counts 200 ms."""
    four.cell(
        "real = dist.send\n"
        "def late(message, dst):\n    time.sleep(0.2)\n    real(message, dst=dst)\n"
        "dist.send = late\n"
        "rows = speed.link_speed(sizes=(8,), repeats=2, calls=1)\n"
        "dist.send = real"
    )
    row = four["rows"][0][0]
    assert row["operation"] == "send 0→1" and 0.2 <= row["best_seconds"] < 0.4
