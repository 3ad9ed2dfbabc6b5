"""What lesson 05 tells its reader is so: its own cells, on ranks, against one process and closed forms."""

import math
from pathlib import Path

import jupytext
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figure_helpers import whole

from fidle_utils import plots, teach
from fidle_utils import ranks as group
from fidle_utils.reference import table

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "05_split_the_model.ipynb")
CELLS = [cell for cell in LESSON.cells if cell.cell_type == "code"]
# What the tests need, in the order of the lesson; of an exercise the solution, which comes last.
DEFINITIONS = (
    "def tower(",
    "def naive_step(",
    "f_and_g = CopyToRanks, SumOverRanks",
    "def my_part(",
    "class ParallelMLP(",
    "def relative(",
    "class ColumnLinear(",
    "class ParallelAttention(",
    "class VocabularyEmbedding(",
    "def parallel_cross_entropy(",
    "def tensor_parallel(",
    "def small_gpt(",
    "def loss_of(",
    "class GatherSequence(",
    "def sequence_parallel(",
    "def global_norm(",
    "class PassRight(",
    "def ring_attention(",
    "def swap(",
)


def source(words):
    """The cell of the ranks that has `words`; of an exercise the solution."""
    return [cell.source for cell in CELLS if words in cell.source and cell.source.startswith("%%ranks")][-1]


def run(words):
    group.cell(source(words).replace("%%ranks", "# %%ranks", 1))


@pytest.fixture(scope="module", params=[4, 2], ids=lambda n: f"{n} ranks")
def ranks(request):
    group.start(request.param, device="cpu")
    group.cell(
        "import copy\nfrom fidle_utils.measure import count_communication\nfrom fidle_utils.models import GPT"
    )
    for words in DEFINITIONS:
        run(words)
    yield group
    group.stop()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# ------------------------------------------------------------------- equal to one process, every tensor

COMPARE = """
dtype = torch.{dtype}
whole = small_gpt(dtype)
split = {split}(whole)
mine = {loss}
truth = loss_of(whole)
mine.backward()
truth.backward()
if {sequence}:
    for p in split.parameters():
        if not hasattr(p, "cut"):
            dist.all_reduce(p.grad)
names = [name for name, _ in split.named_parameters()]
pairs = list(zip(split.parameters(), whole.parameters(), strict=True))
far = {{name: relative(p.grad, part_of(q.grad, p)) for name, (p, q) in zip(names, pairs)}}
far = {{name: error for name, error in far.items() if "key.bias" not in name}}  # their true gradient is 0
before = [p.detach().clone() for p, _ in pairs]
for model in (split, whole):
    torch.optim.SGD(model.parameters(), 0.1).step()
far["step"] = max(relative(p, part_of(q, p)) for (p, q), b in zip(pairs, before) if q.abs().max() > 1e-4)
far["loss"] = relative(mine, truth)
moved = sum(not torch.equal(p, b) for (p, _), b in zip(pairs, before))
"""
TENSOR = dict(
    split="tensor_parallel",
    loss="tensor_parallel_loss(split)",
    sequence=False,
)
SEQUENCE = dict(split="sequence_parallel", loss="sequence_parallel_loss(split)", sequence=True)


@pytest.mark.parametrize("dtype, limit", [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("how", [TENSOR, SEQUENCE], ids=lambda how: how["split"])
def test_a_gpt_has_the_loss_every_gradient_and_the_step_of_one_process(ranks, how, dtype, limit):
    ranks.cell(COMPARE.format(dtype=dtype, **how))
    for far in ranks["far"]:
        assert len(far) > 30 and max(far.values()) < limit, max(far.items(), key=lambda item: item[1])
    assert min(ranks["moved"]) == len(ranks["names"][0])


def test_what_stays_whole_is_the_same_on_all_ranks_after_a_step(ranks):
    ranks.cell(COMPARE.format(dtype="float32", **SEQUENCE))
    ranks.cell("kept = [p.detach() for p in split.parameters() if not hasattr(p, 'cut')]")
    first, *others = ranks["kept"]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_without_the_last_all_reduce_what_is_whole_has_one_term_of_its_gradient(ranks):
    ranks.cell(COMPARE.format(dtype="float32", **{**SEQUENCE, "sequence": False}))
    ranks.cell("cut = {name: hasattr(p, 'cut') for name, p in split.named_parameters()}")
    far, cut = ranks["far"][0], ranks["cut"][0]
    wrong = {name for name, error in far.items() if error > 1e-2} - {"step"}
    assert wrong == {name for name in far if name in cut and not cut[name]}


def test_the_naive_split_has_every_gradient_of_one_process(ranks):
    run("stage = tower()")
    ranks.cell("stage.zero_grad(); loss = naive_step(x, y); gradients = [p.grad for p in stage.parameters()]")
    names = {"torch": torch, "nn": torch.nn, "device": torch.device("cpu")}
    exec(source("def tower(").partition("n_mine")[0].replace("%%ranks", "# %%ranks"), names)
    model = names["tower"]()
    torch.manual_seed(1)
    x, y = (torch.randn(names["rows"], names["width"]) for _ in range(2))
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    torch.testing.assert_close(ranks["loss"][-1], loss)
    gradients = [gradient for of_rank in ranks["gradients"] for gradient in of_rank]
    for mine, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-5, atol=1e-5 * p.grad.abs().max().item())


def test_the_vocabulary_parallel_loss_is_cross_entropy_whatever_the_size_of_the_logits(ranks):
    ranks.cell("""
far = []
for scale in (1.0, 1e3):
    torch.manual_seed(5)
    logits, y = scale * torch.randn(40, 24, dtype=torch.float64), torch.randint(24, (40,))
    theirs = logits.clone().requires_grad_()
    mine = logits.chunk(world_size, -1)[rank].clone().requires_grad_()
    truth, loss = F.cross_entropy(theirs, y), parallel_cross_entropy(mine, y)
    truth.backward()
    loss.backward()
    far += [relative(loss, truth), relative(mine.grad, theirs.grad.chunk(world_size, -1)[rank])]
""")
    assert max(max(far) for far in ranks["far"]) < 1e-12


def test_f_and_g_are_conjugate(ranks):
    """⟨f x, y⟩ summed over the ranks is ⟨x, fᵀ y⟩: backward is the transpose of forward, here of a copy."""
    ranks.cell("""
torch.manual_seed(rank)
grads, x = torch.randn(5), torch.ones(5, requires_grad=True)
CopyToRanks.apply(x).backward(grads)
term = torch.randn(5, requires_grad=True)
y = SumOverRanks.apply(term)
y.backward(torch.arange(5.0))
results = x.grad, y.detach(), term.grad
""")
    torch.testing.assert_close(ranks["results"][0][0], sum(ranks["grads"]))
    torch.testing.assert_close(ranks["results"][-1][1], sum(ranks["term"]))
    assert all(torch.equal(result[2], torch.arange(5.0)) for result in ranks["results"])


@pytest.mark.parametrize("causal", [False, True])
def test_ring_attention_and_ulysses_are_attention(ranks, causal):
    ranks.cell(f"""
torch.manual_seed(0)
whole = [torch.randn(2, 4, 16, 8, dtype=torch.float64).requires_grad_() for _ in range(3)]
mine = [t.detach().chunk(world_size, 2)[rank].clone().requires_grad_() for t in whole]
weights = torch.randn(2, 4, 16, 8, dtype=torch.float64)
truth = F.scaled_dot_product_attention(*whole, is_causal={causal})
(truth * weights).sum().backward()
y = ring_attention(*mine, {causal})
(y * weights.chunk(world_size, 2)[rank]).sum().backward()
share = truth.chunk(world_size, 2)[rank]
far = [relative(y, share)]
far += [relative(m.grad, w.grad.chunk(world_size, 2)[rank]) for m, w in zip(mine, whole)]
q, k, v = (swap(t.detach(), cut=1, joined=2) for t in mine)
y = swap(F.scaled_dot_product_attention(q, k, v, is_causal={causal}), cut=2, joined=1)
far.append(relative(y, share))
""")
    assert max(max(far) for far in ranks["far"]) < 1e-12


def test_the_global_norm_counts_what_is_whole_once(ranks):
    ranks.cell("""
split, whole = tensor_parallel(small_gpt()), small_gpt()
for loss in (tensor_parallel_loss(split), loss_of(whole)):
    loss.backward()
norms = global_norm(split).item(), torch.nn.utils.clip_grad_norm_(whole.parameters(), 1.0).item()
""")
    for mine, truth in ranks["norms"]:
        assert math.isclose(mine, truth, rel_tol=1e-6)


# ----------------------------------------------------------------------------- what is sent, and computed


def test_a_step_sends_what_the_lesson_says(ranks):
    ranks.cell("""
counts = {}
makes = {"f, g": (tensor_parallel, tensor_parallel_loss),
         "gather, scatter": (sequence_parallel, sequence_parallel_loss)}
for name, (make, run) in makes.items():
    with count_communication() as counted:
        run(make(small_gpt())).backward()
    counts[name] = counted
""")
    activations, tokens = 8 * 64 * 64 * 4, 8 * 64 * 4  # b · s · h and b · s numbers of float32
    for counts in ranks["counts"]:
        assert counts["f, g"].sizes() == {activations: 10, tokens: 3}
        assert counts["gather, scatter"].sizes("all_gather") == {activations: 10}
        assert counts["gather, scatter"].sizes("reduce_scatter") == {activations: 10}
        assert counts["f, g"].bytes_sent() == counts["gather, scatter"].bytes_sent()


def layer_seconds():
    names = {"table": table, "plots": plots}
    exec(next(cell.source for cell in CELLS if "def layer_seconds(" in cell.source), names)
    return names["layer_seconds"], names["rows"]


def test_the_seconds_of_a_layer_are_its_operations_and_its_bytes():
    seconds, rows = layer_seconds()
    # Korthikanti et al., arXiv:2205.05198: 72·b·s·h²(1 + s/6h) model FLOPs a layer; the paper's 22B layer.
    computing, communicating = seconds(6144, 8, 1e9, 1e12, b=4, s=2048)
    assert math.isclose(computing, 72 * 4 * 2048 * 6144**2 * (1 + 2048 / (6 * 6144)) / 8 / 1e12)
    # Two all_reduces in forward, two in backward, of b·s·h numbers of two bytes; a ring on 8 ranks sends 7/4.
    assert math.isclose(communicating, 4 * 7 / 4 * 2 * 4 * 2048 * 6144 / 1e9)
    one_card = next(row for row in rows if row["link"].startswith("1 × InfiniBand"))
    share = one_card["communication_ms"] / (one_card["communication_ms"] + one_card["compute_ms"])
    assert round(share, 2) == 0.66  # what the quiz of that section offers as 66 %


def test_the_formula_is_within_nine_points_of_megatrons_weak_scaling():
    seconds, _ = layer_seconds()
    for gpu, bandwidth in (("V100 DGX-2", 122e9), ("DGX-A100", 232e9)):  # GTC 2024, S62129
        first, *rows = table("megatron_2020_tensor_parallel", gpu=gpu, dp=1)
        for row in rows:
            times = seconds(row["hidden"], row["tp"], bandwidth, 1e12 * first["tflops_per_gpu"], s=1024)
            assert 0 < 100 * times[0] / sum(times) - row["weak_scaling_percent"] < 9


# ----------------------------------------------------------------------------------------------- exercises


EXERCISES = [
    (cell, CELLS[i - 2 : i], CELLS[i + 1])
    for i, cell in enumerate(CELLS)
    if "exercise" in cell.metadata.get("tags", [])
]


@pytest.mark.parametrize(
    "stub, before, check",
    EXERCISES,
    ids=[cell.metadata.fidle["wrong"][0][14:30] for cell, *_ in EXERCISES],
)
def test_every_wrong_answer_gets_a_hint_of_its_own(ranks, stub, before, check, monkeypatch):
    said = []
    monkeypatch.setattr(teach, "_publish", lambda bundle: said.append(bundle["text/plain"]))
    names = {
        "__name__": "__main__",
        "check": teach.check,
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
    }
    for cell in before:
        if cell.source.startswith("def "):
            exec(cell.source, names)  # what the check uses
    for wrong in stub.metadata.fidle["wrong"]:
        ranks.cell(wrong.replace("%%ranks", "# %%ranks", 1))
        exec(check.source, names)
    assert all(text.startswith("✗") for text in said), said
    assert len(set(said)) == len(said) >= 6
    assert not any("away from" in text for text in said)  # what is said where no mistake is recognised
    name = said[0].split()[1].strip(":")
    for words in (
        "f_and_g = CopyToRanks",
        "class ParallelMLP(",
        "class ParallelAttention(",
        "def parallel_cross_entropy(",
    ):
        run(words)  # the solutions again
    exec(check.source, names)
    assert said[-1] == f"✓ {name}: right."


# ------------------------------------------------------------------------------------------------- figures

LAYERS = [
    dict(link="fast", compute_ms=3, communication_ms=1),
    dict(link="slow", compute_ms=3, communication_ms=9),
]
MEGATRON = [table("megatron_2020_tensor_parallel", gpu="DGX-A100", dp=1)]
OPERATORS = dict(enter=("f", "nothing", "all_reduce"), leave=("g", "all_reduce", "nothing"))
FIGURES = {
    "cuts": (lambda: plots.plot_model_cuts(8, 4), "layer 7"),
    "cuts, odd": (lambda: plots.plot_model_cuts(3, 2), "3 layers, 2 ranks"),
    "matrix": (lambda: plots.plot_matrix_split(4), "all_reduce"),
    "matrix, two": (lambda: plots.plot_matrix_split(2), "by rows"),
    "block": (lambda: plots.plot_parallel_block(**OPERATORS), "grey is whole"),
    "block, split": (lambda: plots.plot_parallel_block(**OPERATORS, split=True), "along the sequence"),
    "layers": (lambda: plots.plot_layer_times(LAYERS, "One layer", "no latency"), "75% communicating"),
    "scaling": (
        lambda: plots.plot_tensor_parallel_scaling(MEGATRON, {"DGX-A100": ([1, 8], [100, 80])}),
        "published",
    ),
    "ring": (lambda: plots.plot_ring_attention(4), "masked"),
    "ring, not causal": (lambda: plots.plot_ring_attention(3, causal=False), "not causal"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name, large):
    draw, expected = FIGURES[name]
    before = dict(plt.rcParams)
    with plots.presentation(large):
        ax = np.ravel(draw())[0]
    assert dict(plt.rcParams) == before
    assert expected in whole(ax.figure)


def test_a_cut_gives_every_layer_to_one_rank_or_a_piece_to_each():
    between, inside = plots.plot_model_cuts(8, 4)
    assert [text.get_text() for text in between.texts if text.get_text().startswith("rank")] == [
        f"rank {layer // 2}" for layer in range(8)
    ]
    assert len(between.patches) == 8 and len(inside.patches) == 32


@pytest.mark.parametrize("causal, masked", [(True, 6), (False, 0)])
def test_the_ring_figure_masks_the_blocks_of_the_future(causal, masked):
    shown = [text.get_text() for text in plots.plot_ring_attention(4, causal).texts]
    assert shown.count("masked") == masked
    assert sum(text.startswith("block") for text in shown) == 16 - masked
