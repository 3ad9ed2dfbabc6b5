"""`%ranks export`: the script is readable Python, and torchrun prints with it what the cells printed."""

import os
import subprocess
import sys
import textwrap
from subprocess import PIPE

import pytest
from ranks_helpers import ROOT, cell, run_failing

from fidle_utils.ranks import Ranks, output
from fidle_utils.ranks.export import History


def history(*cells):
    """A History in which each (source, only, failed, echoed) has run."""
    made = History()
    for source, *rest in cells:
        only, failed, echoed = [*rest, *(None, False, False)[len(rest) :]]
        entry = made.cell(textwrap.dedent(source).strip("\n"), only)
        entry.failed, entry.echoed = failed, echoed
    return made


def script(*cells):
    """The exported script, without the prelude, after a check that it is Python."""
    text, _ = history(*cells).script(4)
    compile(text, "train.py", "exec")
    return text.partition("dist.init_process_group(")[2].partition("\n")[2]


def test_a_cell_stands_as_it_was_written():
    source = "x = 1  # a comment\n\n\ndef f(a):\n    return a\n"
    assert source.strip() in script((source,))


def test_the_prelude_is_the_one_that_ranks_ran():
    text, _ = history(("x = 1",)).script(4)
    prelude = (ROOT / "fidle_utils" / "ranks" / "prelude.py").read_text()
    assert prelude in text and text.index(prelude) < text.index("x = 1")


def test_the_script_says_how_to_start_it_and_ends_in_order():
    text, _ = history(("x = 1",)).script(3, threads=2, name="mine.py")
    assert "OMP_NUM_THREADS=2 torchrun --nproc-per-node 3 mine.py" in text.splitlines()[0]
    last = [line for line in text.rstrip().splitlines() if not line.startswith("#")][-3:]
    assert last == ["dist.barrier()", "dist.destroy_process_group()", "time.sleep(0.1)"]


def test_failed_cells_are_left_out_and_counted():
    made = history(("good = 1",), ("bad = 2", None, True), ("worse = 3", None, True))
    text, left_out = made.script(4)
    assert "good" in text and "bad" not in text and "worse" not in text
    assert left_out == "2 cells that failed left out"
    assert history(("good = 1",)).script(4)[1] == ""


@pytest.mark.parametrize(
    ("only", "condition"),
    [([0], "if rank == 0:"), ([2, 0], "if rank in (0, 2):"), ([1, 1, 3], "if rank in (1, 3):")],
)
def test_cells_on_some_ranks_become_conditions(only, condition):
    text = script(("x = 1\nif x:\n    y = 2", only))
    assert f"{condition}\n    x = 1\n    if x:\n        y = 2\n" in text


def run_as_rank(text, rank):
    namespace = {"rank": rank}
    body = text.partition("dist.barrier()")[0]
    exec(compile(body, "train.py", "exec"), namespace)
    return namespace


def test_strings_of_several_lines_keep_their_text_in_conditions():
    source = '''
    name = "me"
    plain = """one
      two
    three"""
    formatted = f"""hello
    {name} and {
        name.upper()
    }
    end"""
    numbers = [
        1,
        2,
    ]
    '''
    expected = {}
    exec(textwrap.dedent(source), expected)
    got = run_as_rank(script((source, [1])), 1)
    for name in ("plain", "formatted", "numbers"):
        assert got[name] == expected[name]
    assert "plain" not in run_as_rank(script((source, [1])), 0)


def test_a_cell_of_comments_on_some_ranks_is_python():
    script(("# only a comment", [0]))
    script(("", [0]))


@pytest.mark.parametrize(
    "source",
    [
        "%time x = 1",
        "!ls",
        "files = !ls",
        "%matplotlib inline\nx = 1",
        "if True:\n    !ls\nx = 1",
        "x?",
        "%%time\nx = 1",
    ],
)
def test_what_only_ipython_understands_is_left_out_and_said(source):
    for only in (None, [0]):
        text = script((source, only))
        assert "left out, IPython only" in text
        for line in text.splitlines():
            assert "get_ipython()" not in line or line.lstrip().startswith("pass  # "), line


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("x = 2\nx * 3", "6"),
        ("'é', 1  # said", "('é', 1)"),
        ("(1, 2)", "(1, 2)"),
        ("x = 2\nmax(\n    x,\n    5,\n)", "5"),
        ("x = 2; x", "2"),
        ("x = (3)\n(x)", "3"),
        ('"""one\n  two"""', "one\n  two"),
    ],
)
def test_the_value_of_a_last_expression_is_printed(source, printed, capsys):
    for only in (None, [0]):
        run_as_rank(script((source, only, False, True)), 0)
        assert capsys.readouterr().out == printed + "\n"


def test_an_expression_that_was_not_shown_is_not_printed(capsys):
    run_as_rank(script(("x = [1]\nx.append(2)",)), 0)
    run_as_rank(script(("x = 3\nx;", None, False, False)), 0)
    assert capsys.readouterr().out == ""


def test_pushes_and_runs_from_the_notebook_are_told():
    made = history(("x = 1",))
    made.push(dict(number=3, text="a'b", rate=0.5, model=object()))
    made.note("ranks.run(train, …) ran here, from the notebook")
    text, _ = made.script(4)
    compile(text, "train.py", "exec")
    assert "number = 3\n" in text and 'text = "a\'b"\n' in text and "rate = 0.5" in text
    assert "# model was pushed from the notebook" in text and "# ranks.run(train, …)" in text
    assert text.index("x = 1") < text.index("number = 3")


def test_the_script_is_formatted_as_ruff_would(tmp_path):
    made = history(
        ("import math\n\nx = torch.ones(3) * rank",),
        ("print(x.sum().item())", [0]),
        ("x.sum()", None, False, True),
    )
    path = tmp_path / "train.py"
    path.write_text(made.script(4)[0])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "E9,F63,F7,F82,W",
            "--line-length",
            "110",
            path,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "\n\n\n\n" not in path.read_text()


CELLS = [
    ("""
     from torch import nn
     torch.manual_seed(rank)
     model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1).to(device))
     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
     """, None),
    ("""
     x = torch.arange(6.0).reshape(2, 3) + rank
     for step in range(3):
         loss = model(x).square().mean()
         optimizer.zero_grad()
         loss.backward()
         optimizer.step()
         print(f"rank {rank} step {step} loss {loss.item():.9f}")
     """, None),
    ("print('on', rank, '''two\n  lines''', number)", [0, 2]),
    ("round(model.module.bias.item(), 9) + rank", None),
    ("!echo a shell command", None),
    ("total = torch.tensor(float(rank))\ndist.all_reduce(total)\nprint('of', rank, total.item())", None),
]  # fmt: skip


def lines(text):
    return sorted(line for line in text.splitlines() if line.strip() and "shell command" not in line)


def test_torchrun_prints_what_the_cells_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output, "get_ipython", lambda: None)
    ranks, printed = Ranks(), ""
    try:
        ranks.start(4, device="cpu")
        ranks.push(number=7)
        run_failing(ranks, "print('never seen again')\nif rank == 1:\n    1 / 0")
        for source, only in CELLS:
            source = textwrap.dedent(source).strip("\n")
            ranks.cell(cell(source), only=only, shown=source)
            printed += "".join(ranks.outputs)
        text, left_out = ranks.script()
    finally:
        ranks.stop()
    assert left_out == "1 cell that failed left out"
    path = tmp_path / "train.py"
    path.write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RANKS_")}
    environment.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    # standalone: on a free port, for others may use torchrun's own
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command += ["--redirects", "1", "--log-dir", "logs", path]  # a file for each rank: lines stay whole
    with subprocess.Popen(
        command, env=environment, stdout=PIPE, stderr=PIPE, text=True, cwd=tmp_path, start_new_session=True
    ) as run:
        try:
            _, err = run.communicate(timeout=100)
        finally:
            if run.poll() is None:
                run.terminate()  # torchrun ends its workers
    assert run.returncode == 0, err[-3000:]
    out = "".join(log.read_text() for log in tmp_path.glob("logs/**/stdout.log"))
    assert "never seen again" not in out
    assert len(lines(printed)) == 4 * 3 + 2 * 2 + 4 + 4
    assert lines(out) == lines(printed)


def test_the_cell_that_starts_the_ranks_is_in_the_script():
    """`%%ranks` before `%ranks N` starts ranks, and what is started anew forgets what ran before."""
    group = Ranks()
    try:
        group.cell("first = 1")
        assert "first = 1" in group.script()[0]
    finally:
        group.stop()
