"""Ranks beside ipyparallel and torchrun: start, live cells, training, memory. `make bench` prints a table.

Nothing is asserted: a ratio of two times of one run says more than a limit, and this is read by a person.
"""

import json
import os
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

RANKS, REPEATS, STEPS = 4, 7, 200
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

INIT = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
"""
ALL_REDUCE = "x = torch.ones(1000)\ndist.all_reduce(x)"
# A step computes and communicates; the loop times itself, so that start-up is not in it.
TRAIN = f"""
torch.manual_seed(0)
layers = [torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU()) for _ in range(4)]
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers))
optimizer = torch.optim.AdamW(model.parameters())
batch = torch.randn(256, 256)
for step in range(5):  # the first steps import and allocate
    model(batch).square().mean().backward()
    optimizer.step()
dist.barrier()
start = time.perf_counter()
for step in range({STEPS}):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
dist.barrier()
seconds = time.perf_counter() - start
"""
ROWS = []


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    width = max(len(row[0]) for row in ROWS)
    print(f"\n\nmeasured here, {RANKS} ranks on {os.cpu_count()} cores, medians\n")
    for what, ours, others, target in ROWS:
        beside = " · ".join(
            f"{name} {value:.4g} (ratio {ours / value:.3f})" for name, value in others.items()
        )
        print(f"{what:<{width}}  {ours:8.4g}   {beside}   wanted: {target}")


class Notebook:
    """A kernel of its own, in which `seconds(cell)` times a cell from asking to idle."""

    def __enter__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, cell, **expressions):
        """Execute; returns the values of expressions. Raises RuntimeError if the cell fails."""
        reply = self.client.execute_interactive(
            textwrap.dedent(cell), output_hook=lambda message: None, user_expressions=expressions, timeout=120
        )["content"]
        if reply["status"] != "ok":
            raise RuntimeError("\n".join(reply["traceback"]))
        return {
            name: json.loads(value["data"]["text/plain"].strip("'"))
            for name, value in reply["user_expressions"].items()
        }

    def seconds(self, cell):
        start = time.perf_counter()
        self.run(cell)
        return time.perf_counter() - start

    def median(self, cell, repeats=REPEATS):
        return statistics.median(self.seconds(cell) for _ in range(repeats))


START_RANKS = f"%load_ext fidle_utils\n%ranks {RANKS}"
START_IPYPARALLEL = f"""
import ipyparallel as ipp
cluster = ipp.Cluster(n={RANKS}, log_level=50)
client = cluster.start_and_connect_sync()
view = client[:]
for engine in client.ids:
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", WORLD_SIZE="{RANKS}", OMP_NUM_THREADS="1")
    client[engine].push(dict(settings=dict(address, RANK=str(engine))))
view.execute("import os; os.environ.update(settings)", block=True)
view.execute('''{INIT}''', block=True)
"""
STOP_IPYPARALLEL = "client.close()\ncluster.stop_cluster_sync()"


def start_torchrun(script, tmp_path):
    """Start torchrun on a script; its standard output is a pipe."""
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen([*command, str(path)], stdout=pipe, stderr=null, text=True, env=env)


def torchrun(script, tmp_path):
    """Run a script with torchrun; returns (seconds of the whole, what it printed)."""
    start = time.perf_counter()
    process = start_torchrun(script, tmp_path)
    printed, _ = process.communicate()
    assert process.returncode == 0
    return time.perf_counter() - start, printed


def test_start_restart_and_one_cell(tmp_path):
    with Notebook() as ours:
        first = ours.seconds(START_RANKS)
        restart = statistics.median(ours.seconds("%ranks restart") for _ in range(3))
        live = ours.median(f"%%ranks\n{ALL_REDUCE}")
        look = "import json\nfrom fidle_utils import ranks\nrows = ranks.status()"
        mine = ours.run(look, memory="json.dumps([row['memory_mb'] for row in rows])")["memory"]
    with Notebook() as theirs:
        started = theirs.seconds(START_IPYPARALLEL)
        executed = theirs.median(f"view.execute('''{ALL_REDUCE}''', block=True)")
        look = "import json, os\npids = view.apply_sync(os.getpid)"
        pids = theirs.run(look, pids="json.dumps(pids)")["pids"]
        engines = [_pss(pid) for pid in pids]
        theirs.run(STOP_IPYPARALLEL)
    script = f"{INIT}{ALL_REDUCE}\ndist.barrier()\ndist.destroy_process_group()\n"
    whole = statistics.median(torchrun(script, tmp_path)[0] for _ in range(3))
    ROWS.append(("first %ranks 4, s", first, {"ipyparallel start + init": started}, "≤ 0.5"))
    ROWS.append(("%ranks restart, s", restart, {"ipyparallel start + init": started}, "≤ 0.25"))
    ROWS.append(
        (
            "one live cell with an all_reduce, s",
            live,
            {"torchrun script": whole, "ipyparallel execute": executed},
            "≤ 0.02, ≤ 1",
        )
    )
    ROWS.append(
        (
            "own memory of an idle rank (PSS), MB",
            statistics.median(mine),
            {"ipyparallel": statistics.median(engines), "torchrun": _memory_under_torchrun(tmp_path)},
            "≤ 120 MB",
        )
    )


def test_training_loop(tmp_path):
    """Both measured in turn, so that what else the machine does hits both."""
    script = f"{INIT}{TRAIN}\nif rank == 0: print(seconds)\ndist.barrier()\ndist.destroy_process_group()\n"
    in_cell, in_script = [], []
    with Notebook() as ours:
        ours.run(START_RANKS)
        ours.run("import json; from fidle_utils import ranks")
        for _ in range(REPEATS):
            ours.run(f"%%ranks\nimport time{TRAIN}")
            in_cell.append(ours.run("s = ranks['seconds'][0]", s="json.dumps(s)")["s"])
            in_script.append(float(torchrun(script, tmp_path)[1]))
    row = (
        f"{STEPS} training steps, s",
        statistics.median(in_cell),
        {"torchrun": statistics.median(in_script)},
        "≤ 1.03",
    )
    ROWS.append(row)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_under_nbval(path):
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-cell-timeout=120", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    ROWS.append((f"{path.stem} under nbval, s", time.perf_counter() - start, {}, "≤ 60 s"))


def _memory_under_torchrun(tmp_path):
    """PSS in MB of an idle rank of a script that has done the same."""
    script = f"{INIT}{ALL_REDUCE}\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(30)\n"
    process = start_torchrun(script, tmp_path)
    try:
        pids = [int(process.stdout.readline()) for _ in range(RANKS)]
        return statistics.median(_pss(pid) for pid in pids)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.communicate()


def _pss(pid):
    info = psutil.Process(pid).memory_full_info()
    return getattr(info, "pss", info.uss) / 1e6
