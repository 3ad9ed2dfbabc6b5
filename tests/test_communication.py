"""What is counted, on four real ranks, against closed forms; and the arithmetic of the table."""

import pickle
import subprocess
import sys
import warnings
from fractions import Fraction

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text
from ranks_helpers import cell

from fidle_utils.measure import collectives
from fidle_utils.measure.collectives import Message
from fidle_utils.measure.communication import Communication, count_communication
from fidle_utils.plots.communication import plot_communication
from fidle_utils.ranks import Ranks

N = 4
IMPORTS = (
    "import torch\nfrom torch import nn\nfrom fidle_utils.measure.communication import count_communication\n"
)


@pytest.fixture(scope="module")
def group():
    ranks = Ranks()
    ranks.start(N, device="cpu")
    ranks.cell(IMPORTS + "pair = dist.new_group([0, 1])\nodd = dist.new_group([1, 2, 3], group_desc='odd')")
    yield ranks
    ranks.stop()


def counted(group, body, before=""):
    """Run `before`, then count `body`; returns what each rank counted."""
    lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
    group.cell(cell(f"{before}\nwith count_communication() as counted:\n{lines}\n"))
    return group["counted"]


def everywhere(values):
    """The one value that all ranks have."""
    assert all(value == values[0] for value in values), values
    return values[0]


# ------------------------------------------------------------------------------- each call by its closed form

S = 96  # bytes: divisible by 2, 3 and 4
X = "x = torch.ones(24)\nshares, share = list(x.chunk(4)), torch.empty(6)\n"
RING, SHARE = 2 * 3 / 4 * S, 3 / 4 * S
CALLS = {  # code: (collective, calls, S, bytes sent by each of the four ranks)
    "dist.all_reduce(x)": ("all_reduce", 1, S, [RING] * 4),
    "dist.all_reduce(x, async_op=True).wait()": ("all_reduce", 1, S, [RING] * 4),
    "dist.all_reduce(x.half().double())": ("all_reduce", 1, 2 * S, [2 * RING] * 4),
    "dist.all_reduce_coalesced([x, x[:12]])": ("all_reduce", 1, 1.5 * S, [1.5 * RING] * 4),
    "with dist._coalescing_manager(): dist.all_reduce(x); dist.all_reduce(x)": (
        ("all_reduce", 1, 2 * S, [2 * RING] * 4)
    ),
    "dist.all_gather([torch.empty(6) for _ in range(4)], share)": ("all_gather", 1, S, [SHARE] * 4),
    "dist.all_gather_into_tensor(x, share)": ("all_gather", 1, S, [SHARE] * 4),
    "dist.reduce_scatter(share, shares)": ("reduce_scatter", 1, S, [SHARE] * 4),
    "dist.reduce_scatter_tensor(share, x)": ("reduce_scatter", 1, S, [SHARE] * 4),
    "dist.all_to_all([torch.empty(6) for _ in range(4)], shares)": ("all_to_all", 1, S, [SHARE] * 4),
    "dist.all_to_all_single(torch.empty(24), x)": ("all_to_all", 1, S, [SHARE] * 4),
    # Each rank keeps 12 of its 24 numbers, and sends the next rank 12.
    "splits = [12 if i in (rank, (rank + 1) % 4) else 0 for i in range(4)]\n"
    "other = [12 if i in (rank, (rank - 1) % 4) else 0 for i in range(4)]\n"
    "dist.all_to_all_single(torch.empty(24), x, other, splits)": ("all_to_all", 1, S, [S / 2] * 4),
    "dist.broadcast(x, src=2)": ("broadcast", 1, S, [S, 0, S, S]),  # 2 → 3 → 0 → 1
    "dist.reduce(x, dst=2)": ("reduce", 1, S, [S, S, 0, S]),
    "dist.gather(share, [torch.empty(6) for _ in range(4)] if rank == 2 else None, dst=2)": (
        ("gather", 1, S, [S / 4, S / 4, 0, S / 4])
    ),
    "dist.scatter(share, shares if rank == 2 else None, src=2)": ("scatter", 1, S, [0, 0, SHARE, 0]),
    "dist.barrier()": ("barrier", 1, 0, [0] * 4),
    "dist.monitored_barrier()": ("barrier", 1, 0, [0] * 4),
    "with torch.inference_mode(): dist.all_reduce(x)": ("all_reduce", 1, S, [RING] * 4),
    "functional.all_reduce(x, 'sum', world) + 1": ("all_reduce", 1, S, [RING] * 4),
    "functional.all_reduce_coalesced([x, x], 'sum', world)[0] + 1": ("all_reduce", 1, 2 * S, [2 * RING] * 4),
    "functional.all_gather_tensor(share, 0, world) + 1": ("all_gather", 1, S, [SHARE] * 4),
    "functional.all_gather_tensor(torch.ones(2, 3), 1, world) + 1": ("all_gather", 1, S, [SHARE] * 4),
    "functional.reduce_scatter_tensor(x, 'sum', 0, world) + 1": ("reduce_scatter", 1, S, [SHARE] * 4),
    "functional.all_to_all_single(x, None, None, world) + 1": ("all_to_all", 1, S, [SHARE] * 4),
    "functional.broadcast(x, 2, world) + 1": ("broadcast", 1, S, [S, 0, S, S]),
    "autograd.all_reduce(x.requires_grad_()).sum().backward()": ("all_reduce", 2, 2 * S, [2 * RING] * 4),
}


@pytest.mark.parametrize("code", CALLS)
def test_a_call_counts_once_with_its_two_sizes(group, code):
    before = (
        "import torch.distributed._functional_collectives as functional\n"
        "import torch.distributed.nn.functional as autograd\nworld = dist.group.WORLD\n"
    )
    collective, calls, n_bytes, sent = CALLS[code]
    all_ranks = counted(group, code, before + X)
    for one, bytes_sent in zip(all_ranks, sent, strict=True):
        expected = {"collective": collective, "group": "world", "calls": calls, "n_bytes": n_bytes}
        assert one.rows() == [expected | {"bytes_sent": bytes_sent}]
        assert (one.calls(), one.n_bytes(), one.bytes_sent()) == (calls, n_bytes, bytes_sent)


MESSAGES = """
to, source = (rank + 1) % world_size, (rank - 1) % world_size
sending = dist.isend(x, to)
dist.recv(torch.empty(24), source)
sending.wait()
receiving = dist.irecv(torch.empty(24))
dist.send(x, to)
receiving.wait()
both = [dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, torch.empty(24), source)]
for work in dist.batch_isend_irecv(both):
    work.wait()
"""


def test_messages_count_on_both_sides_and_are_sent_once(group):
    one = everywhere(counted(group, MESSAGES, X))
    assert (one.calls("send"), one.n_bytes("send"), one.bytes_sent("send")) == (3, 3 * S, 3 * S)
    assert (one.calls("recv"), one.n_bytes("recv"), one.bytes_sent("recv")) == (3, 3 * S, 0)


RING_BY_HAND = """
for step in range(2 * (world_size - 1)):
    piece = pieces[(rank - step) % world_size]
    work = dist.isend(piece, (rank + 1) % world_size)
    received = torch.empty_like(piece)
    dist.recv(received, (rank - 1) % world_size)
    work.wait()
    into = pieces[(rank - step - 1) % world_size]
    into.copy_(into + received if step < world_size - 1 else received)
"""


def test_a_ring_of_messages_sends_what_the_formula_of_all_reduce_says(group):
    ring = counted(group, RING_BY_HAND, "ring = torch.arange(24.) + rank\npieces = ring.chunk(4)")
    expected = counted(group, "dist.all_reduce(whole)", "whole = torch.arange(24.) + rank")
    assert everywhere([(a == b).all().item() for a, b in zip(group["ring"], group["whole"], strict=True)])
    ring, expected = everywhere(ring), everywhere(expected)
    assert ring.calls("send") == 2 * (N - 1)
    assert ring.bytes_sent() == ring.bytes_sent("send") == expected.bytes_sent() == 2 * (N - 1) / N * S


def test_groups_are_told_apart(group):
    body = """
if rank < 2:
    dist.all_reduce(x, group=pair)
if rank > 0:
    dist.all_reduce(x, group=odd)
dist.all_reduce(x)
"""
    zero, one, two, _ = counted(group, body, X)
    assert [row["group"] for row in zero.rows()] == [(0, 1), "world"]
    assert zero.bytes_sent(group=(0, 1)) == zero.bytes_sent(group=[0, 1]) == 2 * 1 / 2 * S
    assert two.bytes_sent(group="odd") == 2 * 2 / 3 * S
    assert one.calls() == 3 and one.n_bytes() == 3 * S
    assert zero.calls(group="odd") == 0
    total = sum(group["counted"])
    assert total.calls(group="odd") == 3 and total.calls(group=(0, 1)) == 2


def test_object_collectives_show_what_they_are_made_of(group):
    one = everywhere(counted(group, "dist.all_gather_object([None] * 4, {'a': 1})"))
    assert one.calls() == one.calls("all_gather") == 2, "the lengths, then the bytes"
    length = everywhere(counted(group, "dist.all_gather([torch.empty(1)] * 4, torch.ones(1))")).n_bytes()
    assert list(one.sizes("all_gather").values()) == [1, 1] and one.n_bytes() > 2 * length


# ------------------------------------------------------------------------------------------ whole algorithms

DDP = """
torch.manual_seed(0)
model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
psi = sum(p.nbytes for p in model.parameters())
ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=64 * 65 * 4 / 2**20)
x = torch.ones(2, 64)
for _ in range(2):                  # after its first step DDP makes its buckets anew
    ddp(x).sum().backward()
"""


def test_ddp_reduces_the_bytes_of_the_gradients_in_its_buckets(group):
    one = everywhere(counted(group, "ddp(x).sum().backward()", DDP))
    psi = everywhere(group["psi"])
    assert one.calls("all_reduce") == one.calls() == 4, "a bucket for each layer, and nothing else"
    assert one.sizes("all_reduce") == {psi // 4: 4}
    assert one.bytes_sent() == 2 * (N - 1) / N * psi
    silent = everywhere(counted(group, "with ddp.no_sync():\n    ddp(x).sum().backward()"))
    assert silent == Communication()


def test_zero_by_hand_sends_as_much_as_ddp(group):
    body = "dist.reduce_scatter_tensor(mine, flat)\ndist.all_gather_into_tensor(flat, mine)"
    one = everywhere(counted(group, body, "flat, mine = torch.ones(1000), torch.empty(250)"))
    assert one.bytes_sent() == 2 * (N - 1) / N * 4000


FSDP = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
torch.manual_seed(0)
layers = [nn.Linear(64, 64, bias=False) for _ in range(3)]
x = torch.ones(2, 64)
"""


@pytest.mark.parametrize("reshard, gathers", [(True, 6), (False, 3)])
def test_fully_shard_gathers_once_or_twice_and_scatters_once(group, reshard, gathers):
    before = f"""{FSDP}
model = nn.Sequential(*layers)
for layer in (*layers, model):
    fully_shard(layer, reshard_after_forward={reshard})
model(x).sum().backward()
"""
    one = everywhere(counted(group, "model(x).sum().backward()", before))
    psi = 3 * 64 * 64 * 4
    assert one.calls("all_gather") == gathers and one.calls("reduce_scatter") == 3
    assert one.calls() == gathers + 3
    assert one.bytes_sent() == (3 if reshard else 2) * (N - 1) / N * psi


def test_what_the_root_of_fully_shard_owns_is_gathered_once_and_odd_rows_are_padded(group):
    before = f"""{FSDP}
model = nn.Sequential(*layers, nn.Linear(64, 10, bias=False))   # ten rows on four ranks: three each, twelve
for layer in layers:
    fully_shard(layer)                                          # gathered again for backward, by default
fully_shard(model)                                              # keeps what it owns, by default
"""
    one = everywhere(counted(group, "model(x).sum().backward()", before))
    layers, head = 3 * 64 * 64 * 4, 12 * 64 * 4
    assert one.n_bytes("all_gather") == 2 * layers + head
    assert one.n_bytes("reduce_scatter") == layers + head
    assert one.bytes_sent() == (3 * layers + 2 * head) * (N - 1) / N


def test_hybrid_sharding_reduces_shards_across_the_replicas(group):
    before = f"""{FSDP}
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
model = fully_shard(nn.Sequential(*layers), mesh=mesh)
model(x).sum().backward()
"""
    one = everywhere(counted(group, "model(x).sum().backward()", before))
    psi = 3 * 64 * 64 * 4
    assert one.n_bytes("all_gather", "shards") == one.n_bytes("reduce_scatter", "shards") == psi
    assert one.n_bytes("all_reduce", "replicas") == psi / 2
    assert one.calls() == 3


TENSOR_PARALLEL = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
x = torch.ones(2, 8, 64, requires_grad=True)         # batch, sequence, hidden
"""
BY_HAND = """
class Copy(torch.autograd.Function):                 # the f and g of Megatron-LM
    @staticmethod
    def forward(ctx, x):
        return x
    @staticmethod
    def backward(ctx, gradient):
        dist.all_reduce(gradient := gradient.clone())
        return gradient
class Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        dist.all_reduce(x := x.clone())
        return x
    @staticmethod
    def backward(ctx, gradient):
        return gradient
a, b = torch.ones(64, 64, requires_grad=True), torch.ones(64, 64, requires_grad=True)
x = torch.ones(2, 8, 64, requires_grad=True)
"""


def test_tensor_parallelism_reduces_the_activations_once_forward_and_once_backward(group):
    activations = 2 * 8 * 64 * 4
    forward = everywhere(counted(group, "y = model(x).sum()", TENSOR_PARALLEL))
    backward = everywhere(counted(group, "y.backward()"))
    for one in (forward, backward):
        (row,) = one.rows()
        assert (row["collective"], row["calls"], row["n_bytes"]) == ("all_reduce", 1, activations)
        assert row["bytes_sent"] == 2 * (N - 1) / N * activations
    by_hand = everywhere(counted(group, "Reduce.apply(Copy.apply(x) @ a @ b).sum().backward()", BY_HAND))
    assert by_hand.sizes() == {activations: 2}
    assert by_hand.bytes_sent() == (forward + backward).bytes_sent()


def test_a_dtensor_counts_what_it_redistributes_on_request_and_by_itself(group):
    before = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
mesh = init_device_mesh("cpu", (4,))
sharded = distribute_tensor(torch.ones(8, 8), mesh, [Shard(0)])
partial = DTensor.from_local(torch.ones(8, 8), mesh, [Partial()])
"""
    one = everywhere(counted(group, "(sharded + 1).redistribute(placements=[Replicate()])", before))
    assert [row["collective"] for row in one.rows()] == ["all_gather"] and one.sizes() == {256: 1}
    one = everywhere(counted(group, "partial.relu()"))  # needs the sum first
    assert [row["collective"] for row in one.rows()] == ["all_reduce"] and one.sizes() == {256: 1}


PIPELINE = """
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
stage = PipelineStage(nn.Linear(16, 16), rank, world_size, device)
schedule = ScheduleGPipe(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
x, y = torch.ones(8, 16), torch.ones(8, 16)
def step():
    schedule.step(*([x] if rank == 0 else []), **({"target": y} if rank == world_size - 1 else {}))
step()                              # the first step also tells the shapes to the next stage
"""


def test_a_pipeline_passes_each_micro_batch_on_and_its_gradient_back(group):
    micro_batch = 2 * 16 * 4
    all_ranks = counted(group, "step()", PIPELINE)
    neighbours = [1, 2, 2, 1]
    for one, sides in zip(all_ranks, neighbours, strict=True):
        assert one.calls() == one.calls("send") + one.calls("recv")
        assert one.calls("send") == one.calls("recv") == 4 * sides
        assert one.bytes_sent() == 4 * sides * micro_batch


# ---------------------------------------------------------------------------------------------- the counting


def test_counts_nest_and_keep_what_an_error_leaves(group):
    group.cell(
        cell("""
x = torch.ones(24)
with count_communication() as outer:
    dist.all_reduce(x)
    with count_communication() as inner:
        dist.all_reduce(x)
    before = inner.calls()
    dist.barrier()
try:
    with count_communication() as broken:
        dist.barrier()
        1 / 0
except ZeroDivisionError:
    pass
dist.barrier()
""")
    )
    outer, inner, broken = everywhere(group["outer"]), everywhere(group["inner"]), everywhere(group["broken"])
    assert (outer.calls("all_reduce"), outer.calls("barrier")) == (2, 1)
    assert inner.calls() == everywhere(group["before"]) == 1
    assert broken.calls() == 1


COMPILED = """
def double_and_sum(x):
    y = x * 2
    dist.all_reduce(y)
    return (y + 1).relu()
compiled = torch.compile(double_and_sum, backend="aot_eager", fullgraph=True)
x = torch.ones(24)
"""


def test_compiled_code_stays_compiled_and_is_counted(group):
    assert everywhere(counted(group, "compiled(x)", COMPILED)).rows()[0]["calls"] == 1, "as it is compiled"
    one = everywhere(counted(group, "compiled(x)"))
    assert one.sizes("all_reduce") == {S: 1} and one.calls() == 1


BATCH = """
to, source = (rank + 1) % world_size, (rank - 1) % world_size
operator = torch.ops._c10d_functional.batch_p2p_ops
tensors = [x, torch.empty(24)]
for tensor in operator(["isend", "irecv"], [to, source], [0, 0], tensors, dist.group.WORLD.group_name):
    torch.ops._c10d_functional.wait_tensor(tensor)
"""


def test_messages_of_compiled_code_count_one_by_one(group):
    import torch.distributed._functional_collectives  # it defines the operator

    if not hasattr(torch.ops._c10d_functional, "batch_p2p_ops"):
        pytest.skip("this PyTorch compiles no messages")
    one = everywhere(counted(group, BATCH, X))
    assert (one.calls("send"), one.calls("recv"), one.bytes_sent()) == (1, 1, S)


def test_another_thread_is_not_seen_as_the_docstring_says(group):
    body = "thread = threading.Thread(target=dist.barrier)\nthread.start()\nthread.join()"
    assert everywhere(counted(group, body, "import threading")).calls() == 0


def test_one_process_without_a_group_counts_nothing():
    import torch

    with count_communication() as counted:
        torch.ones(4, requires_grad=True).sum().backward()
    assert counted.calls() == counted.n_bytes() == counted.bytes_sent() == 0
    assert repr(counted) == "no communication" and "no communication" in counted._repr_html_()
    assert len(counted.table()) == 0


def test_every_communicating_operator_of_this_torch_is_known():
    import torch
    import torch.distributed._functional_collectives  # noqa: F401  it defines some
    import torch.distributed.tensor  # noqa: F401

    known = collectives._OPERATORS.keys() | collectives._SILENT | {collectives._BATCH}
    schemas = {schema.name: schema for schema in torch._C._jit_get_all_schemas()}
    ours = {name for name in schemas if name.startswith(("c10d::", "_c10d_functional::"))}
    assert ours <= known
    for name, (_, argument, _) in collectives._OPERATORS.items():
        if schema := schemas.get(name):  # some are younger than the oldest torch that we support
            names = {argument.name for argument in schema.arguments}
            assert argument is None or argument in names
            assert names & {"process_group", "group_name"}


def test_an_unknown_operator_is_reported():
    class Schema:
        name, arguments = "c10d::teleport_", ()

    class Operator:
        _schema = Schema

    with pytest.warns(UserWarning, match="c10d::teleport_ communicates, and is not counted"):
        assert collectives.messages_of(Operator, (), {}) == []


# ------------------------------------------------------------------------------------------------- the table

REDUCED = Message("all_reduce", "world", 1000, Fraction(1500))
THIRD = Message("all_gather", (0, 1, 2), 1000, Fraction(2000, 3))


def test_counts_add_up_and_travel():
    once = Communication([REDUCED, THIRD])
    assert sum([once, once, once]) == Communication([REDUCED, THIRD] * 3)
    assert pickle.loads(pickle.dumps(once)) == once
    assert (once + once).calls() == 4 and once.calls() == 2
    assert sum([once, once, once]).bytes_sent("all_gather") == 2000  # thirds stay exact
    with pytest.raises(TypeError):
        once + 1


def test_the_table_reads_well():
    total = Communication([REDUCED] * 2000 + [THIRD])
    table = total.table()
    assert table.shape == (2, 5) and table.n_bytes.tolist() == [2_000_000, 1000]
    assert table.group.tolist() == ["world", (0, 1, 2)]
    lines = repr(total).splitlines()
    assert lines[0].split() == ["collective", "group", "calls", "bytes", "bytes", "sent"]
    assert lines[1].split() == ["all_reduce", "world", "2,000", "2,000,000", "3,000,000"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert "computed" in lines[3]
    assert "2,000,000</td>" in total._repr_html_() and "0, 1, 2</td>" in total._repr_html_()


# ------------------------------------------------------------------------------------------------ the figure


def drawn(counted, what="bytes_sent"):
    """The bars of a figure: label → heights, rank 0 first. Nothing may be cut off or warn."""
    ax = plot_communication(counted, what)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    frame = ax.figure.bbox.padded(2)
    for text in (ax.yaxis.label, *ax.texts, *ax.get_xticklabels(), *(ax.get_legend() or ax).findobj(Text)):
        box = text.get_window_extent()
        assert not text.get_text() or frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
    plt.close(ax.figure)
    return ax, {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}


def test_the_figure_stacks_what_each_rank_sends_by_collective_and_group():
    more = Communication([REDUCED, REDUCED, THIRD])
    ax, bars = drawn([Communication([REDUCED]), more])
    assert bars == {"all_reduce": [1.5, 3.0], "all_gather · ranks 0, 1, 2": [0, pytest.approx(2 / 3)]}
    assert ax.get_ylabel() == "kB sent" and ax.containers[1][1].get_y() == 3.0
    shown = [text.get_text() for text in ax.texts]
    assert shown[:2] == ["1.5", "3.67"] and shown[2].startswith("computed · ")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["rank 0", "rank 1"]


def test_the_figure_counts_calls_and_tells_groups_apart():
    pair = Message("all_reduce", (0, 1), 1000, Fraction(1000))
    ax, bars = drawn(Communication([REDUCED, pair, pair]), "calls")
    assert bars == {"all_reduce": [1], "all_reduce · ranks 0, 1": [2]}
    first, second = (bars[0] for bars in ax.containers)
    assert first.get_facecolor() == second.get_facecolor() and first.get_hatch() != second.get_hatch()
    assert ax.get_ylabel() == "calls" and ax.texts[-1].get_text().startswith("measured here · ")
    assert drawn([Communication()] * 2)[1] == {}
    with pytest.raises(ValueError, match="n_bytes"):
        plot_communication(Communication(), "bytes")


def test_a_misspelt_collective_is_an_error():
    with pytest.raises(ValueError, match="all_reduce, all_gather"):
        Communication().calls("allreduce")


def test_the_notebook_side_needs_no_torch():
    code = "import sys, fidle_utils.measure.communication; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
