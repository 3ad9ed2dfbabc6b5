import json
import os
import time
from collections import namedtuple

import psutil
import pytest
import torch

from fidle_utils.measure import machine, processor, speed

FAKE_NVIDIA_SMI = """#!/bin/sh
if [ "$1" = topo ]; then
  printf '\\tGPU0\\tGPU1\\tCPU Affinity\\nGPU0\\t X \\tNV12\\t0-15\\nGPU1\\tNV12\\t X \\t0-15\\n\\nLegend:\\n'
else
  echo '0, GPU-aaa, NVIDIA H100 80GB HBM3, 81559'
  echo '1, GPU-bbb, NVIDIA H100 80GB HBM3, 81559'
fi
"""


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(FAKE_NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine._gpus.cache_clear()
    yield
    machine._gpus.cache_clear()


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A folder that stands for /sys/fs/cgroup; this process is in `a/b` of it."""
    real_read = processor.read
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(machine, "CGROUP", root)
    groups = "4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/a/b"
    monkeypatch.setattr(processor, "read", lambda p: groups if p == "/proc/self/cgroup" else real_read(p))
    return root


def test_the_report_agrees_with_psutil_and_is_quick():
    start = time.perf_counter()
    report = machine.device_report()
    assert time.perf_counter() - start < 2
    assert report.logical_cores == len(psutil.Process().cpu_affinity()) >= report.physical_cores
    assert report.memory_bytes <= psutil.virtual_memory().total
    assert report.torch == torch.__version__ and report.cpu
    assert not torch.cuda.is_initialized()


def test_the_memory_copy_counts_bytes_read_and_written_and_keeps_the_best(monkeypatch):
    monkeypatch.setattr(speed, "timings", lambda *_, **__: [0.4, 0.2, 0.3])
    assert machine._copy_bytes_per_second(4_000_000, repeats=9) == pytest.approx(8_000_000 / 0.2)


def test_a_full_report_names_what_was_measured(monkeypatch):
    rates = [
        ("memory", "copy", 3e10, "B/s"),
        ("matmul", "fp32", 2e11, "FLOP/s"),
        ("matmul", "bf16", 4e11, "FLOP/s"),
    ]
    keys = ("quantity", "name", "best", "unit")
    speeds = [dict(zip(keys, rate, strict=True), device="cpu", threads=2, median=1.0) for rate in rates]
    asked = []
    monkeypatch.setattr(speed, "measure_speed", lambda device: asked.append(device) or speeds)
    monkeypatch.setattr(speed, "default_device", lambda: torch.device("cpu"))
    assert machine.device_report(copy_megabytes=1, repeats=1).speeds == [] and asked == []
    report = machine.device_report(copy_megabytes=1, repeats=1, full=True)
    assert asked == ["cpu"] and report.speeds == speeds
    assert ("CPU memory", "copy 30 GB/s (measured here, the best)") in report.rows()
    assert ("CPU matmul", "fp32 0.2, bf16 0.4 TFLOP/s (measured here, the best)") in report.rows()
    monkeypatch.setattr(speed, "default_device", lambda: torch.device("cuda", 0))
    machine.device_report(copy_megabytes=1, repeats=1, full=True)
    assert asked == ["cpu", "cpu", "cuda"]


@pytest.fixture
def sys_cores(tmp_path, monkeypatch):
    """A folder that stands for /sys/devices/system/cpu: four cores, two a pair that shares L1 and L2."""
    for core in range(4):
        pair = "0-1" if core < 2 else "2-3"
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "48K", pair), (1, "Instruction", "32K", pair), (2, "Unified", "1280K", pair)]
            + [(3, "Unified", "24576K", "0-3")]
        ):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in dict(level=level, type=kind, size=size, shared_cpu_list=shared).items():
                (folder / name).write_text(f"{text}\n")
        topology = tmp_path / f"cpu{core}" / "topology"
        topology.mkdir()
        (topology / "thread_siblings_list").write_text(f"{pair}\n")
    monkeypatch.setattr(processor, "CORES", tmp_path)


def test_caches_are_counted_once_and_only_those_of_the_cores_given(sys_cores):
    def sizes(cores):
        return [(c["name"], c["n_bytes"] >> 10, c["count"]) for c in processor.caches(cores)]

    assert sizes([0, 1, 2, 3]) == [("L1", 48, 2), ("L2", 1280, 2), ("L3", 24576, 1)]
    assert sizes([0, 1]) == [("L1", 48, 1), ("L2", 1280, 1), ("L3", 24576, 1)]
    texts = [processor.cache_text(cache) for cache in processor.caches([0, 2])]
    assert texts == ["2 × 48 KiB L1", "2 × 1.25 MiB L2", "1 × 24 MiB L3"]
    assert processor.physical_cores([0, 1, 2, 3]) == 2


def test_caches_that_the_system_does_not_name_are_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CORES", tmp_path)
    monkeypatch.setattr(processor.platform, "system", lambda: "Linux")
    assert processor.caches([0]) == []
    report = machine.device_report(copy_megabytes=1, repeats=1)
    assert ("Caches", "unknown") in report.rows()


def test_caches_of_a_mac_have_sizes_and_no_count(tmp_path, monkeypatch):
    sizes = {"hw.l1dcachesize": "65536\n", "hw.l2cachesize": "4194304\n"}
    monkeypatch.setattr(processor, "CORES", tmp_path)
    monkeypatch.setattr(processor.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(processor, "output", lambda *command: sizes.get(command[-1], ""))
    assert [processor.cache_text(cache) for cache in processor.caches([0])] == ["64 KiB L1", "4 MiB L2"]


def test_the_report_shows_itself_and_exports_plain_data():
    report = machine.device_report(copy_megabytes=1, repeats=1)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert "GB/s (measured here" in repr(report)
    assert repr(report).splitlines()[0].split()[0] == "Processor" and "<table>" in report._repr_html_()
    assert report.name == machine.machine_name()


def test_gpus_are_read_from_the_driver(two_gpus):
    report = machine.device_report(copy_megabytes=1, repeats=1)
    assert report.gpus == [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 << 20}] * 2
    assert report.gpu_link == "NVLink"
    assert "2 × NVIDIA H100 80GB HBM3" in repr(report) and "NVLink" in repr(report)


@pytest.mark.parametrize("visible, count", [("1", 1), ("GPU-b", 1), ("0,1", 2), ("", 0), ("-1", 0)])
def test_only_visible_gpus_count(two_gpus, monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(machine._gpus()) == count


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(machine, "_nvidia_smi", lambda *arguments: "")
    machine._gpus.cache_clear()
    assert "no GPU" in repr(machine.device_report(copy_megabytes=1, repeats=1))
    machine._gpus.cache_clear()


def test_cgroup_2_limits_of_every_level_count(cgroup):
    (cgroup / "a" / "cpu.max").write_text("150000 100000\n")
    (cgroup / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (cgroup / "a" / "b" / "memory.max").write_text("1000000\n")
    (cgroup / "a" / "memory.max").write_text("max\n")
    assert machine._cgroup_core_limit() == 1.5
    assert machine._cgroup_memory_limit() == 1_000_000
    report = machine.device_report(copy_megabytes=1, repeats=1)
    assert report.memory_bytes == 1_000_000
    if report.logical_cores > 1:
        assert "limited to the time of 1.5" in repr(report) and "1.5 cores" in report.name


def test_cgroup_1_limits_count(cgroup):
    for controller in ("cpu", "memory"):
        (cgroup / controller / "a" / "b").mkdir(parents=True)
    (cgroup / "cpu" / "a" / "b" / "cpu.cfs_quota_us").write_text("50000\n")
    (cgroup / "cpu" / "a" / "b" / "cpu.cfs_period_us").write_text("100000\n")
    (cgroup / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (cgroup / "memory" / "a" / "memory.limit_in_bytes").write_text("2000000\n")
    assert machine._cgroup_core_limit() == 0.5
    assert machine._cgroup_memory_limit() == 2_000_000


def test_no_cgroup_no_limit(cgroup):
    assert machine._cgroup_core_limit() is None and machine._cgroup_memory_limit() is None


def test_what_other_programs_used_is_said(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(processor.time, "perf_counter", lambda: next(clock))
    others = iter([100.0, 112.0])  # twelve seconds of core time in ten, on four cores
    monkeypatch.setattr(processor, "seconds_of_others", lambda: next(others))
    monkeypatch.setattr(processor, "cores", lambda: [0, 1, 2, 3])
    with processor.watch_others() as shares:
        pass
    assert shares == [pytest.approx(0.3)]
    report = machine.DeviceReport("A processor", 4, 2, None, 1, 1, others_share=0.3)
    assert ("Beware", "other programs used 30% of the cores: measure again alone") in report.rows()
    assert "Beware" not in dict(machine.DeviceReport("A processor", 4, 2, None, 1, 1).rows())


def test_only_the_work_of_others_on_the_cores_of_this_process_counts(monkeypatch):
    times = namedtuple("times", "user system idle steal")
    busy = [times(10, 2, 100, 1), times(20, 0, 100, 0), times(40, 0, 100, 0)]
    monkeypatch.setattr(processor.psutil, "cpu_times", lambda percpu: busy)
    monkeypatch.setattr(processor, "cores", lambda: [0, 2, 7])  # the system says nothing of core 7
    monkeypatch.setattr(processor.time, "process_time", lambda: 3.0)
    assert processor.seconds_of_others() == 13 + 40 - 3
