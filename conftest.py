"""Notebooks that cannot run on this machine are left out, and pytest's header says so."""

import os
from importlib.util import find_spec

# No test, and no notebook that a test runs, writes into the progress of whoever runs them.
os.environ["FIDLE_PROGRESS"] = "off"

# What a notebook needs that is not installed everywhere: DeepSpeed is, on Linux only.
NEEDS = {"notebooks/09_train_with_deepspeed.ipynb": "deepspeed"}
collect_ignore = [name for name, module in NEEDS.items() if find_spec(module) is None]


def pytest_report_header():
    return [f"left out, {NEEDS[name]} is not installed: {name}" for name in collect_ignore]
