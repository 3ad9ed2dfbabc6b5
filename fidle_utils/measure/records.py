"""Recorded measurements: what a machine that you may not have did, every sample of it, as JSON.

`notebooks/recorded/record.py` writes such files on the machine where it runs; figures draw them as recorded.
"""

import dataclasses
import json
import math
import platform
import re
import shlex
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from fidle_utils.measure import processor

__all__ = ["FOLDER", "Record", "RecordError", "available", "ceilings", "load", "new", "save"]

SCHEMA = 1
FOLDER = Path(__file__).parents[2] / "notebooks" / "recorded"
_VERSIONS = ("python", "torch", "cuda", "driver", "fidle_utils")


class RecordError(ValueError):
    """A record that is not whole; says which part of it, and what belongs there."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One measurement of one machine. Texts are never empty but where said; None is unknown or absent."""

    what: str  # "matmul", "collectives", …: one word, the same for every machine
    machine: dict  # of `DeviceReport.to_dict()`
    device: str  # what was measured: the GPU, with their number if several, or the processor
    date: str  # when, in UTC: 2026-11-23T18:40:00+00:00
    versions: dict  # python, torch, cuda, driver, fidle_utils
    command: str  # the command that measured
    commit: str | None  # of the script; ends with "+changes" where files differed from it
    units: dict  # column → unit: "s", "bytes", "bytes/s"; "1" for a count; "" for a text
    rows: list  # flat dicts, one a sample, all with the columns of `units`
    schema: int = SCHEMA

    @property
    def label(self):
        """What a legend says: "recorded · NVIDIA H100 · 2026-11-23"."""
        return f"recorded · {self.device} · {self.date[:10]}"

    def table(self):
        """Return the rows as a pandas.DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.units))

    def __repr__(self):
        return f"{self.what}: {self.label}, {len(self.rows)} samples of {', '.join(self.units)}"


def new(what, rows, units, device=None, command=None):
    """Return a Record of `rows`, just measured: machine, date, versions, command and commit are read here.

    `device` names what was measured; by default the GPUs of this machine, else its processor.
    """
    from fidle_utils.measure.machine import device_report

    report = device_report()
    record = Record(
        what=what,
        machine=report.to_dict(),
        device=device or _device(report),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        command=command or shlex.join([Path(sys.executable).name, *sys.argv]),
        commit=_commit(),
        units=dict(units),
        rows=list(rows),
    )
    _check(dataclasses.asdict(record), f"the new record of {what!r}")
    return record


def save(record, folder=FOLDER):
    """Write a Record to `folder` as WHAT_DEVICE_DATE.json and return the path; never replaces a file."""
    content = dataclasses.asdict(record)
    _check(content, f"the record of {record.what!r}")
    device = re.sub(r"[^a-z0-9]+", "-", record.device.lower()).strip("-")
    path = Path(folder, f"{record.what}_{device}_{record.date[:16].replace(':', '')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items() if name != "rows"]
    rows = ",\n  ".join(json.dumps(row) for row in record.rows)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("{\n" + ",\n".join([*head, f'"rows": [\n  {rows}\n]']) + "\n}\n")
    except FileExistsError:
        message = (
            f"{path} exists, and a record is never edited: delete it yourself, or save to another folder."
        )
        raise FileExistsError(message) from None
    return path


def load(path):
    """Return the Record in a file; RecordError says what is wrong with one that is not whole."""
    path = Path(path)
    if not path.exists() and path.parent == Path("."):
        path = FOLDER / path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecordError(f"{path} is not JSON: {error}. Record it again.") from None
    _check(content, path)
    return Record(**content)


def available(what=None, folder=FOLDER):
    """Return the Records in `folder`, all or those of `what`, the oldest first: a list, empty without any."""
    found = [load(path) for path in Path(folder).glob("*.json")]
    return sorted((r for r in found if what in (None, r.what)), key=lambda record: record.date)


# ----------------------------------------------------------------------------------------------- schema


def ceilings(matmul, memory, dtype):
    """Return what two Records of one machine reached, as one of the `others` of `plot_roofline`.

    Medians: of the size of matrix that went fastest, and of the largest copy, which no cache holds.
    Raises LookupError for a dtype that was not recorded, ValueError for two machines.
    """
    if matmul.device != memory.device:
        raise ValueError(f"records of two machines: {matmul.device} and {memory.device}.")
    products = [row for row in matmul.rows if row["dtype"] == dtype]
    if not products:
        raise LookupError(f"{matmul!r} has no {dtype}, but {sorted({row['dtype'] for row in matmul.rows})}.")
    copies = _medians(memory.rows, "n_bytes", "bytes_per_second")
    return {
        "name": f"{matmul.device}, {dtype}",
        "flops_per_second": max(_medians(products, "n", "flops_per_second").values()),
        "bytes_per_second": copies[max(copies)],
        "label": matmul.label,
    }


def _medians(rows, size, column):
    samples = defaultdict(list)
    for row in rows:
        samples[row[size]].append(row[column])
    return {n: median(values) for n, values in samples.items()}


def _check(content, where):
    """Raise RecordError unless `content` is a whole record of this schema."""

    def need(condition, message):
        if not condition:
            raise RecordError(f"{where}: {message}")

    need(isinstance(content, dict), "a record is a JSON object")
    version = content.get("schema")
    need(version == SCHEMA, f"schema {version!r}; this version of fidle_utils reads {SCHEMA}")
    fields = {field.name for field in dataclasses.fields(Record)}
    need(not (missing := fields - set(content)), f"without {', '.join(sorted(missing))}")
    need(not (extra := set(content) - fields), f"with {', '.join(sorted(extra))}, unknown to the schema")
    for name in ("what", "device", "command"):
        need(isinstance(content[name], str) and content[name], f"{name} is a text, not {content[name]!r}")
    need(re.fullmatch(r"[a-z0-9_]+", content["what"]), f"what is one word, not {content['what']!r}")
    need(_is_date(content["date"]), f"date is like 2026-11-23T18:40:00+00:00, not {content['date']!r}")
    need(content["commit"] is None or isinstance(content["commit"], str), "commit is a text or null")
    need(isinstance(content["machine"], dict) and content["machine"].get("cpu"), "machine is without a cpu")
    versions = content["versions"]
    need(
        isinstance(versions, dict) and set(versions) == set(_VERSIONS), f"versions has {', '.join(_VERSIONS)}"
    )
    units, rows = content["units"], content["rows"]
    need(isinstance(units, dict) and units, "units names no column")
    need(all(isinstance(unit, str) for unit in units.values()), "a unit is a text")
    need(isinstance(rows, list) and rows, "rows holds no sample")
    for i, row in enumerate(rows):
        need(isinstance(row, dict), f"rows[{i}] is no object")
        differing = sorted(set(row) ^ set(units))
        need(not differing, f"rows[{i}] and units differ in the column {', '.join(differing)}")
        for column, value in row.items():
            good = isinstance(value, str) if units[column] == "" else _is_number(value)
            expected = "a text" if units[column] == "" else f"a finite number in {units[column]}"
            need(good, f"rows[{i}], column {column}: {value!r} is not {expected}")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_date(text):
    try:
        return datetime.fromisoformat(text).utcoffset() is not None
    except (TypeError, ValueError):
        return False


# -------------------------------------------------------------------------------------------- this machine


def _device(report):
    names = [gpu["name"] for gpu in report.gpus] or [report.cpu]
    count = f"{len(names)} × " if len(names) > 1 else ""
    return count + names[0]


def _versions():
    from importlib.metadata import PackageNotFoundError, version

    import torch

    try:
        own = version("fidle-acceleration")
    except PackageNotFoundError:  # run from a folder, not installed
        own = None
    driver = processor.output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = driver.strip().partition("\n")[0] or None
    values = (platform.python_version(), torch.__version__, torch.version.cuda, driver, own)
    return dict(zip(_VERSIONS, values, strict=True))


def _commit():
    """The commit of this package's repository, None outside of one."""
    git = ("git", "-C", str(FOLDER.parent))
    commit = processor.output(*git, "rev-parse", "HEAD").strip()
    changed = processor.output(*git, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit or None
