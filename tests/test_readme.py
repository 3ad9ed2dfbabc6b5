"""Every command of the README is run: in a shell on a copy of the project, and in a notebook."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ranks_helpers import Notebook
from test_house import project_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STARTS = (
    "make |conda|jupyter|pip|python |ssh|apt|%|ranks|plots|cluster|job|for |with |device_rep|progress\\.s"
)
COMMAND = re.compile(f"({STARTS}|from fidle_utils import progress)")

# Commands that open something and stay: what their pages are, below the address that they print.
OPENS = {
    "make lab": "notebooks/00_start_here.ipynb",
    "make lab CPU=1": "notebooks/00_start_here.ipynb",  # read when .venv is first made
    "make lab ARGS=--no-browser": "notebooks/00_start_here.ipynb",
    'make lab ARGS="--no-browser --port 8899"': "notebooks/00_start_here.ipynb",
    "make live": "build/live/index.ipynb",
    "jupyter lab": "",
}
# Commands that end: with what they are run here, and what is there afterwards.
ENDS = {
    "make test": (
        "make test ARGS='tests/test_data.py -p no:cacheprovider'",
        "passed",
    ),  # all of it: this very run
    "make help": ("make help", "make lab"),
    "make clean": ("make clean >/dev/null; ls -A", ".gitignore"),
    "make lab PYTHON=/path/to/python3.12": (f"make -n lab PYTHON={sys.executable}", "jupyterlab"),
}
# Run elsewhere: the test that does, or why nothing here can.
ELSEWHERE = {
    "make slurm": "tests/slurm/test_mini_slurm.py::test_nothing_is_left_however_it_ends",
    "make slides": "tests/test_slides.py",
    "make book": "tests/test_book.py",
    "apt install slurm-wlm munge": ".ci/run",
    "conda env create -f environment.yml": "no conda here; test_house compares the file with the lock",
    "conda activate fidle": "no conda here",
    "pip install -e .": "the Makefile installs it so",
    "python -m fidle_utils.progress export class/*.json -o class.csv": (
        "tests/test_progress.py::test_export_writes_the_table"
    ),
    "%recorded": "tests/test_classroom.py::test_the_magic",
    "%recorded list": "tests/test_classroom.py::test_the_magic",
    "python -m fidle_utils.classroom --time": "tests/bench/bench_live.py",
    "ssh -L 8899:localhost:8899 you@node": "there is no second machine here",
}
IN_NOTEBOOK = {
    "%load_ext fidle_utils": "%load_ext fidle_utils",
    "%ranks 4": "%ranks 4",
    "%%ranks": "%%ranks\nloss = float(rank)\nprint(world_size, device, dist.get_backend())",
    "%%ranks 0,2": "%%ranks 0,2\nprint(rank)",
    'ranks["loss"]': 'assert ranks["loss"] == [0, 1, 2, 3]',
    "ranks.push(lr=0.1)": 'ranks.push(lr=0.1)\nassert ranks["lr"] == [0.1] * 4',
    "ranks.run(function)": "import os\nassert len(set(ranks.run(os.getpid))) == 4",
    "%ranks": "%ranks",
    "for x, y in track(loader):": """%%ranks --timeline
from fidle_utils.measure import count_communication, memory_ledger, track
layer = torch.nn.Linear(4, 4)
model = torch.nn.parallel.DistributedDataParallel(layer)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader([(torch.ones(4), torch.zeros(4))] * 8, batch_size=4)
for x, y in track(loader):
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()""",
    "%%ranks --timeline": "ranks.timeline",
    "ranks.throughput": "assert len(ranks.throughput.steps)",
    "plots.plot_throughput(ranks.throughput)": "plots.plot_throughput(ranks.throughput);",
    "ranks.timeline.summary()": "assert list(ranks.timeline.summary().index) == [0, 1, 2, 3]",
    "plots.plot_timeline(ranks.timeline)": "plots.plot_timeline(ranks.timeline);",
    'ranks.timeline.to_chrome("step.json")': 'assert open(ranks.timeline.to_chrome("step.json")).read()',
    "with count_communication() as counted:": """%%ranks
with count_communication() as counted:
    dist.all_reduce(torch.ones(4))
print(counted)""",
    "with memory_ledger(model, optimizer) as ledger:": """%%ranks
with memory_ledger(layer, optimizer) as ledger:
    optimizer.zero_grad()
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()""",
    'plots.plot_memory(ranks["ledger"])': 'plots.plot_memory(ranks["ledger"]);',
    "device_report(full=True)": """from fidle_utils.measure import device_report, roofline
device_report(full=True)""",
    "plots.plot_roofline(roofline())": "plots.plot_roofline(roofline());",
    "plots.presentation()": "plots.presentation()",
    "%ranks export train.py": """%ranks export train.py
assert "torchrun" in open("train.py").read()""",
    "%ranks export train.py --slurm": """%ranks export train.py --slurm
assert "srun" in open("train.slurm").read()""",
    "from fidle_utils import progress": "from fidle_utils import progress",
    'progress.save("Ada")': 'progress.save("Ada")',
    "%ranks 2": "%ranks 2",
    "%ranks restart": "%ranks restart",
    "%ranks stop": "%ranks stop",
}
# What tests/slurm/test_readme_commands.py runs, on the small Slurm.
ON_SLURM = [
    "%ranks submit",
    "%ranks export train.py --slurm h100 --nodes 2 --account abc --qos dev",
    "%ranks submit --slurm h100 --account abc --qos dev",
    'job = cluster.submit("train.py", profile="h100", nodes=2, account="abc")',
    "job.follow()",
    "job.throughput",
    "job.outputs",
    "job.cancel()",
    "%ranks 8 --slurm h100 --nodes 2 --account abc --qos dev",
    "cluster.attach(job_id)",
]


def commands(page):
    """Every command that a page shows: the lines of its shell blocks, and what stands in code quotes."""
    found = set()
    for block in re.findall(r"^```bash\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        found |= {line.split("  #")[0].strip() for line in block.splitlines()}
    found |= {code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page) if COMMAND.match(code)}
    return found


def test_every_command_of_the_readme_is_run_somewhere():
    known = {*OPENS, *ENDS, *ELSEWHERE, *IN_NOTEBOOK, *ON_SLURM}
    shown = commands(README)
    assert not shown - known, f"no test runs: {sorted(shown - known)}"
    assert not known - shown, f"no longer in the README: {sorted(known - shown)}"


def test_what_is_run_elsewhere_is_there():
    for command, where in ELSEWHERE.items():
        path, _, name = where.partition("::")
        if path.endswith(".py") and " " not in path:
            assert name in (ROOT / path).read_text(), f"{command}: {where}"
    assert "slurm-wlm munge" in (ROOT / ".ci/run").read_text()


# ----------------------------------------------------------------------------------------- in a shell


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's files in a folder with a space in its name, beside the environment of this run."""
    folder = tmp_path_factory.mktemp("a clone")
    for path in project_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("this environment was not made by make: nothing to run its targets with")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / ".venv" / ".ready").touch()
    return folder


@pytest.fixture
def shell(copy, tmp_path):
    """How to start a command there, with a browser that notes what it opens."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/opened"\n')
    browser.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    home = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    env = kept | {name: str(tmp_path / folder) for name, folder in home.items()}
    env |= {"BROWSER": f"{browser} %s", "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    return dict(cwd=copy, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _status(address, seconds=20):
    """Of a page, as soon as its server listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(address, timeout=20).status
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("command", OPENS)
def test_a_command_that_opens_the_lab(command, shell, tmp_path):
    if command == "jupyter lab" and os.geteuid() == 0:
        command += " --allow-root"
    with subprocess.Popen(["bash", "-c", f"exec {command}"], start_new_session=True, **shell) as process:
        try:
            address = None
            for line in process.stdout:
                if found := re.search(r"http://(?:127\.0\.0\.1|localhost):\d+/lab\S*", line):
                    address = found[0]
                    break
            assert address, f"{command} printed no address"
            assert OPENS[command.removesuffix(" --allow-root")] in address
            if "8899" in command:
                assert ":8899/" in address
            assert _status(address) == 200
            opened = tmp_path / "opened"
            assert "no-browser" not in command or not opened.exists()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.stdout.read()
            process.wait(20)
    if "no-browser" not in command:
        assert opened.read_text().strip().startswith("file:"), "the browser was not opened"


@pytest.mark.parametrize("command", ENDS)
def test_a_command_that_ends(command, shell):
    run, words = ENDS[command]
    if command == "make clean":  # in a copy of the copy: it removes .venv, here a link
        clean = shell["cwd"].parent / "to clean"
        shutil.copytree(shell["cwd"], clean, symlinks=True)
        shell = shell | {"cwd": clean}
        (clean / "build").mkdir(exist_ok=True)
    done = subprocess.run(["bash", "-c", run], **shell, timeout=120)
    assert done.returncode == 0 and words in done.stdout, done.stdout
    if command == "make clean":
        assert not {".venv", "build"} & set(done.stdout.split())
        assert (ROOT / ".venv" / ".ready").exists()


# -------------------------------------------------------------------------------------- in a notebook


def test_the_words_of_a_notebook(tmp_path):
    """One kernel runs them in the order of the tables, so each finds what the ones before have made."""
    notebook = Notebook(tmp_path, first="from fidle_utils import plots, ranks")
    try:
        for command, source in IN_NOTEBOOK.items():
            shown = notebook.run(source)
            assert shown.ename is None, f"{command}\n{shown.error or shown.text}"
    finally:
        notebook.close()
