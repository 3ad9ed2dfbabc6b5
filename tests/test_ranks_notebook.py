"""Ranks in real notebooks: what the learner sees, the stop button, kernels that end, and headless runs."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from ranks_helpers import FREED_SECONDS, ROOT, Notebook, footprint, gone

START = "%load_ext fidle_utils\nfrom fidle_utils import ranks"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """One notebook for the tests that leave its four ranks alive."""
    opened = Notebook(tmp_path_factory.mktemp("notebook"))
    yield opened
    opened.close()


@pytest.fixture
def group(notebook):
    """The notebook with four ranks that answer together before and after."""
    if notebook.value("len(ranks)") != 4:
        notebook.run("%ranks 4 --device cpu")
    assert notebook.run("%%ranks\nkept = 100 + rank").ename is None
    yield notebook
    together = "%%ranks\nt = torch.tensor(rank)\ndist.all_reduce(t)\nassert t == 6"
    assert notebook.run(together).error == ""


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# What the learner sees


def test_ranks_asked_for_before_they_are_started(notebook):
    assert "no ranks yet" in notebook.run("%ranks").text
    outcome = notebook.run("%%ranks\nprint(world_size)")
    assert outcome.ename is None, outcome.error
    assert "No ranks yet: starting a sensible number" in outcome.text
    count = notebook.value("len(ranks)")
    assert f"ranks 0–{count - 1} │ {count}" in plain(outcome.text)


def test_start_line_table_and_stop(notebook):
    assert "4 ranks stopped" in notebook.run("%ranks 4 --device cpu\n%ranks stop").text
    assert re.search(r"4 ranks ready in \d+\.\d s · cpu, gloo", notebook.run("%ranks 4 --device cpu").text)
    rows = notebook.run("%ranks").text.splitlines()
    assert rows[1].split()[:3] == ["rank", "pid", "device"] and len(rows) == 6
    notebook.run("%%ranks\nx = rank")
    assert "running already, with their variables" in notebook.run("%ranks 4 --device cpu").text
    assert notebook.value("ranks['x']") == [0, 1, 2, 3]


def test_output_is_labelled_folded_and_in_order(group):
    outcome = group.run("%%ranks\nprint('same')\nprint('also the same')")
    assert plain(outcome.text) == "ranks 0–3 │ same\nranks 0–3 │ also the same\n"
    outcome = group.run("%%ranks\nimport time\ntime.sleep((3 - rank) / 10)\nprint('I am', rank)")
    assert plain(outcome.text).splitlines() == [f"rank {rank} │ I am {rank}" for rank in range(4)]


def test_empty_cells(group):
    outcome = group.run("%%ranks 1\n\n")
    assert (outcome.ename, outcome.text) == (None, "")
    outcome = group.run("%%ranks")  # IPython's own word on a cell magic without a body
    assert outcome.ename == "UsageError" and len(outcome.text.strip().splitlines()) == 1


def test_output_is_live(group):
    """Text shows while the cell still runs."""
    seen = []
    group.run("import threading\nfrom fidle_utils.ranks import output")
    watch = "%%ranks\nimport time\nprint('early')\ntime.sleep(2)"
    done = threading.Event()

    def listen():
        while not done.is_set():
            try:
                message = group.client.get_iopub_msg(timeout=0.2)
            except Exception:  # nothing came
                continue
            content = message["content"]
            if "early" in str(content.get("data", content.get("text", ""))):
                seen.append(time.monotonic())
            if content.get("execution_state") == "idle" and message["parent_header"].get("msg_id") == sent:
                seen.append(("end", time.monotonic()))
                done.set()

    sent = group.client.execute(watch)
    listen()
    group.client.get_shell_msg(timeout=10)
    assert seen[-1][0] == "end" and seen[-1][1] - seen[0] > 1, "it was shown a second before the cell's end"


def test_figures_stand_in_order_of_rank(group):
    source = """%%ranks
import time
import matplotlib.pyplot as plt
time.sleep((3 - rank) / 4)
print("before", rank)
plt.figure(figsize=(1, 1))
plt.plot([rank])
plt.show()
print("after", rank)"""
    group.run("%%ranks\nimport matplotlib.pyplot as plt\n%matplotlib inline")
    outcome = group.run(source)
    assert outcome.ename is None, outcome.error
    shown = []
    for _, data in outcome.displays:
        rows = plain(data.get("text/plain", "")).strip().splitlines()
        shown += ["figure"] if "image/png" in data else [row.split("│")[-1].strip() for row in rows]
    expected = []
    for rank in range(4):
        expected += [f"before {rank}", "figure", f"after {rank}"]
    assert [item for item in shown if item] == expected


def test_display_updates_and_clear_output_of_ranks(group):
    outcome = group.run(
        """%%ranks 2
from IPython.display import HTML, clear_output, display
print("gone")
clear_output()
handle = display(HTML("<b>one</b>"), display_id=True)
handle.update(HTML("<b>two</b>"))"""
    )
    pages = [data["text/html"] for _, data in outcome.displays if "text/html" in data]
    assert pages == ["<b>two</b>"] and "gone" not in outcome.text


def test_tqdm_in_a_notebook_stays_one_row_a_rank(group):
    bar = "for _ in tqdm(range(50), desc=f'of {rank}'):\n    pass"
    outcome = group.run(f"%%ranks\nfrom tqdm import tqdm\n{bar}")
    rows = [row for row in plain(outcome.text).splitlines() if row.strip()]
    assert len(rows) == 4 and all(f"of {rank}: 100%" in row for rank, row in enumerate(rows))


def watch(group, source):
    """Run a cell; every text that its displays showed on the way, without colours."""
    seen = []

    def look(message):
        content = message["content"]
        if message["msg_type"] in ("display_data", "update_display_data"):
            seen.append(plain(content["data"].get("text/plain", "")))

    reply = group.client.execute_interactive(source, timeout=60, output_hook=look)
    assert reply["content"]["status"] == "ok"
    return seen


def test_track_shows_one_row_a_rank_below_the_text_while_it_runs_and_at_the_end(group):
    source = """%%ranks
from fidle_utils.measure import track
import time
print("first", rank)
for i in (loop := track(range(20), samples=8, unit="images")):
    time.sleep(0.05)
    loop.log(loss=rank)
"""
    seen = watch(group, source)
    half_way = [text for text in seen if re.search(r"rank 2 │ +[1-9]\d% █+.* \d+/20 .* loss 2", text)]
    assert half_way, f"no progress was shown: {seen}"
    rows = seen[-1].splitlines()
    assert [row[:6] for row in rows] == ["rank 0", "rank 1", "rank 2", "rank 3"] * 2 + ["ranks "]
    assert all("first" in row for row in rows[:4]) and all("20/20" in row for row in rows[4:8])
    assert re.fullmatch(r"ranks 0–3 │ \d+ images/s", rows[8])
    assert group.value("len(ranks.throughput)") == 80


def test_track_with_figures_and_the_stop_button(group):
    figure = "%%ranks\nfrom IPython.display import HTML\n"
    outcome = group.run(figure + "for i in track(range(3)):\n    display(HTML(f'<b>{i}</b>'))")
    assert plain(outcome.displays[-1][1]["text/plain"]).count("3/3") == 4
    outcome = group.run_and_stop("%%ranks\nfor i in track(range(1000)):\n    time.sleep(0.05)")
    assert outcome.ename == "RanksStopped" and outcome.seconds < FREED_SECONDS
    assert group.value("int(ranks.throughput.steps.groupby('rank').size().min())") > 5


def test_track_in_the_notebook_itself_is_one_row(group):
    outcome = group.run(
        "from fidle_utils.measure import track\nfor i in track(range(5), samples=2, name='here'):\n    pass"
    )
    assert outcome.text.startswith("here · 100% ████████████████ 5/5 · ") and "samples/s" in outcome.text


def test_errors_show_the_learners_lines_only(group):
    outcome = group.run("%%ranks\nx = 1\nif rank == 1:\n    x / 0\ndist.barrier()")
    shown = plain(outcome.error)
    assert outcome.ename == "RankError" and outcome.seconds < FREED_SECONDS
    assert "rank 1: ZeroDivisionError on line 4: division by zero" in shown
    assert "ranks 0, 2, 3: were waiting in barrier, line 5" in shown
    assert "----> 4     x / 0" in shown, "line numbers count the %%ranks line, as the notebook's do"
    assert "fidle_utils/ranks" not in shown and len(shown.splitlines()) < 25
    assert group.value("ranks['kept']") == [100, 101, 102, 103]


def test_a_syntax_error_touches_no_rank(group):
    outcome = group.run("%%ranks\nkept = 0\nx = = 1")
    shown = plain(outcome.error)
    assert "SyntaxError on line 3: no rank has run this cell" in shown and len(shown.splitlines()) < 12
    assert group.value("ranks['kept']") == [100, 101, 102, 103]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("%%ranks 7\nkept = 0", "there is no rank 7: the ranks are 0 to 3"),
        ("%%ranks zero\nkept = 0", "ranks are given as 0,2 or 0-2"),
        ("%%ranks --timeout soon\nkept = 0", "--timeout"),
        ("%ranks strat", "restart, stop, export"),
        ("%ranks 0", "one is the least"),
        ("%ranks 2 --device tpu", "--device"),
        ("%ranks 2 --backend nccl --device cpu", "leave out --backend nccl"),
    ],
)
def test_bad_magics_are_answered_in_one_line(group, source, said):
    outcome = group.run(source)
    assert outcome.ename == "UsageError" and said in outcome.error + outcome.text
    assert len((outcome.error + outcome.text).strip().splitlines()) == 1
    assert group.value("ranks['kept']") == [100, 101, 102, 103]


def test_two_notebooks_side_by_side(group, tmp_path):
    other = Notebook(tmp_path)
    try:
        assert other.run("%ranks 2 --device cpu").ename is None
        pids, directory = footprint(other)
        mine, my_directory = footprint(group)
        assert directory != my_directory and not set(pids) & set(mine)
        for notebook, total in ((other, 1), (group, 6)):
            assert notebook.run("%%ranks\nt = torch.tensor(rank)\ndist.all_reduce(t)").ename is None
            assert set(notebook.value("[int(t) for t in ranks['t']]")) == {total}
        assert other.run("%%ranks\nif rank:\n    import os; os._exit(1)\ndist.barrier()").ename == "RankError"
        assert group.value("ranks['kept']") == [100, 101, 102, 103]
    finally:
        other.close()
    assert gone(pids) == [] and not directory.exists()
    assert group.value("len(ranks)") == 4


# The stop button


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "if rank != 2:\n    dist.all_reduce(torch.ones(2))",
            "ranks 0, 1, 3 wait in all_reduce, line 3; rank 2",
        ),
        ("while True: pass", "ranks 0–3 are on line 2"),
        ("import time\ntime.sleep(1000)", "ranks 0–3 are on line 3"),
    ],
)
def test_stop_button_frees_all(group, source, said):
    outcome = group.run_and_stop(f"%%ranks\n{source}")
    assert outcome.ename == "RanksStopped" and outcome.seconds < FREED_SECONDS
    assert f"stopped: {said}" in plain(outcome.error)
    assert "KeyboardInterrupt" not in plain(outcome.text), "the end says it already"
    assert group.value("ranks['kept']") == [100, 101, 102, 103]


def test_stop_button_replaces_what_will_not_stop_and_says_so(group):
    stay = "    try:\n        time.sleep(9)\n    except KeyboardInterrupt:\n        pass"
    outcome = group.run_and_stop(f"%%ranks\nimport time\nwhile rank == 1:\n{stay}")
    assert outcome.ename == "RanksStopped" and outcome.seconds < FREED_SECONDS
    assert "rank 1 was replaced: its variables are gone" in plain(outcome.error)
    assert group.value("ranks.run(lambda: kept, only=[0, 2, 3])") == [100, 102, 103]


def test_stop_button_in_a_plain_cell_leaves_the_ranks_alone(group):
    outcome = group.run_and_stop("import time\ntime.sleep(60)", after=0.7)
    assert outcome.ename == "KeyboardInterrupt"
    assert group.value("ranks['kept']") == [100, 101, 102, 103]


def test_stop_button_while_ranks_start(notebook):
    outcome = notebook.run_and_stop("%ranks 12 --device cpu", after=0.3)
    assert outcome.seconds < 20  # a start that is nearly over may finish
    again = notebook.run("%ranks 4 --device cpu")
    assert again.ename is None, again.error
    assert notebook.value("len(ranks)") == 4


# The end of a kernel


BUSY = """%%ranks
import subprocess, time
import torch.utils.data
child = subprocess.Popen(["sleep", "600"])
session = subprocess.Popen(["sleep", "600"], start_new_session=True)
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 100
    def __getitem__(self, index):
        time.sleep(0.05 if index < 4 else 600)
        return index
loader = iter(torch.utils.data.DataLoader(Slow(), num_workers=1, batch_size=2))
first = next(loader)"""


@pytest.mark.parametrize("how", ["killed", "killed in a cell", "restarted", "shut down"])
def test_nothing_outlives_the_kernel(tmp_path, how):
    notebook = Notebook(tmp_path)
    try:
        notebook.run("%ranks 2 --device cpu")
        busy = notebook.run(BUSY)
        assert busy.ename is None, busy.error
        pids, directory = footprint(notebook)
        names = [psutil.Process(pid).name() for pid in pids]
        assert names.count("sleep") == 4 and len(pids) >= 1 + 2 * 4, "a worker and two children each"
        if how == "restarted":
            notebook.restart()
        elif how == "shut down":
            notebook.manager.shutdown_kernel(now=False)
        else:
            if how == "killed in a cell":
                notebook.client.execute("%%ranks\nif rank:\n    dist.barrier()")
                time.sleep(0.7)
            os.kill(notebook.pid, signal.SIGKILL)
        assert gone(pids) == []
        deadline = time.monotonic() + FREED_SECONDS
        while directory.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not directory.exists()
        if how == "restarted":
            assert notebook.run(START).ename is None and notebook.value("len(ranks)") == 0
    finally:
        notebook.close()


def test_a_kernel_that_is_killed_while_the_server_starts(tmp_path):
    """The server sees it in the middle of its imports, and leaves no directory."""
    notebook = Notebook(tmp_path)
    try:
        pids, directory = footprint(notebook)
        os.kill(notebook.pid, signal.SIGKILL)
        assert gone(pids, seconds=FREED_SECONDS) == [] and not directory.exists()
    finally:
        notebook.close()


# Headless


def notebook_file(path, *cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(made, path)
    return made


def test_an_error_on_a_rank_fails_nbclient_with_rank_and_line(tmp_path):
    fails = "%%ranks\n\nif rank == 1:\n    missing_name\ndist.barrier()"
    made = notebook_file(tmp_path / "fails.ipynb", START + "\n%ranks 2 --device cpu", fails)
    client = NotebookClient(made, timeout=120, resources={"metadata": {"path": str(ROOT)}})
    with pytest.raises(CellExecutionError) as caught:
        client.execute()
    assert caught.value.ename == "RankError"
    assert "rank 1: NameError on line 4" in plain(str(caught.value))


GOOD = [
    START + "\n%ranks 3 --device cpu",
    "%%ranks\nt = torch.tensor(rank)\ndist.all_reduce(t)\nprint('sum', t.item())",
    "print(ranks['t'])\nassert [int(t) for t in ranks['t']] == [3, 3, 3]",
]


def headless(*arguments, cwd):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = dict(os.environ, PYTHONPATH=path)
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_nbconvert_executes(tmp_path):
    notebook_file(tmp_path / "good.ipynb", *GOOD)
    names = "good.ipynb", "--output", "out.ipynb"
    done = headless("nbconvert", "--to", "notebook", "--execute", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[1].outputs
    assert [plain(output["data"]["text/plain"]) for output in outputs] == ["ranks 0–2 │ sum 3"]


def test_nbval_passes_and_fails(tmp_path):
    notebook_file(tmp_path / "good.ipynb", *GOOD)
    notebook_file(tmp_path / "bad.ipynb", *GOOD[:1], "%%ranks\nif rank == 2:\n    1 / 0")
    options = "-p", "no:cacheprovider", "--nbval-lax", "--nbval-cell-timeout=60"
    done = headless("pytest", *options, ".", cwd=tmp_path)
    assert "1 failed, 4 passed" in done.stdout, done.stdout
    assert "rank 2: ZeroDivisionError on line 3" in plain(done.stdout)
