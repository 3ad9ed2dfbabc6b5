"""Notebooks that cannot run on this machine are left out, and pytest's header says so."""

from importlib.util import find_spec

# What a notebook needs that is not installed everywhere: DeepSpeed is, on Linux only.
NEEDS = {"notebooks/09_train_with_deepspeed.ipynb": "deepspeed"}
collect_ignore = [name for name, module in NEEDS.items() if find_spec(module) is None]


def pytest_report_header():
    return [f"left out, {NEEDS[name]} is not installed: {name}" for name in collect_ignore]
