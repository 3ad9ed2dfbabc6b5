"""Recorded measurements: whole, honest, never replaced; the recorder runs on this machine."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from fidle_utils.measure import records
from fidle_utils.measure.records import Record, RecordError
from fidle_utils.plots.collectives import plot_bus_bandwidth
from fidle_utils.plots.style import overlay, overlay_label
from fidle_utils.plots.throughput import plot_scaling
from fidle_utils.reference import table

ROOT = Path(__file__).parent.parent
RECORDER = ROOT / "notebooks/recorded/record.py"
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "cuda": "13.0", "driver": "580.1", "fidle_utils": None}
UNITS = {"operation": "", "ranks": "1", "n_bytes": "bytes", "sample": "1", "bus_bandwidth": "bytes/s"}


def constructed(**changes):
    """A record of no machine: its numbers are only for tests."""
    rows = [
        dict(operation="all_reduce", ranks=2, n_bytes=2**k, sample=i, bus_bandwidth=float(2**k * (i + 1)))
        for k in (10, 20)
        for i in range(3)
    ]
    values = dict(
        what="collectives",
        machine={"cpu": "A processor"},
        device="A device",
        date="2026-11-23T18:40:00+00:00",
        versions=VERSIONS,
        command="python record.py",
        commit=None,
        units=UNITS,
        rows=rows,
    )
    return Record(**values | changes)


def test_every_file_that_is_recorded_is_whole():
    for path in records.FOLDER.glob("*.json"):  # there may be none
        record = records.load(path)
        assert path.name.startswith(f"{record.what}_") and f"_{record.date[:10]}T" in path.stem
        assert "--quick" not in record.command


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = constructed()
    path = records.save(record, tmp_path)
    assert path.name == "collectives_a-device_2026-11-23T1840.json"
    assert records.load(path) == record
    assert record.label == "recorded · A device · 2026-11-23"
    frame = record.table()
    assert list(frame.columns) == list(UNITS) and len(frame) == 6
    assert frame.groupby("n_bytes").bus_bandwidth.median().tolist() == [2**11, 2**21]


def test_a_record_is_never_replaced(tmp_path):
    path = records.save(constructed(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="never edited"):
        records.save(constructed(command="another"), tmp_path)
    assert path.read_bytes() == before


def test_what_is_available_comes_oldest_first(tmp_path):
    assert records.available(folder=tmp_path) == []
    for what, day in (("matmul", 1), ("collectives", 3), ("collectives", 2)):
        records.save(constructed(what=what, date=f"2026-11-0{day}T00:00:00+00:00"), tmp_path)
    assert [r.date[9] for r in records.available("collectives", tmp_path)] == ["2", "3"]
    assert [r.what for r in records.available(folder=tmp_path)] == ["matmul", "collectives", "collectives"]


ROW = constructed().rows[0]
WRONG = {
    "without rows": ({"rows": None}, "rows holds no sample"),
    "schema 7": ({"schema": 7}, "schema 7; this version"),
    "no device": ({"device": ""}, "device is a text"),
    "two words": ({"what": "two words"}, "one word"),
    "a day": ({"date": "yesterday"}, "date is like 2026"),
    "no time zone": ({"date": "2026-11-23"}, "date is like 2026"),
    "no cpu": ({"machine": {}}, "machine is without a cpu"),
    "no driver": ({"versions": {"python": "3.11"}}, "versions has python, torch, cuda, driver"),
    "a number as commit": ({"commit": 5}, "commit is a text or null"),
    "no units": ({"units": {}}, "units names no column"),
    "a column too many": (
        {"rows": [ROW, ROW | {"note": 1}]},
        r"rows\[1\] and units differ in the column note",
    ),
    "a column missing": ({"rows": [{}]}, r"rows\[0\] and units differ in the column bus_bandwidth, n_bytes"),
    "not a number": (
        {"rows": [ROW | {"n_bytes": "8"}]},
        "column n_bytes: '8' is not a finite number in bytes",
    ),
    "infinite": ({"rows": [ROW | {"bus_bandwidth": float("inf")}]}, "not a finite number in bytes/s"),
    "true": ({"rows": [ROW | {"sample": True}]}, "True is not a finite number"),
    "not a text": ({"rows": [ROW | {"operation": 1}]}, "1 is not a text"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_what_is_not_whole_is_refused_with_the_place(tmp_path, changes, message):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(dataclasses.asdict(constructed()) | changes))
    with pytest.raises(RecordError, match=message):
        records.load(path)


def test_missing_and_unknown_keys_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "wrong.json"
    content = dataclasses.asdict(constructed())
    for wrong, message in (({"median": 3}, "with median, unknown"), ({"date": ...}, "without date")):
        left = {key: value for key, value in (content | wrong).items() if value is not ...}
        path.write_text(json.dumps(left))
        with pytest.raises(RecordError, match=message):
            records.load(path)
    path.write_text("{")
    with pytest.raises(RecordError, match="not JSON"):
        records.load(path)
    with pytest.raises(RecordError, match="rows holds no sample"):
        records.save(constructed(rows=[]), tmp_path)


def test_the_recorder_measures_everything_on_this_machine(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(RECORDER), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = {record.what: record for record in records.available(folder=tmp_path)}
    assert set(found) == {"matmul", "memory", "training", "collectives", "scaling"}
    for record in found.values():
        assert record.command.endswith(f"record.py --quick --out {tmp_path}")
        assert record.table().seconds.gt(0).all()
    collectives = found["collectives"].table()
    assert set(collectives.operation) == {"all_reduce", "all_gather", "reduce_scatter", "broadcast"}
    factors = collectives.bus_bandwidth * collectives.seconds / collectives.n_bytes
    expected = {"all_reduce": 1, "broadcast": 1, "all_gather": 0.5, "reduce_scatter": 0.5}  # of two ranks
    assert factors.tolist() == pytest.approx([expected[name] for name in collectives.operation])
    matmul = found["matmul"].table()
    assert (2 * matmul.n**3 / matmul.seconds).tolist() == pytest.approx(matmul.flops_per_second.tolist())
    assert set(found["training"].table().model) == {"MLP", "SmallCNN", "GPT"}
    assert set(found["scaling"].table()["mode"]) == {"one process", "ddp"}


def test_a_trial_is_not_written_among_the_records(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("record", RECORDER)
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    for arguments, message in (
        (["--quick"], "name another folder with --out"),
        (["speed"], "cannot measure speed; there are matmul, memory"),
    ):
        monkeypatch.setattr(sys, "argv", ["record.py", *arguments])
        with pytest.raises(SystemExit):
            recorder.parse()
        assert message in capsys.readouterr().err


def test_a_new_record_describes_this_machine():
    record = records.new("matmul", [{"n": 1}], {"n": "1"})
    assert record.machine["cpu"] and record.device
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record.commit is None or len(record.commit.removesuffix("+changes")) == 40


# ------------------------------------------------------------------------------------------- in figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def curves(ax):
    return {line.get_label().replace("\n", " "): line for line in ax.lines}


def test_bus_bandwidth_shows_measured_recorded_and_published_each_with_its_name():
    measured = [row | {"bus_bandwidth": 5e8} for row in constructed().rows]
    published = table("nccl_allreduce_busbw")
    ax = plot_bus_bandwidth(measured, recorded=[constructed()], published=published)
    ax.figure.canvas.draw()
    lines = curves(ax)
    assert list(lines["measured · 2 ranks"].get_ydata()) == [5e8, 5e8]
    assert list(lines["recorded · A device · 2026-11-23 · 2 ranks"].get_ydata()) == [2**11, 2**21]
    a100 = lines["published · 8×A100, NVLink 3 · nccl-tests, ml-engineering"]
    assert (a100.get_xdata()[-1], a100.get_ydata()[-1]) == (2**34, 234.89e9)
    assert len(lines) == 6, "four published systems with a sweep"
    assert len({line.get_linestyle() for line in list(lines.values())[:3]}) == 3
    assert ax.get_xscale() == "log" and ax.get_xlabel() and ax.get_ylabel()
    assert ax.texts[0].get_text().startswith("measured here · ")
    assert "32 KiB" in [label.get_text() for label in ax.get_xticklabels()]


def test_without_a_measurement_the_note_says_what_is_left():
    published = table("nccl_allreduce_busbw", system="8×B200, NVLink 5")
    assert plot_bus_bandwidth(published=published).texts[0].get_text() == "published"
    assert plot_bus_bandwidth(recorded=[constructed()]).texts[0].get_text() == "recorded"
    with pytest.raises(ValueError, match="no row of all_gather"):
        plot_bus_bandwidth(published=published, operation="all_gather")


def test_a_label_names_one_system_of_one_source():
    rows = table("nccl_allreduce_busbw")
    with pytest.raises(ValueError, match="one system from one source"):
        overlay_label(rows)
    ax = plt.subplots()[1]
    line = overlay(ax, [1, 2], [1, 2], table("gpu_specs", gpu="T4"), "peak")
    assert line.get_label().replace("\n", " ").startswith("published · T4 · Lightning throughput.py")
    assert line.get_label().endswith("peak")


def of_machine(what, rows, device="A GPU"):
    return constructed(what=what, rows=rows, device=device)


def test_two_records_make_the_ceilings_of_a_machine():
    products = [
        dict(device="cuda", dtype=dtype, n=n, sample=i, flops_per_second=peak * n * (1 + i))
        for dtype, peak in (("bf16", 1e12), ("fp32", 1e11))
        for n in (1, 2)
        for i in range(3)
    ]
    copies = [
        dict(device="cuda", n_bytes=n, sample=i, bytes_per_second=rate + i)
        for n, rate in ((10, 9e12), (1000, 3e12))  # the small one lies in a cache
        for i in range(3)
    ]
    matmul, memory = of_machine("matmul", products), of_machine("memory", copies)
    roof = records.ceilings(matmul, memory, "bf16")
    assert (roof["flops_per_second"], roof["bytes_per_second"]) == (4e12, 3e12 + 1)
    assert roof["label"] == "recorded · A GPU · 2026-11-23"
    with pytest.raises(LookupError, match="fp8"):
        records.ceilings(matmul, memory, "fp8")
    with pytest.raises(ValueError, match="two machines"):
        records.ceilings(matmul, of_machine("memory", copies, "Another"), "bf16")


def test_recorded_efficiency_stands_beside_what_was_measured():
    rows = [
        dict(mode=mode, ranks=n, samples_per_second=rate)
        for mode, n, rates in (("ddp", 1, (9, 10, 11)), ("ddp", 4, (20, 20, 90)), ("one process", 1, (1, 1)))
        for rate in rates
    ]
    _, right = plot_scaling({1: [1], 2: [2]}, recorded=[of_machine("scaling", rows, "4 × A GPU")])
    (line,) = (line for line in right.lines if "recorded" in line.get_label())
    assert list(line.get_xdata()) == [1, 4] and list(line.get_ydata()) == [100, 50]
    plt.close("all")
