"""The README's words for a cluster, run on the small Slurm, whose project is `fidle`."""

import os
import sys
from pathlib import Path

import pytest
from waiting import wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_helpers import Notebook  # noqa: E402
from test_readme import ON_SLURM  # noqa: E402

CELL = """%%ranks
from fidle_utils.measure import track
for step in track(range(3)):
    dist.barrier()
print("rank", rank, "of", world_size, flush=True)"""


def words(command):
    """As in the README, with the project of this cluster."""
    return command.replace("abc", "fidle")


@pytest.fixture
def notebook(slurm, tmp_path, monkeypatch):
    # Jean Zay's scripts load modules; here the Python of the tests stands in for them.
    functions = tmp_path / "modules.sh"
    functions.write_text("module() { :; }\n")
    monkeypatch.setenv("BASH_ENV", str(functions))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    made = Notebook(tmp_path, first="%load_ext fidle_utils\nfrom fidle_utils import cluster, ranks")
    yield made
    made.close()


def test_jobs(slurm, notebook, tmp_path):
    assert notebook.run("%ranks 4 --device cpu").ename is None
    assert notebook.run(CELL).ename is None
    export, generic, submit, python = ON_SLURM[1], ON_SLURM[0], ON_SLURM[2], ON_SLURM[3]
    (tmp_path / "silent.py").write_text("pass")
    shown = notebook.run(words(export))
    assert shown.ename is None, shown.error
    slurm.run("sbatch", "--test-only", "train.slurm", cwd=tmp_path)
    for command in (generic, submit):
        shown = notebook.run(words(command))
        assert shown.ename is None, f"{command}\n{shown.text}{shown.error}"
        assert "COMPLETED" in shown.text and "rank 3 of 4" in shown.text, shown.text
    shown = notebook.run(words(python))
    assert shown.ename is None, shown.error
    job_id = notebook.value("job.id")
    assert notebook.run("job.follow()").ename is None
    assert notebook.value("len(job.outputs)") == 8 and notebook.run("job.throughput").ename is None
    assert notebook.run("job.cancel()").ename is None  # it has ended: nothing happens
    assert notebook.run(f"job_id = {job_id}\nagain = {ON_SLURM[-1]}").ename is None
    assert notebook.value("again.state") == "COMPLETED"
    shown = notebook.run("(cluster.submit('silent.py', nodes=1, world_size=2)).throughput")
    assert shown.ename == "ClusterError" and "has recorded no step" in shown.error


def test_ranks_on_nodes(slurm, notebook):
    shown = notebook.run(words(ON_SLURM[-2]))
    assert shown.ename is None, shown.text + shown.error
    assert notebook.run(CELL).text.count("of 8") >= 1
    assert notebook.run("%ranks stop").ename is None
    assert wait_until(lambda: not slurm.jobs(), 20)
