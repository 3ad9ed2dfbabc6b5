"""What lesson 08 tells its reader is so: its own cells, run on ranks, against DDP, formulas and tables."""

import ast
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from fidle_utils.memory_formulas import activation_bytes, model_state_bytes, step_bytes_sent
from fidle_utils.models import MLP
from fidle_utils.ranks.front import Ranks
from fidle_utils.reference import table

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "08_shard_the_states.ipynb")
CELLS = [cell for cell in LESSON.cells if cell.cell_type == "code"]
PSI = MLP(width=256, depth=4).num_parameters()


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def on_ranks(source):
    """A cell of the ranks without its magic, on as many lines."""
    return "# " + source


@pytest.fixture(scope="module")
def ranks():
    """Four ranks that ran the cells of the lesson, in their order, with the solutions of its exercises."""
    group = Ranks()
    group.start(4, device="cpu")
    for cell in CELLS:
        if cell.source.startswith("%%ranks") and not tagged(cell, "exercise"):
            group.cell(on_ranks(cell.source))
    yield group
    group.stop()


@pytest.mark.parametrize("name", ["by_hand", "with_zero1", "with_zero2", "with_zero3", "with_offload"])
def test_each_stage_equals_ddp_after_five_steps_of_adamw(ranks, name):
    for weights, ddp in zip(ranks[name], ranks["with_ddp"], strict=True):
        assert len(weights) == PSI
        torch.testing.assert_close(weights, ddp, atol=1e-6, rtol=0)
    start = torch.cat([p.detach().flatten() for p in _mlp().parameters()])
    assert (ranks[name][0] - start).abs().max() > 1e-3  # it has been trained


def _mlp():
    torch.manual_seed(0)
    return MLP(width=256, depth=4)


@pytest.mark.parametrize("stage", range(4))
def test_bytes_held_and_sent_are_the_formulas(ranks, stage):
    for stages in ranks["stages"]:
        held, sent, _ = stages[stage]
        for part, n_bytes in model_state_bytes(PSI, stage, 4).items():
            assert held[part] == pytest.approx(n_bytes, rel=0.01)
        assert sent == pytest.approx(step_bytes_sent(PSI, stage, 4), rel=0.01)


def test_stage_3_never_has_more_than_a_layer_and_ends_with_none(ranks):
    log = ranks["stages"][0][3][2]
    largest = 2 * (256 * 256 + 256)
    assert max(log) == largest and log[-1] == 0 and len(log) == 2 * 2 * 10  # 10 tensors, forward and backward


def test_sixteen_bytes_are_counted(ranks):
    parts = ranks["counted"][0] if isinstance(ranks["counted"][0], dict) else None
    assert parts is None or sum(parts.values()) == pytest.approx(16 * PSI, rel=1e-3)


def test_fsdp2_gives_the_gradient_of_one_process_and_gathers_as_told(ranks):
    for mine, whole in zip(ranks["whole_gradient"], ranks["expected"], strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-6, rtol=0)
    calls = {
        name: (c.calls("all_gather"), c.calls("reduce_scatter"))
        for name, (c, _) in ranks["variants"][0].items()
    }
    assert calls == {"True": (10, 5), "False": (5, 5), "mixed": (10, 5)}
    assert ranks["early"][0][0] == [3, 4, 5, 5]  # the last cell that sets it: with prefetch by hand


def test_shards_are_what_the_lesson_says_of_fsdp1_fsdp2_and_zero3(ranks):
    assert [held.tolist() for held in ranks["held_by_fsdp2"]] == [
        [*range(10), 30, 31],
        [*range(10, 20), 32, 33],
        [*range(20, 30), 34, 35],
        [],
    ]
    assert [len(held) for held in ranks["held_by_hand"]] == [8 + 2] * 4  # with two zeros to fill each up
    assert torch.equal(torch.cat(ranks["held_by_fsdp1"]), torch.arange(36.0))


@pytest.mark.parametrize("s, b, h, a", [(64, 2, 64, 4), (32, 3, 96, 6), (128, 2, 32, 8)])
def test_the_layer_keeps_what_korthikanti_counts_whatever_its_size(ranks, s, b, h, a):
    ranks.cell(f"""
layer = PaperLayer({h}, {a}).to(torch.bfloat16)
kept = saved_tensors(layer(torch.randn({b}, {s}, {h}, dtype=torch.bfloat16, requires_grad=True)), layer)
""")
    norms = 2 * 4 * s * b  # mean and deviation of each token, which the paper leaves out
    assert sum(n_bytes for _, n_bytes in ranks["kept"][0]) == activation_bytes(s, b, h, a) + norms


def test_checkpointing_keeps_what_the_formulas_say_and_computes_the_same(ranks):
    weighed, s, b, h, a = ranks["weighed"][0], 128, 4, 128, 8
    recompute = {"PaperLayer": "none", "Selective": "selective", "Fused": "selective", "Full": "full"}
    for name, (ledger, _, gradient) in weighed.items():
        at = ledger.at("forward")
        a_layer = (at["activations"] + at["inputs"]) / 4
        assert a_layer == pytest.approx(activation_bytes(s, b, h, a, recompute[name]), rel=0.01)
        if name != "Fused":
            assert torch.equal(gradient, weighed["PaperLayer"][2])
    work = {name: flops / weighed["PaperLayer"][1] for name, (_, flops, _) in weighed.items()}
    assert work["Full"] == pytest.approx(4 / 3) and 1 < work["Selective"] < 1.05


def test_accumulating_costs_bytes_or_memory(ranks):
    (reduced, small, a), (once, large, b) = ranks["reduced"][0], ranks["kept_whole"][0]
    assert reduced / once == pytest.approx(5 / 2, rel=0.01)
    assert large / PSI == pytest.approx(2, rel=0.01) and small / PSI == pytest.approx(0.5, rel=0.01)
    torch.testing.assert_close(a, b, atol=5e-3, rtol=0)  # sums in bf16, in another order


def test_every_planted_mistake_gets_a_hint_of_its_own(ranks):
    said, stubs = {}, [cell for cell in CELLS if tagged(cell, "exercise")]
    checks = [cell for cell in CELLS if tagged(cell, "check")]
    for stub, check in zip(stubs, checks, strict=True):
        if not stub.source.startswith("%%ranks"):
            continue
        function = next(node for node in ast.parse(check.source).body if isinstance(node, ast.FunctionDef))
        ranks.cell(ast.get_source_segment(check.source, function))
        name = function.args.args[0].arg
        for wrong in stub.metadata["fidle"]["wrong"]:
            ranks.cell(f"right = {name}")
            ranks.cell(on_ranks(wrong))
            ranks.cell(f"""
try:
    {function.name}({name})
    hint = None
except AssertionError as error:
    hint = str(error)
{name} = right
""")
            assert all(ranks["hint"]), f"{name} takes this for right: {wrong}"
            assert ranks["hint"][0] not in said, f"the hint of {said[ranks['hint'][0]]} too: {wrong}"
            said[ranks["hint"][0]] = wrong
    assert len(said) >= 15


def test_the_exercise_on_table_1_accepts_the_formula_only():
    (check,) = [cell for cell in CELLS if tagged(cell, "check") and "def test_table" in cell.source]
    names = {"table": table, "check": lambda *_: None, "gb_per_rank": None}
    exec(check.source, names)
    names["test_table"](lambda billions, n, stage: sum(model_state_bytes(billions, stage, n).values()))
    hints = set()
    (stub,) = [cell for cell in CELLS if tagged(cell, "exercise") and "def gb_per_rank" in cell.source]
    for wrong in stub.metadata["fidle"]["wrong"]:
        exec(wrong, names)
        with pytest.raises(AssertionError) as error:
            names["test_table"](names["gb_per_rank"])
        hints.add(str(error.value))
    assert len(hints) == len(stub.metadata["fidle"]["wrong"])


def test_the_live_path_runs_without_the_other_cells():
    cells = [cell for cell in LESSON.cells if tagged(cell, "live")]
    live = nbformat.v4.new_notebook(cells=cells, metadata=LESSON.metadata)
    NotebookClient(live, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
