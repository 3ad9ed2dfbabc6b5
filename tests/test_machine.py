import json
import os
import time

import psutil
import pytest
import torch

from fidle_utils.measure import machine

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
    real_read = machine._read
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(machine, "CGROUP", root)
    groups = "4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/a/b"
    monkeypatch.setattr(machine, "_read", lambda p: groups if p == "/proc/self/cgroup" else real_read(p))
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
    # The end of the half second, then start and stop of two copies, with a look at the clock in between.
    ticks = iter([0, 0.0, 0.4, 0.41, 0.41, 0.61, 0.7])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    assert machine._copy_bytes_per_second(4_000_000, repeats=9) == pytest.approx(8_000_000 / 0.2)


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
