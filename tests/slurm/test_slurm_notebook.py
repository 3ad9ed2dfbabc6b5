"""`%ranks submit` in a notebook: the queue, the ranks' words, the stop button, a notebook that was closed."""

import os
import sys
from pathlib import Path

import pytest
from waiting import wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_helpers import Notebook  # noqa: E402


@pytest.fixture
def notebook(slurm, tmp_path):
    made = Notebook(tmp_path)
    yield made
    made.close()


CELL = """\
%%ranks
from fidle_utils.measure import track
for step in track(range(5), samples=8, warmup=1):
    total = torch.ones(1)
    dist.all_reduce(total)
print("sum", total.item())
"""


def test_cells_become_a_job_and_its_records_come_back(notebook, tmp_path):
    assert notebook.run("%ranks 2 --device cpu").ename is None
    assert notebook.run(CELL).ename is None
    shown = notebook.run("%ranks submit --nodes 2 --time 00:05:00")
    assert shown.ename is None, shown.text + shown.error
    assert "COMPLETED on jz[0-1]" in shown.text and "PENDING" not in shown.text  # one row, kept up to date
    assert "ranks 0, 1" in shown.text and "sum 2.0" in shown.text
    assert "5/5" in shown.text and "samples/s" in shown.text and "step/s" not in shown.text
    assert notebook.value("len(ranks.job.throughput)") == 2 * 5
    assert "%%ranks" not in (tmp_path / "train.py").read_text()
    assert "--nodes=2" in (tmp_path / "train.slurm").read_text()
    figure = notebook.run("from fidle_utils import plots\nplots.plot_throughput(ranks.job.throughput);")
    assert figure.ename is None and any("image/png" in data for _, data in figure.displays)


def test_the_stop_button_ends_the_watching_and_a_new_notebook_goes_on(slurm, notebook, tmp_path):
    source = (
        "import os, time\nprint('rank', os.environ['SLURM_PROCID'], 'works', flush=True)\ntime.sleep(300)"
    )
    (tmp_path / "long.py").write_text(source)
    shown = notebook.run_and_stop("%ranks submit long.py --nodes 2 --ntasks-per-node 2", after=6)
    assert shown.ename is None and shown.seconds < 3
    assert "goes on. job.follow()" in shown.text and "rank 3 works" in shown.text
    job_id = notebook.value("ranks.job.id")
    notebook.close()
    again = Notebook(tmp_path, first="from fidle_utils import cluster")
    try:
        assert again.value(f"(job := cluster.attach({job_id})).state") == "RUNNING"
        shown = again.run_and_stop("job.follow()", after=3)
        assert "RUNNING on jz[0-1]" in shown.text and "rank 0 works" in shown.text
        again.run("job.cancel()")
        shown = again.run("job.follow()")
        assert shown.ename == "ClusterError" and f"Job {job_id}: CANCELLED" in shown.error
        assert "Traceback" not in shown.error
    finally:
        again.close()
    assert wait_until(lambda: not slurm.steps(), 5)


def test_a_refusal_is_one_message(notebook, tmp_path):
    (tmp_path / "train.py").write_text("pass")
    shown = notebook.run("%ranks submit train.py --partition nowhere")
    assert shown.ename == "ClusterError" and "no such partition: nowhere" in shown.error
    assert "Traceback" not in shown.error and len(shown.error.splitlines()) == 2
    assert os.listdir(tmp_path).count("train.slurm") == 1
