"""What every test module shares: nothing that a module started outlives it."""

import os
import sys
import time
import uuid

import psutil
import pytest

# Every descendant inherits this mark, so one that lost its parents is still found.
_MARK = f"{os.getpid()}-{uuid.uuid4()}"
os.environ["FIDLE_TEST_MARK"] = _MARK


def _orphans() -> list[psutil.Process]:
    """Processes that carry our mark and no longer descend from us."""
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in ours and process.environ().get("FIDLE_TEST_MARK") == _MARK:
                found.append(process)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def no_orphans():
    """Fail a module that leaves processes behind, after 3 s of grace; close the figures that it left open."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    deadline = time.monotonic() + 3
    while (left := _orphans()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"
