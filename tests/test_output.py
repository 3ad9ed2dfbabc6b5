"""How ranks are shown, named, placed and asked for: the parts that need no rank."""

import signal
from types import SimpleNamespace

import pytest
import torch
from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import TransformerManager

from fidle_utils.ranks import RankError, output
from fidle_utils.ranks.link import BUSY, DEAD, IDLE
from fidle_utils.ranks.locate import Place, explain, names, parse
from fidle_utils.ranks.magics import RanksMagics, _parse_ranks
from fidle_utils.ranks.output import FINAL_ROWS, CellOutput, Screen
from fidle_utils.ranks.placement import place
from fidle_utils.ranks.report import Failure, cause_of_death, place_of_error

COLOR = "\x1b["


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    """Print as a script does, whatever another test has left of an IPython shell."""
    monkeypatch.setattr(output, "get_ipython", lambda: None)


def plain(text):
    """Text without its colours."""
    return "".join(part.partition("m")[2] if at else part for at, part in enumerate(text.split(COLOR)))


# One rank's text


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo", ["one", "two"]),
        ("10 %\r50 %\r100 %\n", ["100 %"]),
        ("10 %\r50 %\r100 %\nafter\n", ["100 %", "after"]),
        ("dos\r\nline\r\n", ["dos", "line"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("outer 0\ninner 0\x1b[A\router 1\ninner 1\n", ["outer 1", "inner 1"]),
        ("", []),
    ],
)
def test_screen_obeys_what_a_terminal_obeys(text, rows):
    screen = Screen()
    screen.write(text)
    assert screen.shown(100, 0) == rows


def test_screen_shows_the_same_however_text_is_cut():
    text = "epoch 1\n  0%|  |\r 50%|# |\r100%|##|\nloss 0.5\r\nend"
    expected = ["epoch 1", "100%|##|", "loss 0.5", "end"]
    for first in range(len(text)):
        for second in range(first, len(text)):
            screen = Screen()
            for part in (text[:first], text[first:second], text[second:]):
                screen.write(part)
            assert screen.shown(100, 0) == expected, (first, second)


def test_screen_leaves_out_the_middle_and_says_where_it_is():
    screen = Screen()
    screen.write("".join(f"{number}\n" for number in range(12_345)))
    rows = screen.shown(FINAL_ROWS, 3)
    assert (rows[0], rows[-1]) == ("0", "12344")
    (note,) = [row for row in rows if "more lines" in row]
    assert "ranks.outputs[3]" in note
    # What is shown and what is left out make the whole.
    assert int("".join(filter(str.isdigit, note.partition("more")[0]))) + len(rows) - 1 == 12_345


# All ranks' text


def shown(ranks, writes, capsys):
    cell = CellOutput(ranks)
    for rank, text in writes:
        cell.write(rank, text)
    cell.draw(final=True)
    return cell, plain(capsys.readouterr().out).splitlines()


def test_blocks_stand_in_order_of_rank_not_of_time(capsys):
    cell, rows = shown(range(3), [(2, "c\n"), (0, "a"), (1, "b\n"), (0, "aa\n")], capsys)
    assert rows == ["rank 0 │ aaa", "rank 1 │ b", "rank 2 │ c"]
    assert cell.outputs == ["aaa\n", "b\n", "c\n"]


def test_the_same_text_is_shown_once(capsys):
    _, rows = shown(range(4), [(rank, "same\n") for rank in (3, 1, 0, 2)], capsys)
    assert rows == ["ranks 0–3 │ same"]
    _, rows = shown(range(4), [(rank, "x\n" if rank == 2 else "same\n") for rank in range(4)], capsys)
    assert rows == ["ranks 0, 1, 3 │ same", "rank 2 │ x"]


def test_rich_output_without_a_front_end_is_its_text(capsys):
    cell = CellOutput([0])
    figure = {"data": {"image/png": "…", "text/plain": "<Figure>"}, "metadata": {}}
    cell.rich(0, figure)
    cell.draw(final=True)
    assert plain(capsys.readouterr().out) == "rank 0 │ <Figure>\n"


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([2], "rank 2"),
        ([1, 0], "ranks 0, 1"),
        ([3, 0, 1], "ranks 0, 1, 3"),
        (range(4), "ranks 0–3"),
    ],
)
def test_names(ranks, expected):
    assert names(ranks) == expected


# Where ranks are

STACK = """Current thread 0x00007f (most recent call first):
  File "/env/torch/distributed/distributed_c10d.py", line 3007 in all_reduce
  File "/env/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/tmp/ipykernel_123/456.py", line 3 in average
  File "/tmp/ipykernel_123/789.py", line 7 in <module>
  File "/env/IPython/core/interactiveshell.py", line 3748 in run_code
"""


def frames(*lines):
    return "".join(f'  File "{path}", line {line} in {name}\n' for path, line, name in lines)


def test_parse_names_the_collective_and_the_line():
    assert parse(STACK) == Place(3, "all_reduce")


def test_parse_names_what_the_cell_called_not_what_that_called():
    inner = ("/env/torch/distributed/distributed_c10d.py", 1, "_all_gather_base")
    outer = ("/env/torch/distributed/distributed_c10d.py", 2, "all_gather_object")
    mine = ("/tmp/ipykernel_1/2.py", 5, "<module>")
    assert parse(frames(inner, outer, mine)) == Place(5, "all_gather_object")


def test_parse_backward_work_and_places_outside():
    engine = ("/env/torch/autograd/graph.py", 829, "_engine_run_backward")
    mine = ("/tmp/ipykernel_1/2.py", 2, "<module>")
    assert parse(frames(engine, mine)) == Place(2, "backward")
    assert parse(frames(mine)) == Place(2, None)
    assert parse(frames(mine), "work = f()\nwork.wait()") == Place(2, "wait()")
    assert parse(frames(mine), "work = f()\nx = 1") == Place(2, None)
    assert parse(frames(("/env/threading.py", 1, "wait"))) == Place(None, None)
    assert parse("") == Place(None, None)


def test_explain_says_what_every_rank_does():
    states = (BUSY, BUSY, IDLE, BUSY, DEAD)
    links = [SimpleNamespace(rank=rank, state=state) for rank, state in enumerate(states)]
    places = {0: Place(7, "all_reduce"), 1: Place(7, "all_reduce"), 3: Place(2, None)}
    said = explain(places, links)
    assert said == (
        "ranks 0, 1 wait in all_reduce, line 7; rank 3 is on line 2; rank 2 finished the cell; rank 4 died"
    )


# How ranks fail


def test_place_of_error_is_the_innermost_line_of_a_cell():
    old = "File /tmp/ipykernel_1/2.py:4, in f(x)\n"
    deeper = "Cell In[3], line 9\nFile /env/torch/nn.py:12\nCell In[2], line 4, in f()"
    assert place_of_error(deeper) == Place(4, None)
    assert place_of_error("\x1b[36mCell\x1b[39m In[3]\x1b[32m, line 9\x1b[39m") == Place(9, None)
    assert place_of_error("Cell In[3], line 9\n" + old) == Place(4, None)
    assert place_of_error("File /env/torch/nn.py:12") is None


def test_place_of_error_names_what_the_cell_called():
    library = "/env/torch/distributed"
    inner = f"File {library}/c10d_logger.py:83, in _exception_logger.<locals>.wrapper(*args)\n"
    called = f"File {library}/distributed_c10d.py:3252, in all_reduce(tensor, op)\n"
    assert place_of_error("Cell In[3], line 9\n" + inner + called + inner) == Place(9, "all_reduce")
    engine = "File /env/torch/autograd/graph.py:829, in _engine_run_backward(t_outputs)\n"
    assert place_of_error("Cell In[3], line 2\n" + engine) == Place(2, "backward")


def test_cause_of_death():
    assert cause_of_death(0, "")[0] == "exit code 0"
    assert "memory" in cause_of_death(-signal.SIGKILL, "")[1]
    how, why = cause_of_death(-signal.SIGABRT, "gloo::EnforceNotMet\n what(): [enforce fail at …")
    assert how == "SIGABRT" and "different shapes or dtypes" in why
    assert "different" not in cause_of_death(-signal.SIGABRT, "double free")[1]


def test_rank_error_carries_the_first_failure_and_shows_its_traceback_once():
    at = Place(7, None)
    failures = [Failure(2, "ValueError", "wrong", at, "the traceback"), Failure(3, "ValueError", "wrong", at)]
    error = RankError(["ranks 2, 3: ValueError on line 7: wrong"], failures, ["→ go on"])
    assert (error.rank, error.line, error.ename, error.evalue) == (2, 7, "ValueError", "wrong")
    shown = "\n".join(error._render_traceback_())
    assert shown.count("the traceback") == 1 and "ranks 2, 3" in shown and "→ go on" in shown
    assert str(RankError(["timed out"])) == "timed out" and RankError(["timed out"]).rank is None


# Which device and backend


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "asked", "world_size", "first_device", "backend", "why"),
    [
        (0, {}, 4, "cpu", "gloo", "no GPU here"),
        (0, {"n": 2}, 2, "cpu", "gloo", "no GPU here"),
        (1, {}, 4, "cpu", "gloo", "1 GPU for 4 ranks"),
        (1, {"n": 1}, 1, "cuda:0", "nccl", "a GPU each"),
        (2, {}, 2, "cuda:0", "nccl", "a GPU each"),
        (4, {"n": 4}, 4, "cuda:0", "nccl", "a GPU each"),
        (4, {"n": 4, "device": "cpu"}, 4, "cpu", "gloo", "as you asked"),
        (4, {"n": 4, "backend": "gloo"}, 4, "cpu", "gloo", "as you asked"),
        (1, {"n": 4, "device": "cuda", "backend": "gloo"}, 4, "cuda:0", "gloo", "as you asked"),
    ],
)
def test_place_chooses_and_says_why(gpus, count, asked, world_size, first_device, backend, why):
    gpus(count)
    placed = place(**asked)
    assert (placed.world_size, placed.devices[0], placed.backend) == (world_size, first_device, backend)
    assert why in str(placed) and backend in str(placed)


def test_place_gives_each_rank_its_own_gpu_or_shares(gpus):
    gpus(4)
    assert place(4).devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    gpus(2)
    assert place(4, "cuda", "gloo").devices == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("count", "asked", "message"),
    [
        (0, {"n": 0}, "one is the least"),
        (0, {"n": -2}, "one is the least"),
        (0, {"n": 2, "device": "tpu"}, '"cpu" or "cuda"'),
        (0, {"n": 2, "device": "cuda"}, "leave out --device cuda"),
        (2, {"n": 4, "device": "cuda"}, r"no GPU for rank 2 \(2 visible\)"),
        (0, {"n": 2, "backend": "nccl"}, "leave out --backend nccl"),
        (2, {"n": 4, "backend": "nccl"}, "NCCL needs a GPU"),
    ],
)
def test_place_refuses_with_the_next_thing_to_do(gpus, count, asked, message):
    gpus(count)
    with pytest.raises(ValueError, match=message):
        place(**asked)


def test_place_threads_and_crowds(gpus):
    gpus(0)
    assert "1 thread each" in str(place(2)) and "3 threads each" in str(place(2, threads=3))
    assert any("10000 ranks share" in note for note in place(10_000).notes)
    assert place(1).notes == []


# The magics


class FakeRanks:
    """Notes what the magics ask of the ranks."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

    def __len__(self):
        return 4


@pytest.fixture
def magics():
    made = RanksMagics(None, FakeRanks())
    made.shell = SimpleNamespace(transform_cell=TransformerManager().transform_cell, execution_count=5)
    return made


@pytest.mark.parametrize(
    ("line", "name", "args", "options"),
    [
        ("4", "start", (4,), {}),
        ("3 --device cpu --threads 2", "start", (3,), {"device": "cpu", "threads": 2}),
        ("--backend gloo", "start", (None,), {"backend": "gloo"}),
        ("restart", "restart", (), {}),
        ("stop", "stop", (), {}),
    ],
)
def test_line_magic(magics, line, name, args, options):
    magics.magic(line)
    ((called, given, kwargs),) = magics.ranks.calls
    assert (called, given) == (name, args)
    assert {key: value for key, value in kwargs.items() if value is not None} == options


@pytest.mark.parametrize(
    ("line", "only", "timeout", "timeline"),
    [
        ("", None, None, False),
        ("0,2", [0, 2], None, False),
        ("1-3", [1, 2, 3], None, False),
        ("0 --timeout 2.5", [0], 2.5, False),
        ("--timeline --timeout 20", None, 20.0, True),
    ],
)
def test_cell_magic(magics, line, only, timeout, timeline):
    magics.magic(line, "x = 1\n")
    ((name, (source,), kwargs),) = magics.ranks.calls
    assert name == "cell" and source.splitlines()[1] == "x = 1", "the magic's line is line 1"
    assert (kwargs["only"], kwargs["timeout"], kwargs["timeline"]) == (only, timeout, timeline)
    assert kwargs["shown"] == "x = 1\n"


@pytest.mark.parametrize(
    ("line", "cell", "message"),
    [
        ("strat", None, "Did you mean"),
        ("4 --device tpu", None, "--device"),
        ("four", None, "a number, restart, stop, export"),
        ("4 --thread", None, "--thread"),
        ("0,x", "x = 1", "0,2 or 0-2"),
        ("2-", "x = 1", "0,2 or 0-2"),
        ("--timeout soon", "x = 1", "--timeout"),
        ("--time", "x = 1", "--time"),
        ("'0", "x = 1", "quot"),
        ("restart", "x = 1", "0,2 or 0-2"),
        ("--timeout -1", "x = 1", "--timeout"),
        ("4 --threads 0", None, "threads"),
    ],
)
def test_bad_magics_get_one_line(magics, line, cell, message):
    with pytest.raises(UsageError) as caught:
        magics.magic(line, cell)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not magics.ranks.calls, "nothing was asked of the ranks"


def test_an_argument_that_ranks_refuse_is_one_line(magics):
    def refuse(*args, **kwargs):
        raise ValueError("there is no rank 7: the ranks are 0 to 3")

    magics.ranks.cell = refuse
    with pytest.raises(UsageError, match="there is no rank 7"):
        magics.magic("7", "x = 1")


def test_a_syntax_error_reaches_no_rank(magics):
    with pytest.raises(RankError, match="SyntaxError on line 3: no rank has run this cell") as caught:
        magics.magic("", "x = 1\ny = = 2\n")
    assert (caught.value.line, caught.value.ename) == (3, "SyntaxError")
    assert not magics.ranks.calls


def test_cells_with_magics_and_await_are_no_syntax_errors(magics):
    magics.magic("", "!ls\n%time x = 1\nawait f()\n")
    assert len(magics.ranks.calls) == 1


def test_parse_ranks():
    assert _parse_ranks("0,2-4") == [0, 2, 3, 4]
    with pytest.raises(UsageError):
        _parse_ranks("0,,1")
