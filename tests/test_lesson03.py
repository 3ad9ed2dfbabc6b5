"""What lesson 03 tells its reader is so: its own cells, run on ranks, against the library and hand counts."""

from pathlib import Path

import jupytext
import pytest
import torch
from ranks_helpers import run_failing

from fidle_utils.collective_steps import (
    halving_doubling_steps,
    recursive_doubling_steps,
    ring_all_reduce_steps,
)
from fidle_utils.measure.alpha_beta import all_reduce_cost
from fidle_utils.measure.film import steps_of
from fidle_utils.ranks.front import Ranks

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "03_talk_between_ranks.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]
ALGORITHMS = {
    "ring_all_reduce": ("ring", ring_all_reduce_steps),
    "doubling_all_reduce": ("recursive doubling", recursive_doubling_steps),
    "halving_doubling_all_reduce": ("halving and doubling", halving_doubling_steps),
}


def source(words):
    """The cell of the lesson that has `words`; of an exercise the solution, which comes later."""
    return [text for text in SOURCES if words in text][-1]


def body(words):
    """The same without its magic, on as many lines."""
    return source(words).replace("%%ranks", "# %%ranks", 1)


@pytest.fixture(scope="module")
def ranks():
    group = Ranks()
    group.start(4, device="cpu")
    group.cell(body("mine = torch.arange"))
    group.cell(body("def exchange("))
    group.cell(body("with film(tensor) as ring").replace("    ring_all_reduce(tensor)", "    pass"))
    for name in ALGORITHMS:
        group.cell(body(f"def {name}("))
    yield group
    group.stop()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_all_reduce_of_the_lesson_is_the_librarys_and_sends_what_it_says(ranks, name):
    ranks.cell(f"""
torch.manual_seed(rank)
tensor = torch.randn(1024)
expected, size = tensor.clone(), tensor.nbytes
dist.all_reduce(expected)
with count_communication() as counted:
    {name}(tensor)
far = (tensor - expected).abs().max().item()
sent = counted.calls("send"), counted.bytes_sent("send"), counted.calls() - counted.calls("recv")
""")
    assert max(ranks["far"]) < 1e-5
    assert torch.equal(*ranks["tensor"][:2])
    messages, n_bytes = all_reduce_cost(4, 4096, ALGORITHMS[name][0])
    assert ranks["sent"] == [(messages, n_bytes, messages)] * 4


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_film_of_an_all_reduce_shows_its_messages_and_ends_with_the_sum(ranks, name):
    ranks.cell(f"""
tensor = mine.clone()
with film(tensor) as shot:
    {name}(tensor)
""")
    films, reference = ranks["shot"], ALGORITHMS[name][1](4, 32)
    assert [film.snapshots[-1] for film in films] == [[1111, 2222, 3333, 4444]] * 4
    steps = steps_of(films)
    assert steps.complete()
    assert steps.link_bytes() == reference.link_bytes() and len(steps) == len(reference)
    if name != "doubling_all_reduce":  # there a film has the whole tensor in one chunk, as the reference
        assert [sorted(m.chunks for m in step) for step in steps.messages] == [
            sorted(m.chunks for m in step) for step in reference.messages
        ]


def test_a_film_sees_any_send_and_says_nothing_of_other_tensors(ranks):
    ranks.cell("""
elsewhere = torch.tensor([7, 8])
with film(mine) as shot:
    if rank % 2 == 0:
        dist.send(elsewhere, rank + 1)
        dist.isend(mine[2:], rank + 1).wait()
    else:
        dist.recv(elsewhere, rank - 1)
        dist.irecv(torch.zeros_like(mine[2:]), rank - 1).wait()
""")
    first, second = ranks["shot"][2].messages
    assert (first["source"], first["destination"], first["values"], first["first"]) == (2, 3, [7, 8], None)
    assert (second["n_bytes"], second["values"], second["first"]) == (16, [300, 400], 2)
    assert not ranks["shot"][1].messages and len(ranks["shot"][2].snapshots) == 3


def test_the_hierarchical_all_reduce_is_the_sum_and_its_leaders_send_the_tensor_once(ranks):
    ranks.cell(body("def hierarchical_all_reduce("))
    assert all(tensor.tolist() == [1111, 2222, 3333, 4444] for tensor in ranks["tensor"])
    assert [counted.bytes_sent(group="leaders") for counted in ranks["counted"]] == [32, 0, 32, 0]


def test_the_grid_has_the_groups_of_the_lessons_table(ranks):
    ranks.cell(body("def grid_groups("))
    ranks.cell("groups = [dist.get_process_group_ranks(group) for group in grid_groups(2)]")
    assert ranks["groups"] == [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]]]


def test_sending_first_is_a_deadlock_and_the_report_says_where(ranks):
    error, _ = run_failing(
        ranks, source("dist.send(outgoing, dst=right, group=gloo)\ndist.recv").partition("\n")[2], timeout=2
    )
    assert "ranks 0–3 wait in send" in error.report


def test_the_same_bytes_in_another_shape_give_a_wrong_sum_and_no_error(ranks):
    ranks.cell(body("grid = grid.T.contiguous()"))
    assert [tensor.shape for tensor in ranks["grid"]] == [(2, 3)] * 3 + [(3, 2)]
    assert not torch.equal(ranks["grid"][0], ranks["truth"][0])


def test_three_ranks_succeed_with_different_sums(ranks):
    trap = source("print(numbers.tolist())").partition("\n")[2]
    error, _ = run_failing(ranks, trap, timeout=2)
    assert "rank 3 waits in all_reduce" in error.report and "ranks 0–2 finished" in error.report
    sums = ranks["numbers"][:3]
    assert not all(torch.equal(sums[0], other) for other in sums)


def test_detail_says_on_every_rank_that_shapes_differ(ranks):
    ranks.cell(body("set_debug_level"))
    assert all("shapes" in said and "4" in said and "8" in said for said in ranks["said"])
    ranks.cell(body("def agree("))
    ranks.cell("unlike, same = agree(tuple(numbers.shape)), agree(1)")
    assert ranks["unlike"] == [{3: (8,)}] * 4 and ranks["same"] == [{}] * 4


def test_the_prelude_has_every_line_that_the_lesson_explains():
    prelude = (FOLDER.parent / "fidle_utils" / "ranks" / "prelude.py").read_text()
    (said,) = (cell.source for cell in LESSON.cells if cell.source.startswith("Line by line"))
    for words in ("os.environ[", "local_rank", "gpu_each", "RANKS_DEVICE", "torch.cuda.set_device(device)"):
        assert words in prelude and words in said
    assert "init_process_group(" in prelude and "init_process_group(" in said
