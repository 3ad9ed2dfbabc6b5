"""The memory ledger against hand counts: formulas in batch b, length s, width h, heads a; in fp32."""

import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fidle_utils.measure.memory import PARTS, memory_ledger
from fidle_utils.models import GPT, MLP, SmallCNN
from fidle_utils.ranks import Ranks

FP32 = 4


def held(ledger, moment="end of forward"):
    return ledger.at(moment)["activations"]


def step(model, optimizer, x, y):
    with memory_ledger(model, optimizer, inputs=y) as ledger:
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    return ledger


# --------------------------------------------------------------------------------------- activations: MLP


def test_an_mlp_holds_each_hidden_layer_once_and_the_loss_its_log_probabilities():
    b, width, depth, classes = 5, 32, 3, 10
    x, y = torch.randn(b, 1, 8, 8), torch.zeros(b, dtype=torch.long)
    ledger = step(model := MLP(width, depth), torch.optim.SGD(model.parameters()), x, y)
    # Each ReLU saves its output, the next Linear its input: one storage. The first Linear's input is the
    # model's; cross_entropy saves its log-probabilities, and a number, the sum of the weights.
    assert held(ledger) == FP32 * (depth * b * width + b * classes + 1)
    assert held(ledger, "end of backward") == held(ledger, "end") == 0
    assert ledger.activations == held(ledger)
    assert ledger.inputs == 8 * b + FP32 * b * 64
    assert ledger.parameters == ledger.gradients == FP32 * model.num_parameters()
    assert ledger.buffers == ledger.optimizer_states == ledger.gathered_parameters == 0


def test_a_storage_counts_whole_and_once_however_many_views_are_saved():
    model = nn.Linear(3, 3)
    data = torch.randn(1000)
    with memory_ledger(model) as ledger:
        weight = torch.ones(10, requires_grad=True)
        out = weight * data[:10] + weight * data[10:20]
    assert held(ledger, "end") == 1000 * FP32
    with memory_ledger(model, inputs=[data]) as ledger:
        out = weight * data[:10] + weight * data[10:20]
    assert held(ledger, "end") == 0 and ledger.inputs == 1000 * FP32
    assert out.requires_grad


def test_the_peak_of_activations_is_that_of_a_time_not_their_sum():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    with memory_ledger(model) as ledger:
        for _ in range(3):  # micro-batches: each backward frees what its forward held
            model(torch.randn(4, 8)).sum().backward()
    assert ledger.activations == FP32 * 4 * 8
    assert [row["moment"] for row in ledger.moments].count("end of forward") == 3
    assert ledger.inputs == FP32 * 4 * 8, "inputs that were freed count no more"
    assert ledger.gradients == ledger.parameters, "gradients are added up in one place"


def test_autocast_holds_copies_of_the_weights_in_half_the_bytes():
    b, model = 4, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with memory_ledger(model) as ledger:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(torch.randn(b, 8))
        out.sum().backward()
    # The input and the hidden layer in bf16, and the second weight: the first needs no gradient of its input.
    assert held(ledger) == 2 * (b * 8 + b * 16 + 16 * 3)
    assert ledger.parameters == ledger.gradients == FP32 * (8 * 16 + 16 + 16 * 3 + 3)


# --------------------------------------------------------------------------------------- activations: GPT


def block_bytes(b, s, h, a, attention=None):
    """What one block of `GPT` holds for backward, its input included, in fp32 without dropout.

    In units of b·s·h numbers: the first norm's input 1 and output 1 (query, key and value read it: once),
    their outputs 3, the output of attention 1 (also the input of the projection), the second norm's
    input 1 and output 1 (the input of the MLP), the GELU's input 4 and output 4: together 16.
    Korthikanti et al. 2022 (arXiv:2205.05198), equation 2, count s·b·h·(34 + 5·a·s/h) bytes of 16-bit numbers
    with dropout. Without its masks (1 byte each: 2·s·b·h, and a·s²·b with a second copy of the probabilities,
    2·a·s²·b) that is 32·s·b·h + 2·a·s²·b bytes, or 16·b·s·h + a·s²·b numbers: the same. They neglect mean and
    deviation of the norms, 2·b·s numbers each. Flash attention keeps no probabilities but the logarithm of
    each row's sum, a·b·s numbers.
    """
    attention = a * b * s if attention is None else attention
    return FP32 * (16 * b * s * h + 2 * 2 * b * s + attention)


SIZES = [(2, 8, 16, 4), (3, 32, 24, 2)]


@pytest.mark.parametrize("b, s, h, a", SIZES)
def test_a_gpt_block_holds_what_the_formula_says(b, s, h, a):
    block = GPT(10, n_layers=1, n_heads=a, width=h).blocks[0]
    x = torch.randn(b, s, h, requires_grad=True)
    with memory_ledger(block) as ledger:
        block(x * 1).square().sum().backward()
    loss = FP32 * b * s * h  # `square` saves the block's output
    assert held(ledger) == block_bytes(b, s, h, a) + loss - FP32 * b * s * h, "its input is counted as input"
    assert ledger.inputs == FP32 * b * s * h
    assert held(ledger, "end") == 0
    assert ledger.parameters == FP32 * (12 * h * h + 13 * h)


@pytest.mark.parametrize("b, s, h, a", SIZES)
def test_attention_without_flash_holds_the_probabilities(b, s, h, a):
    block = GPT(10, n_layers=1, n_heads=a, width=h).blocks[0]
    with sdpa_kernel(SDPBackend.MATH), memory_ledger(block) as ledger:
        block(torch.randn(b, s, h)).sum().backward()
    assert held(ledger) + ledger.inputs == block_bytes(b, s, h, a, attention=a * b * s * s)


@pytest.mark.parametrize("b, s, h, a", SIZES)
def test_a_whole_gpt_is_its_blocks_its_last_norm_and_its_loss(b, s, h, a):
    n_layers, vocabulary = 3, 50
    model = GPT(vocabulary, s, n_layers, a, h)
    ids = torch.randint(vocabulary, (b, s))
    ledger = step(model, torch.optim.SGD(model.parameters()), ids, ids.clone())
    last_norm = 2 * b * s * h + 2 * b * s  # its input, its output (the head's input), mean and deviation
    loss = b * s * vocabulary + 1
    positions = 8 * s  # int64, saved by the embedding
    assert held(ledger) == n_layers * block_bytes(b, s, h, a) + FP32 * (last_norm + loss) + positions
    assert ledger.inputs == 2 * 8 * b * s
    tied_once = 12 * h * h + 13 * h
    assert ledger.parameters == FP32 * (n_layers * tied_once + (vocabulary + s + 2) * h)


class Checkpointed(nn.Module):
    def __init__(self, blocks, use_reentrant):
        super().__init__()
        self.blocks, self.use_reentrant = blocks, use_reentrant

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x


@pytest.mark.parametrize("b, s, h, a", SIZES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_hold_their_inputs_until_backward_computes_them_again(b, s, h, a, use_reentrant):
    n_layers = 3
    model = Checkpointed(GPT(10, s, n_layers, a, h).blocks, use_reentrant)
    x = torch.randn(b, s, h, requires_grad=True)
    with memory_ledger(model) as ledger:
        model(x).sum().backward()
    one_input = FP32 * b * s * h  # of the three inputs the first is the model's
    assert held(ledger) == (n_layers - 1) * one_input
    assert held(ledger, "end of backward") == 0
    # The last block comes first: its input is held already, and that of the block before it.
    assert ledger.activations == block_bytes(b, s, h, a) + (n_layers - 2) * one_input
    most = [row["activations"] for row in ledger.curve()]
    assert most.index(max(most)) > ledger.moments[1]["n_events"], "in backward"


# ------------------------------------------------------------------------------ what training keeps anyway


def test_adam_keeps_eight_bytes_a_parameter_and_a_step_count():
    model = MLP()
    n = model.num_parameters()
    optimizer = torch.optim.Adam(model.parameters())
    states = 2 * FP32 * n + FP32 * len(list(model.parameters()))
    before = memory_ledger(model, optimizer)
    assert before.optimizer_states == 0 and before.predicted_optimizer_states == states
    assert "after the first step (computed)" in repr(before)
    x, y = torch.ones(3, 64), torch.zeros(3, dtype=torch.long)
    first, second = step(model, optimizer, x, y), step(model, optimizer, x, y)
    assert first.optimizer_states == second.optimizer_states == states
    assert first.predicted_optimizer_states is None
    assert first.at("before optimizer step")["optimizer states"] == 0
    assert second.at("start") | {"inputs": 0} == first.at("end") | {"inputs": 0}
    assert second.total == 4 * FP32 * n + FP32 * 6 + second.inputs + second.activations
    assert first.peak < first.total, "activations have left when the states come"
    assert second.peak == second.total, "gradients were not set to None: all there is at the end of forward"


@pytest.mark.parametrize(
    "make, states",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), FP32 * 64),
        (lambda p: torch.optim.RMSprop(p, centered=True), 2 * FP32 * 64 + FP32),
    ],
)
def test_states_are_predicted_and_measured_alike(make, states):
    model = nn.Linear(8, 8, bias=False)
    optimizer = make(model.parameters())
    predicted = memory_ledger(model, optimizer).predicted_optimizer_states
    ledger = step(model, optimizer, torch.ones(2, 1, 8), torch.zeros(2, dtype=torch.long))
    assert predicted == ledger.optimizer_states == states


def test_master_copies_in_the_optimizer_are_optimizer_states():
    model = nn.Linear(8, 8, bias=False).bfloat16()
    master = model.weight.detach().float().requires_grad_()
    optimizer = torch.optim.Adam([master])
    master.grad = torch.ones_like(master)
    optimizer.step()
    ledger = memory_ledger(model, [optimizer])
    assert ledger.parameters == 2 * 64
    assert ledger.optimizer_states == 4 * 64 + 8 * 64 + 4


def test_an_optimizer_that_cannot_be_copied_predicts_nothing():
    model = nn.Linear(2, 2)
    assert memory_ledger(model, torch.optim.LBFGS(model.parameters())).predicted_optimizer_states is None


def test_buffers_count_persistent_or_not():
    model = SmallCNN(16, batch_norm=True)
    # Of each channel mean and variance; of each norm an int64 that counts batches.
    assert memory_ledger(model).buffers == FP32 * 2 * (16 + 32) + 8 * 2
    model.register_buffer("mask", torch.ones(5, dtype=torch.bool), persistent=False)
    assert memory_ledger(model).buffers == FP32 * 2 * (16 + 32) + 8 * 2 + 5


def test_bytes_without_memory_on_the_meta_device():
    b, sizes = 4, (1 << 20, 1 << 20)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(*sizes), nn.ReLU(), nn.Linear(*sizes))
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        with memory_ledger(model, optimizer) as ledger:
            model(torch.empty(b, sizes[0])).sum().backward()
            optimizer.step()
    n = 2 * (sizes[0] * sizes[1] + sizes[1])
    assert ledger.parameters == ledger.gradients == ledger.optimizer_states == FP32 * n
    assert held(ledger) == FP32 * b * sizes[1]
    assert ledger.device == "meta"


# ------------------------------------------------------------------------------------- the ledger as a tool


def test_the_ledger_changes_no_result_and_leaves_nothing_behind():
    torch.manual_seed(0)
    model = Checkpointed(GPT(10, n_layers=2).blocks, False)
    x = torch.randn(2, 8, 64)
    model(x).square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    with memory_ledger(model) as ledger:
        model(x).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not model._forward_pre_hooks
    n_events = len(ledger.events)
    model(x).sum().backward()
    assert len(ledger.events) == n_events


def test_what_backward_needs_is_freed_without_the_garbage_collector():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    gc.disable()
    try:
        with memory_ledger(model) as ledger:
            out = model(torch.ones(2, 4))
            assert held(ledger, "start") == 0
            ledger.mark("held")
            del out
            ledger.mark("let go")
    finally:
        gc.enable()
    assert (held(ledger, "held"), held(ledger, "let go")) == (FP32 * 8, 0)


def test_a_saved_tensor_that_was_changed_is_still_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    with memory_ledger(model), pytest.raises(RuntimeError, match="in place"):
        out = model(torch.ones(2, 4))
        out += 1
        out.sum().backward()


def test_it_travels_and_shows_itself():
    model = MLP(n_inputs=4)
    with memory_ledger(model, torch.optim.SGD(model.parameters())) as ledger:
        model(torch.ones(2, 4)).sum().backward()
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.rows() == ledger.rows() and copy.at("peak") == ledger.at("peak")
    assert [row["part"] for row in copy.rows()] == ["parameters", "gradients", "inputs", "activations"]
    assert copy.total == sum(row["n_bytes"] for row in copy.rows())
    assert copy.peak == max(row["total"] for row in copy.curve()) == sum(copy.at("peak").values())
    assert list(copy.curve()[0]) == ["seconds", "moment", *PARTS, "total"]
    assert f"{ledger.total:,}" in repr(ledger) and f"{ledger.total:,}" in ledger._repr_html_()
    assert ledger._repr_html_().count("<tr>") == ledger._repr_html_().count("</tr>") == 6
    with pytest.raises(KeyError, match="end of forward"):
        ledger.at("lunch")
    with pytest.raises(RuntimeError, match="block has ended"):
        ledger.mark("lunch")
    with pytest.raises(RuntimeError, match="complete"), copy:
        pass


def test_on_cuda_what_the_ledger_does_not_see_is_other():
    ledger = memory_ledger(nn.Linear(8, 8, bias=False))
    ledger.events = [(0.0, "optimizer states", "cpu", 400), (0.0, "parameters", "cuda", 256)]
    ledger.events += [(0.1, "activations", "cuda", 100), (0.2, "activations", "cuda", -100)]
    ledger.device, ledger.allocated_peak = "cuda", 1024
    assert ledger.other == 1024 - 356
    assert "other tensors): 668 bytes" in repr(ledger) and "optimizer states (cpu)" in repr(ledger)


# ---------------------------------------------------------------------------------------------- four ranks

CELL = """
from fidle_utils.measure.memory import memory_ledger
from fidle_utils.models import MLP
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

def measured(model, make=torch.optim.Adam):
    optimizer = make(model.parameters())
    for _ in range(2):
        with memory_ledger(model, optimizer) as ledger:
            model(torch.ones(8, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return ledger

new = lambda: MLP(width=64, depth=2, n_classes=64)
plain = measured(new())
model = DistributedDataParallel(new())
ddp = measured(model)
in_reducer = sum(bucket.buffer().nbytes for bucket in model.reducer._get_zeros_like_grad_buckets())
view = measured(DistributedDataParallel(new(), gradient_as_bucket_view=True))
zero = measured(DistributedDataParallel(new()), lambda p: ZeroRedundancyOptimizer(p, torch.optim.Adam))
model = new()
for i in (1, 3, 5):
    fully_shard(model.layers[i])
sharded = measured(fully_shard(model))
"""


@pytest.fixture(scope="module")
def ranks():
    group = Ranks()
    try:
        group.start(4, device="cpu")
        group.cell(CELL)
        yield group
    finally:
        group.stop()


def test_fsdp_shards_sum_to_the_whole_and_one_layer_at_a_time_is_full(ranks):
    plain, sharded = ranks["plain"][0], ranks["sharded"]
    assert [ledger.rank for ledger in sharded] == [0, 1, 2, 3]
    for part in ("parameters", "gradients"):
        assert sum(ledger.most(part) for ledger in sharded) == plain.most(part)
    steps = FP32 * 6  # a step count for each tensor, on every rank
    assert sum(ledger.optimizer_states - steps for ledger in sharded) == plain.optimizer_states - steps
    layer = FP32 * (64 * 64 + 64)
    for ledger in sharded:
        assert ledger.gathered_parameters == layer
        assert ledger.at("start")["gathered parameters"] == ledger.at("end")["gathered parameters"] == 0
        assert ledger.activations == plain.activations == FP32 * 2 * 8 * 64


def test_ddp_keeps_a_copy_of_the_gradients_unless_they_lie_in_its_buckets(ranks):
    for ledger, plain, in_reducer in zip(ranks["ddp"], ranks["plain"], ranks["in_reducer"], strict=True):
        assert ledger.gradient_buckets == in_reducer == plain.gradients
        assert ledger.total == plain.total + in_reducer
    for ledger, plain in zip(ranks["view"], ranks["plain"], strict=True):
        assert ledger.gradient_buckets == 0
        assert ledger.total == plain.total
        # Unlike gradients of one process they stay when `.grad` is set to None.
        assert ledger.at("end of forward")["gradients"] == ledger.at("end")["gradients"] == plain.gradients


def test_zero_states_of_all_ranks_sum_to_those_of_one(ranks):
    assert sum(ledger.optimizer_states for ledger in ranks["zero"]) == ranks["plain"][0].optimizer_states


def test_gradients_that_zero_grad_lets_go_do_not_count_twice():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters())
    n_bytes = sum(p.nbytes for p in model.parameters())

    def step():
        optimizer.zero_grad()
        model(torch.randn(8, 64)).sum().backward()
        optimizer.step()

    step()
    with memory_ledger(model, optimizer) as second:
        step()
    with memory_ledger(model, optimizer) as two:
        step()
        step()
    assert second.gradients == two.gradients == n_bytes
    assert two.peak == second.peak
