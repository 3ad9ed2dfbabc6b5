"""Kinds of nodes, as plain data: what a job must ask for on Jean Zay, or on any cluster."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from fidle_utils.cluster.errors import ClusterError

__all__ = ["Profile", "profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """One kind of node. profiles.toml explains the fields and says where each value comes from."""

    name: str
    title: str = ""
    gpus: bool = False
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    cpus_per_task: int = 1
    account_suffix: str = ""
    modules: list = field(default_factory=list)
    commands: list = field(default_factory=list)
    environment: dict = field(default_factory=dict)
    sbatch: dict = field(default_factory=dict)
    qos: dict = field(default_factory=dict)
    sources: dict = field(default_factory=dict)
    confidence: dict = field(default_factory=dict)

    @property
    def uses_gpus(self):
        """True if each rank is given a GPU."""
        return self.gpus or self.gpus_per_node > 0


def profiles():
    """All profiles by name: those of the course, and those of the file that FIDLE_PROFILES names."""
    tables = tomllib.loads(files("fidle_utils.cluster").joinpath("profiles.toml").read_text())
    if path := os.environ.get("FIDLE_PROFILES"):
        try:
            tables |= tomllib.loads(Path(path).read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ClusterError(f"FIDLE_PROFILES names {path}, which cannot be read: {error}") from None
    return {name: _made(name, tables) for name in tables}


def profile(name):
    """The profile of that name, or the only one that ends so: "h100" is "jean-zay-h100"."""
    known = profiles()
    if name in known:
        return known[name]
    ends = [full for full in known if full.endswith(f"-{name}")]
    if len(ends) == 1:
        return known[ends[0]]
    raise ClusterError(f"there is no profile {name!r}: choose one of {', '.join(known)}")


def _made(name, tables):
    values = _merged(name, tables)
    values["qos"] = {qos: limit for qos, limit in values.get("qos", {}).items() if limit is not False}
    if unknown := set(values) - set(Profile.__dataclass_fields__):
        raise ClusterError(f"profile {name}: nobody knows what {sorted(unknown)[0]!r} is; see profiles.toml")
    return Profile(name=name, **values)


def _merged(name, tables, seen=()):
    """The table of that name on top of the one that it is `like`; tables within are merged too."""
    if name not in tables or name in seen:
        raise ClusterError(f"profile {seen[-1]} is like {name!r}, which is no other profile")
    values = dict(tables[name])
    below = _merged(values.pop("like"), tables, (*seen, name)) if "like" in values else {}
    for key, value in values.items():
        values[key] = {**below.get(key, {}), **value} if isinstance(value, dict) else value
    return below | values


def seconds(time):
    """Slurm's words for a time in seconds: "90" (minutes), "1:30:00", "2-12" (days-hours), "2-12:00:00".

    Raises ValueError for other words.
    """
    days, dash, rest = str(time).rpartition("-")
    if not re.fullmatch(r"\d*", days) or not re.fullmatch(r"\d+(:\d+){0,2}", rest) or (dash and not days):
        raise ValueError(f"{time} is no time for Slurm: write hours:minutes:seconds, 00:30:00 or 1-00:00:00")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:  # minutes[:seconds]
        parts = [0, *parts, 0][:3]
    return ((int(days or 0) * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]
