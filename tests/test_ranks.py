"""Ranks that work: start and stop, cells, values that travel, output, results equal to one process."""

import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ranks_helpers import cell, gone, in_notebook

from fidle_utils.ranks import RankError, Ranks, output


@pytest.fixture(scope="module")
def group():
    ranks = Ranks()
    ranks.start(4, device="cpu")
    yield ranks
    ranks.stop()


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    """Print as a script does, whatever another test has left of an IPython shell."""
    monkeypatch.setattr(output, "get_ipython", lambda: None)


def test_start_resize_restart_stop(capsys):
    ranks = Ranks()
    try:
        ranks.start(2, device="cpu")
        ready = r"2 ranks ready in \d+\.\d s · cpu, gloo \(as you asked\) · 1 thread each"
        assert re.search(ready, capsys.readouterr().out)
        directory, server = Path(ranks._server.directory), ranks._server.process.pid
        ranks.cell("x = 10 + rank")
        first = ranks["x"]
        pids = [row["pid"] for row in ranks.status()]

        # Forked from one process, they would all draw the same, were they not seeded anew.
        draw = "drawn = torch.rand(()).item(), numpy.random.rand(), random.random()"
        ranks.cell(f"import random, numpy\n{draw}")
        for one, other in zip(*ranks["drawn"], strict=True):
            assert one != other

        ranks.start(2, device="cpu")
        assert "with their variables" in capsys.readouterr().out
        assert ranks["x"] == first == [10, 11] and [row["pid"] for row in ranks.status()] == pids

        ranks.start(3, device="cpu", threads=2)
        assert len(ranks) == 3 and gone(pids) == []
        ranks.cell("y = dist.get_world_size()")
        assert ranks["y"] == [3, 3, 3]
        with pytest.raises(RankError, match="name 'x' is not defined"):
            ranks["x"]
        assert ranks.run(torch.get_num_threads) == [2, 2, 2]

        ranks.restart()
        assert len(ranks) == 3 and ranks.run(torch.get_num_threads) == [2, 2, 2]
        with pytest.raises(RankError, match="'y' is not defined"):
            ranks["y"]

        ranks.start(32, device="cpu")  # many times more than cores
        ranks.cell("total = torch.tensor(rank)\ndist.all_reduce(total)")
        assert [int(total) for total in ranks["total"]] == [sum(range(32))] * 32
        pids = [row["pid"] for row in ranks.status()]
        assert len(set(pids)) == 32

        ranks.stop()
        assert len(ranks) == 0 and gone([*pids, server]) == [] and not directory.exists()
        ranks.stop()  # once more is no error
    finally:
        ranks.stop()


def test_start_refuses_and_keeps_what_runs(group):
    group.cell("kept = rank")
    for options in (dict(n=0), dict(n=2, device="tpu"), dict(n=2, backend="nccl", device="cpu")):
        with pytest.raises(ValueError):
            group.start(**options)
    assert group["kept"] == [0, 1, 2, 3]


def test_a_rank_starts_no_ranks(group):
    with pytest.raises(RankError, match="this is a rank"):
        group.cell("from fidle_utils import ranks\nranks.start(2)")


def test_status_tells_pid_device_state_and_memory(group):
    rows = group.status()
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert {row["device"] for row in rows} == {"cpu"} and {row["state"] for row in rows} == {"idle"}
    assert [row["pid"] for row in rows] == group.run(in_notebook("import os\nf = lambda: os.getpid()")["f"])
    for row in rows:
        assert 5 < row["memory_mb"] < 2000
    assert repr(group).splitlines()[0].startswith("4 ranks · cpu, gloo")
    assert len(repr(group).splitlines()) == 6


# Cells


def test_state_persists_and_the_prelude_defines_its_names(group):
    group.cell("mine = [rank]")
    group.cell("mine.append(world_size)")
    assert group["mine"] == [[rank, 4] for rank in range(4)]
    assert group["local_rank"] == [0, 1, 2, 3]
    assert group["device"] == [torch.device("cpu")] * 4
    group.cell("names = torch.__name__, dist.__name__, dist.get_rank(), dist.get_backend()")
    assert group["names"] == [("torch", "torch.distributed", rank, "gloo") for rank in range(4)]


def test_environment_is_what_torchrun_sets(group):
    group.cell("import os\nenvironment = dict(os.environ)\nthreads = torch.get_num_threads()")
    for rank, env in enumerate(group["environment"]):
        assert (env["RANK"], env["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("4", "4")
        assert env["MASTER_ADDR"] == "127.0.0.1" and env["OMP_NUM_THREADS"] == "1"
    assert len({env["MASTER_PORT"] for env in group["environment"]}) == 1
    assert group["environment"][0]["MASTER_PORT"] != "29500"
    assert group["threads"] == [1, 1, 1, 1]


def test_cells_on_some_ranks(group):
    group.cell("chosen = False")
    group.cell("chosen = True", only=[2, 0])
    assert group["chosen"] == [True, False, True, False]
    with pytest.raises(ValueError, match="there is no rank 7: the ranks are 0 to 3"):
        group.cell("chosen = None", only=[0, 7])
    assert group["chosen"] == [True, False, True, False], "no rank has run the refused cell"


def test_empty_cell_await_and_shell_commands(group):
    group.cell("")
    group.cell(cell("import asyncio\nawait asyncio.sleep(0)\nafter = rank"))
    assert group["after"] == [0, 1, 2, 3]
    group.cell("!echo from the shell")
    assert [text.strip() for text in group.outputs] == ["from the shell"] * 4


def test_value_of_the_last_expression_is_shown(group, capsys):
    group.cell("rank * 2")
    assert [text.strip() for text in group.outputs] == ["0", "2", "4", "6"]
    assert "6" in capsys.readouterr().out


# One process is the reference


def test_collectives_equal_one_process(group):
    group.cell(
        cell(
            """
            def inputs(of):
                return torch.arange(8, dtype=torch.float64).reshape(4, 2) ** 2 + 100 * of
            mine, results = inputs(rank), {}
            results["all_reduce"] = mine.clone()
            dist.all_reduce(results["all_reduce"])
            results["max"] = mine.clone()
            dist.all_reduce(results["max"], dist.ReduceOp.MAX)
            results["broadcast"] = mine.clone()
            dist.broadcast(results["broadcast"], 2)
            results["reduce"] = mine.clone()
            dist.reduce(results["reduce"], 1)
            gathered = [torch.empty_like(mine) for _ in range(world_size)]
            dist.all_gather(gathered, mine)
            results["all_gather"] = torch.stack(gathered)
            results["scattered"] = torch.empty(2, dtype=mine.dtype)
            dist.reduce_scatter(results["scattered"], list(mine.clone()))
            parts = [torch.empty(2, dtype=mine.dtype) for _ in range(world_size)]
            dist.all_to_all(parts, list(mine.clone()))
            results["all_to_all"] = torch.stack(parts)
            """
        )
    )
    group.cell(
        cell(
            """
            results["scatter"] = torch.empty(2, dtype=mine.dtype)
            dist.scatter(results["scatter"], list(mine.clone()) if rank == 3 else None, src=3)
            results["ring"] = torch.empty_like(mine)
            send = dist.isend(mine, (rank + 1) % world_size)
            dist.recv(results["ring"], (rank - 1) % world_size)
            send.wait()
            objects = [None] * world_size
            dist.all_gather_object(objects, {"rank": rank})
            results["objects"] = objects
            pair = dist.new_subgroups(2)[0]
            results["pair"] = mine.clone()
            dist.all_reduce(results["pair"], group=pair)
            dist.barrier()
            """
        )
    )
    inputs = torch.arange(8, dtype=torch.float64).reshape(4, 2) ** 2 + 100 * torch.arange(4).reshape(4, 1, 1)
    for rank, got in enumerate(group["results"]):
        expected = {
            "all_reduce": inputs.sum(0),
            "max": inputs.amax(0),
            "broadcast": inputs[2],
            "reduce": inputs.sum(0) if rank == 1 else got["reduce"],
            "all_gather": inputs,
            "scattered": inputs.sum(0)[rank],
            "all_to_all": inputs[:, rank],
            "scatter": inputs[3, rank],
            "ring": inputs[(rank - 1) % 4],
            "pair": inputs[rank // 2 * 2] + inputs[rank // 2 * 2 + 1],
        }
        assert got.pop("objects") == [{"rank": other} for other in range(4)]
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=f"{name} on rank {rank}")


def test_data_parallel_training_equals_one_process(group):
    source = """
    import torch
    def train(x, y, average=lambda model: model):
        torch.manual_seed(0)
        layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        model = average(torch.nn.Sequential(*layers).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    def on_rank(x, y):
        mine = x.chunk(world_size)[rank], y.chunk(world_size)[rank]
        return train(*mine, torch.nn.parallel.DistributedDataParallel)
    """
    functions = in_notebook(source)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(16, size, generator=generator, dtype=torch.float64) for size in (5, 1))
    reference = functions["train"](x, y)
    for parameters in group.run(functions["on_rank"], x, y):
        torch.testing.assert_close(parameters, reference, rtol=0, atol=1e-12)


def test_a_seed_makes_ranks_draw_what_one_process_draws(group):
    group.cell("torch.manual_seed(7)\nseeded = torch.rand(3)")
    reference = torch.rand(3, generator=torch.Generator().manual_seed(7))
    for value in group["seeded"]:
        torch.testing.assert_close(value, reference, rtol=0, atol=0)


def test_dataloader_workers_serve_every_rank(group):
    group.cell(
        cell(
            """
            from torch.utils.data import DataLoader, TensorDataset
            loader = DataLoader(TensorDataset(torch.arange(20)), batch_size=5, num_workers=2)
            seen = [int(batch.sum()) for (batch,) in loader]
            del loader
            """
        )
    )
    assert group["seen"] == [[10, 35, 60, 85]] * 4
    for row in group.status():
        assert gone([child.pid for child in psutil.Process(row["pid"]).children()]) == []


# Values that travel


def test_run_passes_arguments_and_orders_results(group):
    functions = in_notebook(
        """
        def helper(x):
            return x * 10
        def f(a, *rest, scale=1):
            return rank, helper(a) * scale, rest
        """
    )
    assert group.run(functions["f"], 2, 3, scale=5) == [(rank, 100, (3,)) for rank in range(4)]
    assert group.run(functions["f"], 1, only=[3, 1]) == [(1, 10, ()), (3, 10, ())]
    assert group.run(lambda: "a lambda of this module") == ["a lambda of this module"] * 4
    assert group.run(max, 1, 2) == [2] * 4
    assert group.run(in_notebook("def f(): pass")["f"]) == [None] * 4


def test_run_resolves_names_on_the_rank(group):
    group.cell("def local(x):\n    return x + rank\noffset = 1000 * rank")
    source = "def f(x):\n t = torch.tensor(local(x))\n dist.all_reduce(t)\n return int(t) + offset"
    f = in_notebook(source)["f"]
    assert group.run(f, 10) == [46 + 1000 * rank for rank in range(4)]
    group.cell("offset = 0")
    assert group.run(f, 10) == [46] * 4, "names are looked up anew each time"
    helpers = in_notebook("def inner():\n return rank, offset\ndef outer():\n return inner()")
    assert group.run(helpers["outer"]) == [(rank, 0) for rank in range(4)]
    closure = in_notebook("def make(k):\n def f():\n  return k + rank\n return f")["make"](5)
    assert group.run(closure) == [5, 6, 7, 8]


def test_run_brings_what_the_notebook_defines(group):
    group.cell("which = 'rank'")
    assert group.run(in_notebook("which = 'notebook'\ndef f():\n return which")["f"]) == ["notebook"] * 4
    assert group["which"] == ["rank"] * 4, "the variable of the rank is left alone"


def test_run_that_raises_names_rank_and_error(group):
    with pytest.raises(RankError, match="ValueError.*only here") as caught:
        group.run(in_notebook("def f():\n if rank == 2:\n  raise ValueError('only here')")["f"])
    assert (caught.value.rank, caught.value.ename) == (2, "ValueError")
    assert group.run(len, [1]) == [1] * 4


def test_values_come_back_as_they_are(group):
    group.cell(
        cell(
            """
            import numpy
            leaf = torch.full((2,), rank + 0.5, requires_grad=True)
            values = {
                "leaf": leaf, "computed": leaf * 2, "bf16": torch.tensor([1.5, rank], dtype=torch.bfloat16),
                "array": numpy.arange(3) * rank, "none": None, "text": "é", "tuple": (1, [2.0, {3}]),
                "view": torch.arange(6).reshape(2, 3).T, "empty": torch.empty(0, 3),
                "module": torch.nn.Linear(2, 1),
            }
            """
        )
    )
    for rank, got in enumerate(group["values"]):
        assert got["leaf"].tolist() == [rank + 0.5] * 2 and got["leaf"].requires_grad
        assert got["computed"].tolist() == [2 * rank + 1.0] * 2
        assert got["bf16"].dtype == torch.bfloat16 and got["bf16"].tolist() == [1.5, rank]
        np.testing.assert_array_equal(got["array"], np.arange(3) * rank)
        assert (got["none"], got["text"], got["tuple"]) == (None, "é", (1, [2.0, {3}]))
        assert got["view"].tolist() == [[0, 3], [1, 4], [2, 5]] and got["empty"].shape == (0, 3)
        assert got["module"](torch.ones(2)).shape == (1,)


def test_large_values_travel_both_ways(group):
    big = torch.arange(5_000_000, dtype=torch.float32)  # 20 MB
    group.push(big=big)
    group.cell("big += rank")
    for rank, value in enumerate(group["big"]):
        assert torch.equal(value, big + rank)
    group.cell("del big")


def test_objects_of_a_class_written_in_a_cell_come_back(group):
    group.cell("class Point:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x")
    group.cell("point = Point(rank)")
    assert [point.twice() for point in group["point"]] == [0, 2, 4, 6]


def test_push_values_functions_and_classes(group):
    pushed = in_notebook(
        """
        def shifted(x):
            return x + rank
        class Doubler:
            def __call__(self, x):
                return 2 * x + rank
        """
    )
    group.push(number=3, table={"a": torch.ones(2)}, shifted=pushed["shifted"], Doubler=pushed["Doubler"])
    group.cell("got = number, table['a'].sum().item(), shifted(10), Doubler()(5)")
    assert group["got"] == [(3, 2.0, 10 + rank, 10 + rank) for rank in range(4)]


def test_a_pushed_function_sees_later_variables(group):
    group.push(reads=in_notebook("def reads():\n return defined_later")["reads"])
    group.cell("defined_later = rank * 3")
    group.cell("read = reads()")
    assert group["read"] == [0, 3, 6, 9]


def test_what_cannot_travel_is_said_once_and_nothing_is_lost(group):
    group.cell("safe = rank\nbroken = (i for i in range(3))")
    with pytest.raises(RankError, match="'broken' cannot be sent to the notebook.*generator") as caught:
        group["broken"]
    assert len(str(caught.value).splitlines()) == 1 and "ranks 0–3" in str(caught.value)
    with pytest.raises(RankError, match="cannot be sent to the notebook"):
        group.run(in_notebook("def f():\n return (i for i in ())")["f"])
    with pytest.raises(TypeError, match="cannot be sent to the ranks"):
        group.push(stream=(i for i in ()))
    with pytest.raises(TypeError, match="cannot be sent to the ranks"):
        group.run(len, (i for i in ()))
    with pytest.raises(RankError, match="name 'nowhere' is not defined"):
        group["nowhere"]
    for wrong in (0, "two words", None):
        with pytest.raises(TypeError, match="name of a variable"):
            group[wrong]
    assert group["safe"] == [0, 1, 2, 3]


def test_a_variable_that_only_some_ranks_have(group):
    group.cell("if rank != 1:\n    partly = rank")
    with pytest.raises(RankError, match="rank 1: NameError") as caught:
        group["partly"]
    assert caught.value.rank == 1


# Output


def test_two_hundred_thousand_lines_a_rank(group, capsys):
    start = time.monotonic()
    group.cell("for number in range(200_000):\n    print('line', number, 'of', rank)", timeout=110)
    seconds = time.monotonic() - start
    for rank, text in enumerate(group.outputs):
        lines = text.splitlines()
        assert len(lines) == 200_000
        assert lines[0] == f"line 0 of {rank}" and lines[123_456] == f"line 123456 of {rank}"
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 500 and shown.count("ranks.outputs[") == 4
    assert seconds < 100  # a guard against quadratic work only: two cores, and a test beside this one


def test_no_message_of_a_burst_is_dropped(group):
    """Each flushed line is a message of its own; ZeroMQ drops what exceeds its default of 1000 in a queue."""
    group.cell("for number in range(5_000):\n    print(number, flush=True)", timeout=100)
    for text in group.outputs:
        assert text == "".join(f"{number}\n" for number in range(5_000))


def test_progress_bars_do_not_interleave(group, capsys):
    group.cell(
        cell(
            """
            import time
            from tqdm import tqdm
            for _ in tqdm(range(20), desc=f"epoch of {rank}", mininterval=0.01):
                time.sleep(0.02)
            print("done", rank)
            """
        )
    )
    rows = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    for rank in range(4):
        bars = [row for row in rows if f"epoch of {rank}" in row]
        assert len(bars) == 1 and bars[0].startswith(f"rank {rank} │") and "20/20" in bars[0]
        assert bars[0].count("epoch of") == 1
    order = [row.split(" │")[0] for row in rows]
    assert order == sorted(order), "the blocks stand in order of rank"


def test_text_written_by_libraries_and_children_is_labelled(group):
    both = "print('to stderr', file=sys.stderr)\n    os.write(2, b'from C\\n')"
    group.cell(f"import os, sys\nif rank == 3:\n    {both}")
    assert group.outputs[:3] == ["", "", ""]
    assert "to stderr" in group.outputs[3] and "from C" in group.outputs[3]


def test_outputs_are_those_of_the_last_cell(group):
    group.cell("print(rank)")
    group["rank"], group.push(a=1)
    assert group.outputs == ["0\n", "1\n", "2\n", "3\n"]
    group.cell("pass")
    assert group.outputs == ["", "", "", ""]
