"""What lesson 10 tells its reader is so: its own cells, on ranks, against the library and closed forms."""

import math
import re
import subprocess
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from fidle_utils.patients import ILLNESSES, NAMES, second_opinion, visit
from fidle_utils.ranks.front import Ranks
from fidle_utils.reference import table

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "10_train_well.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]
DIAGNOSIS = {"A": ("straggler", 0), "B": ("hang", 2), "C": ("desynchronised", 3), "D": ("NaN", 1)}


def source(words):
    """The cell of the lesson that has `words`; of an exercise the solution, which comes later."""
    return [text for text in SOURCES if words in text][-1]


def body(words):
    """The same without its magic, on as many lines."""
    return re.sub(r"^%%ranks.*", "# %%ranks", source(words))


def written(name):
    """The text of a file that the lesson writes in one cell or several."""
    parts = [text.partition("\n")[2] for text in SOURCES if re.match(rf"%%writefile( -a)? {{{name}}}", text)]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    group, folder = Ranks(), tmp_path_factory.mktemp("lesson10")
    (folder / "resumable.py").write_text(written("script"))
    (folder / "job.py").write_text(written("job"))
    group.start(4, device="cpu")
    group.push(path=str(folder))
    group.cell(body("def learning_rate(") + "\nimport tempfile, time")
    yield group
    group.stop()


def in_process(words):
    namespace = {}
    exec(re.sub(r"^check\(.*", "", source(words), flags=re.MULTILINE), namespace)
    return namespace


# ---------------------------------------------------------------------------------------- large batches


def test_the_schedule_of_the_experiment_scales_and_warms_up(ranks):
    ranks.cell("""
recipes = ("linear, warm-up", "linear", "square root", "unscaled")
rates = [learning_rate(e, 256, recipe) for recipe in recipes for e in (0, 5, 16)]
same = [learning_rate(10, 16, recipe) for recipe in recipes]
""")
    expected = [0.02, 0.32, 0.032, 0.32, 0.32, 0.032, 0.08, 0.08, 0.008, 0.02, 0.02, 0.002]
    assert ranks["rates"][0] == pytest.approx(expected)
    assert ranks["same"][0] == pytest.approx([0.02] * 4)


def test_the_papers_rate_for_8192_is_3_2():
    rate = in_process("def goyal_rate(")["goyal_rate"]
    assert [rate(e, 8192) for e in (0, 5, 30, 60, 80)] == pytest.approx([0.1, 3.2, 0.32, 0.032, 0.0032])


def test_lars_and_lamb_are_what_the_lesson_says(ranks):
    ranks.cell(body("def test_error("))
    for words in ("def lars(", "def lamb_rescale(", "moves the six tensors", "LAMB from AdamW"):
        ranks.cell(body(words))
    assert torch.equal(ranks["moved"][0], torch.full((6,), 0.02)) or torch.allclose(
        ranks["moved"][0], torch.tensor(0.02), atol=1e-6
    )
    assert max(ranks["far"]) < 1e-6


# ----------------------------------------------------------------------------------- chance, evaluation


def test_one_seed_gives_all_ranks_the_same_masks_and_augmentations(ranks):
    ranks.cell(body("def mask("))
    assert len({tuple(mask) for mask in ranks["same"]}) == 1 and len({tuple(m) for m in ranks["own"]}) == 4
    ranks.cell(body("from fidle_utils.noisy_data"))
    drawn = [re.findall(r"worker 0 draws ([\d ]+)", str(output)) for output in ranks.outputs]
    same, own = zip(*drawn, strict=True)
    assert len(set(same)) == 1 and len(set(own)) == 4
    assert len(same[0].split()) == 3  # torch, numpy, random


def test_perplexities_do_not_average(ranks):
    ranks.cell(body("exact = (totals[0]"))
    assert ranks["exact"][0].item() == pytest.approx(math.exp(0.1 + 0.2 + 0.3 + 4.2), rel=1e-4)
    assert ranks["average"][0].item() == pytest.approx(sum(map(math.exp, (1, 2, 3, 6))) / 4, rel=1e-4)


def test_the_same_run_has_the_same_bits_and_another_number_of_ranks_has_not(ranks):
    for words in ("def ten_steps(", "def average(", "rows.append((what"):
        ranks.cell(body(words))
    rows = {what: (same, far) for what, same, far in ranks["rows"][0]}
    assert rows["nothing"] == (True, 0.0)
    assert 0 < rows["1 rank"][1] < 1e-5 and rows["another seed"][1] > 1e-3


# ------------------------------------------------------------------------------------------- sick runs


def test_a_missing_rank_is_named_on_rank_0(ranks):
    ranks.cell(body("wait_all_ranks=True") + "\ndist.destroy_process_group(control)")
    assert "Ranks 2 failed to pass" in str(ranks.outputs[0]) and "passed" in str(ranks.outputs[2])


def test_faulthandler_says_where_a_blocked_rank_is(ranks):
    ranks.cell(body("dump_traceback_later"))
    inside = ["all_reduce" in " ".join(stack) for stack in ranks["stack"]]
    assert inside == [True, True, False, True]


def test_the_order_of_collectives_pairs_them(ranks):
    ranks.cell(body("for tensor in (b, a) if rank == 3"))
    assert [a.item() for a in ranks["a"]] == [103, 103, 103, 303]
    assert [b.item() for b in ranks["b"]] == [303, 303, 303, 103]


def test_patients_are_ill_as_the_solution_says():
    assert second_opinion(DIAGNOSIS) is None
    assert {illness for illness, _ in DIAGNOSIS.values()} == set(ILLNESSES) and set(DIAGNOSIS) == set(NAMES)
    for name, (illness, rank) in DIAGNOSIS.items():
        with pytest.raises(AssertionError, match=f"{name}: the right illness, but not rank"):
            second_opinion(DIAGNOSIS | {name: (illness, (rank + 1) % 4)})
        other = next(i for i in ILLNESSES if i != illness)
        with pytest.raises(AssertionError, match=f"{name} has no {other}"):
            second_opinion(DIAGNOSIS | {name: (other, rank)})
    for wrong in (None, {"A": ("straggler", 0)}, DIAGNOSIS | {"B": "hang"}, DIAGNOSIS | {"B": ("flu", 1)}):
        with pytest.raises(AssertionError, match="expected|missing|pair|illnesses are"):
            second_opinion(wrong)


@pytest.fixture(scope="module")
def logs(ranks):
    ranks.cell(
        "from fidle_utils.patients import visit\n"
        "logs = {name: visit(name, device, timeout_seconds=1) for name in ('healthy', 'A', 'B', 'C', 'D')}"
    )
    return {name: [of_rank[name] for of_rank in ranks["logs"]] for name in ("healthy", *NAMES)}


def test_a_healthy_run_has_one_checksum_a_step(logs):
    assert [len(rows) for rows in logs["healthy"]] == [12] * 4
    for rows in zip(*logs["healthy"], strict=True):
        assert len({row["weights"] for row in rows}) == 1 and not any(row["error"] for row in rows)


def test_the_signs_of_each_illness_are_in_its_log(logs):
    waited = [sorted(row["waited_ms"] for row in rows)[6] for rows in logs["A"]]
    assert min(range(4), key=waited.__getitem__) == 0 and waited[1] > 40
    assert [len(rows) for rows in logs["B"]] == [6, 6, 5, 6]
    assert "Ranks 2 failed" in logs["B"][0][-1]["error"] and not logs["B"][2][-1]["error"]
    checksums = [[row["weights"] for row in rows] for rows in logs["C"]]
    assert checksums[0] == checksums[1] == checksums[2] and checksums[3][:5] == checksums[0][:5]
    assert not set(checksums[3][5:]) & set(checksums[0][5:])
    bad = [next(i for i, row in enumerate(rows) if math.isnan(row["loss"])) for rows in logs["D"]]
    assert bad == [6, 5, 6, 6]


def test_a_patient_refuses_what_it_cannot_do(ranks):
    with pytest.raises(ValueError, match="no patient 'E'"):
        visit("E", torch.device("cpu"))


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def resumable(ranks):
    ranks.cell(body("from resumable import OptimizerState"))
    ranks.cell("from resumable import contents")
    return ranks


def test_four_ranks_save_and_two_of_them_could_go_on(resumable):
    resumable.cell(body('dcp.save(contents(run), checkpoint_id=f"{path}/four")'))
    files = {path.name for path in Path(resumable["path"][0], "four").iterdir()}
    assert files == {".metadata", *(f"__{rank}_0.distcp" for rank in range(4))}
    resumable.cell(
        "run = Run(device, dropout=0, seed=7)\n"
        'dcp.load(contents(run), checkpoint_id=f"{path}/four")\n'
        "again = train(run, 24)\nequal = torch.equal(final, run.weights())"
    )
    assert all(resumable["equal"]) and resumable["again"][0] == resumable["losses"][0][12:]


def test_a_run_goes_through_an_epoch_once(resumable):
    resumable.cell("run = Run(device)\nshares = [run.batches.next_share() for _ in range(22)]")
    seen = torch.cat([torch.cat(shares) for shares in resumable["shares"]])
    assert len(seen) == len(seen.unique()) == 22 * 64


def test_the_job_goes_on_from_the_newest_complete_checkpoint(resumable, tmp_path):
    folder = Path(resumable["path"][0])
    (tmp_path / "step000099").mkdir()  # interrupted: it has no .metadata
    cell = source("TORCH_DISABLE_SHARE_RDZV_TCP_STORE").replace("{folder.name}/killed", str(tmp_path))
    namespace = {"os": __import__("os"), "job": folder / "job.py", "folder": None}
    exec(cell, namespace)
    output, errors = namespace["run_to_its_end"](namespace["command"])
    steps = [(int(a), int(step)) for a, step in re.findall(r"attempt (\d) step (\d+)", output)]
    assert steps == [(0, step) for step in range(18)] + [(1, step) for step in range(15, 28)]
    assert "exitcode: -9" in errors
    left = subprocess.run(["pgrep", "-f", str(folder / "job.py")], capture_output=True, text=True).stdout
    assert not left, f"processes are left: {left}"


# ------------------------------------------------------------------------------------------- reporting


def test_the_simulated_loss_agrees_with_the_formula_and_with_the_exact_one():
    namespace = {"torch": torch, "C": 40.0, "M": 7 * 86400.0, "best": 6957.0}
    exec(source("def simulated_loss(").partition("\nintervals")[0], namespace)
    for interval in (1000, 6957, 40000):
        exact = 7 * 86400 * math.expm1((interval + 40) / (7 * 86400)) / interval - 1
        assert namespace["simulated_loss"](interval, n=200_000) == pytest.approx(exact, rel=0.05)
        assert exact == pytest.approx(40 / interval + interval / 2 / (7 * 86400), rel=0.05)


def test_blooms_mfu_is_three_quarters_of_its_hfu_within_the_attention():
    mfu = in_process("def mfu(")["mfu"]
    (run,) = (row for row in table("jeanzay_bigscience_a100") if "final run" in row["notes"])
    tokens = run["global_batch"] * run["sequence_length"]
    share = mfu(1e9 * run["parameters_billion"], tokens, run["seconds_per_iteration"], run["n_gpus"], 312)
    assert share == pytest.approx(0.75 * run["tflops_per_gpu"] / 312, rel=0.03)


def test_blooms_footprint_is_the_published_one():
    namespace = {}
    exec(source("def footprint(").partition("\none = ")[0], namespace)
    bloom = namespace["footprint"](1_082_990, watts=400)
    assert bloom["kWh"] == pytest.approx(433_196, abs=1) and bloom["kg CO2e"] == pytest.approx(24_690, abs=10)


def test_the_live_path_runs_without_the_other_cells():
    cells = [cell for cell in LESSON.cells if "live" in cell.metadata.get("tags", [])]
    live = nbformat.v4.new_notebook(cells=cells, metadata=LESSON.metadata)
    NotebookClient(live, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
