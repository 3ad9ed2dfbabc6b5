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
# # 08 · Shard the states
#
# **You will** find out where the memory of a training step goes, write the three stages of ZeRO over plain data
# parallelism, and reproduce the table of its paper. Then you will let FSDP2 do it, watch what it gathers and when,
# and trade the rest of the memory for arithmetic or for a slower link.
#
# **You learn** why a model needs 16 bytes for each parameter, what each stage saves and what it sends, what
# `fully_shard` does behind your back, and why a checkpointed layer keeps 2 bytes where it kept 34.
#
# **You need** lesson 04 (data parallelism) and the collectives of lesson 03. No GPU is needed; with one GPU for each
# rank the same cells use them.
#
# **Time** 8 min live (the cells tagged `live`), 120 min alone, with four exercises.

# %% tags=["live"]
%load_ext fidle_utils
import torch
from torch.nn.functional import cross_entropy

from fidle_utils import plots, ranks
from fidle_utils.data import digits
from fidle_utils.memory_formulas import activation_bytes, activation_terms, model_state_bytes, step_bytes_sent
from fidle_utils.models import MLP
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal
from fidle_utils.widgets import memory_calculator

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Where does the memory go?
#
# A training step holds the *parameters* (fr. *paramètres*), a *gradient* for each of them, what the *optimizer*
# (fr. *optimiseur*) remembers, and the *activations* that backward will need. Call Ψ the number of
# parameters. AdamW remembers two numbers for each: the mean gradient *m*, and the mean of its square *v*.

# %%
guess = predict("The parameters take 1 GB in fp32. Parameters, gradients and AdamW's states together take…",
                options=["2 GB", "3 GB", "4 GB"])

# %% [markdown] tags=["live"]
# A small GPT on four ranks, as in data parallelism: every rank has the whole model and its own text. (The text is
# random, and the all_reduce is missing: neither changes what is held.) `memory_ledger` counts the bytes of every
# tensor, each once.

# %% tags=["live"]
%%ranks
from torch.nn.functional import cross_entropy
from fidle_utils.measure import memory_ledger
from fidle_utils.models import GPT, MLP

def train_step(model, optimizer, ids):
    logits = model(ids[:, :-1])
    cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()

torch.manual_seed(0)
gpt = GPT(vocab_size=256, n_layers=4, width=128).to(device)
optimizer = torch.optim.AdamW(gpt.parameters())
own = torch.Generator().manual_seed(rank)
ids = torch.randint(256, (4, 65), generator=own).to(device)     # 4 texts of 64 characters and one more
with memory_ledger(gpt, optimizer) as first:
    train_step(gpt, optimizer, ids)
with memory_ledger(gpt, optimizer) as second:
    train_step(gpt, optimizer, ids)

# %%
psi = ranks.run(lambda: gpt.num_parameters())[0]
ledger = ranks["second"][0]
for part, n_bytes in {"parameters": 4, "gradients": 4, "optimizer states": 8}.items():
    print(f"{part:16} predicted {n_bytes * psi:>9,} bytes, measured {ledger.most(part):>9,}")
states = ledger.most("parameters") + ledger.most("gradients") + ledger.most("optimizer states")
reveal(guess, "4 GB", why=f"Here {states / ledger.parameters:.3f} times as much: 4 + 4 + 8 bytes for each.")

# %% [markdown]
# The optimizer's states are a few bytes more than predicted: AdamW also counts its steps, one number for each tensor.

# %% tags=["live"]
plots.plot_memory(ranks["second"]);

# %% [markdown] tags=["live"]
# Look at it for a moment. **Four equal bars.** Activations belong to a rank: they come from its own text. All the rest
# is on every rank *the same numbers*, four times. Data parallelism does not help a model that does not fit.
#
# ZeRO, the *Zero Redundancy Optimizer* [1], removes these copies, one kind after the other.

# %% [markdown]
# Two things that the bars do not show. In the **first** step of a training, the states are not there yet:

# %%
for name in ("first", "second"):
    step = ranks[name][0]
    states = {moment: step.at(moment)["optimizer states"] for moment in ("start", "end of backward", "end")}
    print(f"{name:6} step, MB of optimizer states:", {at: round(n / 1e6, 2) for at, n in states.items()})

# %% [markdown]
# **A first step that fits proves nothing.** AdamW makes *m* and *v* inside its first `step()`; the second forward is the
# first to meet them. And the parts come and go:

# %%
plots.plot_memory_over_time(ranks["second"][0]);

# %% [markdown]
# Gradients arrive while activations leave. So the peak is less than the sum of the bars; the figure before marks it.

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Sixteen bytes for each parameter
#
# Large models are trained in mixed precision: weights and gradients in bf16, two bytes each.
# Does that halve the memory? bf16 has eight significant bits, and a small step is lost in them:

# %% tags=["live"]
weight = torch.tensor(1.0, dtype=torch.bfloat16)
print(f"bf16: 1 + 0.001 = {weight + 0.001:.4f} · fp32: {weight.float() + 0.001:.4f}")

# %% [markdown] tags=["live"]
# So the optimizer keeps a copy of the weights in fp32, the *master weights*, beside *m* and *v*. Built, and counted:

# %% tags=["live"]
%%ranks
half = MLP(width=256, depth=4).to(device, torch.bfloat16)
masters = [torch.nn.Parameter(p.detach().float()) for p in half.parameters()]
adamw = torch.optim.AdamW(masters)
half(torch.rand(8, 64, device=device, dtype=torch.bfloat16)).sum().backward()
for p, master in zip(half.parameters(), masters):
    master.grad = p.grad.float()
adamw.step()
adamw.zero_grad()                                           # the fp32 gradients were there for a moment only
kept = [*masters, *(tensor for state in adamw.state.values() for tensor in state.values())]
counted = {"parameters": sum(p.nbytes for p in half.parameters()),
           "gradients": sum(p.grad.nbytes for p in half.parameters()),
           "optimizer states": sum(tensor.nbytes for tensor in kept)}

# %% tags=["live"]
psi = MLP(width=256, depth=4).num_parameters()
print({part: f"{n_bytes / psi:.3f} bytes a parameter" for part, n_bytes in ranks["counted"][0].items()})
print(f"a model of 7.5 billion parameters: {7.5e9 * 16 / 1e9:.0f} GB before the first activation")

# %% [markdown] tags=["live"]
# **2 + 2 + 12 = 16 bytes.** Three quarters of them are the optimizer's. 120 GB, and a device has 16 to 192 GB.

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Three stages
#
# With *n* ranks, why should each hold all? ZeRO gives each rank the care of one piece of what is copied:

# %% tags=["live"]
plots.plot_who_holds_what(n_ranks=4);

# %% [markdown] tags=["live"]
# - **Stage 1** (P_os in the paper): a rank keeps the optimizer's states of *its* piece, and updates that piece only.
# - **Stage 2** (P_os+g): then it needs the mean gradient of its piece only.
# - **Stage 3** (P_os+g+p): and it keeps the weights of its piece only. The others are fetched when a layer needs them.
#
# A piece of a tensor on one rank is a *shard* (fr. *fragment*).

# %% [markdown]
# **Exercise 1.** How many GB of model states does a rank hold? `billions` is Ψ in 10⁹; 2 + 2 + 12 bytes; GB are
# decimal, 10⁹ bytes.

# %% tags=["exercise"] fidle={"wrong": ["def gb_per_rank(billions, n, stage):\n    return billions * 16 / (n if stage else 1)\n", "def gb_per_rank(billions, n, stage):\n    return billions * (2 + 2 / (n if stage >= 2 else 1) + 12 / (n if stage >= 1 else 1))\n", "def gb_per_rank(billions, n, stage):\n    optimizer = 12 / n if stage >= 1 else 12\n    gradients = 2 / n if stage >= 2 else 2\n    parameters = 2 / n if stage >= 3 else 2\n    return billions * 1e9 * (parameters + gradients + optimizer) / 2**30\n", "def gb_per_rank(billions, n, stage):\n    optimizer = 8 / n if stage >= 1 else 8\n    gradients = 4 / n if stage >= 2 else 4\n    parameters = 4 / n if stage >= 3 else 4\n    return billions * (parameters + gradients + optimizer)\n", "def gb_per_rank(billions, n, stage):\n    optimizer = 12 / n if stage == 1 else 12\n    gradients = 2 / n if stage == 2 else 2\n    parameters = 2 / n if stage == 3 else 2\n    return billions * (parameters + gradients + optimizer)\n"]}
def gb_per_rank(billions, n, stage):
    """GB of parameters, gradients and optimizer states on one of n ranks, in ZeRO stage 0, 1, 2 or 3."""
    ...

# %% [markdown]
# The check asks for the 54 cells of Table 1 of the paper: three models, three stages, six numbers of ranks. The paper
# rounds, and cuts some digits off: 1.2 % or 1 GB are allowed.

# %% tags=["check"]
def test_table(gb_per_rank):
    def right(row):
        computed = gb_per_rank(row["parameters_billion"], row["n_ranks"], row["zero_stage"])
        return abs(computed - row["memory_gb"]) <= max(0.012 * row["memory_gb"], 1)

    assert abs(gb_per_rank(1, 1, 0) - 14.901) > 0.01, "14.9 GB for 10⁹ parameters: that is GiB, 2³⁰ bytes."
    assert abs(gb_per_rank(1, 1, 0) - 16) < 0.01, "10⁹ parameters without sharding: 2 + 2 + 12 = 16 GB."
    assert abs(gb_per_rank(1, 4, 1) - 10) > 0.01, "4 + 4 + 8 is AdamW in fp32: here it is 2 + 2 + 12."
    assert abs(gb_per_rank(1, 4, 1) - 7) < 0.01, "stage 1, n = 4: only the 12 are divided, 2 + 2 + 3 = 7 GB."
    assert abs(gb_per_rank(1, 4, 2) - 5.5) < 0.01, "stage 2 cuts what stage 1 cuts, too: 2 + 0.5 + 3."
    assert abs(gb_per_rank(1, 4, 3) - 4) < 0.01, "stage 3, n = 4: all is divided, the parameters too: 16/4."
    assert all(map(right, table("zero_table1"))), "a cell of Table 1 is not yours."

check(gb_per_rank, test_table)

# %% tags=["solution"] jupyter={"source_hidden": true}
def gb_per_rank(billions, n, stage):
    optimizer = 12 / n if stage >= 1 else 12
    gradients = 2 / n if stage >= 2 else 2
    parameters = 2 / n if stage >= 3 else 2
    return billions * (parameters + gradients + optimizer)

# %% tags=["solution"] jupyter={"source_hidden": true}
check(gb_per_rank, test_table)

# %% tags=["live"]
plots.plot_zero_table(table("zero_table1"), device_gb=32);

# %% [markdown] tags=["live"]
# Dots: the paper's 54 cells, for 7.5, 128 and 1000 billion parameters. Lines: 4 + 12/n, 2 + 14/n and 16/n bytes. Stages 1
# and 2 flatten out: however many ranks, 4 bytes (or 2) for each parameter stay. Only stage 3 falls without end. On 1024
# ranks it holds a thousand billion parameters in less than 16 GB each.

# %% [markdown]
# Now your own model. Move the sliders until it fits. (The paper calls 31.4 GB of 32 a fit. That leaves nothing for
# activations: the calculator keeps a fifth of the memory free, and you can move that too.)

# %%
memory_calculator(billions=7.5, n_ranks=64)

# %% [markdown]
# ## ZeRO by hand
#
# You will write it over plain data parallelism. First what all the stages share.
#
# - `cut(tensor)`: a matrix with a row for each rank. A tensor of 10 numbers has four rows of 3: two zeros are added.
# - `mean_piece(tensor)`: `reduce_scatter`. Every rank gives a tensor; I get *my row* of the mean.
# - `join(piece, like)`: `all_gather`. Every rank gives its row; I get the whole tensor, in the shape of `like`.

# %%
%%ranks
from torch.nn.functional import pad

def cut(tensor):
    flat = tensor.detach().flatten()
    return pad(flat, (0, -len(flat) % world_size)).view(world_size, -1)

def my_piece(tensor):
    return cut(tensor)[rank]

def mean_piece(tensor):
    rows = cut(tensor)
    mine = torch.empty_like(rows[0])
    dist.reduce_scatter(mine, list(rows))
    return mine / world_size

def join(piece, like):
    rows = piece.new_empty(world_size, len(piece))
    dist.all_gather(list(rows), piece)
    return rows.flatten()[:like.numel()].view(like.shape)

bias = torch.arange(10.0, device=device)
print(my_piece(bias).tolist(), "→", join(my_piece(bias), bias).tolist())

# %% [markdown]
# And a training: the weights, and AdamW on fp32 masters of `part` of each weight. `gradients` is where AdamW finds
# what it needs, one for each master. The same class serves fp32 (to compare) and bf16 (to count).

# %%
%%ranks
class Training:
    """A model, and AdamW on fp32 copies of a part of each of its parameters."""

    def __init__(self, part, dtype=torch.float32, home=device):
        torch.manual_seed(0)
        self.model, self.dtype = MLP(width=256, depth=4).to(device, dtype), dtype
        self.weights = list(self.model.parameters())
        self.masters = [torch.nn.Parameter(part(p).detach().float().clone().to(home)) for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-3)
        self.gradients = [None] * len(self.weights)
        self.pieces = {}                                    # stage 3: weight → my piece of it

    def backward(self, x, y):
        x = x.to(self.dtype).requires_grad_()               # or hooks on backward miss the first layer
        cross_entropy(self.model(x).float(), y).backward()

    def update(self):
        """One step of AdamW on the masters, with `gradients`, which it empties."""
        for master, gradient in zip(self.masters, self.gradients):
            master.grad = gradient.float().to(master.device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.gradients = [None] * len(self.weights)

# %%
%%ranks
from fidle_utils.data import digits

x_train, y_train, *_ = (tensor.to(device) for tensor in digits())

def share(step):
    """My quarter of the 64 images of this step."""
    images = slice(64 * step, 64 * step + 64)
    return x_train[images].chunk(world_size)[rank], y_train[images].chunk(world_size)[rank]

# %% [markdown]
# Stage 0, plain data parallelism. Every rank has all the masters:

# %%
%%ranks
def stage0_step(t):
    for i, p in enumerate(t.weights):
        dist.all_reduce(p.grad)
        t.gradients[i], p.grad = p.grad / world_size, None  # None: or the next backward adds to it
    t.update()
    for p, master in zip(t.weights, t.masters):
        p.data.copy_(master.data)

def five_steps(t, step):
    """Train, and return all the weights as one vector."""
    for i in range(5):
        t.backward(*share(i))
        step(t)
    full = [join(t.pieces[p], p) if t.pieces else p.detach() for p in t.weights]    # stage 3 has pieces
    return torch.cat([p.flatten() for p in full])

by_hand = five_steps(Training(part=lambda p: p), stage0_step)

# %% [markdown]
# Two references: PyTorch's DDP on the four ranks, and one process with all the images of each step.

# %%
%%ranks
from torch.nn.parallel import DistributedDataParallel as DDP

torch.manual_seed(0)
ddp = DDP(MLP(width=256, depth=4).to(device))
optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
for i in range(5):
    x, y = share(i)
    optimizer.zero_grad()
    cross_entropy(ddp(x), y).backward()
    optimizer.step()
with_ddp = torch.cat([p.detach().flatten() for p in ddp.parameters()])

# %%
x_train, y_train, *_ = digits()
torch.manual_seed(0)
model = MLP(width=256, depth=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for i in range(5):
    images = slice(64 * i, 64 * i + 64)
    optimizer.zero_grad()
    cross_entropy(model(x_train[images]), y_train[images]).backward()
    optimizer.step()
reference = torch.cat([p.detach().flatten() for p in model.parameters()])

def compare(name):
    """The weights that all the ranks have after five steps, against DDP and against one process."""
    for weights, of_ddp in zip(ranks[name], ranks["with_ddp"]):
        torch.testing.assert_close(weights, of_ddp, atol=1e-6, rtol=0)
        torch.testing.assert_close(weights.cpu(), reference, atol=1e-5, rtol=0)
    far = [(ranks[name][0].cpu() - other.cpu()).abs().max() for other in (ranks["with_ddp"][0], reference)]
    print(f"{name}: at most {far[0]:.0e} from DDP, {far[1]:.0e} from one process")

compare("by_hand")

# %% [markdown]
# ## Stage 1: each rank updates its piece
#
# Rank r has masters, *m* and *v* for its rows only: `Training(part=my_piece)`. So AdamW updates a quarter of each
# weight. The weights and the gradients of the model are still whole.

# %%
guess = predict("What must a rank receive before the update, and what after it?",
                options=["its piece of the mean gradient; then all the new weights",
                         "the whole mean gradient; then nothing",
                         "nothing; then all the new weights"])

# %%
reveal(guess, "its piece of the mean gradient; then all the new weights",
       why="reduce_scatter, update, all_gather: the two halves of an all_reduce, with AdamW in between.")

# %% [markdown]
# We shall count what is sent in units of Ψ numbers, without the factor (n−1)/n that all three collectives share:

# %%
%%ranks
from fidle_utils.measure import count_communication

def psi_sent(counted, t):
    """What this rank sent, in units of (n−1)/n · Ψ numbers."""
    return counted.bytes_sent() / sum(cut(p).nbytes for p in t.weights) * world_size / (world_size - 1)

def one_step(t, step):
    """Do one step, and return what it sent."""
    t.backward(*share(0))
    with count_communication() as counted:
        step(t)
    return psi_sent(counted, t)

print(f"stage 0 sends {one_step(Training(lambda p: p), stage0_step):.2f} Ψ a step")

# %% [markdown]
# **Exercise 2.** Write it. `t.weights[i].grad` is the gradient of my images. Fill `t.gradients[i]`, call `t.update()`,
# bring every weight up to date from the masters of all ranks. Leave every `p.grad` as None. You have `mean_piece`,
# `join`, and `p.data.copy_(…)`; a master is fp32, a weight `p.dtype`.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i], p.grad = mean_piece(p.grad), None\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        mine = cut(p)\n        mine[rank] = master.data\n        p.data.copy_(mine.flatten()[:p.numel()].view(p.shape))\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        dist.all_reduce(p.grad)\n        t.gradients[i], p.grad = my_piece(p.grad) / world_size, None\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data.to(p.dtype), p))\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i], p.grad = my_piece(p.grad), None\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data.to(p.dtype), p))\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i], p.grad = mean_piece(p.grad) / world_size, None\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data.to(p.dtype), p))\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i] = mean_piece(p.grad)\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data.to(p.dtype), p))\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i], p.grad = mean_piece(p.grad), None\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data.to(p.dtype), p))\n    t.update()\n", "%%ranks\ndef zero1_step(t):\n    for i, p in enumerate(t.weights):\n        t.gradients[i], p.grad = mean_piece(p.grad), None\n    t.update()\n    for p, master in zip(t.weights, t.masters):\n        p.data.copy_(join(master.data, p))\n"]}
%%ranks
def zero1_step(t):
    """Reduce the gradients to pieces, update my pieces, make all the weights new."""
    ...

# %% tags=["check"]
def test_zero1(zero1_step):
    t, plain, seen = Training(my_piece), Training(lambda p: p), []
    t.update = lambda: (seen.append(t.gradients[0].clone()), Training.update(t))
    start = cut(t.weights[0]).clone()
    plain.backward(*share(0))
    own, mean = my_piece(plain.weights[0].grad).clone(), mean_piece(plain.weights[0].grad)
    stage0_step(plain)
    sent = one_step(t, zero1_step)
    done, expected = cut(t.weights[0]), cut(plain.weights[0])
    near = [torch.allclose(row, other, atol=1e-6) for row, other in zip(done, expected)]
    assert seen, "AdamW has not been asked: call t.update()."
    assert not torch.equal(done, start), "the weights are as before: first update, then gather."
    assert all(p.grad is None for p in t.weights), "a p.grad is still there: the next backward adds to it."
    assert not torch.equal(seen[0], own), "a piece has its own rank's gradient: reduce it (mean_piece)."
    assert torch.allclose(seen[0], mean, atol=1e-7), "not the mean: mean_piece divides already."
    assert all(near) or not near[rank], "my piece is new, the others' are old: gather them (join)."
    assert all(near), f"a weight is {(done - expected).abs().max():.0e} away from data parallelism's."
    assert sent < 2.01, f"right, but {sent:.0f} Ψ sent, not 2: an all_reduce brings what you throw away."
    sent = one_step(Training(my_piece, torch.bfloat16), zero1_step)
    assert sent < 2.01, "right in fp32; bf16 weights are sent as fp32: master.to(p.dtype)."

check("zero1_step", test_zero1, hint="mean_piece, t.update(), join")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def zero1_step(t):
    for i, p in enumerate(t.weights):
        t.gradients[i], p.grad = mean_piece(p.grad), None   # reduce_scatter
    t.update()                                              # my pieces
    for p, master in zip(t.weights, t.masters):
        p.data.copy_(join(master.data.to(p.dtype), p))      # all_gather, in bf16 where p is

# %% tags=["solution"] jupyter={"source_hidden": true}
check("zero1_step", test_zero1)

# %%
%%ranks
with_zero1 = five_steps(Training(my_piece), zero1_step)

# %%
compare("with_zero1")

# %% [markdown]
# Three quarters of the optimizer's memory is gone, and **not one byte more is sent**: an all_reduce *is* a
# reduce_scatter and an all_gather (lesson 03). ZeRO only does the update between the two. If your first answer sent 3Ψ:
# so did DeepSpeed's first stage 1, with an all_reduce, until March 2020 [7].
#
# ## Stage 2: a gradient is gone as soon as it is reduced
#
# Backward makes the gradients one by one, from the last layer to the first. Why keep them all until the end? PyTorch
# calls you when one is complete: `p.register_post_accumulate_grad_hook(function)`.

# %%
%%ranks
def stage2(t, on_gradient):
    """Call on_gradient(t, i) as soon as the gradient of weight i is complete."""
    for i, p in enumerate(t.weights):
        p.register_post_accumulate_grad_hook(lambda p, i=i: on_gradient(t, i))
    return t

def zero2_step(t):
    t.update()                                              # the gradients are reduced already
    for p, master in zip(t.weights, t.masters):
        p.data.copy_(join(master.data.to(p.dtype), p))

# %% [markdown]
# **Exercise 3.** Write `on_gradient(t, i)`: weight `i` has its gradient of *this micro-batch*. Bring my piece of the
# mean to `t.gradients[i]`, and let the whole gradient go. There may be several micro-batches
# before a step: their gradients add up.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef on_gradient(t, i):\n    t.gradients[i], t.weights[i].grad = mean_piece(t.weights[i].grad), None\n", "%%ranks\ndef on_gradient(t, i):\n    piece = mean_piece(t.weights[i].grad)\n    t.gradients[i] = piece if t.gradients[i] is None else t.gradients[i] + piece\n", "%%ranks\ndef on_gradient(t, i):\n    piece = mean_piece(t.weights[i].grad)\n    t.gradients[i] = piece if t.gradients[i] is None else t.gradients[i] + piece\n    t.weights[i].grad.zero_()\n", "%%ranks\ndef on_gradient(t, i):\n    piece = my_piece(t.weights[i].grad).clone()\n    t.gradients[i] = piece if t.gradients[i] is None else t.gradients[i] + piece\n    t.weights[i].grad = None\n", "%%ranks\ndef on_gradient(t, i):\n    gradient = t.weights[i].grad\n    dist.all_reduce(gradient)\n    piece = my_piece(gradient) / world_size\n    t.gradients[i] = piece if t.gradients[i] is None else t.gradients[i] + piece\n    t.weights[i].grad = None\n", "%%ranks\ndef on_gradient(t, i):\n    whole = t.weights[i].grad.clone()\n    dist.all_reduce(whole)\n    t.gradients[i] = whole / world_size\n    t.weights[i].grad = None\n"]}
%%ranks
def on_gradient(t, i):
    """Keep my piece of the mean gradient of weight i, and free the whole one."""
    ...

# %% tags=["check"]
def test_on_gradient(on_gradient):
    t, plain = stage2(Training(my_piece), on_gradient), Training(lambda p: p)
    with count_communication() as counted:
        t.backward(*share(0))
    one, left = t.gradients[0], [p.grad for p in t.weights if p.grad is not None]
    assert one is not None, "t.gradients[0] is None after a backward: put my piece there."
    assert not left or any(g.any() for g in left), "zeros take as much memory: set p.grad to None."
    assert not left, f"{sum(g.nbytes for g in left):,} bytes of p.grad are still held: let them go."
    assert one.shape == my_piece(t.weights[0]).shape, "whole gradients are kept: keep my piece only."
    assert counted.calls(), "nothing was sent: my piece must be the mean over the ranks (mean_piece)."
    assert psi_sent(counted, t) < 1.01, (f"{psi_sent(counted, t):.0f} Ψ sent in a backward, 1 is enough: "
                                         "reduce_scatter, not all_reduce.")
    t.backward(*share(1))
    for step in (0, 1):
        plain.backward(*share(step))
    for i, p in enumerate(plain.weights):
        expected = mean_piece(p.grad)
        near = torch.allclose(t.gradients[i], expected, atol=1e-6)
        assert near, "after two micro-batches the gradient must be the sum of both: add, do not replace."

check("on_gradient", test_on_gradient, hint="mean_piece; add to t.gradients[i]; p.grad = None")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def on_gradient(t, i):
    piece = mean_piece(t.weights[i].grad)
    t.gradients[i] = piece if t.gradients[i] is None else t.gradients[i] + piece
    t.weights[i].grad = None

# %% tags=["solution"] jupyter={"source_hidden": true}
check("on_gradient", test_on_gradient)

# %%
%%ranks
with_zero2 = five_steps(stage2(Training(my_piece), on_gradient), zero2_step)

# %%
compare("with_zero2")

# %% [markdown]
# ## Stage 3: a layer has its weights only while it computes
#
# Now a rank keeps its piece of each weight, in `t.pieces`. Before a layer computes, its weights are gathered; right
# after, they are freed. To free a tensor that autograd still refers to, and to fill it again later, PyTorch lets you
# resize its *storage*, the memory behind it. This is what FSDP does too.
#
# `log` writes down how many bytes of full weights there are: we draw it later.

# %%
%%ranks
log = []

def full_bytes(t):
    return sum(p.untyped_storage().nbytes() for p in t.weights)

def gather(t, p):
    """Fill weight p from the pieces of all the ranks."""
    p.untyped_storage().resize_(p.numel() * p.element_size())
    p.data.copy_(join(t.pieces[p], p))
    log.append(full_bytes(t))

def free(t, p):
    """Give the memory of weight p back; its piece stays."""
    p.untyped_storage().resize_(0)
    log.append(full_bytes(t))

# %% [markdown]
# PyTorch calls you around a layer's work too:
#
# | when | how to be called |
# |---|---|
# | before forward | `layer.register_forward_pre_hook(f)`, called `f(layer, inputs)` |
# | after forward | `layer.register_forward_hook(f)`, called `f(layer, inputs, output)` |
# | before backward | `layer.register_full_backward_pre_hook(f)`, called `f(layer, gradients)` |
# | when a gradient is complete | `p.register_post_accumulate_grad_hook(f)`, called `f(p)` |
#
# What these functions return would replace inputs or outputs: return None.

# %% [markdown]
# `stage3` prepares a model: it cuts the weights, calls `zero3(t, layer)` for each layer, which is yours to write, and
# frees the weights. It also makes sure that a layer has what it needs when it computes. (To compute with a tensor whose
# memory is gone may end the process.)

# %%
%%ranks
def has_weights(layer, when):
    if not all(p.untyped_storage().nbytes() for p in layer.parameters()):
        raise AssertionError(f"a weight has no memory when {when} begins: gather before {when}.")

def stage3(t, zero3):
    for p in t.weights:
        t.pieces[p] = my_piece(p).clone()
    stage2(t, on_gradient)
    for layer in t.model.layers:
        if list(layer.parameters()):
            zero3(t, layer)
            layer.register_forward_pre_hook(lambda layer, _: has_weights(layer, "forward"))
            layer.register_full_backward_pre_hook(lambda layer, _: has_weights(layer, "backward"))
    for p in t.weights:
        free(t, p)
    log.clear()
    return t

def zero3_step(t):
    t.update()
    for p, master in zip(t.weights, t.masters):
        t.pieces[p].copy_(master.data)                      # no message: it is my own piece

# %%
guess = predict("How many times must a rank receive all the weights in a step of stage 3?", unit="times")

# %% [markdown]
# **Exercise 4.** Write `zero3(t, layer)`, called once for every layer that has weights. The gradients are already
# taken care of, by your `on_gradient` of stage 2.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef zero3(t, layer):\n    weights = list(layer.parameters())\n    gather_all = lambda *_: [gather(t, p) for p in weights] and None\n    free_all = lambda *_: [free(t, p) for p in weights] and None\n    layer.register_forward_pre_hook(gather_all)\n    for p in weights:\n        p.register_post_accumulate_grad_hook(lambda p: free(t, p))\n", "%%ranks\ndef zero3(t, layer):\n    weights = list(layer.parameters())\n    def gather_all(*_):\n        for p in weights:\n            gather(t, p)\n    def free_all(*_):\n        for p in weights:\n            free(t, p)\n    layer.register_forward_pre_hook(gather_all)\n    layer.register_forward_hook(free_all)\n    for p in weights:\n        p.register_post_accumulate_grad_hook(lambda p: free(t, p))\n", "%%ranks\ndef zero3(t, layer):\n    weights = list(layer.parameters())\n    def gather_all(*_):\n        for p in weights:\n            gather(t, p)\n    def free_all(*_):\n        for p in weights:\n            free(t, p)\n    layer.register_forward_pre_hook(gather_all)\n    layer.register_forward_hook(free_all)\n    layer.register_full_backward_pre_hook(gather_all)\n", "%%ranks\ndef zero3(t, layer):\n    weights = list(layer.parameters())\n    def free_all(*_):\n        for p in weights:\n            free(t, p)\n    layer.register_forward_hook(free_all)\n", "%%ranks\ndef zero3(t, layer):\n    def gather_all(*_):\n        for p in t.weights:\n            gather(t, p)\n    def free_all(*_):\n        for p in t.weights:\n            free(t, p)\n    layer.register_forward_pre_hook(gather_all)\n    layer.register_forward_hook(free_all)\n    layer.register_full_backward_pre_hook(gather_all)\n    for p in layer.parameters():\n        p.register_post_accumulate_grad_hook(lambda p: free(t, p))\n"]}
%%ranks
def zero3(t, layer):
    """Make sure that `layer` has its full weights while it computes, and only then."""
    ...

# %% tags=["check"]
def test_zero3(zero3):
    t, plain = stage3(Training(my_piece), zero3), Training(lambda p: p)
    whole = sum(p.nbytes for p in t.weights)
    x, y = share(0)
    out = t.model(x.clone().requires_grad_())
    left = full_bytes(t)
    assert not left, f"after forward {left:,} bytes of weights are left: free a layer after its forward."
    most = max(log) / whole
    assert most < 0.6, f"{most:.0%} of the model was gathered at once: gather this layer's weights only."
    cross_entropy(out, y).backward()
    left = full_bytes(t)
    assert not left, f"after backward {left:,} bytes are left: free a weight when its gradient is complete."
    zero3_step(t)
    plain.backward(*share(0))
    stage0_step(plain)
    far = max((join(t.pieces[p], p) - q).abs().max() for p, q in zip(t.weights, plain.weights))
    assert far < 1e-6, f"a weight is {far:.0e} away from data parallelism's."

check("zero3", test_zero3, hint="four hooks: gather, free, gather, free")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def zero3(t, layer):
    weights = list(layer.parameters())

    def gather_all(*_):
        for p in weights:
            gather(t, p)

    def free_all(*_):
        for p in weights:
            free(t, p)

    layer.register_forward_pre_hook(gather_all)
    layer.register_forward_hook(free_all)
    layer.register_full_backward_pre_hook(gather_all)
    for p in weights:
        p.register_post_accumulate_grad_hook(lambda p: free(t, p))

# %% tags=["solution"] jupyter={"source_hidden": true}
check("zero3", test_zero3)

# %%
%%ranks
with_zero3 = five_steps(stage3(Training(my_piece), zero3), zero3_step)

# %%
compare("with_zero3")
reveal(guess, 2, why="Once for forward, once more for backward: in between they were freed.")

# %% [markdown]
# ## Held and sent: the formulas
#
# One step of each stage in mixed precision, measured at the end of its second backward, when AdamW's states exist.

# %%
%%ranks
def held(t):
    """The bytes of model states that this rank holds now."""
    gradients = [p.grad for p in t.weights] + t.gradients
    states = [value for state in t.optimizer.state.values() for value in state.values()]
    return {"parameters": full_bytes(t) + sum(piece.nbytes for piece in t.pieces.values()),
            "gradients": sum(gradient.nbytes for gradient in gradients if gradient is not None),
            "optimizer states": sum(tensor.nbytes for tensor in states + t.masters)}

def measure(t, step):
    t.backward(*share(0))
    step(t)
    log.clear()
    with count_communication() as counted:
        t.backward(*share(1))
        now = held(t)
        step(t)
    return now, counted.bytes_sent(), list(log)

# %%
%%ranks
half = torch.bfloat16
stages = [measure(Training(lambda p: p, half), stage0_step),
          measure(Training(my_piece, half), zero1_step),
          measure(stage2(Training(my_piece, half), on_gradient), zero2_step),
          measure(stage3(Training(my_piece, half), zero3), zero3_step)]

# %%
now = {stage: ranks["stages"][0][stage][0] for stage in range(4)}
sent = {stage: ranks["stages"][0][stage][1] for stage in range(4)}
formula = {stage: sum(model_state_bytes(psi, stage, 4).values()) for stage in range(4)}
formula_sent = {stage: step_bytes_sent(psi, stage, 4) for stage in range(4)}
for stage in range(4):
    holds = sum(now[stage].values())
    torch.testing.assert_close(holds, round(formula[stage]), rtol=0.01, atol=0)
    torch.testing.assert_close(float(sent[stage]), formula_sent[stage], rtol=0.01, atol=0)
    print(f"stage {stage}: holds {holds:>9,} bytes, formula {formula[stage]:>11,.0f} · "
          f"sends {sent[stage]:>9,.0f}, formula {formula_sent[stage]:>9,.0f}")

# %%
plots.plot_stages(now, sent, formula, formula_sent);

# %% [markdown]
# In bytes, on *n* = 4 ranks: reduce_scatter and all_gather send (n−1)/n of their tensor, an all_reduce 2(n−1)/n. The
# paper counts *numbers*, for many ranks, where (n−1)/n is almost 1: **2Ψ, 2Ψ, 2Ψ, 3Ψ**.

# %%
for stage in range(4):
    numbers = sent[stage] / 2                               # bf16: 2 bytes a number
    print(f"stage {stage}: {numbers / psi:.2f} Ψ = (n−1)/n · {numbers / psi / (3 / 4):.2f} Ψ")

# %% [markdown]
# Stages 1 and 2 are free. Stage 3 sends half as much again, and lets memory fall with the number of ranks. During the
# step it also holds the layers that compute now; your `log` knows how much:

# %%
plots.plot_gathered({"ZeRO-3, by hand": ranks["stages"][0][3][2]}, whole=2 * psi);

# %% [markdown]
# Five gathers for forward, five for backward, never more than one layer at a time. Two things a library does better:
# it does not free the last layer between forward and backward, and it fetches the next layer *while* this one computes.
#
# (At the update, the fp32 gradients of my pieces exist for a moment: 4Ψ/n bytes more. The paper's 16 leaves them out.)

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## FSDP2: the same, by the library
#
# `fully_shard` (FSDP: *fully sharded data parallel*, fr. *parallélisme de données entièrement fragmenté*) does stage 3 to
# every module that you give it. One call for each block, one for what is left: the embeddings, the last norm.

# %% tags=["live"]
%%ranks
from torch.distributed.fsdp import fully_shard

def small_gpt():
    torch.manual_seed(0)
    return GPT(vocab_size=256, n_layers=4, width=128).to(device)

def sharded_gpt(**options):
    model = small_gpt()
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)

def backward(model, ids):
    loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.item()

fsdp = sharded_gpt()
texts = torch.randint(256, (16, 65), generator=torch.Generator().manual_seed(0)).to(device)
mine = texts.chunk(world_size)[rank]
loss = backward(fsdp, mine)
whole_gradient = torch.cat([p.grad.full_tensor().flatten() for p in fsdp.parameters()])
p = fsdp.blocks[0].mlp[0].weight
print(f"{type(p).__name__} of {tuple(p.shape)}, here {tuple(p.to_local().shape)}, {p.placements}")

# %% [markdown]
# Each parameter is now a `DTensor` (lesson 05), cut along its first dimension. `full_tensor()` gathers it: we compare
# the gradient with that of one process on all the texts.

# %%
%%ranks
alone = small_gpt()
loss = backward(alone, texts)
expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
torch.testing.assert_close(whole_gradient, expected, atol=1e-6, rtol=0)
far = (whole_gradient - expected).abs().max().item()

# %%
print(f"largest difference between FSDP2's gradient and one process's: {max(ranks['far']):.0e}")

# %% [markdown]
# ### What is gathered, and when

# %%
guess = predict("5 groups of weights: 4 blocks, and the rest. How many all_gather in a step?",
                unit="calls")

# %% tags=["live"]
%%ranks --timeline
dist.barrier()
loss = backward(fsdp, mine)

# %% tags=["live"]
plots.plot_timeline(ranks.timeline);

# %%
events = ranks.timeline.events
calls = events[events["rank"] == 0].what.value_counts()
reveal(guess, int(calls["all_gather"]), why="One for each group before its forward, and again before its "
       "backward. Only the outermost group is kept in between: backward begins with it.")
print(f"and {calls['reduce_scatter']} reduce_scatter")

# %% [markdown] tags=["live"]
# Read one rank from left to right. Forward: gather, compute, gather, compute… Backward: gather, compute, then a
# reduce_scatter of the gradients of the block that is done. (On a CPU, collectives and arithmetic take turns: the order
# is true, the overlap that a GPU would have is not here.)

# %% [markdown]
# How early does it ask? This counts the gathers called so far, each time that a block begins to compute.

# %%
%%ranks
def gathers_before(model):
    """How many all_gather had been called when each block began, forward then backward."""
    began, hooks = [], []
    with count_communication() as counted:
        def note(*_):
            began.append(counted.calls("all_gather"))

        for block in model.blocks:
            hooks.append(block.register_forward_pre_hook(note))
            hooks.append(block.attention_norm.register_full_backward_pre_hook(note))
        backward(model, mine)
    for hook in hooks:
        hook.remove()
    return began[:4], began[4:]

early = gathers_before(fsdp)

# %%
forward, back = ranks["early"][0]
print("before the forward of blocks 0, 1, 2, 3: ", *forward)
print("before the backward of blocks 3, 2, 1, 0:", *back)

# %% [markdown]
# In forward a block is asked for when its turn comes: 2 when block 0 begins (the outermost group and itself), then one
# more each. In backward block 3 begins with 7: five of the forward, its own, *and that of block 2*. FSDP2 knows from
# forward who comes next, and gathers it early: *prefetch* (fr. *préchargement*).

# %% [markdown]
# ### Keep them, or gather them twice
#
# `reshard_after_forward=False` keeps the full weights between forward and backward. Which stage is that?

# %%
%%ranks
from torch.distributed.fsdp import MixedPrecisionPolicy

def count_and_weigh(**options):
    """The communication of one step, and its memory ledger."""
    model = sharded_gpt(**options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with count_communication() as counted:
        backward(model, mine)
    optimizer.step()
    optimizer.zero_grad()
    with memory_ledger(model, optimizer) as ledger:
        backward(model, mine)
        optimizer.step()
    return counted, ledger

mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
variants = {"True": count_and_weigh(reshard_after_forward=True),
            "False": count_and_weigh(reshard_after_forward=False),
            "mixed": count_and_weigh(reshard_after_forward=True, mp_policy=mixed)}

# %%
psi_gpt = ranks.run(lambda: small_gpt().num_parameters())[0]
for name, (counted, ledger) in ranks["variants"][0].items():
    sent = counted.bytes_sent() / (3 / 4) / psi_gpt
    gathers, reductions = counted.calls("all_gather"), counted.calls("reduce_scatter")
    print(f"{name:5} {gathers:2} all_gather, {reductions} reduce_scatter, (n−1)/n · {sent:4.1f} bytes each;",
          f"full weights: at most {ledger.gathered_parameters / 1e6:.2f} MB")
    torch.testing.assert_close(ledger.parameters, psi_gpt, rtol=0.01, atol=0)       # 4 bytes, 4 ranks

# %% [markdown]
# In fp32, 12 bytes are 3Ψ numbers and 8 bytes 2Ψ. **True is stage 3. False sends what stage 2 sends**, and in backward
# holds what stage 2 holds; only between steps are the weights still cut.
#
# The third line is `MixedPrecisionPolicy`: weights are gathered in bf16 and gradients reduced in fp32, 2 + 2 + 4 = 8
# bytes. FSDP2's sharded parameters stay in fp32: they *are* the master weights. 4 + 4 + 8 = 16 bytes, all divided by n.

# %%
by_label = {f"reshard {name}": ranks["variants"][0][name][1] for name in ("True", "False")}
plots.plot_memory(by_label, title="reshard_after_forward: one rank, one step");

# %% [markdown]
# ### Prefetch, said by hand
#
# On a GPU, Python runs ahead of the arithmetic, so forward's gathers are asked for early too. Where Python is the slow
# one, say it explicitly: `set_modules_to_forward_prefetch`.

# %%
%%ranks
for block, following in zip(fsdp.blocks, list(fsdp.blocks)[1:]):
    block.set_modules_to_forward_prefetch([following])
early = gathers_before(fsdp)
with memory_ledger(fsdp) as ledger:
    loss = backward(fsdp, mine)

# %%
print("before the forward of blocks 0, 1, 2, 3: ", *ranks["early"][0][0])
usual = ranks["variants"][0]["True"][1].gathered_parameters
now_at_most = ranks["ledger"][0].gathered_parameters
print(f"full weights: at most {now_at_most / 1e6:.2f} MB, {usual / 1e6:.2f} MB before")

# %% [markdown]
# Each gather came one block earlier: one more block in memory during forward. (The peak of the step did not grow:
# backward, which prefetches by itself, held as much already.) Is it faster here? No: on a CPU this gather makes
# Python wait wherever it stands. On a GPU it has a stream and a link of its own, and hides behind the arithmetic of the
# block before, if that takes longer.
#
# `block.unshard()` gathers a block when *you* want, `block.reshard()` frees it: the two verbs of your exercise.

# %% [markdown]
# ## Who splits what: ZeRO-3, FSDP1, FSDP2
#
# You may read, even on good slides, that ZeRO-3 deals out whole layers: one to rank 0, the next to rank 1. **It does
# not.** Layers are not equally large, and a whole layer would come from one rank, over one link, while the other links
# wait. All three below cut *every* parameter, and every rank computes every layer. They differ in *how* they cut. Here is
# a layer of 6 × 5 weights and 6 biases, really sharded by FSDP2; you see who holds which number.

# %%
%%ranks
layer = torch.nn.Linear(5, 6).to(device)
with torch.no_grad():                                       # number the numbers: 0…29, then 30…35
    for p, first in ((layer.weight, 0), (layer.bias, 30)):
        p.copy_(first + torch.arange(p.numel()).view(p.shape))
numbers = torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])
held_by_hand = torch.cat([my_piece(layer.weight), my_piece(layer.bias)])        # as DeepSpeed's ZeRO-3 cuts
held_by_fsdp1 = my_piece(numbers)                           # FSDP1: all the layer's numbers, flat
fully_shard(layer)
held_by_fsdp2 = torch.cat([p.to_local().detach().flatten() for p in layer.parameters()])
print([tuple(p.to_local().shape) for p in layer.parameters()])

# %%
owners = {name: {int(number): rank for rank in (3, 2, 1, 0) for number in ranks[variable][rank]}
          for name, variable in {"FSDP2: rows of each parameter": "held_by_fsdp2",
                                 "ZeRO-3: each parameter, flattened": "held_by_hand",
                                 "FSDP1: the whole layer, flattened": "held_by_fsdp1"}.items()}
plots.plot_shards(owners, rows=6, columns=5, note="read on each rank; the cut of FSDP1 is computed");

# %% [markdown]
# - **FSDP2** cuts the first dimension. A shard keeps a shape (2 rows of 5), so checkpoints, clipping and tensor
#   parallelism can work with it. Six rows on four ranks are 2, 2, 2 and **none**: rank 3 holds nothing of this layer.
# - **DeepSpeed's ZeRO-3** flattens each parameter, pads it, and cuts the vector, as your `cut` does (read in its
#   `partition_parameters.py`, 0.19).
# - **FSDP1**, the older class, flattens and joins *all* the parameters of a layer, then cuts; the figure computes it. A
#   shard may end in the middle of a row, and a frozen parameter shares its vector with trained ones [3].
#
# The exception that you may have seen: PyTorch's `ZeroRedundancyOptimizer`, a stage 1 which does give each parameter to
# one rank, whole.
#
# The bytes that are held and sent are the same, but for the padding. **Tiny parameters** are where it shows: a bias of 3
# numbers on 8 ranks leaves five of them without any, and a message of its own for each would cost more than it carries.
# FSDP2 sends one message for all the parameters of a call of `fully_shard`: call it on blocks, not on every `Linear`.

# %% [markdown]
# ## Activations: compute them again
#
# What is left is what each rank makes for itself. Call *s* the length of a text, *b* the texts of a micro-batch, *h* the
# width, *a* the number of heads. Korthikanti et al. [2] count what a transformer layer keeps for backward, in bytes:
#
# $$ s\,b\,h\,\left(34 + 5\,\frac{a\,s}{h}\right) $$
#
# Is it so? Here is their layer: bf16, dropout in three places, attention with its scores in memory.

# %%
%%ranks
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

def dropout(x):
    return x * (torch.rand_like(x) > 0.1) / 0.9             # its mask has 1 byte, as F.dropout's on a GPU

class PaperLayer(nn.Module):
    def __init__(self, h, a):
        super().__init__()
        self.a, self.norm1, self.norm2 = a, nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv, self.out, self.up, self.down = map(nn.Linear, (h, h, h, 4 * h), (3 * h, h, 4 * h, h))

    def core(self, q, k, v):                                # scores: batch × heads × length × length
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return dropout(scores.softmax(-1)) @ v

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.a, -1)).permute(2, 0, 3, 1, 4)
        x = x + dropout(self.out(self.core(q, k, v).transpose(1, 2).flatten(2)))
        return x + dropout(self.down(gelu(self.up(self.norm2(x)))))

# %% [markdown]
# Every node of autograd's graph shows what it saved, as attributes `_saved_…`. We walk the graph and list them, each
# memory once, without the weights.

# %%
%%ranks
def saved_tensors(output, layer):
    """[(name of the node, bytes)] of what backward needs, in the order of forward."""
    seen, found, nodes = {p.untyped_storage().data_ptr() for p in layer.parameters()}, [], {output.grad_fn}
    todo = list(nodes)
    while todo:
        following = [node for node, _ in todo.pop().next_functions if node and node not in nodes]
        nodes.update(following)
        todo += following
    for node in sorted((n for n in nodes if hasattr(n, "_sequence_nr")), key=lambda n: n._sequence_nr()):
        values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        new = {t.untyped_storage().data_ptr(): t for t in values if isinstance(t, torch.Tensor) and t.dim()}
        found.append((node.name().removesuffix("Backward0"),
                      sum(t.untyped_storage().nbytes() for key, t in new.items() if key not in seen)))
        seen.update(new)
    return [(name, n_bytes) for name, n_bytes in found if n_bytes]

s, b, h, a = 128, 4, 128, 8
torch.manual_seed(0)
layer = PaperLayer(h, a).to(device, half)
x = torch.randn(b, s, h, device=device, dtype=half, requires_grad=True)
kept = saved_tensors(layer(x), layer)

# %%
s, b, h, a = 128, 4, 128, 8
predicted = activation_terms(s, b, h, a)
kept = ranks["kept"][0]
for (term, n_bytes), (node, measured) in zip(predicted.items(), kept, strict=True):
    print(f"{node:16} {measured:>9,} bytes · {term:32} {n_bytes:>9,}")
measured = [n_bytes for _, n_bytes in kept]
total = activation_bytes(s, b, h, a)
torch.testing.assert_close(float(sum(measured)), total, rtol=0.01, atol=0)
print(f"{sum(measured):,} bytes, formula {total:,.0f}: {sum(measured) / total - 1:+.2%}")

# %%
plots.plot_activation_terms(predicted, measured, unit_bytes=s * b * h);

# %% [markdown]
# Thirteen terms, thirteen nodes. The rest is the mean and deviation that each norm keeps of every token. The three bars
# of *a·s²·b* bytes are the scores: they grow with the *square* of the length.

# %%
guess = predict("A GPT-3 layer: a = 96, s = 2048, h = 12288. Its activations, in s·b·h bytes?", unit="sbh")

# %%
reveal(guess, 34 + 5 * 96 * 2048 / 12288, why="34, and 80 of scores. To drop the scores alone saves 70 %.")

# %% [markdown]
# *Activation checkpointing* (fr. *recalcul des activations*): keep the input of a piece of the model, forget the rest,
# and compute it again in backward. `checkpoint(function, *inputs)` does it.
#
# - **Selective**: only the scores are forgotten. They are large, and cheap to compute again.
# - **Full**: a layer keeps its input only.
# - **Fused attention** (*flash attention* [5]) never writes the scores: another cure, of another kind. It keeps Q, K, V,
#   its output, and one number a row. (Its dropout is left out here.)

# %%
%%ranks
class Selective(PaperLayer):
    def core(self, q, k, v):
        return checkpoint(super().core, q, k, v, use_reentrant=False)

class Full(PaperLayer):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)

class Fused(PaperLayer):
    def core(self, q, k, v):
        return scaled_dot_product_attention(q, k, v)

# %%
%%ranks
from fidle_utils.measure.flops import flop_counter

def weigh(kind, n_layers=4):
    """The ledger of forward and backward through some layers, their FLOPs, the gradient of the input."""
    torch.manual_seed(0)
    model = nn.Sequential(*(kind(h, a) for _ in range(n_layers))).to(device, half)
    x = torch.randn(b, s, h, device=device, dtype=half, requires_grad=True)
    with memory_ledger(model) as ledger:
        out = model(x)
        ledger.mark("forward")
        out.float().square().mean().backward()
    gradient = x.grad.float()
    with flop_counter() as flops:                           # apart: it holds on to what it counts
        model(x).float().square().mean().backward()
    return ledger, flops.get_total_flops(), gradient

weighed = {kind.__name__: weigh(kind) for kind in (PaperLayer, Selective, Fused, Full)}

# %%
weighed = ranks["weighed"][0]
recompute = {"PaperLayer": "none", "Selective": "selective", "Fused": "selective", "Full": "full"}
sbh = s * b * h
for name, (ledger, flops, _) in weighed.items():
    at = ledger.at("forward")
    a_layer, formula = (at["activations"] + at["inputs"]) / 4, activation_bytes(s, b, h, a, recompute[name])
    torch.testing.assert_close(a_layer, float(formula), rtol=0.01, atol=0)
    print(f"{name:10} {a_layer / sbh:5.2f} sbh a layer, formula {formula / sbh:2.0f} · of 4 layers at most "
          f"{ledger.activations / sbh:3.0f} sbh · {flops / weighed['PaperLayer'][1]:.3f} × the FLOPs")
for name in ("Selective", "Full"):
    torch.testing.assert_close(weighed[name][2], weighed["PaperLayer"][2])
print("the gradient is the same")

# %%
plots.plot_memory_over_time(weighed["Full"][0], title="Four layers, fully checkpointed");

# %% [markdown]
# Read three things.
#
# - The formulas hold: 34 + 40, 34, 34 and **2**.
# - Full checkpointing computes each forward twice: forward is a third of the work, so 4/3. Of the selective kind the
#   paper counts two products again; PyTorch stops as soon as it has what backward asks for, and the second product is
#   not needed: half of it. The fused one computes that product again too, inside its own backward.
# - At most, it is not 4 × 2: while backward computes one layer again, that layer is there in full. You see the four of
#   them come and go.
#
# And the gradient is the same, to the digit: the dropout masks too, because `checkpoint` restores the random state.

# %% [markdown]
# On a GPU those FLOPs take the time that the paper measured. One layer of a 22-billion model on eight A100 [2]:

# %%
import pandas as pd

columns = ["experiment", "forward_ms", "backward_ms", "both_ms", "overhead_percent"]
pd.DataFrame(table("korthikanti_table4_layer_times"))[columns]

# %% [markdown]
# Published, not measured here. Full: 39 % more time. Selective: 7 %, for most of the memory. **Begin with fused attention,
# then the selective kind, and go to the full one only when you must.** (Sequence parallelism is lesson 05's.)

# %% [markdown]
# ## Offload: a larger, slower memory
#
# A node has more memory on the CPU's side. *Offloading* (fr. *déport*) keeps the optimizer's states there, 12 bytes of 16,
# and updates there [4]. Each step then moves my gradients down and my new weights up: 2 + 2 bytes for each parameter of
# my piece, over PCIe.

# %%
guess = predict("7 billion parameters on one A100, PCIe Gen4 at 31 GB/s. Down and up take…", unit="s")

# %%
tokens = [256 * 2**k for k in range(10)]
devices = {}
for name in ("A100-SXM4-80GB", "H100-SXM5-80GB"):
    (gpu,) = table("gpu_specs", gpu=name)
    flops_per_second = 0.5 * 1e12 * gpu["bf16_tflops"]                      # half the peak: a good training
    computing = [6 * 7e9 * count / flops_per_second for count in tokens]    # 6 FLOPs a parameter and token
    rate = 1e9 * gpu["pcie_gb_per_second"]
    devices[f"{name[:4]}, PCIe {gpu['pcie_gb_per_second']} GB/s"] = computing, 4 * 7e9 / rate
reveal(guess, 4 * 7e9 / 31e9, why="4 bytes a parameter at 31 GB/s, 14 GB each way (computed).")

# %%
plots.plot_offload(tokens, devices, title="7 billion parameters on one GPU");

# %% [markdown]
# A second is little beside a step of many thousand tokens, and much beside a short one. On n ranks each moves its piece
# only, over its own link: n times less. What the figure leaves out: AdamW on a CPU, which reads and writes those 12
# bytes at the speed of its memory, not of the GPU's.
#
# Your `Training` can do it: it keeps masters, *m* and *v* in a `home`.

# %%
%%ranks
import time

def offloaded(home):
    """The weights after five steps of stage 3, seconds of an update, and bytes on each kind of device."""
    t = stage3(Training(my_piece, home=torch.device(home)), zero3)
    weights = five_steps(t, zero3_step)
    t.backward(*share(5))
    float(t.gradients[0][0])                                # synchronise: the GPU has finished
    start = time.perf_counter()
    zero3_step(t)
    float(t.pieces[t.weights[0]][0])
    places = {}
    for tensor in [*t.masters, *t.pieces.values()]:
        places[tensor.device.type] = places.get(tensor.device.type, 0) + tensor.nbytes
    return weights, time.perf_counter() - start, places

with_offload, seconds, places = offloaded("cpu")
seconds_here = offloaded(device)[1]

# %%
compare("with_offload")
print("masters and pieces are here:", ranks["places"][0])
if ranks["device"][0].type == "cpu":
    print("no GPU: `home` is the memory where all the rest is, so nothing is saved, nothing crosses PCIe")
else:
    on_gpu, on_cpu = ranks["seconds_here"][0], ranks["seconds"][0]
    print(f"update: {1e3 * on_gpu:.1f} ms on the GPU, {1e3 * on_cpu:.1f} ms offloaded")

# %% [markdown]
# The result is the same; here the saving cannot be seen, and we say so. With FSDP2 it is one argument,
# `fully_shard(..., offload_policy=CPUOffloadPolicy())`, which moves the sharded parameters too. DeepSpeed goes on to
# disks (lesson 09).

# %% [markdown]
# ## Traps
#
# **A state_dict of a shard.** Each rank's `state_dict()` has *its* rows. Saved by rank 0 as one always did, three
# quarters of the model are lost.

# %%
%%ranks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

model = sharded_gpt()
local = sum(value.to_local().nbytes for value in model.state_dict().values())
options = StateDictOptions(full_state_dict=True, cpu_offload=True)
whole = get_model_state_dict(model, options=options)        # a collective: every rank must call it
n_bytes = sum(value.nbytes for value in whole.values())
print(f"my state_dict: {local:,} bytes · whole: {n_bytes:,} bytes, {len(whole)} tensors")

# %%
torch.manual_seed(0)
same = ranks.run(lambda: whole)[0]
reference_gpt = ranks.run(lambda: {name: value.cpu() for name, value in small_gpt().state_dict().items()})[0]
for name, value in reference_gpt.items():
    torch.testing.assert_close(same[name], value)
print("gathered on rank 0: equal to the model of one process")

# %% [markdown]
# Gathered to rank 0, for a file that anybody can read. To save and load a large model, let each rank write its own part:
# `torch.distributed.checkpoint`, lesson 10.
#
# **The norm of a shard.** Clipping divides by the norm of the *whole* gradient. The norm of my shard is another number on
# every rank; ranks that clip by it drift apart from data parallelism, and no error is raised.

# %%
guess = predict("Each rank has a quarter of the gradient. Its norm is, of the quarters' norms…",
                options=["the mean", "the sum", "the root of the sum of squares"])

# %%
%%ranks
t = stage2(Training(my_piece), on_gradient)
t.backward(*share(0))
mine_only = torch.cat(t.gradients).norm()
square = mine_only**2
dist.all_reduce(square)
by_hand_norm = square.sqrt()
loss = backward(model, mine)
of_fsdp = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0).full_tensor()
loss = backward(alone := small_gpt(), texts)
of_one = torch.nn.utils.clip_grad_norm_(alone.parameters(), max_norm=1.0)
print(f"my shard {mine_only:.4f} · all {by_hand_norm:.4f}")

# %%
reveal(guess, "the root of the sum of squares", why="Add up squares over the ranks, then take the root.")
torch.testing.assert_close(ranks["of_fsdp"], ranks["of_one"])
print(f"FSDP2 with clip_grad_norm_: {ranks['of_fsdp'][0]:.6f}, one process: {ranks['of_one'][0]:.6f}")

# %% [markdown]
# With DTensors PyTorch's own `clip_grad_norm_` does it; with shards of your own you must.
#
# **Accumulation.** Four micro-batches, one step. Stage 2 can reduce every time (its gradients stay small), or hold whole
# gradients and reduce once. You cannot have both.

# %%
%%ranks
def accumulate(every_time, micro_batches=4):
    """(bytes sent, most bytes of gradients) of one step of stage 2 with four micro-batches."""
    t, most = Training(my_piece, half), 0
    if every_time:
        stage2(t, on_gradient)
    with count_communication() as counted:
        for k in range(micro_batches):
            t.backward(*share(k))
            most = max(most, held(t)["gradients"])
        if not every_time:
            for i in range(len(t.weights)):
                on_gradient(t, i)
        zero2_step(t)
    return counted.bytes_sent(), most, torch.cat([p.detach().float().flatten() for p in t.weights])

reduced, kept_whole = accumulate(True), accumulate(False)

# %%
for name in ("reduced", "kept_whole"):
    sent, most, _ = ranks[name][0]
    print(f"{name:10} sends (n−1)/n · {sent / 2 / psi / (3 / 4):.0f} Ψ, "
          f"holds {most / psi:.2f} bytes of gradients a parameter")

# %% [markdown]
# 4Ψ + Ψ against 2Ψ; 2/n against 2 bytes. In FSDP2 the switch is `model.set_requires_gradient_sync(False)`, and the price
# is the same: whole gradients. Stage 3 also gathers the weights twice for every micro-batch. This is why stage 1 with a
# pipeline or with many micro-batches is so common: BLOOM was trained with stage 1 [6].
#
# And the two traps that you have met: *m* and *v* come with the first `step()`, and a layer smaller than the number of
# ranks leaves some of them with empty hands.

# %% [markdown]
# ## In practice
#
# | It does not fit because of… | Do |
# |---|---|
# | nothing: it fits | data parallelism (lesson 04), with fused attention |
# | the optimizer's states | stage 1: sends nothing more |
# | the gradients too | stage 2, or FSDP2 with `reshard_after_forward=False` |
# | the parameters | stage 3, or FSDP2 as it is: half as much again to send |
# | the activations | a smaller micro-batch, selective, then full checkpointing; sequence parallelism (05) |
# | all of it | offload, then model parallelism (05, 06, 07) |
#
# - Wrap with `fully_shard` from the inside out: blocks first, the model last; build the optimizer *after*.
# - Slow network between nodes? Shard inside a node and copy across: a 2-D mesh, `fully_shard(model, mesh=mesh)`.
# - Clip with `clip_grad_norm_`, never with a norm of your shard. Save with `torch.distributed.checkpoint`.
# - Measure the second step, and leave room for what no formula here counts: buffers of communication, workspace,
#   fragments between what was freed.

# %% [markdown]
# ## Go further
#
# - `%ranks 8`, and run *ZeRO by hand* again. Which bytes change? Which does ZeRO say?
# - In your stage 3, do not free the last layer after its forward. How many Ψ do you save?
# - Derive the 12 bytes from a master of your own: with the bf16 weights made from the masters when they are gathered, is
#   stage 3 at 14Ψ/n?
# - Give `fully_shard` only the model, and not its blocks. What is gathered at once? Look at the ledger.
# - Find the length of text at which half of a GPT-3 layer's activations are scores.

# %% [markdown]
# ## Sources
#
# 1. S. Rajbhandari, J. Rasley, O. Ruwase, Y. He, *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*,
#    SC 2020, [arXiv:1910.02054](https://arxiv.org/abs/1910.02054): the stages, Figure 1, Table 1, communication.
# 2. V. Korthikanti et al., *Reducing Activation Recomputation in Large Transformer Models*, 2022,
#    [arXiv:2205.05198](https://arxiv.org/abs/2205.05198): activations of a layer, selective recomputation, Table 4.
# 3. PyTorch documentation, [*fully_shard*](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html), and
#    [*torch.utils.checkpoint*](https://docs.pytorch.org/docs/stable/checkpoint.html). Y. Zhao et al., *PyTorch FSDP:
#    Experiences on Scaling Fully Sharded Data Parallel*, VLDB 2023, [arXiv:2304.11277](https://arxiv.org/abs/2304.11277):
#    FSDP1 and its flat parameters.
# 4. J. Ren et al., *ZeRO-Offload: Democratizing Billion-Scale Model Training*, USENIX ATC 2021,
#    [arXiv:2101.06840](https://arxiv.org/abs/2101.06840). Links: `fidle_utils/reference/gpu_specs.csv`.
# 5. T. Dao et al., *FlashAttention*, NeurIPS 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135).
# 6. BigScience, [*tr11-176B-ml*](https://github.com/bigscience-workshop/bigscience/tree/master/train/tr11-176B-ml): BLOOM
#    on Jean Zay, whose bf16 optimizer is equivalent to stage 1.
# 7. DeepSpeed, [*ZeRO stage 1 with reduced communication*](https://www.deepspeed.ai/2020/03/17/reduce-scatter.html), 2020.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("AdamW in mixed precision: bytes of model states for each parameter?", unit="bytes")
q2 = predict("Compared with data parallelism, ZeRO-2 sends…",
             options=["less", "the same", "half as much again"])

# %%
reveal(q1, 16, why="2 + 2 + 12: the master weight, m and v, in fp32.")
reveal(q2, "the same", why="reduce_scatter and all_gather: together, an all_reduce.")

# %%
q3 = predict("ZeRO-3 puts layer 5…", options=["on rank 5", "on all ranks, a piece each"])
q4 = predict("You double the ranks at stage 1. The memory of a rank…",
             options=["halves", "falls, towards 4 bytes a parameter", "stays"])
q5 = predict("The states fit, the activations do not. More ranks, with the same micro-batch each…",
             options=["help", "do not help"])
q6 = predict("Full checkpointing multiplies the arithmetic by about…", options=["1.03", "1.33", "2"])

# %%
reveal(q3, "on all ranks, a piece each", why="Every parameter is cut; every rank computes every layer.")
reveal(q4, "falls, towards 4 bytes a parameter", why="4 + 12/n: weights and gradients stay whole.")
reveal(q5, "do not help", why="Activations are each rank's own. Checkpoint, or make the micro-batch smaller.")
reveal(q6, "1.33", why="Forward twice, backward once: (1 + 1 + 2) / 3.")

# %%
from fidle_utils import progress

progress.show("08")
