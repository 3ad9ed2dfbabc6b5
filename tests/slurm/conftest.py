"""A real Slurm for the tests in this folder: one for each process of pytest, started when first asked for."""

import pytest
from mini_slurm import MiniSlurm, why_not
from waiting import wait_until


@pytest.fixture(scope="session")
def _mini():
    if reason := why_not():
        pytest.skip(f"no mini Slurm here: {reason}")
    with MiniSlurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(_mini, monkeypatch):
    """The cluster, chosen by SLURM_CONF; fails a test that leaves a job or a step of one behind."""
    for name, value in _mini.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(_mini.folder / "tmp"))  # what a killed node leaves ends with the cluster
    # A node that an earlier test has taken down answers a while after it was resumed.
    assert wait_until(lambda: _states(_mini) <= {"idle", "mixed"}, 60), _states(_mini)
    yield _mini
    clean = wait_until(lambda: not {*_mini.jobs(), *_mini.steps()} - _mini.expected, 5)
    left = {*_mini.jobs(), *_mini.steps()} - _mini.expected
    if left:
        _mini.run("scancel", *map(str, left), check=False)
    assert clean, f"jobs, or processes of theirs, outlived the test: {left}"


def _states(mini):
    return set(mini.run("sinfo", "--Node", "--noheader", "--format=%T").stdout.split())
