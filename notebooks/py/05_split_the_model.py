# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,jupyter,fidle,-all
#     comment_magics: false
#     notebook_metadata_filter: kernelspec,jupytext,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["live"] fidle={"minutes": 0.5}
# # 05 · Split the model
#
# **You will** cut a model in two ways: between its layers, and inside every layer. You will write the two operators
# on which tensor parallelism stands, and with them a GPT whose matrices, heads and vocabulary are shared by four
# ranks. It computes what one process computes, and PyTorch's own `parallelize_module` agrees.
#
# **You learn** who holds what, what must be sent and when, why this stays inside a node, and the traps that give no
# error: a bias added four times, a norm clipped in four ways, dropout from the wrong seed.
#
# **You need** PyTorch's training loop, lesson 00 (what a rank is) and what `all_reduce` does (lesson 03, or: it adds
# up the tensors of all ranks, on every rank). No GPU is needed; with one GPU for each rank the same cells use them.
#
# **Time** 10 min live (the cells tagged `live`), 100 min alone, with four exercises.

# %% tags=["live"]
%load_ext fidle_utils
import torch
from torch import nn
from torch.nn import functional as F

from fidle_utils import plots, ranks
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 1}
# ## Why split the model?
#
# In data parallelism every rank holds the *whole* model. Training with Adam in mixed precision takes 16 bytes for each
# parameter [5], activations not counted; lesson 08 says why. So a model of 7 billion parameters needs:

# %% tags=["live"]
print(f"{7e9 * 16 / 1e9:.0f} GB; an H100 has {table('gpu_specs', gpu='H100-SXM5-80GB')[0]['memory_gb']} GB")

# %% [markdown] tags=["live"]
# The model must be cut: *model parallelism* (fr. *parallélisme de modèle*). There are two ways: a rank holds whole
# layers, or a part of every layer.

# %% tags=["live"]
plots.plot_model_cuts(n_layers=8, n_ranks=4);

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## Cut between the layers, naively
#
# Eight layers on four ranks: two each. A rank receives activations from its left, computes its layers, and sends the
# result to its right. In backward, gradients travel the other way. `stage` is what this rank holds.

# %% tags=["live"]
%%ranks
from torch import nn
from torch.nn import functional as F

rows, width = (4096, 2048) if device.type == "cuda" else (1024, 512)    # a GPU needs more to be busy

def tower(depth=8):
    """The whole model, the same for whoever builds it."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))

n_mine = 8 // world_size
stage = tower()[rank * n_mine:(rank + 1) * n_mine].to(device)       # my layers
torch.manual_seed(1)
x, y = torch.randn(rows, width).to(device), torch.randn(rows, width).to(device)
n_parameters = sum(p.numel() for p in stage.parameters())
print(f"layers {rank * n_mine} to {(rank + 1) * n_mine - 1}, {n_parameters:,} parameters")

# %% tags=["live"]
%%ranks
def naive_step(x, y):
    """Forward and backward, one rank after the other; returns the loss, on the last rank."""
    loss = None
    if rank > 0:
        x = torch.empty_like(x)
        dist.recv(x, src=rank - 1)              # the activations of the layer before mine
        x.requires_grad_()
    out = stage(x)
    if rank < world_size - 1:
        dist.send(out.detach(), dst=rank + 1)
        grad = torch.empty_like(out)
        dist.recv(grad, src=rank + 1)           # what my right neighbour found for my output
        out.backward(grad)
    else:
        loss = F.mse_loss(out, y)
        loss.backward()
    if rank > 0:
        dist.send(x.grad, dst=rank - 1)
    return loss

loss = naive_step(x, y)                         # also warms up

# %%
guess = predict("Four ranks instead of one. What part of the time does a rank compute?",
                options=["all of it", "half", "a quarter"])

# %% tags=["live"]
%%ranks --timeline
loss = naive_step(x, y)

# %% tags=["live"]
plots.plot_timeline(ranks.timeline);

# %%
step_ms = ranks.timeline.events.end_ms.max()
busy = ranks.timeline.summary(0, step_ms).compute_ms / step_ms
shares = ", ".join(f"{share:.0%}" for share in busy)
print(f"ranks compute {shares} of the step; on average {busy.mean():.0%}")
reveal(guess, "a quarter", why="At any time one rank computes: 1/n. The other three wait for its message.")

# %% [markdown]
# A staircase: forward goes down the ranks, backward climbs up again. Two cores are enough to see the truth here, since
# one rank at a time computes. Is it right, at least? One process:

# %%
rows, width = ranks["rows"][0], ranks["width"][0]

def tower(depth=8):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)))

whole = tower()
torch.manual_seed(1)
x, y = torch.randn(rows, width), torch.randn(rows, width)
loss = F.mse_loss(whole(x), y)
loss.backward()

# %%
%%ranks
gradients = [p.grad / 2 for p in stage.parameters()]                # the step ran twice: they added up

# %%
split = [gradient for of_rank in ranks["gradients"] for gradient in of_rank]
torch.testing.assert_close(ranks["loss"][-1], loss)
for mine, p in zip(split, whole.parameters(), strict=True):
    torch.testing.assert_close(mine, p.grad, rtol=1e-5, atol=1e-5 * p.grad.abs().max().item())
print(f"loss {ranks['loss'][-1]:.6f}, one process {loss:.6f}; all {len(split)} gradients equal")

# %% [markdown]
# So the naive cut makes a model *fit*, and no step faster: n devices work like one, with messages on top. Lesson 06
# fills the white parts with other pieces of the batch: a pipeline. This lesson takes the other cut, in which all
# ranks compute **at the same time**.

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Cut inside a layer
#
# Most of a transformer is matrix products $Y = X A$. A product can be shared out in two ways [1]. A colour is a rank;
# grey is whole on every rank.

# %% tags=["live"]
plots.plot_matrix_split(n_ranks=4);

# %% [markdown] tags=["live"]
# - **By columns** (fr. *colonnes*): each rank needs the whole X, and computes *some columns* of Y, complete.
# - **By rows** (fr. *lignes*): each rank needs only its columns of X, and computes *one term of every number* of Y.
#   An `all_reduce` adds the terms up.
#
# Numbers, to be sure. Every rank makes the same X and A, and uses only its part:

# %% tags=["live"]
%%ranks
torch.manual_seed(0)
X, A = torch.randn(6, 8).to(device), torch.randn(8, 12).to(device)
columns = X @ A.chunk(world_size, dim=1)[rank]                              # some numbers of Y
term = X.chunk(world_size, dim=1)[rank] @ A.chunk(world_size, dim=0)[rank]  # a term of every number
print(f"columns {tuple(columns.shape)}, term {tuple(term.shape)}")

# %% tags=["live"]
X, A = ranks["X"][0], ranks["A"][0]
torch.testing.assert_close(torch.cat(ranks["columns"], dim=1), X @ A)
torch.testing.assert_close(sum(ranks["term"]), X @ A)
print("columns side by side: equal to one process · terms added up: equal to one process")

# %% [markdown]
# Careful: `nn.Linear` keeps its `weight` as **(outputs, inputs)**, the transpose of A. *Columns of A* are *rows of
# `weight`*, `dim=0`. Half of the mistakes in this lesson start here.

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## What does backward need?
#
# Cut by columns, forward sends nothing. The gradient of X is $\nabla_X = \nabla_Y A^T$, a product of its own.

# %%
guess = predict("Cut by columns. To get the gradient of X, the ranks send…",
                options=["nothing, as in forward", "an all_reduce"])

# %% tags=["live"]
%%ranks
x = X.clone().requires_grad_()
(x @ A.chunk(world_size, dim=1)[rank]).sum().backward()
gradient = x.grad

# %% tags=["live"]
x = X.clone().requires_grad_()
(x @ A).sum().backward()
for i, mine in enumerate(ranks["gradient"]):
    print(f"rank {i}: first numbers {[round(v, 3) for v in mine[0, :3].tolist()]}")
print(f"one process:           {[round(v, 3) for v in x.grad[0, :3].tolist()]}")
torch.testing.assert_close(sum(ranks["gradient"]), x.grad)

# %%
reveal(guess, "an all_reduce", why="A rank knows what went through its own columns only. Their sum is right.")

# %% [markdown] tags=["live"]
# Four different gradients for one X, and **nobody complained**. The layers below would be trained on a quarter of the
# truth. What goes in as a copy must come back as a sum; what comes out as a sum goes back as a copy. So two
# operators stand around a split region, each the *conjugate* (fr. *conjugué*) of the other [1]:
#
# | | forward | backward |
# |---|---|---|
# | **f**, where x enters | nothing | all_reduce |
# | **g**, where y leaves | all_reduce | nothing |

# %%
plots.plot_parallel_block(enter=("f", "nothing", "all_reduce"), leave=("g", "all_reduce", "nothing"));

# %% [markdown]
# **Exercise 1.** Write both as `torch.autograd.Function`: `forward` gets a tensor and returns one, `backward` gets the
# gradient of what `forward` returned, and returns that of its input. `all_reduce` works in place: reduce a `clone()`.

# %% fidle={"wrong": ["%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total\n\nf_and_g = CopyToRanks, SumOverRanks\n", "%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nf_and_g = CopyToRanks, SumOverRanks\n", "%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total\n\nf_and_g = CopyToRanks, SumOverRanks\n", "%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total / world_size\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nf_and_g = CopyToRanks, SumOverRanks\n", "%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        dist.all_reduce(grad)\n        return grad\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nf_and_g = CopyToRanks, SumOverRanks\n", "%%ranks\nclass CopyToRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total\n\nclass SumOverRanks(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x\n    @staticmethod\n    def backward(ctx, grad):\n        return grad\n\nf_and_g = CopyToRanks, SumOverRanks\n"]} tags=["exercise"]
%%ranks
class CopyToRanks(torch.autograd.Function):
    """f: all ranks go on with the same x."""
    @staticmethod
    def forward(ctx, x):
        ...

    @staticmethod
    def backward(ctx, grad):
        ...

class SumOverRanks(torch.autograd.Function):
    """g: every rank brings one term of y."""
    @staticmethod
    def forward(ctx, x):
        ...

    @staticmethod
    def backward(ctx, grad):
        ...

f_and_g = CopyToRanks, SumOverRanks

# %% tags=["check"]
def test_f_and_g(f_and_g):
    mine = torch.tensor([1.0, 2.0], device=device) * 10**rank
    total = mine.clone()
    dist.all_reduce(total)
    said = {
        ("f", "forward"): "every rank has the whole x already. Return it as it is; sum in backward.",
        ("f", "backward"): "each rank has the gradient that came through its own columns only. Sum them.",
        ("g", "forward"): "each rank has one term of y. Sum them.",
        ("g", "backward"): f"all ranks have y's gradient already: a sum is {world_size} times too large.",
    }
    for name, operator in zip("fg", f_and_g):
        x, grad = mine.clone().requires_grad_(), mine.clone()
        y = operator.apply(x)
        assert torch.equal(x, mine), f"{name} changed its input: all_reduce a clone(), and return that."
        y.backward(grad)
        changed = f"{name} changed the gradient it was given, which autograd may still need: clone() first."
        assert torch.equal(grad, mine), changed
        for step, value, summed in (("forward", y, name == "g"), ("backward", x.grad, name == "f")):
            mean = torch.allclose(value, total / world_size)
            assert not mean, f"{name}, {step}: a mean. The terms of a sum are added, not averaged."
            right = torch.allclose(value, total if summed else mine)
            assert right, f"{name}, {step}: {said[name, step]}"

check("f_and_g", test_f_and_g)

# %% jupyter={"source_hidden": true} tags=["solution"]
%%ranks
class CopyToRanks(torch.autograd.Function):                     # f
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        total = grad.clone()
        dist.all_reduce(total)
        return total

class SumOverRanks(torch.autograd.Function):                    # g
    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad

f_and_g = CopyToRanks, SumOverRanks

# %% jupyter={"source_hidden": true} tags=["solution"]
check("f_and_g", test_f_and_g)

# %% [markdown]
# Why not simply call `dist.all_reduce` in the model? It works in place, and autograd knows nothing of it. An
# all_reduce that autograd does know, as in `torch.distributed.nn.functional`, sums in *both* directions. That is
# right if each rank adds a loss of its own, and n times too much here, where all ranks compute the *same* loss.

# %% [markdown]
# ## An MLP on four ranks
#
# The MLP of a transformer is two products with a function between them: $y = \mathrm{GELU}(x A + a)\,B + b$. Cut A by
# columns and B by rows. Each rank's columns of the hidden layer are exactly what its rows of B need: **nothing is
# sent in the middle.**
#
# `my_part` copies this rank's share of a parameter, its *shard*; it remembers along which `dim` it was cut.

# %%
%%ranks
def my_part(parameter, dim):
    """This rank's share of a whole parameter, cut along `dim`."""
    share = nn.Parameter(parameter.detach().chunk(world_size, dim)[rank].clone())
    share.cut = dim
    return share

def mlp():
    """The MLP of a transformer block of width 64, in one piece."""
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

# %% [markdown]
# (Two cells for the check of the next exercise: what it says of shapes, and of y.)

# %%
def mlp_shapes(split):
    """The parameters of each rank must be its share, or whole."""
    h = 256 // world_size
    wanted = {"up_weight": (h, 64), "up_bias": (h,), "down_weight": (64, h), "down_bias": (64,)}
    for name, shape in wanted.items():
        mine = tuple(getattr(split, name).shape)
        why = "nn.Linear keeps (outputs, inputs)" if "weight" in name else "a bias is cut like its outputs"
        assert mine == shape, f"{name} has shape {mine}, not {shape}: {why}."
    for name in ("up_weight", "up_bias", "down_weight"):
        uncut = f"{name}: right shape; make it with my_part, which notes the cut."
        assert hasattr(getattr(split, name), "cut"), uncut

# %%
def mlp_forward(split, whole, x):
    """The same y on every rank, the one of the whole MLP."""
    y, bias = split(x), whole[2].bias
    total = y.detach().clone()
    dist.all_reduce(total)
    error = y - whole(x)
    partial = torch.allclose(total - (world_size - 1) * bias, whole(x), atol=1e-5)
    assert not partial, "each rank returns one term of y: g must add them up before the bias."
    n_times = f"y has its last bias {world_size} times: add it once, after g."
    assert not torch.allclose(error, (world_size - 1) * bias, atol=1e-5), n_times
    linear = torch.allclose(y, whole[2](whole[0](x)), atol=1e-5)
    assert not linear, "the GELU between the two products is missing."
    assert error.abs().max() < 1e-5, f"y is {error.abs().max():.1e} away from the whole MLP's."
    return y

# %% [markdown]
# **Exercise 2.** Complete the MLP. `mlp[0]` is the first `nn.Linear`, `mlp[2]` the second. Cut with `my_part`: later
# cells read its `.cut`. What stays whole is a parameter as it is: `nn.Parameter(p.detach().clone())`. In `forward`,
# call `self.enter.apply(x)` for f and `self.leave.apply(…)` for g. (They have names of their own because a later
# section puts others there.)

# %% fidle={"wrong": ["%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 1)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 0)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight, self.down_bias))\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(x, self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return F.linear(h, self.down_weight) + self.down_bias\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight, self.down_bias / world_size))\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = nn.Parameter(mlp[0].bias.detach().clone())\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = my_part(mlp[0].weight, 0)\n        self.up_bias = my_part(mlp[0].bias, 0)\n        self.down_weight = my_part(mlp[2].weight, 1)\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.linear(self.enter.apply(x), self.up_weight, self.up_bias)\n        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias\n", "%%ranks\nclass ParallelMLP(nn.Module):\n    enter, leave = CopyToRanks, SumOverRanks\n\n    def __init__(self, mlp):\n        super().__init__()\n        self.up_weight = nn.Parameter(mlp[0].weight.detach().chunk(world_size, 0)[rank].clone())\n        self.up_bias = nn.Parameter(mlp[0].bias.detach().chunk(world_size, 0)[rank].clone())\n        self.down_weight = nn.Parameter(mlp[2].weight.detach().chunk(world_size, 1)[rank].clone())\n        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())\n\n    def forward(self, x):\n        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))\n        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias\n"]} tags=["exercise"]
%%ranks
class ParallelMLP(nn.Module):
    """The MLP of a transformer block, shared by the ranks."""
    enter, leave = CopyToRanks, SumOverRanks                    # f and g

    def __init__(self, mlp):
        super().__init__()
        self.up_weight = ...                                    # mlp[0].weight, (256, 64)
        self.up_bias = ...
        self.down_weight = ...                                  # mlp[2].weight, (64, 256)
        self.down_bias = ...

    def forward(self, x):
        ...

# %% tags=["check"]
def test_mlp(ParallelMLP):
    from fidle_utils.measure import count_communication
    torch.manual_seed(1)
    whole, x = mlp().to(device), torch.randn(4, 8, 64).to(device)
    split, mine, theirs = ParallelMLP(whole), x.clone().requires_grad_(), x.clone().requires_grad_()
    mlp_shapes(split)
    with count_communication() as forward:
        split(mine)
    y = mlp_forward(split, whole, mine)
    with count_communication() as backward:
        y.square().mean().backward()
    whole(theirs).square().mean().backward()
    only_mine = "the gradient of x is what came through my columns only: f is missing."
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-7), only_mine
    for name, p in zip(("up_weight", "up_bias", "down_weight", "down_bias"), whole.parameters()):
        share = getattr(split, name)
        truth = p.grad.chunk(world_size, share.cut)[rank] if hasattr(share, "cut") else p.grad
        off = f"the gradient of {name} is {(share.grad.norm() / truth.norm()).item():.2f} times the right one"
        assert torch.allclose(share.grad, truth, atol=1e-7), f"{off}. Whole, undivided, added once after g?"
    calls = forward.calls(), backward.calls()
    assert calls == (1, 1), f"right, with {calls} messages in forward and backward: one each will do."

check("ParallelMLP", test_mlp, hint="first weight cut along 0, second along 1; f first, g last")

# %% jupyter={"source_hidden": true} tags=["solution"]
%%ranks
class ParallelMLP(nn.Module):
    enter, leave = CopyToRanks, SumOverRanks                    # f and g

    def __init__(self, mlp):
        super().__init__()
        self.up_weight = my_part(mlp[0].weight, 0)              # columns of A
        self.up_bias = my_part(mlp[0].bias, 0)
        self.down_weight = my_part(mlp[2].weight, 1)            # rows of B
        self.down_bias = nn.Parameter(mlp[2].bias.detach().clone())     # whole

    def forward(self, x):
        h = F.gelu(F.linear(self.enter.apply(x), self.up_weight, self.up_bias))
        return self.leave.apply(F.linear(h, self.down_weight)) + self.down_bias     # after the sum

# %% jupyter={"source_hidden": true} tags=["solution"]
check("ParallelMLP", test_mlp)

# %% [markdown]
# ### Equal to one process
#
# Output, gradients of every shard, and the weights after one step of SGD. In float32 rounding leaves about seven
# digits, in float64 about sixteen: an error that is *wrong* and not *rounding* does not shrink when you change.
# (Each rank computes the whole MLP too, alone, to compare with.)

# %%
%%ranks
def relative(mine, truth):
    """The largest difference, as a share of the largest number of `truth`."""
    return ((mine - truth).abs().max() / truth.abs().max()).item()

def part_of(tensor, share):
    """The part of a whole tensor that belongs to `share`, a parameter of this rank."""
    return tensor.chunk(world_size, share.cut)[rank] if hasattr(share, "cut") else tensor

def errors(split, whole, lr=0.1):
    """After backward of both: relative errors of the gradients, and of the weights after a step."""
    pairs = list(zip(split.parameters(), whole.parameters(), strict=True))
    def flat(tensors):
        return torch.cat([tensor.detach().flatten() for tensor in tensors])
    gradients = relative(flat(p.grad for p, _ in pairs), flat(part_of(q.grad, p) for p, q in pairs))
    for model in (split, whole):
        torch.optim.SGD(model.parameters(), lr).step()
    return gradients, relative(flat(p for p, _ in pairs), flat(part_of(q, p) for p, q in pairs))

# %%
%%ranks
def compare_mlp(dtype):
    torch.manual_seed(0)
    whole = mlp().to(device, dtype)
    split, x = ParallelMLP(whole), torch.randn(8, 32, 64).to(device, dtype)
    outputs = split(x), whole(x)
    for y in outputs:
        y.square().mean().backward()
    return relative(*outputs), *errors(split, whole)

far = {dtype: compare_mlp(dtype) for dtype in (torch.float32, torch.float64)}

# %%
def show(far_of_ranks, what="output"):
    """Print the worst of all ranks, and hold it to the limits of this lesson."""
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-8)):
        worst = [max(values) for values in zip(*(far[dtype] for far in far_of_ranks))]
        print(f"{dtype}: {what} {worst[0]:.0e}, gradients {worst[1]:.0e}, after a step {worst[2]:.0e}")
        assert max(worst) < limit

show(ranks["far"])

# %% [markdown]
# ### What it sends
#
# Activations of `batch × length × width` numbers go through g in forward and, as gradients, through f in backward.
# Never a weight, never a gradient of a weight.

# %%
guess = predict("8 texts of 32 tokens, width 64, float32. How many kB does forward all_reduce?", unit="kB")

# %%
%%ranks
from fidle_utils.measure import count_communication

split = ParallelMLP(mlp().to(device))
x = torch.randn(8, 32, 64, device=device, requires_grad=True)       # it comes from the layers below
with count_communication() as forward:
    y = split(x)
with count_communication() as backward:
    y.square().mean().backward()

# %%
b, s, h, n = 8, 32, 64, len(ranks)
for name in ("forward", "backward"):
    counted = ranks[name][0]
    assert counted.n_bytes("all_reduce") == b * s * h * 4 and counted.calls() == 1
    assert counted.bytes_sent("all_reduce") == 2 * (n - 1) / n * b * s * h * 4
    print(f"{name}: {counted.calls()} all_reduce of {counted.n_bytes():,} bytes = b · s · h · 4")
reveal(guess, b * s * h * 4 / 1e3, why="8 · 32 · 64 numbers of 4 bytes, however wide the hidden layer.")

# %% [markdown]
# ### Why columns first?
#
# Try the other order: A by rows. Each rank then has *one term* of every hidden number, and GELU stands in the way.

# %%
guess = predict("Is GELU(p + q) equal to GELU(p) + GELU(q)?", options=["yes", "no"])

# %%
%%ranks
torch.manual_seed(0)
whole, x = mlp().to(device), torch.randn(8, 32, 64).to(device)
with torch.no_grad():
    term = F.linear(x.chunk(world_size, -1)[rank], whole[0].weight.chunk(world_size, 1)[rank])
    too_late = F.gelu(term)
    dist.all_reduce(too_late)                                   # GELU of each term, then the sum
    with count_communication() as counted:
        dist.all_reduce(term)                                   # the sum, then GELU
    truth = F.gelu(F.linear(x, whole[0].weight))
if rank == 0:
    print(f"sum after GELU: relative error {relative(too_late, truth):.2f}; "
          f"sum before GELU: {relative(F.gelu(term), truth):.0e}, for {counted.n_bytes():,} bytes")

# %%
reveal(guess, "no", why="The sum must come before GELU: one all_reduce more, four times as wide.")

# %% [markdown]
# ## Attention: each rank takes some heads
#
# *Attention heads* (fr. *têtes d'attention*) do not talk to each other until the output product. So cut the products
# that make queries, keys and values by columns, a head's columns together, and the output product by rows. Two
# classes for what you have just written:

# %%
%%ranks
class ColumnLinear(nn.Module):
    """My columns of a Linear. It sends nothing; f must stand before it."""
    def __init__(self, whole):
        super().__init__()
        self.weight, self.bias = my_part(whole.weight, 0), my_part(whole.bias, 0)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

class RowLinear(nn.Module):
    """My rows of a Linear, then g, then the bias, once."""
    leave = SumOverRanks

    def __init__(self, whole):
        super().__init__()
        self.weight, self.bias = my_part(whole.weight, 1), nn.Parameter(whole.bias.detach().clone())

    def forward(self, x):
        return self.leave.apply(F.linear(x, self.weight)) + self.bias

# %% [markdown]
# And this is the attention of our GPT, in one process, as `fidle_utils.models` has it:

# %%
import inspect

from fidle_utils import models

print(inspect.getsource(models._Attention))

# %% [markdown]
# (For the check: what it says of the parts, and attention without its mask.)

# %%
def attention_parts(split, whole):
    """Whole heads, and rows for the output."""
    heads = "a rank holds fewer heads, and each of them whole: head_width stays."
    assert split.head_width == whole.head_width, heads
    n = 64 // world_size
    for name, shape in dict(query=(n, 64), key=(n, 64), value=(n, 64), output=(64, n)).items():
        mine = tuple(getattr(split, name).weight.shape)
        assert mine == shape, f"{name}.weight is {mine}, not {shape}: columns for q, k, v; rows for output."
    mine, truth = split.query.weight.detach(), whole.query.weight.chunk(world_size, 0)[rank]
    assert torch.equal(mine, truth), "the query's columns are not those of whole heads, side by side."

def without_mask(whole, x):
    """What attention gives if every token may look at the later ones."""
    q, k, v = (p(x).unflatten(-1, (-1, whole.head_width)).transpose(1, 2)
               for p in (whole.query, whole.key, whole.value))
    return whole.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

# %% [markdown]
# **Exercise 3.** Write `ParallelAttention(whole)`: `whole` is such an attention, with 8 heads; each rank takes
# 8/n of them. Keep the names `query`, `key`, `value`, `output` and `head_width`.

# %% fidle={"wrong": ["%%ranks\nclass ParallelAttention(nn.Module):\n    enter = CopyToRanks\n\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)\n\n    def forward(self, x):\n        q, k, v = (\n            projection(self.enter.apply(x)).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n", "%%ranks\nclass ParallelAttention(nn.Module):\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)\n\n    def forward(self, x):\n        q, k, v = (\n            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n", "%%ranks\nclass ParallelAttention(nn.Module):\n    enter = CopyToRanks\n\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width // world_size\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)\n\n    def forward(self, x):\n        x = self.enter.apply(x)\n        q, k, v = (\n            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n", "%%ranks\nclass ParallelAttention(nn.Module):\n    enter = CopyToRanks\n\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), ColumnLinear(whole.output)\n\n    def forward(self, x):\n        x = self.enter.apply(x)\n        q, k, v = (\n            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n", "%%ranks\nclass ParallelAttention(nn.Module):\n    enter = CopyToRanks\n\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)\n\n    def forward(self, x):\n        x = self.enter.apply(x)\n        q, k, v = (\n            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n", "%%ranks\nclass ParallelAttention(nn.Module):\n    enter = CopyToRanks\n\n    def __init__(self, whole):\n        super().__init__()\n        self.head_width = whole.head_width\n        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)\n        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)\n        for part in (self.query, self.key, self.value):\n            name = 'query' if part is self.query else 'key' if part is self.key else 'value'\n            part.weight = nn.Parameter(getattr(whole, name).weight.detach()[rank::world_size].clone())\n            part.bias = nn.Parameter(getattr(whole, name).bias.detach()[rank::world_size].clone())\n            part.weight.cut = part.bias.cut = 0\n\n    def forward(self, x):\n        x = self.enter.apply(x)\n        q, k, v = (\n            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)\n            for projection in (self.query, self.key, self.value)\n        )\n        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.output(mixed.transpose(1, 2).flatten(2))\n"]} tags=["exercise"]
%%ranks
class ParallelAttention(nn.Module):
    """Causal self-attention, its heads shared by the ranks."""
    enter = CopyToRanks                                         # f

    def __init__(self, whole):
        super().__init__()
        self.head_width = ...
        self.query = ...
        self.key = ...
        self.value = ...
        self.output = ...

    def forward(self, x):
        ...

# %% tags=["check"]
def test_attention(ParallelAttention):
    from fidle_utils.models import GPT
    torch.manual_seed(1)
    whole = GPT(8, n_heads=8, n_layers=1).to(device).blocks[0].attention
    for p in whole.parameters():
        nn.init.normal_(p, std=0.3)                             # a GPT's own start is too flat to tell errors
    for p in whole.parameters():
        dist.broadcast(p.data, src=0)
    split, x = ParallelAttention(whole), torch.randn(4, 16, 64).to(device)
    attention_parts(split, whole)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, truth = split(mine), whole(theirs)
    future = torch.allclose(y, without_mask(whole, theirs), atol=1e-4)
    assert not future, "your tokens look into the future: is_causal=True."
    far = (y - truth).abs().max()
    assert far < 1e-4, f"y is {far:.1e} away from the whole attention's."
    with count_communication() as backward:
        y.square().mean().backward()
    truth.square().mean().backward()
    assert relative(mine.grad, theirs.grad) < 1e-4, "the gradient of x is only my heads' part: f is missing."
    n = backward.calls()
    assert n == 1, f"right, with {n} messages in backward. q, k and v take the same f(x): apply it once."

check("ParallelAttention", test_attention, hint="f once; ColumnLinear for q, k, v; RowLinear for output")

# %% jupyter={"source_hidden": true} tags=["solution"]
%%ranks
class ParallelAttention(nn.Module):
    enter = CopyToRanks                                         # f

    def __init__(self, whole):
        super().__init__()
        self.head_width = whole.head_width                      # fewer heads, as wide as before
        self.query, self.key = ColumnLinear(whole.query), ColumnLinear(whole.key)
        self.value, self.output = ColumnLinear(whole.value), RowLinear(whole.output)

    def forward(self, x):
        x = self.enter.apply(x)
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))

# %% jupyter={"source_hidden": true} tags=["solution"]
check("ParallelAttention", test_attention)

# %%
%%ranks
from fidle_utils.models import GPT

def compare_attention(dtype):
    torch.manual_seed(0)
    whole = GPT(8, n_heads=8, n_layers=1).blocks[0].attention.to(device, dtype)
    split, x = ParallelAttention(whole), torch.randn(4, 32, 64).to(device, dtype)
    outputs = split(x), whole(x)
    for y in outputs:
        y.square().mean().backward()
    return relative(*outputs), *errors(split, whole)

far = {dtype: compare_attention(dtype) for dtype in (torch.float32, torch.float64)}

# %%
show(ranks["far"])

# %% [markdown]
# So n must divide the number of heads. Models whose queries share keys and values (*grouped-query attention*) have
# fewer of these: with 8 key heads, a group of 16 ranks must keep each of them on two ranks.

# %% [markdown]
# ## The vocabulary too
#
# The *embedding* (fr. *plongement*) is a table with one row for each token of the vocabulary, and the output layer, the
# *head*, has the same shape: in BLOOM, 250 880 rows [6]. Cut both along the vocabulary (fr. *vocabulaire*). An id
# that is not in my part gives zeros; g adds up.

# %%
%%ranks
class VocabularyEmbedding(nn.Module):
    """My rows of the embedding table; ids (batch, length) → (batch, length, width), summed by g."""
    leave = SumOverRanks

    def __init__(self, whole):
        super().__init__()
        self.weight = my_part(whole.weight, 0)

    def forward(self, ids):
        local = ids - rank * len(self.weight)
        mine = (local >= 0) & (local < len(self.weight))
        rows = F.embedding(local.where(mine, 0), self.weight)
        return self.leave.apply(rows * mine[..., None])         # zeros where the id is not mine

whole, ids = nn.Embedding(96, 64).to(device), torch.arange(96, device=device).view(4, 24)
dist.broadcast(whole.weight.data, src=0)
far = (VocabularyEmbedding(whole)(ids) - whole(ids)).abs().max().item()
n = 96 // world_size
print(f"my ids are {rank * n} to {rank * n + n - 1}; largest difference with the whole table: {far}")
assert far == 0

# %% [markdown]
# (For the check: the losses that four likely mistakes give.)

# %%
def likely_mistakes(logits, y):
    """What a loss would be, for each mistake that we know."""
    parts = logits.chunk(world_size, -1)
    m, largest = logits.amax(-1), [part.amax(-1) for part in parts]
    everywhere = sum((part - top[:, None]).exp().sum(-1) for part, top in zip(parts, largest))
    owner = y // parts[0].shape[-1]
    picked = logits.gather(-1, y[:, None])[:, 0]
    shift = torch.stack(largest).gather(0, owner[None])[0]
    one_max = "the ranks shift their logits by different maxima: all_reduce the maximum, op=MAX."
    mine_only = "your sum runs over this rank's part of the vocabulary: add up the sums of all ranks."
    all_add = "the ranks without the target add a logit too: theirs must be 0."
    others = sum(part.gather(-1, (y - i * part.shape[-1]).clamp(0, part.shape[-1] - 1)[:, None])[:, 0] - m
                 for i, part in enumerate(parts))
    no_target = "only the owner of a target has its logit: add it up over the ranks."
    lse = (logits - m[:, None]).exp().sum(-1).log()
    alone = (picked - m) * (owner == rank)
    mine = (parts[rank] - m[:, None]).exp().sum(-1).log()
    return {one_max: everywhere.log() - picked + shift, mine_only: mine - picked + m, all_add: lse - others,
            no_target: lse - alone}

# %% [markdown]
# ### A loss without the logits
#
# Now each rank has the *logits* of its part of the vocabulary. The *cross-entropy* (fr. *entropie croisée*) of a
# token with logits $l$ and target $t$ is
#
# $$\log \sum_j e^{l_j} - l_t \;=\; \log \sum_j e^{l_j - m} - (l_t - m), \qquad m = \max_j l_j$$
#
# One way is to gather all logits on all ranks: `batch × length × vocabulary` numbers. But only **three numbers a
# token** are shared in that formula: the maximum, the sum, and the target's logit.
#
# **Exercise 4.** `logits` (tokens, V/n) are my part, `y` (tokens,) the targets among all V, the same on every rank.
# Return the mean loss, the same on every rank. You have `SumOverRanks`, and
# `dist.all_reduce(tensor, op=dist.ReduceOp.MAX)`. The maximum needs no gradient: `detach()`.

# %% fidle={"wrong": ["%%ranks\ndef parallel_cross_entropy(logits, y):\n    largest = logits.detach().amax(-1)\n    shifted = logits - largest[:, None]\n    total = SumOverRanks.apply(shifted.exp().sum(-1))\n    local = y - rank * logits.shape[-1]\n    mine = (local >= 0) & (local < logits.shape[-1])\n    picked = shifted.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine\n    return (total.log() - SumOverRanks.apply(picked)).mean()\n", "%%ranks\ndef parallel_cross_entropy(logits, y):\n    total = SumOverRanks.apply(logits.exp().sum(-1))\n    local = y - rank * logits.shape[-1]\n    mine = (local >= 0) & (local < logits.shape[-1])\n    picked = logits.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine\n    return (total.log() - SumOverRanks.apply(picked)).mean()\n", "%%ranks\ndef parallel_cross_entropy(logits, y):\n    largest = logits.detach().amax(-1)\n    dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n    shifted = logits - largest[:, None]\n    total = shifted.exp().sum(-1)\n    local = y - rank * logits.shape[-1]\n    mine = (local >= 0) & (local < logits.shape[-1])\n    picked = shifted.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine\n    return (total.log() - SumOverRanks.apply(picked)).mean()\n", "%%ranks\ndef parallel_cross_entropy(logits, y):\n    largest = logits.detach().amax(-1)\n    dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n    shifted = logits - largest[:, None]\n    total = SumOverRanks.apply(shifted.exp().sum(-1))\n    local = (y - rank * logits.shape[-1]).clamp(0, logits.shape[-1] - 1)\n    picked = shifted.gather(-1, local[:, None])[:, 0]\n    return (total.log() - SumOverRanks.apply(picked)).mean()\n", "%%ranks\ndef parallel_cross_entropy(logits, y):\n    parts = [torch.empty_like(logits) for _ in range(world_size)]\n    dist.all_gather(parts, logits.detach().contiguous())\n    parts[rank] = logits\n    return F.cross_entropy(torch.cat(parts, -1), y)\n", "%%ranks\nclass SumBothWays(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        total = x.clone()\n        dist.all_reduce(total)\n        return total\n    @staticmethod\n    def backward(ctx, grad):\n        total = grad.clone()\n        dist.all_reduce(total)\n        return total\n\ndef parallel_cross_entropy(logits, y):\n    largest = logits.detach().amax(-1)\n    dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n    shifted = logits - largest[:, None]\n    total = SumBothWays.apply(shifted.exp().sum(-1))\n    local = y - rank * logits.shape[-1]\n    mine = (local >= 0) & (local < logits.shape[-1])\n    picked = shifted.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine\n    return (total.log() - SumBothWays.apply(picked)).mean()\n", "%%ranks\ndef parallel_cross_entropy(logits, y):\n    largest = logits.detach().amax(-1)\n    dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n    shifted = logits - largest[:, None]\n    total = SumOverRanks.apply(shifted.exp().sum(-1))\n    local = y - rank * logits.shape[-1]\n    mine = (local >= 0) & (local < logits.shape[-1])\n    picked = shifted.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine\n    return (total.log() - picked).mean()\n"]} tags=["exercise"]
%%ranks
def parallel_cross_entropy(logits, y):
    """The mean cross-entropy of all tokens; three small all_reduces, and never all the logits."""
    ...

# %% tags=["check"]
def test_loss(parallel_cross_entropy):
    torch.manual_seed(3)
    size = 8 * world_size
    logits, y = (100 + 3 * torch.randn(12, size)).to(device), torch.randint(size, (12,)).to(device)
    whole = logits.clone().requires_grad_()
    truth = F.cross_entropy(whole, y)
    truth.backward()
    mine = logits.chunk(world_size, -1)[rank].clone().requires_grad_()
    with count_communication() as counted:
        loss = parallel_cross_entropy(mine, y)
    assert torch.isfinite(loss), "exp overflows: subtract the largest logit, that of all ranks, first."
    for said, wrong in likely_mistakes(logits, y).items():
        assert torch.allclose(truth, wrong.mean()) or not torch.allclose(loss, wrong.mean()), said
    assert torch.allclose(loss, truth), f"the loss is {loss:.4f}, of all logits {truth:.4f}."
    small = f"right, for {counted.n_bytes():,} bytes: three numbers a token are {3 * 12 * 4}. No gathering."
    assert counted.n_bytes() <= 3 * 12 * 4, small
    loss.backward()
    times = (mine.grad.norm() / whole.grad.chunk(world_size, -1)[rank].norm().clamp_min(1e-12)).item()
    right = torch.allclose(mine.grad, whole.grad.chunk(world_size, -1)[rank], atol=1e-6)
    assert right, f"the gradient is {times:.2f} times the right one: sum in forward only, with SumOverRanks."

check("parallel_cross_entropy", test_loss, hint="m: all_reduce MAX; sum and target's logit: SumOverRanks")

# %% jupyter={"source_hidden": true} tags=["solution"]
%%ranks
def parallel_cross_entropy(logits, y):
    largest = logits.detach().amax(-1)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)                          # 1: the maximum
    shifted = logits - largest[:, None]
    total = SumOverRanks.apply(shifted.exp().sum(-1))                       # 2: the sum
    local = y - rank * logits.shape[-1]
    mine = (local >= 0) & (local < logits.shape[-1])
    picked = shifted.gather(-1, local.where(mine, 0)[:, None])[:, 0] * mine
    return (total.log() - SumOverRanks.apply(picked)).mean()                # 3: the target's logit

# %% jupyter={"source_hidden": true} tags=["solution"]
check("parallel_cross_entropy", test_loss)

# %%
guess = predict("A vocabulary of 250 880. All logits, instead of three numbers a token: "
                "how many times as many numbers?",
                options=["3 times", "about 1 000 times", "about 84 000 times"])

# %%
%%ranks
tokens, size = 256, 96
logits = torch.randn(tokens, size // world_size, device=device)
y = torch.randint(size, (tokens,), generator=torch.Generator().manual_seed(0)).to(device)
with count_communication() as three_numbers:
    parallel_cross_entropy(logits, y)
with count_communication() as gathered:
    dist.all_gather([torch.empty_like(logits) for _ in range(world_size)], logits)

# %%
three, everything = ranks["three_numbers"][0], ranks["gathered"][0]
print(f"here, with 96 words: three numbers {three.n_bytes():,} bytes in {three.calls()} calls, "
      f"all logits {everything.n_bytes():,} bytes")
assert everything.n_bytes() / three.n_bytes() == 96 / 3
logits_gb = 8 * 2048 * 250880 * 4 / 1e9
reveal(guess, "about 84 000 times", why=f"V/3 = {250880 / 3:,.0f}. On the wire half of that, "
       f"about {round(250880 / 6, -3):,.0f}: an all_reduce sends its numbers twice. "
       f"For 8 texts of 2048 tokens, in float32, all logits are {logits_gb:.1f} GB; "
       "no rank needs to hold them.")

# %% [markdown]
# ## A whole GPT
#
# All parts are there. We take the GPT of lesson 04 and put the parallel parts in place of the whole ones. Embedding and
# head are *tied* (fr. *liés*): one matrix, used twice. Both are cut along the vocabulary, so the shard is one
# parameter too, and its two gradients add up without a message.

# %%
%%ranks
import copy

class VocabularyHead(nn.Module):
    """x → the logits of my part of the vocabulary. `weight`: my shard, shared with the embedding."""
    enter = CopyToRanks

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return F.linear(self.enter.apply(x), self.weight)

def tensor_parallel(whole):
    """A copy of a GPT in which this rank holds its share; layer norms and positions stay whole."""
    gpt = copy.deepcopy(whole)
    for block in gpt.blocks:
        block.attention, block.mlp = ParallelAttention(block.attention), ParallelMLP(block.mlp)
    gpt.token_embedding = VocabularyEmbedding(gpt.token_embedding)
    gpt.head = VocabularyHead(gpt.token_embedding.weight)
    return gpt

# %% [markdown]
# n must divide the vocabulary. Ours has as many characters as Python's manual happens to use, so we *pad* it: a few
# rows that no text ever asks for. **All ranks read the same batch**: data are not split here.

# %%
%%ranks
from fidle_utils.data import batches, topics

text = topics(block_size=64)
vocab_size = -(-len(text.vocab) // world_size) * world_size         # rounded up
ids, targets = (tensor.to(device) for tensor in next(iter(batches(text, 8, seed=0))))

def small_gpt(dtype=torch.float32):
    torch.manual_seed(0)
    return GPT(vocab_size, n_heads=8).to(device, dtype)

whole = small_gpt()
gpt = tensor_parallel(whole)
kept_whole = sum(p.numel() for p in gpt.parameters() if not hasattr(p, "cut"))
if rank == 0:
    print(f"{len(text.vocab)} characters, padded to {vocab_size}; {whole.num_parameters():,} parameters, "
          f"{gpt.num_parameters():,} on each rank; of these {kept_whole:,} are whole on all")

# %%
%%ranks
def loss_of(whole):
    return F.cross_entropy(whole(ids).flatten(0, 1), targets.flatten())

def tensor_parallel_loss(split):
    return parallel_cross_entropy(split(ids).flatten(0, 1), targets.flatten())

def compare_gpt(dtype):
    whole = small_gpt(dtype)
    split = tensor_parallel(whole)
    outputs = tensor_parallel_loss(split), loss_of(whole)
    for loss in outputs:
        loss.backward()
    return relative(*outputs), *errors(split, whole)

far = {dtype: compare_gpt(dtype) for dtype in (torch.float32, torch.float64)}

# %%
show(ranks["far"], "loss")

# %% [markdown]
# And a training: thirty steps of AdamW, four ranks against one.

# %%
%%ranks
def train(model, criterion, steps=30):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = []
    for (x, y), _ in zip(batches(text, 8, seed=0), range(steps)):
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        loss = criterion(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve

shared = train(tensor_parallel(small_gpt()), parallel_cross_entropy)
alone = None

# %%
%%ranks 0
alone = train(small_gpt(), F.cross_entropy)

# %%
alone = ranks["alone"][0]
torch.testing.assert_close(ranks["shared"], [alone] * len(ranks), atol=1e-3, rtol=0)
plots.plot_equal_losses(alone, ranks["shared"][0], tolerance=1e-3);

# %% [markdown]
# What is sent in one step?

# %%
guess = predict("Two blocks. How many all_reduces of activations (b · s · h) in one forward pass?",
                options=["2", "4", "5", "10"])

# %%
%%ranks
gpt = tensor_parallel(small_gpt())
with count_communication() as forward:
    loss = tensor_parallel_loss(gpt)
with count_communication() as backward:
    loss.backward()

# %%
S = 8 * 64 * 64 * 4                                             # b · s · h · 4 bytes
forward, backward = ranks["forward"][0], ranks["backward"][0]
print(f"S = {S:,} bytes · bytes → calls: forward {forward.sizes()}, backward {backward.sizes()}")
assert forward.sizes() == {S: 5, 8 * 64 * 4: 3} and backward.sizes() == {S: 5}
reveal(guess, "5", why="Two a block, one after the embedding. Backward: two a block, one before the head.")

# %% [markdown]
# ## Sequence parallelism: what is still whole
#
# Between g and the next f, all ranks hold the same activations and do the same work on them: residual sums, layer
# norms (fr. *normalisation de couche*), dropout. *Sequence parallelism* [2] cuts these along the length of the text:
# each rank keeps its *tokens*, whole. An all_reduce is a reduce_scatter and an all_gather (lesson 03). Put the work
# between the two halves:

# %%
plots.plot_parallel_block(enter=("gather", "all_gather", "reduce_scatter"),
                          leave=("scatter", "reduce_scatter", "all_gather"), split=True);

# %%
guess = predict("f and g become gather and scatter. The bytes that a rank sends…",
                options=["double", "stay the same", "halve"])

# %%
%%ranks
def gather(x):
    """(batch, length/n, width) of each rank → (batch, length, width) on all."""
    x = x.contiguous()                                          # its parts too: NCCL wants that
    parts = [torch.empty_like(x) for _ in range(world_size)]
    dist.all_gather(parts, x)
    return torch.cat(parts, dim=1)

def scatter_sum(x):
    """Terms (batch, length, width) of each rank → my tokens of their sum."""
    parts = [part.contiguous() for part in x.chunk(world_size, dim=1)]
    mine = torch.empty_like(parts[rank])
    dist.reduce_scatter(mine, parts)
    return mine

class GatherSequence(torch.autograd.Function):                  # in the place of f
    forward = staticmethod(lambda ctx, x: gather(x))
    backward = staticmethod(lambda ctx, grad: scatter_sum(grad))

class ScatterSequence(torch.autograd.Function):                 # in the place of g
    forward = staticmethod(lambda ctx, x: scatter_sum(x))
    backward = staticmethod(lambda ctx, grad: gather(grad))

# %% [markdown]
# In our GPT this changes two names in each part. The positions must be mine too.

# %%
%%ranks
def sequence_parallel(whole):
    gpt = tensor_parallel(whole)
    for part in gpt.modules():
        if hasattr(part, "enter"):
            part.enter = GatherSequence
        if hasattr(part, "leave"):
            part.leave = ScatterSequence
    return gpt

def sequence_parallel_loss(gpt):
    length = ids.shape[1] // world_size
    mine = torch.arange(rank * length, (rank + 1) * length, device=device)
    x = gpt.token_embedding(ids) + gpt.position_embedding(mine)         # (batch, length/n, width)
    for block in gpt.blocks:
        x = block(x)
    logits = gpt.head(gpt.norm(x))                                      # gathered: (batch, length, V/n)
    return parallel_cross_entropy(logits.flatten(0, 1), targets.flatten())

# %%
%%ranks
whole = small_gpt()
gpt = sequence_parallel(whole)
with count_communication() as sequence:
    loss = sequence_parallel_loss(gpt)
    loss.backward()
truth = loss_of(whole)
truth.backward()
loss_error = relative(loss, truth)

# %%
tensor, sequence = forward + backward, ranks["sequence"][0]
print(sequence)
print(f"a rank sends {tensor.bytes_sent():,} bytes with f and g, "
      f"{sequence.bytes_sent():,} with gather and scatter")
assert tensor.bytes_sent() == sequence.bytes_sent() and max(ranks["loss_error"]) < 1e-5
reveal(guess, "stay the same", why="Twice as many calls, each of them half an all_reduce.")

# %% [markdown]
# ### The trap
#
# The loss is right. Are the gradients?

# %%
guess = predict("Which gradients are wrong now?",
                options=["none", "those of what is cut", "those of what is whole"])

# %%
%%ranks
names = [name for name, _ in gpt.named_parameters()]
pairs = list(zip(gpt.parameters(), whole.parameters(), strict=True))

def gradient_errors():
    """name → error of this rank's gradient, as a share of its norm; key biases left out."""
    far = [((p.grad - part_of(q.grad, p)).norm() / part_of(q.grad, p).norm()).item() for p, q in pairs]
    return {name: error for name, error in zip(names, far) if "key.bias" not in name}

wrong = {name: error for name, error in gradient_errors().items() if error > 1e-3}
for p in gpt.parameters():
    if not hasattr(p, "cut"):
        dist.all_reduce(p.grad)                                 # the cure: add up the parts of all tokens
worst = max(gradient_errors().values())
if rank == 0:
    print(f"wrong on rank 0: {len(wrong)} of {len(names)}")
    for name in list(wrong)[:5]:
        print(f"    {name}: {wrong[name]:.0%}")
print(f"after one all_reduce of what is whole: worst error {worst:.0e}")
assert worst < 1e-5

# %%
reveal(guess, "those of what is whole", why="A layer norm saw my tokens only: one term of a sum.")

# %% [markdown]
# (The bias of a key is left out because its true gradient is zero: a number that shifts all the scores of a query
# changes nothing in softmax. What you would compare is rounding with rounding.)
#
# Layer norms, the biases added after g, positions: whatever is whole needs this all_reduce, once a step. It is small
# and easily forgotten: without it training goes on, and the copies part from each other. With it the step is equal:

# %%
%%ranks
def compare_sequence(dtype):
    whole = small_gpt(dtype)
    split = sequence_parallel(whole)
    outputs = sequence_parallel_loss(split), loss_of(whole)
    for loss in outputs:
        loss.backward()
    for p in split.parameters():
        if not hasattr(p, "cut"):
            dist.all_reduce(p.grad)
    return relative(*outputs), *errors(split, whole)

far = {dtype: compare_sequence(dtype) for dtype in (torch.float32, torch.float64)}

# %%
show(ranks["far"], "loss")

# %% [markdown]
# ### What it saves
#
# `memory_ledger` counts the bytes that autograd keeps for backward.

# %%
guess = predict("Activations of one process: 100 %. What does a rank of four keep, with f and g?", unit="%")

# %%
%%ranks
from fidle_utils.measure import memory_ledger

def ledger_of(model, loss_of):
    with memory_ledger(model, inputs=[ids, targets]) as ledger:
        loss_of(model).backward()
    return ledger

ledgers = {
    "one process": ledger_of(small_gpt(), loss_of),
    "tensor parallel": ledger_of(tensor_parallel(small_gpt()), tensor_parallel_loss),
    "tensor + sequence": ledger_of(sequence_parallel(small_gpt()), sequence_parallel_loss),
}
kept = {name: ledger.activations for name, ledger in ledgers.items()}

# %%
kept = ranks["kept"][0]
for name, n_bytes in kept.items():
    print(f"{name:17} {n_bytes / 1e6:6.2f} MB of activations, {n_bytes / kept['one process']:.0%}")
share = 100 * kept["tensor parallel"] / kept["one process"]
reveal(guess, share, why="What stands outside the split regions stays whole.")
plots.plot_memory(ranks["ledgers"][0], title="A rank's memory in one step");

# %% [markdown]
# (Dashed: the most that is held at one time.) Ours still keeps the gathered input of each part, whole, for the gradient
# of its weights. Megatron keeps only this rank's tokens and gathers once more in backward [2]: less memory, one
# all_gather more, hidden behind computing.

# %% [markdown]
# ## The same with PyTorch: DTensor
#
# You now know what `torch.distributed.tensor.parallel` does. A `DeviceMesh` names the ranks; a *plan* says for each
# submodule how it is cut. Its parameters become `DTensor`s (fr. *tenseurs distribués*), which know their whole shape
# and hold a part of it.

# %%
%%ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, loss_parallel, parallelize_module,
)

mesh = init_device_mesh(device.type, (world_size,), mesh_dim_names=("tp",))
columns, rows = ColwiseParallel(), RowwiseParallel()
plan = {"attention.query": columns, "attention.key": columns, "attention.value": columns,
        "attention.output": rows, "mlp.0": columns, "mlp.2": rows}
around = {"token_embedding": RowwiseParallel(input_layouts=Replicate()),
          "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}

def by_pytorch(whole, plan, around):
    gpt = copy.deepcopy(whole)
    for block in gpt.blocks:
        parallelize_module(block, mesh, plan)
    return parallelize_module(gpt, mesh, around)

# %%
guess = predict("Embedding and head were one parameter. After parallelize_module, are they still?",
                options=["yes", "no"])

# %%
%%ranks
whole = small_gpt()
gpt = by_pytorch(whole, plan, around)
tied = gpt.head.weight is gpt.token_embedding.weight
gpt.head.weight = gpt.token_embedding.weight                    # tie them again: both are Shard(0)
if rank == 0:
    print(f"still tied: {tied}")
    for name in ("query", "output"):
        p = getattr(gpt.blocks[0].attention, name).weight
        here = tuple(p.to_local().shape)
        print(f"attention.{name}.weight: {tuple(p.shape)} in all, {p.placements[0]}, here {here}")

# %%
reveal(guess, "yes" if ranks["tied"][0] else "no",
       why="Each got a new parameter of its own. They would drift apart without a word: tie again.")

# %%
%%ranks
def flat(values):
    """All values as one vector; DTensors in whole."""
    whole = [v.full_tensor() if hasattr(v, "full_tensor") else v for v in values]
    return torch.cat([v.detach().flatten() for v in whole])

def pytorch_step(gpt, whole):
    """A step of both models: errors of loss, gradients and weights; what forward and backward sent."""
    with loss_parallel(), count_communication() as forward:     # keeps the logits split, as yours does
        mine = loss_of(gpt)
    with loss_parallel(), count_communication() as backward:
        mine.backward()
    truth = loss_of(whole)
    truth.backward()
    far = [relative(flat([mine]), flat([truth]))]
    far.append(relative(*(flat(p.grad for p in model.parameters()) for model in (gpt, whole))))
    for model in (gpt, whole):
        torch.optim.SGD(model.parameters(), 0.1, foreach=False).step()
    far.append(relative(*(flat(model.parameters()) for model in (gpt, whole))))
    return far, forward, backward

# %%
%%ranks
def compare_pytorch(plan, around, dtype=torch.float32):
    whole = small_gpt(dtype)
    gpt = by_pytorch(whole, plan, around)
    gpt.head.weight = gpt.token_embedding.weight
    return gpt, whole, *pytorch_step(gpt, whole)

far = {}
for dtype in (torch.float64, torch.float32):
    gpt, whole, far[dtype], forward, backward = compare_pytorch(plan, around, dtype)

# %%
show(ranks["far"], "loss")
for name in ("forward", "backward"):
    print(f"{name:8} by PyTorch: bytes → all_reduces {ranks[name][0].sizes('all_reduce')}")

# %% [markdown]
# Forward: the very calls of your GPT, five of S and three of a number a token. Backward makes **nine** of S where
# yours makes five. You have met this mistake: each of q, k and v has an f of its own. `PrepareModuleInput` puts
# one f before the three:

# %%
%%ranks
one_f = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
one_plan = plan | {"attention": one_f, "mlp": one_f}
for dtype in (torch.float64, torch.float32):
    gpt, whole, far[dtype], forward, backward = compare_pytorch(one_plan, around, dtype)

# %%
show(ranks["far"], "loss")
assert ranks["forward"][0].sizes() == {S: 5, 8 * 64 * 4: 3} and ranks["backward"][0].sizes() == {S: 5}
print("the same collectives as by hand: in backward", ranks["backward"][0].sizes())

# %% [markdown]
# Sequence parallelism is a change of the plan: activations between the parts are `Shard(1)`, cut along the length.

# %%
%%ranks
tokens = Shard(1)
enter = PrepareModuleInput(input_layouts=tokens, desired_input_layouts=Replicate())
leave = RowwiseParallel(output_layouts=tokens)
sequence_plan = plan | {"attention": enter, "attention.output": leave, "mlp": enter, "mlp.2": leave,
                        "attention_norm": SequenceParallel(), "mlp_norm": SequenceParallel()}
sequence_around = {
    "token_embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=tokens),
    "position_embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0)),
    "norm": SequenceParallel(),
    "head": ColwiseParallel(input_layouts=tokens, output_layouts=Shard(-1), use_local_output=False),
}
for dtype in (torch.float64, torch.float32):
    gpt, whole, far[dtype], forward, backward = compare_pytorch(sequence_plan, sequence_around, dtype)
norm_gradient = repr(gpt.norm.weight.grad.placements[0])

# %%
show(ranks["far"], "loss")
print(ranks["forward"][0] + ranks["backward"][0])
print(f"the gradient of a layer norm is {ranks['norm_gradient'][0]}")

# %% [markdown]
# Equal again. (One reduce_scatter and one all_gather more than by hand: this plan cuts the table of positions too.)
# And there is the trap, with its name: `Partial`, a sum not yet done. DTensor *knows* that this gradient is one term of
# a sum, and adds the terms up when somebody needs the whole, an optimizer or `full_tensor()`. That is what a type is
# for.
#
# `CommDebugMode` is PyTorch's own counter of calls; it agrees with ours:

# %%
%%ranks
from torch.distributed.tensor.debug import CommDebugMode

with CommDebugMode() as debug, loss_parallel():
    loss_of(gpt)
theirs = {str(operator).split(".")[-1]: calls for operator, calls in debug.get_comm_counts().items()}
ours = {row["collective"]: row["calls"] for row in forward.rows()}

# %%
print("CommDebugMode      ", ranks["theirs"][0])
print("count_communication", ranks["ours"][0])
assert sum(ranks["theirs"][0].values()) == sum(ranks["ours"][0].values())

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Why it stays inside a node
#
# One layer of a transformer, forward and backward, for $b$ texts of $s$ tokens and width $h$, on $n$ ranks:
#
# - computes $72\,b\,s\,h^2\,(1 + s/6h)\,/\,n$ operations on each rank [3];
# - makes four all_reduces (g twice, f twice) of $2\,b\,s\,h$ bytes (two bytes a number, bfloat16); for each, a rank
#   sends $2(n-1)/n$ times that.
#
# Take a layer as wide as GPT-3's, $h = 12\,288$, on 8 H100. How fast is a link? In a Jean Zay node of four H100, NVLink
# moves 450 GB/s each way; each of the four InfiniBand cards of the node 50 GB/s; an Omni-Path card of the older nodes
# 12.5 GB/s (lesson 01) [4].

# %%
guess = predict("Between nodes, with one card of 50 GB/s: what part of the layer's time is communication?",
                options=["5 %", "20 %", "66 %", "95 %"])

# %% tags=["live"]
def layer_seconds(h, n, bandwidth, flops, b=1, s=2048):
    """(computing, communicating) of one transformer layer, forward and backward."""
    computing = 72 * b * s * h**2 * (1 + s / (6 * h)) / n / flops
    bytes_sent = 4 * 2 * (n - 1) / n * 2 * b * s * h
    return computing, bytes_sent / bandwidth

(h100,) = table("matmul_ceilings", gpu="H100-SXM5-80GB", dtype="bf16")
links = {"NVLink 4, in a node": 450, "4 × InfiniBand NDR": 200, "PCIe 5": 63, "1 × InfiniBand NDR": 50,
         "1 × Omni-Path": 12.5}                                 # GB/s, one way, nominal
rows = []
for link, gb_per_second in links.items():
    seconds = layer_seconds(12288, 8, 1e9 * gb_per_second, 1e12 * h100["tflops"])
    rows.append({"link": f"{link} · {gb_per_second} GB/s",
                 "compute_ms": 1e3 * seconds[0], "communication_ms": 1e3 * seconds[1]})
source = f"{h100['tflops']:.0f} TFLOP/s (published) · bytes over nominal bandwidth: no latency, no overlap"
plots.plot_layer_times(rows, "One layer, h = 12 288, on 8 H100", source);

# %%
share = [row["communication_ms"] / (row["compute_ms"] + row["communication_ms"]) for row in rows]
reveal(guess, "66 %", why=f"{share[3]:.0%}, computed; with NVLink {share[0]:.0%}. "
       "And it is hard to hide: the next product waits for the sum.")

# %% [markdown]
# A ring that crosses two nodes can use all the cards of a node at once, so the 200 GB/s of the second bar are the
# best case for eight GPUs on two nodes of four. The last two bars are a group with one card. All are *nominal*: on the
# A100 nodes of Jean Zay, four Omni-Path cards each, BigScience measured an all_reduce over four nodes at 15 to 42 Gb/s,
# 2 to 5 GB/s [6]. And data parallelism wants the same cards. Hence the habit: **tensor parallelism inside the node**.
# BLOOM, on nodes of eight A100, used groups of four [6]. Some libraries cut the product and its collective into
# pieces that overlap (*asynchronous* tensor parallelism), which hides a part.
#
# ### What helps?

# %%
guess = predict("To lower the share of communication: a larger batch b, or a wider model h?",
                options=["a larger batch", "a wider model", "both"])

# %%
def ratio(**change):
    """Communicating over computing, on NVLink 4."""
    computing, communicating = layer_seconds(**{**dict(h=4096, n=8, bandwidth=450e9, flops=794e12), **change})
    return communicating / computing

changes = {"h=4096, n=8, b=1": {}, "b=16": dict(b=16), "h=8192": dict(h=8192), "n=2": dict(n=2),
           "n=16": dict(n=16), "a GPU twice as fast": dict(flops=2 * 794e12)}
for name, change in changes.items():
    print(f"{name:20} communicating / computing = {ratio(**change):.2f}")
reveal(guess, "a wider model", why="Both times grow with b · s. The ratio: (n−1) · speed / (h · bandwidth).")

# %% [markdown]
# More ranks cost twice: less to compute for each, and more to say. A faster GPU with the same link loses too.
# Is so simple a model any good? Megatron-LM published a *weak scaling*: models that grow with the group. We give our
# formula their speed on one GPU and NCCL's published bandwidth in such a machine [7].

# %%
published = [table("megatron_2020_tensor_parallel", gpu=gpu, dp=1) for gpu in ("V100 DGX-2", "DGX-A100")]
buses = {"V100 DGX-2": "NVLink 2 V100", "DGX-A100": "NVLink 3 A100"}
computed = {}
for rows in published:
    system, flops = rows[0]["gpu"], 1e12 * rows[0]["tflops_per_gpu"]
    (bus,) = table("nccl_allreduce_busbw", system=buses[system])
    percent = []
    for row in rows:
        times = layer_seconds(row["hidden"], row["tp"], 1e9 * bus["bus_gb_per_second"], flops, s=1024)
        percent.append(100 * times[0] / sum(times))
    computed[system] = [row["tp"] for row in rows], percent
    too_good = max(p - (row["weak_scaling_percent"] or 100) for p, row in zip(percent, rows))
    print(f"{system}: computed {[round(p) for p in percent]} %, too good by {too_good:.0f} points at most")
plots.plot_tensor_parallel_scaling(published, computed);

# %% [markdown]
# The shape is right, and the numbers are always a little too good: latency, the vocabulary, layer norms and the
# smaller products of each rank are not in the formula.
#
# ## Traps
#
# None of these raises an error.
#
# ### Every rank its own data
#
# The ranks of a tensor-parallel group must read **the same** batch. A `DistributedSampler` with the default
# `num_replicas` gives each its own.

# %%
%%ranks
mine = next(iter(batches(text, 8, seed=rank)))[0].to(device)            # other texts on every rank
gpt, whole = tensor_parallel(small_gpt()), small_gpt()
with torch.no_grad():
    wrong = parallel_cross_entropy(gpt(mine).flatten(0, 1), mine.flatten())
    right = F.cross_entropy(whole(mine).flatten(0, 1), mine.flatten())
print(f"loss {wrong:.4f}; the whole model on my texts: {right:.4f}")

# %% [markdown]
# A loss that looks like one, of no model at all: the embedding has added up rows of four different texts. In lesson
# 07, the sampler's `num_replicas` will be the number of *data-parallel* groups.
#
# ### The dice of dropout
#
# *Dropout* (fr. *abandon*) draws a mask. Where activations are whole, all ranks must draw **the same** mask, or their
# copies part. Inside the split region they must draw **different** ones, or one quarter's mask is used four times.

# %%
guess = predict("All ranks call torch.manual_seed(0). Which dropout is wrong?",
                options=["inside the split region", "outside of it", "none"])

# %%
%%ranks
def mask(width, seed):
    """Zeros and twos, (8, 32, width): dropout of one half."""
    dice = torch.Generator().manual_seed(seed)
    return (torch.rand(8, 32, width, generator=dice) < 0.5).to(device) * 2.0

torch.manual_seed(0)
whole, x = mlp().to(device), torch.randn(8, 32, 64).to(device)
split, n_mine = ParallelMLP(whole), 256 // world_size

def with_dropout(inside, outside):
    h = F.gelu(F.linear(split.enter.apply(x), split.up_weight, split.up_bias)) * mask(n_mine, inside)
    return (split.leave.apply(F.linear(h, split.down_weight)) + split.down_bias) * mask(64, outside)

same_inside = mask(n_mine, seed=0)
apart = with_dropout(inside=100 + rank, outside=rank).detach()          # wrong outside
right = with_dropout(inside=100 + rank, outside=0).detach()
hidden = torch.cat([mask(n_mine, 100 + r) for r in range(world_size)], -1)
truth = (whole[2](whole[1](whole[0](x)) * hidden) * mask(64, 0)).detach()

# %%
first, n = ranks["same_inside"][0], len(ranks)
repeated = all(torch.equal(first, other) for other in ranks["same_inside"])
print(f"the same seed inside: the masks of {n} ranks are {'one mask, repeated' if repeated else 'different'}")
apart, right = ranks["apart"], ranks["right"]
print(f"other seeds outside: {(apart[0] != apart[1]).float().mean():.0%} of y differs between ranks 0 and 1")
for mine, truth in zip(right, ranks["truth"]):
    torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-5)
print("other seeds inside, one outside: equal to one process that uses the four masks side by side")
reveal(guess, "inside the split region", why="One seed is right outside. Inside, each rank needs its own.")

# %% [markdown]
# So a rank needs *two* states of its random generator, and must choose by region. Megatron keeps both [1]; DTensor gives
# each shard its own place in one stream of random numbers (on a GPU).
#
# ### Shards that are born
#
# We cut whole models, so that we could compare. A model that fits nowhere whole is made in shards. What can go wrong?

# %%
%%ranks
torch.manual_seed(0)                                            # the same on every rank
born = nn.Linear(256 // world_size, 64)                         # my rows of a Linear from 256 to 64
torch.manual_seed(0)
whole = nn.Linear(256, 64)
deviation, wanted = born.weight.std().item(), whole.weight.std().item()
born = born.weight.detach()

# %%
equal = all(torch.equal(ranks["born"][0], other) for other in ranks["born"])
print(f"all shards equal: {equal} · "
      f"standard deviation {ranks['deviation'][0]:.4f} instead of {ranks['wanted'][0]:.4f}")

# %% [markdown]
# Two mistakes in one line. The same seed makes one block n times. If the columns before it are born so too, the
# hidden layer has n copies of the same neurons, which learn the same for ever. And PyTorch scales by the number of
# inputs *that it sees*: a quarter of the inputs, twice the spread. So seed each shard by its rank, whole parameters
# all alike, and give the scale of the whole matrix yourself.
#
# ### The norm that is cut in four
#
# *Gradient clipping* (fr. *écrêtage du gradient*) scales all gradients by one number, made from their norm.

# %%
guess = predict("All ranks call clip_grad_norm_(model.parameters(), 1.0). Do they scale alike?",
                options=["yes", "no"])

# %%
%%ranks
def global_norm(model):
    """Squares of the shards added up over the ranks; what is whole counts once."""
    squares = torch.zeros(2, device=device)
    for p in model.parameters():
        squares[int(hasattr(p, "cut"))] += p.grad.square().sum()
    dist.all_reduce(squares[1:])
    return squares.sum().sqrt()

gpt, whole = tensor_parallel(small_gpt()), small_gpt()
for loss in (tensor_parallel_loss(gpt), loss_of(whole)):
    loss.backward()
inf = float("inf")                                              # only measures
local, truth = (nn.utils.clip_grad_norm_(m.parameters(), inf).item() for m in (gpt, whole))
right = global_norm(gpt).item()
everything = torch.tensor(local**2, device=device)
dist.all_reduce(everything)                                     # counts what is whole n times
print(f"alone {local:.4f} · all added {everything.sqrt():.4f} · "
      f"global_norm {right:.4f} · one process {truth:.4f}")
assert abs(right / truth - 1) < 1e-5

# %%
%%ranks
nn.utils.clip_grad_norm_(gpt.parameters(), 0.1)                 # each rank by its own norm
torch.optim.SGD(gpt.parameters(), lr=1.0).step()
norm_weight = gpt.norm.weight.detach()

# %%
reveal(guess, "no", why="Each sees its own shards. After one step even what was whole differs.")
apart = (ranks["norm_weight"][0] - ranks["norm_weight"][1]).abs().max()
print(f"the last layer norm after one step: ranks 0 and 1 differ by {apart:.0e}")

# %% [markdown]
# Where all parameters are DTensors, as in the plan with sequence parallelism, `clip_grad_norm_` knows who holds what:

# %%
%%ranks
gpt, whole, *_ = compare_pytorch(sequence_plan, sequence_around)
norm, truth = (nn.utils.clip_grad_norm_(model.parameters(), inf) for model in (gpt, whole))
print(f"DTensor {norm.full_tensor():.4f} · one process {truth:.4f}")
assert abs(norm.full_tensor() / truth - 1) < 1e-5

# %% [markdown]
# (A mix of DTensors and plain parameters, as in our first plan, PyTorch 2.13 refuses with an error. Better than
# silence.)
#
# ## In practice
#
# - Does the model fit on one GPU, or with its states sharded (lesson 08)? Then you may not need this lesson's cut. You
#   need it when one *layer* and its activations are too large, or when you want one step faster, not more of them.
# - Group size: 2, 4 or 8, **inside a node**, and a divisor of heads, key heads, MLP width and padded vocabulary.
# - Use sequence parallelism with it: activations shrink, and nothing more is sent but the small gradients of what is
#   whole.
# - Start from `parallelize_module` and a plan. Count one step with `CommDebugMode`, and compare loss and gradients with
#   one process on a small model, in float64, before the long run.
# - Same batch on all ranks of a group; tie tied weights again; global gradient norm; two random states.
# - A checkpoint holds shards. `torch.distributed.checkpoint` reads them for another group size (lesson 10).
#
# ## Go further: cut the context
#
# A text of a million tokens does not fit, however the matrices are cut: its keys and values are too many. *Context
# parallelism* (fr. *parallélisme de contexte*) cuts the **length** everywhere, attention included. Each rank holds
# its tokens' queries, keys and values. In *ring attention* [8] the queries stay; the blocks of keys and values go
# round.

# %%
plots.plot_ring_attention(n_ranks=4, causal=True);

# %% [markdown]
# How can softmax be computed block by block, when its denominator needs all scores? *Online* [9]: keep the largest
# score so far, the sum of exponentials and the weighted sum of values. When a larger score comes, shrink what you have.
#
# A block goes to the right. Its gradient must come back to the left: a Function again.

# %%
%%ranks
def exchange(outgoing, destination, source):
    """Send one tensor while receiving another of that shape."""
    outgoing = outgoing.contiguous()
    incoming = torch.empty_like(outgoing)
    send = dist.P2POp(dist.isend, outgoing, destination % world_size)
    receive = dist.P2POp(dist.irecv, incoming, source % world_size)
    for promise in dist.batch_isend_irecv([send, receive]):
        promise.wait()
    return incoming

class PassRight(torch.autograd.Function):
    """My block to the right neighbour, the left one's to me; gradients travel back."""
    forward = staticmethod(lambda ctx, block: exchange(block, rank + 1, rank - 1))
    backward = staticmethod(lambda ctx, grad: exchange(grad, rank - 1, rank + 1))

# %%
%%ranks
def ring_attention(q, k, v, causal):
    """Attention of my tokens over all tokens; q, k, v: (batch, heads, length/n, head_width), my share."""
    length, block = q.shape[2], torch.stack([k, v])
    largest, total, mixed = torch.full_like(q[..., :1], -torch.inf), 0.0, 0.0
    here = torch.arange(length, device=device)
    for step in range(world_size):
        k, v = block
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if causal:
            first = (rank - step) % world_size * length             # whose block is it?
            scores = scores.masked_fill(first + here > rank * length + here[:, None], -torch.inf)
        new = torch.maximum(largest, scores.detach().amax(-1, keepdim=True))
        weights, shrink = (scores - new).exp(), (largest - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        mixed = mixed * shrink + weights @ v
        largest = new
        if step < world_size - 1:
            block = PassRight.apply(block)
    return mixed / total

# %%
%%ranks
def compare_ring(dtype, causal):
    torch.manual_seed(0)
    whole = [torch.randn(2, 4, 64, 16).to(device, dtype).requires_grad_() for _ in range(3)]
    mine = [t.detach().chunk(world_size, 2)[rank].clone().requires_grad_() for t in whole]
    truth = F.scaled_dot_product_attention(*whole, is_causal=causal)
    with count_communication() as counted:
        y = ring_attention(*mine, causal)
    truth.square().sum().backward()
    y.square().sum().backward()
    far = relative(y, truth.chunk(world_size, 2)[rank])
    grads = [relative(m.grad, w.grad.chunk(world_size, 2)[rank]) for m, w in zip(mine, whole)]
    return far, max(grads), counted.calls("send"), counted.bytes_sent("send")

far = {(dtype, causal): compare_ring(dtype, causal)
       for dtype in (torch.float32, torch.float64) for causal in (False, True)}

# %%
for dtype, causal in ranks["far"][0]:
    worst = [max(values) for values in zip(*(far[dtype, causal] for far in ranks["far"]))]
    print(f"{dtype}, causal={causal!s:5}: attention {worst[0]:.0e}, gradients {worst[1]:.0e}; "
          f"{worst[2]} messages, {worst[3]:,} bytes sent by a rank in forward")
    assert max(worst[:2]) < (1e-5 if dtype == torch.float32 else 1e-8)

# %% [markdown]
# Equal to the whole attention, gradients too. Look at the figure again: with a causal mask rank 0 has one useful
# block and rank 3 has four, so a step lasts as long as rank 3. Real implementations deal tokens out like cards, early
# and late ones to each [10]. And ours keeps every block for backward; real ones pass them round a second time.
#
# The other way is **Ulysses** [11]: two kinds of `all_to_all`. The first, for q, k and v, turns *some tokens, all
# heads* into *all tokens, some heads*; attention is then a local affair; the second, for the output, turns back.

# %%
%%ranks
def swap(x, cut, joined):
    """Cut dimension `cut` among the ranks, and join what they held of dimension `joined`."""
    pieces = [piece.contiguous() for piece in x.chunk(world_size, cut)]
    received = [torch.empty_like(pieces[0]) for _ in pieces]
    dist.all_to_all(received, pieces)
    return torch.cat(received, joined)

torch.manual_seed(0)
whole = [torch.randn(2, 4, 64, 16).to(device) for _ in range(3)]
q, k, v = (swap(t.chunk(world_size, 2)[rank], cut=1, joined=2) for t in whole)      # my head, all tokens
y = swap(F.scaled_dot_product_attention(q, k, v, is_causal=True), cut=2, joined=1)  # my tokens, all heads
far = relative(y, F.scaled_dot_product_attention(*whole, is_causal=True).chunk(world_size, 2)[rank])

# %%
print(f"Ulysses, causal: worst difference with one process {max(ranks['far']):.0e}")
assert max(ranks["far"]) < 1e-5

# %% [markdown]
# Ulysses needs at least as many heads as ranks; the ring needs only tokens, and sends more often.
#
# More to try:
#
# - `%ranks 2` at the top, then run the lesson again. What changes in the bytes? And in the parameters that stay whole?
#   (The answers to guesses are those for four.)
# - In `train`, use AdamW on a model in float32 for 300 steps. When do the curves part? In float64?
# - Let `GatherSequence` sit inside a `torch.utils.checkpoint` with the product that follows it. What does
#   `memory_ledger` say?

# %% [markdown]
# ## Sources
#
# 1. M. Shoeybi et al., *Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism*, 2019,
#    [arXiv:1909.08053](https://arxiv.org/abs/1909.08053): columns then rows, f and g, the vocabulary.
# 2. V. Korthikanti et al., *Reducing Activation Recomputation in Large Transformer Models*, 2022,
#    [arXiv:2205.05198](https://arxiv.org/abs/2205.05198): sequence parallelism; the operations of a layer.
# 3. The same, section on model FLOPs: $72\,b\,s\,h^2(1 + s/6h)$ a layer, the vocabulary left out.
# 4. IDRIS, [*Democratizing LLM Fine-Tuning*](https://github.com/idriscnrs/Democratizing-LLM-FT), poster, 2025: links
#    of Jean Zay. GPUs: `fidle_utils/reference/gpu_specs.csv` and `matmul_ceilings.csv`, from S. Bekman's
#    [ml-engineering](https://github.com/stas00/ml-engineering).
# 5. S. Rajbhandari et al., *ZeRO*, 2020, [arXiv:1910.02054](https://arxiv.org/abs/1910.02054): 16 bytes a parameter.
# 6. BigScience, [bigscience](https://github.com/bigscience-workshop/bigscience): `experiments/README.md` (bandwidth
#    between nodes of Jean Zay), `train/tr11-176B-ml` (BLOOM's groups).
# 7. NVIDIA, [Megatron-LM](https://github.com/NVIDIA/Megatron-LM), `images/tables.tex` at 5281919420; bus bandwidth:
#    GTC 2024, S62129, a slide shown in ml-engineering.
# 8. H. Liu, M. Zaharia, P. Abbeel, *Ring Attention with Blockwise Transformers for Near-Infinite Context*, 2023,
#    [arXiv:2310.01889](https://arxiv.org/abs/2310.01889).
# 9. M. Milakov, N. Gimelshein, *Online normalizer calculation for softmax*, 2018,
#    [arXiv:1805.02867](https://arxiv.org/abs/1805.02867).
# 10. W. Brandon et al., *Striped Attention: Faster Ring Attention for Causal Transformers*, 2023,
#     [arXiv:2311.09431](https://arxiv.org/abs/2311.09431).
# 11. S. A. Jacobs et al., *DeepSpeed Ulysses*, 2023, [arXiv:2309.14509](https://arxiv.org/abs/2309.14509).
#
# PyTorch documentation:
# [torch.distributed.tensor.parallel](https://docs.pytorch.org/docs/stable/distributed.tensor.parallel.html),
# [torch.distributed.tensor](https://docs.pytorch.org/docs/stable/distributed.tensor.html).

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("A model is cut between its layers on 8 GPUs, without a pipeline. A step takes…",
             options=["an eighth of the time of one GPU", "about the time of one GPU", "eight times as long"])
q2 = predict("In the MLP, the first matrix is cut by columns, the second by rows, because…",
             options=["GELU then needs no message", "weights are smaller then", "rows are faster on a GPU"])

# %%
reveal(q1, "about the time of one GPU", why="One GPU works at a time. The cut makes it fit, not fast.")
reveal(q2, "GELU then needs no message", why="Each rank has whole hidden numbers; one sum at the end.")

# %%
q3 = predict("f is forgotten in one block. What do you see?",
             options=["an error", "a wrong first loss", "a right first loss, then worse training"])
q4 = predict("Compared with f and g, sequence parallelism sends…",
             options=["fewer bytes", "as many", "more"])
q5 = predict("8 ranks of one tensor-parallel group read…", options=["8 different batches", "one batch"])
q6 = predict("You double the batch on 8 GPUs. The share of time spent in f and g…",
             options=["doubles", "stays about the same", "halves"])
q7 = predict("Three small all_reduces replace the gathered logits. They carry…",
             options=["max, sum, target's logit", "loss, gradient, weight", "three of the n parts"])

# %%
reveal(q3, "a right first loss, then worse training", why="f acts in backward only: wrong gradients below.")
reveal(q4, "as many", why="reduce_scatter and all_gather are the two halves of an all_reduce.")
reveal(q5, "one batch", why="They are one model. Data are split between groups: lesson 07.")
reveal(q6, "stays about the same", why="Work and bytes both grow with tokens. Only latency weighs less.")
reveal(q7, "max, sum, target's logit", why="Three numbers a token, whatever the vocabulary.")

# %%
from fidle_utils import progress

progress.show("05")
