"""Lesson 07's own cells, run with other sizes than the lesson's, against one process and closed forms."""

from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from fidle_utils.ranks.front import Ranks
from fidle_utils.reference import table

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSON = jupytext.read(FOLDER / "07_combine_parallelisms.ipynb")
SOURCES = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]


def source(words):
    """The cell of the lesson that has `words`; of an exercise the solution, which comes later."""
    return [text for text in SOURCES if words in text][-1]


def body(words):
    """The same without its magic, on as many lines."""
    return source(words).replace("%%ranks", "# %%ranks", 1)


def in_notebook(*words):
    """The names that cells of the notebook side define."""
    names = {"torch": torch, "table": table}
    for one in words:
        text = source(one)
        stop = min(
            (text.find(line) for line in ("plots.", "reveal(", "guess =") if line in text), default=None
        )
        exec(text[:stop], names)
    return names


def test_the_groups_are_those_of_a_row_major_mesh():
    groups = in_notebook("grid.movedim(axis, -1)")["groups"]
    assert groups(2, 2, 2) == {
        "pp": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "dp": [[0, 2], [1, 3], [4, 6], [5, 7]],
        "tp": [[0, 1], [2, 3], [4, 5], [6, 7]],
    }
    assert groups(12, 8, 4)["tp"][5] == [20, 21, 22, 23] and groups(12, 8, 4)["pp"][3][:3] == [3, 35, 67]


def test_blooms_bytes_are_those_of_the_closed_form():
    names = in_notebook("bloom_sends = {")
    activation = 2 * 2048 * 14336 * 2
    assert names["bloom_sends"]["tp"] == 6 * 6 * 128 * 1.5 * activation
    assert names["bloom_sends"]["pp"] == 2 * 128 * activation
    assert names["bloom_sends"]["dp"] == 1.75 * 4 * 6 * 12 * 14336**2 / 4
    formula = in_notebook('"pp": n_micro * activation')["bytes_by_group"]
    ours = formula(6, activation, 128, 4, 8, 4 * 6 * 12 * 14336**2 / 4)
    assert ours["tp"] * 6 / 4 == names["bloom_sends"]["tp"] and ours["dp"] == names["bloom_sends"]["dp"]


def test_the_probes_are_the_eight_published_rows_of_one_day():
    names = in_notebook("bloom_sends = {", "def seconds_lost")
    exec(source("def seconds_lost"), names)
    meshes = [(row["tp"], row["pp"], row["dp"], row["seconds_per_iteration"]) for row in names["probes"]]
    assert len(meshes) == 8 and (4, 12, 8, 110.48) in meshes and (8, 2, 24, 136.13) in meshes
    assert {row["notes"].split(";")[0] for row in names["probes"]} == {"02-25"}
    bubble = names["lost"][meshes.index((4, 12, 8, 110.48))]["bubble"]
    assert bubble == pytest.approx(11 / (128 + 11) * 110.48)


def test_idris_tensor_parallelism_wins_on_omni_path_and_loses_on_infiniband():
    names = in_notebook("def network_and_compute")
    exec(source("pairs.setdefault").partition("\nplots.")[0], names)
    for network, faster in (("A100, Omni-Path", True), ("H100, InfiniBand", False)):
        rows = names["pairs"][network]
        assert [row[0][:3] for row in rows] == ["14B", "32B"]
        assert all((with_tensor < without) == faster for _, (without, _), (with_tensor, _) in rows)


@pytest.fixture(scope="module")
def four():
    group = Ranks()
    group.start(4, device="cpu")
    for words in ("replica = mesh.get_coordinate()", "def new_stages", "def pipeline(", "def hybrid_step("):
        group.cell(body(words))
    yield group
    group.stop()


@pytest.mark.parametrize("n_micro", [1, 2, 8])
def test_the_hybrid_step_is_one_process_whatever_the_micro_batches(four, n_micro):
    four.cell(f"""
def in_double(x, y):
    model = new_stages(torch.float64)
    cross_entropy(model[1](model[0](x)), y).backward()
    return gradient(model[stage])

x, y = batch(torch.float64)
model = new_stages(torch.float64)[stage]
hybrid_step(model, x, y, {n_micro})
off = ((gradient(model) - in_double(x, y)).norm() / in_double(x, y).norm()).item()
""")
    assert max(four["off"]) < 1e-12


@pytest.fixture(scope="module")
def eight():
    group = Ranks()
    group.start(8, device="cpu")
    cells = ("reverse = init_device_mesh", "text = topics", "def compare(", "class Stage", "class Pipeline")
    for words in (*cells, "def mean_loss", "def cut(", "def mesh_norm", "class Exchange", "def route("):
        group.cell(body(words))
    group.cell(source("def three_d(").partition("single =")[0].replace("%%ranks", ""))
    group.cell(source("def moe_and_compare").partition("(single, top_1)")[0].replace("%%ranks", ""))
    group.cell(body("def tokens("))
    yield group
    group.stop()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 1), (1, 2, 4)])
def test_three_d_is_one_process_on_any_mesh_and_so_is_its_norm(eight, sizes):
    """(4, 2, 1) and (1, 2, 4) are what *Go further* proposes."""
    eight.cell(f"""
mesh = init_device_mesh(device.type, {sizes}, mesh_dim_names=("pp", "dp", "tp"))
pipeline = three_d(torch.float64)
loss = mean_loss(pipeline.backward(*share(mesh)), mesh)
alone = new_gpt(torch.float64)
token_loss(alone(x), y).backward()
truth = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm().item()
norm = mesh_norm(pipeline.model, mesh).item() / truth
differences = compare(loss, pipeline.model, torch.float64)
""")
    for differences, norm in zip(eight["differences"], eight["norm"], strict=True):
        assert set(differences) == {"loss", "gradients", "weights after the step"}
        assert max(differences.values()) < 1e-8
        assert norm == pytest.approx(1, abs=1e-6)


def test_one_tensor_rank_with_other_data_is_seen(eight):
    eight.cell("""
mesh = init_device_mesh(device.type, (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
pipeline = three_d(torch.float64)
my_x, my_y = share(mesh)
pipeline.backward(my_x.flip(0) if rank == 0 else my_x, my_y)
wrong = compare(torch.ones(()), pipeline.model, torch.float64)["gradients"]
""")
    assert max(eight["wrong"]) > 1e-2


@pytest.mark.parametrize("k", [1, 2, 3])
def test_experts_on_ranks_are_experts_in_one_process(eight, k):
    eight.cell(f"differences, send = moe_and_compare({k}, torch.float64)")
    assert all(max(differences.values()) < 1e-12 for differences in eight["differences"])
    assert sum(map(sum, eight["send"])) == k * 512


def test_experts_without_tokens_are_no_hang_and_no_error(eight):
    """A router that sends all to expert 3: the others get an empty message."""
    eight.cell("""
x_mine, (router, *experts) = tokens(torch.float64).chunk(world_size)[rank], layer(torch.float64)
x_mine.requires_grad_()
with torch.no_grad():
    router.weight.zero_()
    router.weight[3] = 100 * x_mine.mean(0).sign()
    x_mine.copy_(x_mine.abs() * x_mine.mean(0).sign())
y_mine, send = expert_parallel(x_mine, router, experts[rank], 1)
y_mine.sum().backward()
off = (y_mine - one_process(x_mine, router, experts, 1)).abs().max().item()
""")
    assert max(eight["off"]) < 1e-12
    assert all(send[3] == sum(send) for send in eight["send"])


def test_the_live_path_runs_without_the_other_cells():
    cells = [cell for cell in LESSON.cells if "live" in cell.metadata.get("tags", [])]
    live = nbformat.v4.new_notebook(cells=cells, metadata=LESSON.metadata)
    NotebookClient(live, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
