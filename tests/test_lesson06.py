"""What lesson 06 tells its reader is so: its cells, run on ranks, against one process and the schedules."""

from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fidle_utils import RankError, schedules
from fidle_utils.data import digits
from fidle_utils.measure.pipeline import measured_simulation
from fidle_utils.models import residual_chain
from fidle_utils.ranks.front import Ranks

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "06_fill_the_pipeline.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]
STUB = next(cell for cell in LESSON.cells if "def one_f_one_b(" in cell.source)
DEFINITIONS = (
    "def my_blocks(",
    "class Stage:",
    "def send_and_receive(",
    "def gpipe(",
    "def by_gpipe(",
    "def one_process(",
    "def assert_like_one_process(",
    "def one_f_one_b(",
    "def run_pytorch(",
    "SCHEDULES = {",
    "class AsyncStage(",
    "def pipedream(",
)


def body(words):
    """The cell that has `words`, without its magic; of an exercise the solution, which comes later."""
    return [text for text in SOURCES if words in text][-1].replace("%%ranks", "# %%ranks", 1)


@pytest.fixture(scope="module")
def ranks():
    group = Ranks()
    group.start(4, device="cpu")
    for words in DEFINITIONS:
        group.cell(body(words))
    yield group
    group.stop()


def one_process(dtype):
    """Loss, gradient and, after a step, the weights of the whole model, here."""
    x, y, _, _ = digits()
    torch.manual_seed(0)
    model = residual_chain(8).to(dtype)
    loss = cross_entropy(model(x[:64].flatten(1).to(dtype)), y[:64])
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
    return loss.detach(), gradient, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("m", [4, 8, 16])
@pytest.mark.parametrize("name", ["GPipe", "1F1B"])
def test_a_pipeline_by_hand_is_one_process_in_the_order_of_its_schedule(ranks, name, m, dtype, tolerance):
    run = (
        f"gpipe(stage, inputs, targets, 1 / {m})"
        if name == "GPipe"
        else "one_f_one_b(stage, inputs, targets)"
    )
    ranks.cell(f"""
stage, inputs, targets = Stage(my_blocks({dtype})), x.to({dtype}).chunk({m}), y.chunk({m})
{run}
mine, losses, order, most = gradients(stage.blocks), stage.losses, stage.order, stage.most
step(stage.blocks)
after = flat(stage.blocks.parameters())
""")
    loss, gradient, weights = one_process(dtype)
    for found, expected in ((ranks["mine"], gradient), (ranks["after"], weights)):
        far = (torch.cat(found) - expected).abs().max() / expected.abs().max()
        assert far < tolerance
    assert abs(torch.stack(ranks["losses"][-1]).mean() / loss - 1) < tolerance
    made = schedules.SCHEDULES[name](4, m)
    assert ranks["order"] == [[operation[:2] for operation in mine] for mine in made.order]
    assert ranks["most"] == made.peak_activations()


def test_undivided_losses_give_gradients_that_many_times_too_large(ranks):
    ranks.cell("stage = by_gpipe(1.0)\nmine = gradients(stage.blocks)")
    torch.testing.assert_close(
        torch.cat(ranks["mine"]) / 8, one_process(torch.float32)[1], rtol=1e-5, atol=1e-7
    )


def test_two_neighbours_that_send_first_wait_for_each_other_and_the_report_says_so(ranks):
    deadlock = STUB.metadata["fidle"]["wrong"][-1]
    ranks.cell(deadlock.replace("%%ranks", "# %%ranks").replace("one_f_one_b", "both_send"))
    with pytest.raises(RankError) as error:
        ranks.cell("both_send(Stage(my_blocks()), x.chunk(8), y.chunk(8))", timeout=3)
    assert "wait in send" in error.value.report
    ranks.cell("one_f_one_b(Stage(my_blocks()), x.chunk(8), y.chunk(8))")  # the ranks kept their variables


@pytest.mark.parametrize(
    "name", ["GPipe", "1F1B", "interleaved 1F1B", "ZB-H1", "ZB-V", "interleaved zero bubble"]
)
def test_pytorchs_schedules_are_one_process_and_work_in_the_order_of_ours(ranks, name):
    ranks.cell(f"""
stages, losses, events = run_pytorch(*SCHEDULES[{name!r}])
grads = {{stage.stage_index: gradients(stage.submod) for stage in stages}}
left = [name for stage in stages for name in vars(stage) if name.endswith("_one_chunk")]
""")
    loss, gradient, _ = one_process(torch.float64)
    by_stage = {stage: found for grads in ranks["grads"] for stage, found in grads.items()}
    mine = torch.cat([by_stage[stage] for stage in sorted(by_stage)])
    assert (mine - gradient).abs().max() / gradient.abs().max() < 1e-8
    losses = next(losses for losses in ranks["losses"] if losses)  # on the rank of the last stage
    assert abs(torch.stack(losses).mean() / loss - 1) < 1e-8
    assert ranks["left"] == [[]] * 4  # stages are as they were
    if name in schedules.SCHEDULES:
        measured = measured_simulation(ranks["events"], schedules.SCHEDULES[name](4, 8))
        assert measured.total > 0 and len(measured.events) == sum(map(len, ranks["events"]))
        with pytest.raises(ValueError, match="did not work in the order of"):
            measured_simulation(ranks["events"], schedules.SCHEDULES["ZB-H2"](4, 8))


def test_stages_sleep_as_long_as_they_are_told_and_depend_on_each_other(ranks):
    ranks.cell("events = run_pytorch(*SCHEDULES['ZB-V'], sleep=0.02)[2]")
    measured = measured_simulation(ranks["events"], schedules.zb_v(4, 8), seconds_per_unit=0.02)
    assert all(event.end - event.start >= 0.5 - 1e-6 for event in measured.events)  # two stages a rank
    assert measured.total >= schedules.zb_v(4, 8).simulate().total - 1e-6
    ends = {event[1:4]: event.end for event in measured.events}
    for _, kind, i, stage, start, _ in measured.events:
        if kind == "F" and stage:
            assert start >= ends["F", i, stage - 1] - 1e-6
        if kind == "B" and stage < 7:
            assert start >= ends["B", i, stage + 1] - 1e-6


def delayed(ages, lr, steps):
    """The lesson's own function, in this process."""
    x, y, _, _ = digits()
    names = {"torch": torch, "cross_entropy": cross_entropy, "residual_chain": residual_chain}
    names |= {"functional_call": functional_call, "x_train": x, "y_train": y}
    threads = torch.get_num_threads()
    exec(body("def delayed("), names)  # it also sets the threads
    torch.set_num_threads(threads)
    return names["delayed"](lr, ages, steps)


def test_stale_weights_are_as_old_as_the_lesson_says_and_equal_one_process(ranks):
    ranks.cell(
        "run = pipedream(0.02, stash=True, steps=32)\nage, losses = run.age, [float(a) for a in run.losses]"
    )
    assert [age[10] for age in ranks["age"]] == [3, 2, 1, 0]
    assert [max(age) for age in ranks["age"]] == [3, 2, 1, 0]
    assert ranks["losses"][3] == pytest.approx(delayed((3, 2, 1, 0), 0.02, 32), abs=1e-9)
    ranks.cell("run = pipedream(0.02, stash=False, steps=32)\nlosses = [float(loss) for loss in run.losses]")
    unlike = max(abs(a - b) for a, b in zip(ranks["losses"][3], delayed((3, 2, 1, 0), 0.02, 32), strict=True))
    assert unlike > 1e-4  # other gradients: backward met other weights


def test_without_age_it_is_plain_sgd():
    x, y, _, _ = digits()
    torch.manual_seed(0)
    model, losses = residual_chain(8).double(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for i in range(16):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[16 * i :][:16].flatten(1).double()), y[16 * i :][:16])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert delayed((0, 0, 0, 0), 0.05, 16) == pytest.approx(losses, abs=1e-9)


def test_the_puzzle_has_one_answer():
    namespace = {"schedules": schedules}
    exec(body("def price(").split("for name in")[0], namespace)
    fits = [
        (name, m, v)
        for name in schedules.SCHEDULES
        for m in (4, 8, 16, 32)
        for v in ((2, 4) if name == "interleaved 1F1B" else (1,))
        for time, held in [namespace["price"](name, m, v)]
        if time <= 350 and held <= 24
    ]
    assert fits == [("ZB-H1", 16, 1)]


def test_no_other_balance_is_better():
    namespace = {"schedules": schedules, "predict": lambda *_, **__: None}
    exec(body("def uneven("), namespace)
    uneven, best = namespace["uneven"], namespace["uneven"]([9, 9, 9, 5]).total
    moves = [(a, b) for a in range(4) for b in range(4) if a != b]
    for source, destination in moves:
        blocks = [9, 9, 9, 5]
        blocks[source] -= 1
        blocks[destination] += 1
        assert uneven(blocks).total > best


def test_the_live_path_runs_without_the_other_cells():
    cells = [cell for cell in LESSON.cells if "live" in cell.metadata.get("tags", [])]
    live = nbformat.v4.new_notebook(cells=cells, metadata=LESSON.metadata)
    NotebookClient(live, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
