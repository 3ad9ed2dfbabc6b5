"""What lesson 09 tells its reader is so: its own cells on ranks, against one process and ZeRO's formulas."""

from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from fidle_utils.ranks.front import Ranks

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "09_train_with_deepspeed.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]


def body(words):
    """The last cell of the lesson that has `words` (of an exercise: its solution), without its magic."""
    return [text for text in SOURCES if words in text][-1].replace("%%ranks", "# %%ranks", 1)


@pytest.fixture(scope="module")
def ranks():
    group = Ranks()
    group.start(4, device="cpu")
    group.cell(
        "from fidle_utils.deepspeed_setup import import_deepspeed\ndeepspeed = import_deepspeed(device)"
    )
    for words in ("first_config = {", "def shares(", "def train_alone(", "def configuration("):
        group.cell(body(words))
    group.cell(body("def whole_weights("))
    group.cell(body("def measure("))
    group.cell("n_parameters = sum(p.numel() for p in new_gpt().parameters())")
    group.cell(
        "small = {'reduce_bucket_size': 100_000}\nwhole = {'stage3_param_persistence_threshold': 0, **small}"
    )
    yield group
    group.stop()


def test_the_default_clips_and_without_it_deepspeed_is_one_process(ranks):
    ranks.cell("clipped = train(first_config)[1]")
    alone = ranks["alone"][0]
    assert (ranks["clipped"][0] - alone).abs().max() > 1e-3
    assert (ranks["losses"][0] - alone).abs().max() < 1e-5


def test_stages_1_to_3_are_stage_0_in_losses_and_weights(ranks):
    for what in ("curves", "weights"):
        of_stage = ranks[what][0]
        assert max((of_stage[stage] - of_stage[0]).abs().max() for stage in (1, 2, 3)) <= 1e-6
        assert all(torch.equal(of_stage[3], other[3]) for other in ranks[what])


@pytest.mark.parametrize("bf16", [False, True])
def test_bytes_kept_are_zeros_formulas(ranks, bf16):
    ranks.cell(f"""
configs = [configuration(0), configuration(1, **small), configuration(2, **small), configuration(3, **whole)]
kept = [measure(in_bf16(c) if {bf16} else c)[0] for c in configs]
""")
    # Weights, gradients, moments; in bf16 a master copy. Sharded fp32 runs have a master copy too.
    expected = [16, 2 + 14 / 4, 2 + 14 / 4, 16 / 4] if bf16 else [16, 4 + 16 / 4, 4 + 16 / 4, 20 / 4]
    n_parameters = ranks["n_parameters"][0]
    for rank, kept in enumerate(ranks["kept"]):
        totals = [sum(v for part, v in held.items() if part != "buckets") / n_parameters for held in kept]
        assert totals == pytest.approx(expected, rel=0.01), rank


def test_bytes_sent_are_zeros_formulas_once_three_fields_are_set(ranks):
    ranks.cell(body("variants = {"))
    two, three = pytest.approx(2, rel=0.01), pytest.approx(3, rel=0.01)
    assert ranks["sent"] == [
        {
            "stage 0": two,
            "stage 1": three,
            "stage 2": three,
            "stage 2, no multi-rank all_reduce": two,
            "stage 3": two,
            "stage 3, releasing at once": three,
        }
    ] * len(ranks)


def test_stage_2_reduces_in_every_micro_batch_and_stage_1_in_the_last(ranks):
    ranks.cell(body("def accumulating("))
    assert ranks["steps"] == [2] * 4
    ranks.cell(body("def two_micro_batches("))
    ranks.cell("rows = [two_micro_batches(accumulating(stage)) for stage in (1, 2)]")
    for one, two in ranks["rows"]:
        assert one == [(4, 0), (1, 9)]
        assert two[0][1] == 6 and 1 <= two[0][0] < 2 and two[1] == (1, 9)


def test_five_configurations_fail_with_the_words_that_the_lesson_is_about(ranks):
    names = {}
    exec(body("broken = {").partition("for name, config")[0], names)
    ranks.cell(body("def try_config("))
    ranks.push(broken=names["broken"])
    ranks.cell("said = {name: try_config(config) for name, config in broken.items()}")
    words = {
        "A": "24 != 4 * 2 * 4",
        "B": "bfloat16 and fp16 modes cannot be simultaneously enabled",
        "C": "Extra inputs are not permitted",
        "D": "Partial offloading only supported for ZeRO Stage 3",
        "E": "please switch to using the deepspeed parameter 'gradient_clipping'",
    }
    for said in ranks["said"]:
        assert said.keys() == words.keys()
        assert all(words[name] in said[name] for name in words), said


def test_two_mistakes_are_silent(ranks):
    ranks.cell(body("misspelt = {"))
    assert ranks["stage_used"] == [0] * 4
    ranks.cell("said = try_config(useless)")
    assert ranks["said"] == ["trains"] * 4


def test_the_documented_estimates_are_the_packages(ranks):
    ranks.cell(body("cases = ["))
    ranks.cell(body("documented = {"))
    assert round(ranks["per_gpu"][0], 2) == 11.28


def test_offload_changes_no_result(ranks):
    ranks.cell(body("offloaded = {"))


def test_messages_with_feedback_add_up_to_what_was_owed(ranks):
    ranks.cell(body("def compress("))
    ranks.cell("""
torch.manual_seed(rank)
vector, error, arrived = torch.randn(1001), torch.zeros(1001), torch.zeros(1001)
for _ in range(50):
    sent, error = compress(vector, error)
    arrived += sent
far = (arrived + error - 50 * vector).abs().max().item()
""")
    assert max(ranks["far"]) < 1e-3


def test_packed_signs_give_the_mean_and_weigh_one_bit_each(ranks):
    ranks.cell(body("def mean_of_signs("))
    ranks.cell("""
sent = compress(torch.randn(1001), torch.zeros(1001))[0]        # 1001: the last byte is not full
expected = sent.clone()
dist.all_reduce(expected)
with count_communication() as counted:
    mean = mean_of_signs(sent)
far, n_bytes = (mean - expected / world_size).abs().max().item(), counted.n_bytes() // world_size
""")
    assert max(ranks["far"]) < 1e-6
    assert ranks["n_bytes"] == [126 + 4] * 4


def test_one_bit_reaches_a_known_minimum_with_feedback_and_not_without(ranks):
    ranks.cell(body("def descend("))
    known = ranks["known"][0]
    assert known["exact"][-1] < 0.01 and known["feedback"][-1] < 0.1 and known["no feedback"][-1] > 0.5


def test_the_live_path_runs_without_the_other_cells():
    cells = [cell for cell in LESSON.cells if "live" in cell.metadata.get("tags", [])]
    live = nbformat.v4.new_notebook(cells=cells, metadata=LESSON.metadata)
    NotebookClient(live, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
