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
# # 10 · Train well
#
# **You will** enlarge a batch until training breaks, and repair it; make four runs ill and diagnose four others from
# their logs; stop a training in the middle and go on with half the ranks; kill a rank and watch `torchrun` start
# again; and write a report that hides nothing.
#
# **You learn** how the learning rate follows the batch, what makes two runs equal bit for bit, how a hang, a silent
# disagreement, a NaN and a slow rank look, what a checkpoint must hold and how often to write one, and what
# throughput, MFU and kWh say, and under which assumptions.
#
# **You need** lesson 04 (data parallelism). Lessons 03 (collectives) and 08 (sharded states) help. No GPU is needed.
#
# **Time** 8 min live (the cells tagged `live`), 90 min alone, with five exercises.

# %% tags=["live"]
%load_ext fidle_utils
import os
import statistics
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fidle_utils import plots, ranks
from fidle_utils.data import digits
from fidle_utils.models import MLP
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal

os.environ["TORCH_FR_BUFFER_SIZE"] = "200"      # the ranks will remember their last 200 collectives

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## The batch grows with the ranks
#
# Every rank wants work. Keep the share of a rank, double the ranks, and the *global batch* (fr. *lot global*)
# doubles: an epoch now has half the steps. Each step has to go further, or the training ends too early.
#
# Goyal et al. (2017) trained ResNet-50 on ImageNet in one hour, on 256 GPUs, with two rules:
#
# 1. **Linear scaling.** Batch times $k$: learning rate (fr. *taux d'apprentissage*) times $k$.
# 2. **Gradual warm-up** (fr. *montée progressive*). Start with the small rate, reach the large one after five epochs.
#
# Let us try, on digits. A batch of 256 images gives the same gradient, whether one rank computes it or four together
# (lesson 04). So here every rank trains alone, with two seeds of its own: eight trainings of each kind.

# %% tags=["live"]
%%ranks
from torch.nn.functional import cross_entropy
from fidle_utils.data import digits
from fidle_utils.models import MLP

x_train, y_train, x_test, y_test = (t.to(device) for t in digits(test_fraction=0.4))

def learning_rate(epoch, batch, recipe):
    """The rate after `epoch` of 20 epochs; 0.02 is good for a batch of 16."""
    k = batch / 16
    rate = 0.02 * {"unscaled": 1, "square root": k**0.5}.get(recipe, k)
    if recipe == "linear, warm-up" and epoch < 5:
        rate = 0.02 + (rate - 0.02) * epoch / 5
    return rate if epoch < 16 else rate / 10

# %% tags=["live"]
%%ranks
def sgd(model):
    return torch.optim.SGD(model.parameters(), momentum=0.9)

def test_error(batch, rate_after, seed, optimizer_of=sgd):
    """Train an MLP for 20 epochs; return its error on the test images, in percent."""
    torch.manual_seed(seed)
    model = MLP().to(device)
    optimizer, steps = optimizer_of(model), len(x_train) // batch
    for epoch in range(20):
        order = torch.randperm(len(x_train))
        for i in range(steps):
            mine = order[i * batch:(i + 1) * batch]
            optimizer.param_groups[0]["lr"] = rate_after(epoch + i / steps)
            optimizer.zero_grad()
            cross_entropy(model(x_train[mine]), y_train[mine]).backward()
            optimizer.step()
    with torch.no_grad():
        return 100 * (model(x_test).argmax(1) != y_test).float().mean().item()

# %%
guess = predict("Batch 16 leaves about 3.5 % of errors. Batch 256, as many epochs, the same learning rate: "
                "how many?", unit="%")

# %% tags=["live"]
%%ranks
seeds = (rank, rank + world_size)
errors = {}
for recipe in ("linear, warm-up", "linear", "square root", "unscaled"):
    for batch in (16, 256, 512):
        if batch == 16 and errors:
            continue                            # the four recipes are one at the batch they start from
        rate_after = lambda epoch: learning_rate(epoch, batch, recipe)
        errors[recipe, batch] = [test_error(batch, rate_after, seed) for seed in seeds]

# %% tags=["live"]
measured = {}
for recipe, batch in ranks["errors"][0]:
    errors = [error for on_rank in ranks["errors"] for error in on_rank[recipe, batch]]
    measured.setdefault(recipe, {16: measured["linear, warm-up"][16]} if measured else {})[batch] = errors
print("errors in %, by batch")
for recipe, by_batch in measured.items():
    print(f"{recipe:16}", *(f"{batch}: {statistics.mean(errors):4.1f} ± {statistics.stdev(errors):4.1f}  "
                            for batch, errors in by_batch.items()))

# %%
reveal(guess, statistics.mean(measured["unscaled"][256]), why="Sixteen times fewer steps of the same length.")

# %% tags=["live"]
plots.plot_batch_sizes(measured, table("goyal_minibatch"));


# %% [markdown] tags=["live"]
# Left, you; right, their table. The same story at two sizes:
#
# - **Linear** keeps the error nearly flat over a factor of 16 here, 32 there. Then no rule helps.
# - **Square root** and **unscaled** lose before that, at 256 here and at 8192 there. (At 512 here all fail; the small
#   rate of the square root fails least.)
# - **Warm-up** repairs the start, when weights change fast. On ImageNet it makes 24.84 % into 23.74 % at 8192.
#   On our digits it gains nothing: look at the bars, eight seeds do not tell the two apart. This small net has no
#   difficult start; at 512 the rate is too large to *stay* stable, however slowly you climb to it.
#
# So take the direction from a table, the numbers from your own model, and compare the spread of the seeds with every
# difference before you believe it.

# %% [markdown]
# **Exercise 1.** Write the schedule of that paper. The base rate is 0.1 for a batch of 256. Scale it linearly. Climb
# in a straight line from 0.1 to the scaled rate over the first 5 epochs. Divide by 10 at epochs 30, 60 and 80.

# %% tags=["exercise"] fidle={"wrong": ["def goyal_rate(epoch, batch):\n    rate = 0.1 * (batch / 256) ** 0.5\n    if epoch < 5:\n        return 0.1 + (rate - 0.1) * epoch / 5\n    return rate * 0.1 ** sum(epoch >= e for e in (30, 60, 80))\n", "def goyal_rate(epoch, batch):\n    rate = 0.1 * batch / 256\n    if epoch < 5:\n        return rate * epoch / 5\n    return rate * 0.1 ** sum(epoch >= e for e in (30, 60, 80))\n", "def goyal_rate(epoch, batch):\n    rate = 0.1 * batch / 256\n    if epoch < 5:\n        return 0.1\n    return rate * 0.1 ** sum(epoch >= e for e in (30, 60, 80))\n", "def goyal_rate(epoch, batch):\n    rate = 0.1 * batch / 256\n    if epoch < 5:\n        return 0.1 + (rate - 0.1) * epoch / 5\n    return rate / 10 if epoch >= 30 else rate\n", "def goyal_rate(epoch, batch):\n    rate = 0.1 * batch / 256\n    return rate * 0.1 ** sum(epoch >= e for e in (30, 60, 80))\n"]}
def goyal_rate(epoch, batch):
    """The learning rate after `epoch` epochs (a float, 0 to 90), for a global batch."""
    ...

# %% tags=["check"]
def test_goyal(goyal_rate):
    def near(epoch, batch, rate):
        return abs(goyal_rate(epoch, batch) - rate) < 1e-6
    assert near(10, 256, 0.1), "batch 256, epoch 10: the base rate, 0.1, is expected."
    assert near(10, 8192, 3.2), f"8192 is 32 × 256: at epoch 10, 32 × 0.1, not {goyal_rate(10, 8192):.3g}."
    assert goyal_rate(0, 8192) < 3, "at epoch 0 there is no warm-up: start from 0.1."
    assert near(0, 8192, 0.1), f"warm-up starts from the base rate, 0.1, not {goyal_rate(0, 8192):.3g}."
    assert near(2.5, 8192, 1.65), f"half-way up is 1.65, not {goyal_rate(2.5, 8192):.3g}: a straight line."
    assert near(30, 8192, 0.32) and near(59, 8192, 0.32), "from epoch 30 to 60 the rate is a tenth, 0.32."
    assert near(60, 8192, 0.032) and near(85, 8192, 0.0032), "60 and 80 divide by 10 as well, on top of 30."

check(goyal_rate, test_goyal, hint="scale; before epoch 5 a straight line; a tenth at 30, at 60, at 80")

# %% tags=["solution"] jupyter={"source_hidden": true}
def goyal_rate(epoch, batch):
    rate = 0.1 * batch / 256
    if epoch < 5:
        return 0.1 + (rate - 0.1) * epoch / 5
    return rate * 0.1 ** sum(epoch >= milestone for milestone in (30, 60, 80))

check(goyal_rate, test_goyal)

# %% [markdown]
# ## Further: one rate for each layer
#
# In one step of SGD some layers move by a large part of their weights, others hardly at all. At a large rate the first
# kind breaks. LARS (You et al., 2017) gives every layer its own rate, so that **all move by the same fraction**:
#
# $$\Delta w = -\gamma\;\frac{\lVert w\rVert}{\lVert g\rVert}\;g \qquad\text{(here without weight decay)}$$
#
# It is a hook in front of SGD, which keeps the momentum.

# %%
%%ranks
def lars(model):
    """SGD with momentum, after every gradient was given the norm of its weights."""
    def rescale(*_):
        for p in model.parameters():
            p.grad *= p.detach().norm() / p.grad.norm().clamp_min(1e-12)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    optimizer.register_step_pre_hook(rescale)
    return optimizer

# %% [markdown]
# LAMB (You et al., 2019) does the same to Adam: a step of AdamW, then every layer's step is rescaled. PyTorch has
# neither. So we take PyTorch's AdamW as it is, and rescale what it did.

# %%
%%ranks
@torch.no_grad()
def lamb_rescale(parameters, before, lr):
    for p, w in zip(parameters, before):
        update = (p - w) / lr                   # what AdamW did, weight decay included, but for the rate
        p.copy_(w + lr * update * w.norm() / update.norm().clamp_min(1e-12))

def lamb(model):
    optimizer, before = torch.optim.AdamW(model.parameters(), weight_decay=0.01), []
    def remember(*_):
        before[:] = [p.detach().clone() for p in model.parameters()]
    def rescale(optimizer, *_):
        lamb_rescale(model.parameters(), before, optimizer.param_groups[0]["lr"])
    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(rescale)
    return optimizer

# %% [markdown]
# Are they right? LARS: after the first step every layer has moved by exactly the rate times its norm. LAMB: two
# steps, beside the paper's formulas written out (its algorithm 2, with Adam's corrections of the bias).

# %%
%%ranks
def fresh(seed=0):
    torch.manual_seed(seed)
    model = MLP().to(device)
    cross_entropy(model(x_train[:512]), y_train[:512]).backward()
    return model

for make in (sgd, lars):
    model = fresh()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make(model)
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.step()
    moved = torch.stack([(p - w).norm() / w.norm() for p, w in zip(model.parameters(), before)]).detach()
    print(f"{make.__name__:5} moves the six tensors by", *(f"{100 * m:.3f} %" for m in moved.tolist()))
torch.testing.assert_close(moved, torch.full_like(moved, 0.02))

# %%
%%ranks
model = fresh()
w = [p.detach().clone() for p in model.parameters()]
m, v = [torch.zeros_like(t) for t in w], [torch.zeros_like(t) for t in w]
optimizer = lamb(model)
optimizer.param_groups[0]["lr"] = 0.05
for t in (1, 2):
    for i, g in enumerate([p.grad for p in model.parameters()]):
        m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
        r = (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8) + 0.01 * w[i]
        w[i] = w[i] - 0.05 * w[i].norm() / r.norm() * r
    optimizer.step()
far = max((p - expected).abs().max().item() for p, expected in zip(model.parameters(), w))
print(f"LAMB from AdamW and LAMB from its formulas: largest difference {far:.0e}")
assert far < 1e-5

# %%
guess = predict("Batch 512, five epochs of warm-up. Which makes the fewest errors?",
                options=["SGD", "LARS", "LAMB", "AdamW"])

# %%
%%ranks
def adamw(model):
    return torch.optim.AdamW(model.parameters())

def warmed(rate):
    return lambda epoch: rate * min(1, (epoch + 0.5) / 5) / (10 if epoch >= 16 else 1)

rates = {"sgd": (sgd, 0.2), "lars": (lars, 0.04), "lamb": (lamb, 0.06), "adamw": (adamw, 0.03)}
errors = {name: [test_error(512, warmed(rate), seed, make) for seed in seeds]
          for name, (make, rate) in rates.items()}

# %%
best = {}
for name in ranks["errors"][0]:
    errors = sum((on_rank[name] for on_rank in ranks["errors"]), [])
    best[name] = statistics.mean(errors)
    print(f"{name:6} {best[name]:5.2f} ± {statistics.stdev(errors):.2f} %")
reveal(guess, {"sgd": "SGD", "lars": "LARS", "lamb": "LAMB", "adamw": "AdamW"}[min(best, key=best.get)],
       why="The rates are the best of three or four that the authors of this lesson tried.")

# %% [markdown]
# LARS about halves SGD's errors at this batch. And then plain AdamW, which also gives
# each weight a rate of its own, does as well or better *on this small problem*. LAMB's authors report BERT with
# batches of 32 868, in 76 minutes instead of 3 days. An optimizer is worth its tuning: compare each at *its* best rate.
#
# Is there a batch beyond which nothing helps? Yes: once the noise of the gradient is averaged out, more images say
# nothing new. McCandlish et al. (2018) estimate that batch from the spread of the gradients.

# %% [markdown]
# ## Chance, on many ranks
#
# *Dropout* draws numbers, and so does data augmentation. Should ranks draw the same? You seed every rank with 0, so
# that the weights start equal…

# %%
guess = predict("After torch.manual_seed(0) everywhere, four ranks drop out activations. Their masks are…",
                options=["equal", "different"])

# %%
%%ranks
def mask():
    return (torch.nn.functional.dropout(torch.ones(16, device=device), 0.5) > 0).long().tolist()

torch.manual_seed(0)
same = mask()
torch.manual_seed(1000 + rank)                  # once the weights are made: a seed for each rank
own = mask()
print(*same, "|", *own)

# %%
reveal(guess, "equal", why="Left: one mask, four times. All four shares lose the same units.")

# %% [markdown]
# The cure is the right column: **one seed for the weights, then one for each rank**. (With tensor parallelism there is
# an exception: what the ranks of one tensor group hold twice must be dropped alike.)
#
# The workers of a `DataLoader` take their seeds from the rank that starts them. So they inherit the mistake:

# %%
%%ranks
from torch.utils.data import DataLoader
from fidle_utils.noisy_data import Draws

for name, seed in (("same seed", 0), ("own seed ", 1000 + rank)):
    torch.manual_seed(seed)
    (drawn,) = DataLoader(Draws(1), num_workers=1)
    print(f"{name}: worker 0 draws", *drawn.flatten().tolist())

# %% [markdown]
# Each line: PyTorch, NumPy, Python's `random`. PyTorch seeds all three in a worker, from one number drawn by the
# rank: four ranks with one seed augment their images in the same four ways.

# %% [markdown]
# ## Sums travel, ratios do not
#
# Lesson 04 counted test images twice, in the padding of a sampler. Here is the other trap of evaluation.
# A language model is judged by its *perplexity* $e^{\text{mean loss}}$. Four ranks, four documents:

# %%
guess = predict("Losses 1, 2, 3, 6 on 10, 10, 10, 70 tokens. Each rank computes its perplexity, you "
                "average the four. Is the result too small or too large?",
                options=["too small", "exact", "too large"])

# %%
%%ranks
loss, tokens = [(1.0, 10), (2.0, 10), (3.0, 10), (6.0, 70)][rank]
average = torch.tensor(loss, device=device).exp() / world_size
totals = torch.tensor([loss * tokens, tokens], device=device)
dist.all_reduce(average)
dist.all_reduce(totals)
exact = (totals[0] / totals[1]).exp()
if rank == 0:
    print(f"mean of four perplexities {average:.1f} · from summed losses and counts {exact:.1f}")

# %%
reveal(guess, "too small", why="exp of a mean is not the mean of exps, and 70 tokens weigh like 10: "
       "here it hides the worst document.")

# %% [markdown]
# Reduce **sums and counts**; divide, take the root or the exponential afterwards. The same holds for precision,
# recall, F1, and for a loss over sequences of different lengths: its gradient needs the count of *all* ranks' tokens.

# %% [markdown]
# ## Twice the same run
#
# One training by hand, ten steps, 64 images a step. We change one thing at a time, and compare the weights **bit for
# bit** with those of the first run.

# %%
%%ranks
from torch.nn.utils import parameters_to_vector

def ten_steps(n=4, threads=1, seed=0, buckets=False):
    """Train with the first n ranks; return the weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = MLP(width=256).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(10):
        x, y = x_train[64 * step:64 * step + 64], y_train[64 * step:64 * step + 64]
        optimizer.zero_grad()
        cross_entropy(model(x.chunk(n)[rank]), y.chunk(n)[rank]).backward()
        average(model, groups[n], n, buckets)
        optimizer.step()
    torch.set_num_threads(1)
    return parameters_to_vector(model.parameters()).detach()

# %%
%%ranks
def average(model, group, n, buckets):
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    for piece in [flat] if buckets else flat.split([g.numel() for g in gradients]):
        dist.all_reduce(piece, group=group)     # one bucket, or a message for each tensor
        piece /= n
    for g, piece in zip(gradients, flat.split([g.numel() for g in gradients])):
        g.copy_(piece.view_as(g))

groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 4)}

# %%
guess = predict("Same seed, same batches, on 4 ranks or on 2. The weights after ten steps are…",
                options=["equal, bit for bit", "equal but for rounding", "very different"])

# %%
%%ranks
first = ten_steps()
changes = {"nothing": {}, "two threads a rank": dict(threads=2), "one bucket": dict(buckets=True),
           "2 ranks": dict(n=2), "1 rank": dict(n=1), "another seed": dict(seed=1)}
rows = []
for what, change in changes.items():
    if rank < change.get("n", 4):
        again = ten_steps(**change)
        rows.append((what, torch.equal(first, again), (first - again).abs().max().item()))

# %%
print(f"{'what changed':20} {'same bits':10} largest difference")
for what, same, far in ranks["rows"][0]:
    print(f"{what:20} {'yes' if same else 'no':10} {far:.1e}")
torch.testing.assert_close(torch.tensor(ranks["rows"][0][4][2]), torch.tensor(0.0), atol=1e-5, rtol=0)
reveal(guess, "equal but for rounding",
       why="Other shares, other sums: a + (b + c) is not (a + b) + c in floats.")

# %% [markdown]
# So "the same run" means: the same seed, software, hardware, **number of ranks, buckets**, and so on. What you can ask
# of two different layouts is equality *within rounding*, and that is what all the checks of this course ask.
#
# On GPUs some kernels add in the order in which threads finish, other at every run. `use_deterministic_algorithms`
# chooses kernels that do not, or raises. It also fills `torch.empty` with NaN, so that a forgotten value shows:

# %%
torch.use_deterministic_algorithms(True)
print("torch.empty(3):", torch.empty(3))
try:
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))         # which of the two stays?
except RuntimeError as error:
    print(f"put_: {str(error).split(', but')[0]}")
torch.use_deterministic_algorithms(False)

# %% [markdown]
# On NVIDIA GPUs add `CUBLAS_WORKSPACE_CONFIG=:4096:8` to the environment and keep `torch.backends.cudnn.benchmark`
# off. It costs speed: use it to chase a bug, not for the long run.

# %% [markdown]
# ## First illness: the hang
#
# One rank does not come to a collective: the others wait (lessons 00 and 03). In the notebook the report names it.
# In a job at three in the morning, you need tools. **Ask the ranks who is missing:** `monitored_barrier` waits, and
# raises with the names of the absent. It exists on gloo only: next to NCCL, make a gloo group for it.

# %%
%%ranks
from datetime import timedelta

control = dist.new_group(backend="gloo")
try:
    if rank != 2:                               # rank 2 believes that it has finished
        dist.monitored_barrier(control, timeout=timedelta(seconds=1), wait_all_ranks=True)
    print("passed")
except RuntimeError as error:
    print(str(error).partition("\n")[0])

# %% [markdown]
# Rank 0 has the answer; the others only know that rank 0 gave up. **So read rank 0's log first.** (The lines with
# `[E…` are PyTorch's own log.)
#
# **Ask a process where it is.** `py-spy dump --pid …` reads the stack of any Python process, if you may trace it.
# Python's own `faulthandler` needs no right and no installation, but must be armed before. After the time that you
# give, it prints the stack, even from inside a blocked collective:

# %%
%%ranks
import faulthandler, tempfile, time

numbers, report = torch.ones(3, device=device), tempfile.TemporaryFile("w+")
faulthandler.dump_traceback_later(0.5, file=report)     # on a cluster: 600 s, and a file for each rank
if rank == 2:
    time.sleep(1)                               # lost in its data loader
dist.all_reduce(numbers)
numbers.sum().item()                            # on a GPU the processor waits here, not in all_reduce
faulthandler.cancel_dump_traceback_later()
report.seek(0)
lines = report.read().splitlines()
here = next(i for i, line in enumerate(lines) if "ipykernel_" in line)          # the frame of this cell
begin = max(i for i, line in enumerate(lines[:here]) if "hread 0x" in line)     # of the stack of its thread
stack = [line.partition(", line ")[2] for line in lines[begin + 1:here + 1]]
print("  ←  ".join(stack[-3:]))                 # (line) in (function), innermost first

# %% [markdown]
# Read from the right: line 8 of the cell called PyTorch's wrapper, which called `all_reduce`. Rank 2 is on line 7.
# The one that is *elsewhere* is the culprit. (`%ranks` and the reports of this course ask `faulthandler` too.)

# %% [markdown]
# **Ask what was the last collective.** PyTorch's *flight recorder* (fr. *boîte noire*) keeps the latest ones of each
# rank. That is what `TORCH_FR_BUFFER_SIZE` at the top of this lesson turned on. We start one without waiting for it:

# %%
%%ranks
import json

# Private names, and another one for NCCL: they may change.
name = "_dump_nccl_trace_json" if device.type == "cuda" else "_dump_fr_trace_json"
dump = getattr(torch._C._distributed_c10d, name, None)

work = None if rank == 2 else dist.all_reduce(numbers, async_op=True)
time.sleep(0.2)
entries = json.loads(dump()).get("entries", []) if dump else []
for entry in [entry for entry in entries if entry["process_group"][0] == "0"][-1:]:     # of the default group
    print(f"collective {entry['collective_seq_id']}: {entry['profiling_name']} {entry['input_sizes']}, "
          f"{'over' if entry['retired'] else 'NOT OVER'}")
if not dump:
    print("this PyTorch has no such recorder")
work = work or dist.all_reduce(numbers, async_op=True)          # rank 2 comes at last
done = work.wait()

# %% [markdown]
# Three ranks have one collective more than rank 2, and it is not over. On a cluster every rank writes such a file when
# NCCL's watchdog gives up, and `torchfrtrace` compares them. `TORCH_DISTRIBUTED_DEBUG=DETAIL` (lesson 03) compares
# before every collective, and costs time; on the CPU, with DDP, it crashed our PyTorch.

# %% [markdown]
# ## Second illness: ranks that disagree
#
# The worst one: nothing hangs, nothing is raised. Rank 3 reduces the same two tensors in another order, as a loop
# over a `set` of names may do.

# %%
guess = predict("a holds rank (0, 1, 2, 3), b holds 100. Rank 3 reduces b first. On rank 0, a becomes…",
                options=["6", "103", "400", "an error"])

# %%
%%ranks
a, b = torch.tensor([float(rank)], device=device), torch.tensor([100.0], device=device)
for tensor in (b, a) if rank == 3 else (a, b):
    dist.all_reduce(tensor)
print(f"a = {a.item():.0f} (should be 6), b = {b.item():.0f} (should be 400)")

# %%
reveal(guess, "103",
       why="Collectives pair by order, not by name: 0 + 1 + 2 + 100. The shapes fit, nobody notices.")

# %% [markdown]
# Another optimizer on one rank, a parameter that one rank forgot, a batch norm's buffers, a checkpoint half read: all
# end in ranks with different weights. One cheap habit finds them all: **compare the weights from time to time.**
#
# **Exercise 2.** Write `in_step(model)`: True, on every rank, if all ranks hold the same weights, bit for bit.
# Leave the model as it is. (`dist.ReduceOp.MIN` and `MAX` exist; so does `tensor.view(torch.int32)`, which shows
# the bits of a float32 as an integer; so does `dist.all_gather_object`.)

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef in_step(model):\n    mine = sum(p.detach().sum() for p in model.parameters())\n    low, high = mine.clone(), mine.clone()\n    dist.all_reduce(low, op=dist.ReduceOp.MIN)\n    dist.all_reduce(high, op=dist.ReduceOp.MAX)\n    return bool(low == high)\n", "%%ranks\ndef in_step(model):\n    mine = parameters_to_vector(model.parameters()).detach()\n    rank_0 = mine.clone()\n    dist.broadcast(rank_0, src=0)\n    same = torch.tensor(float(torch.allclose(mine, rank_0)), device=device)\n    dist.all_reduce(same, op=dist.ReduceOp.MIN)\n    return bool(same)\n", "%%ranks\ndef in_step(model):\n    mine = parameters_to_vector(model.parameters()).detach()\n    rank_0 = mine.clone()\n    dist.broadcast(rank_0, src=0)\n    return torch.equal(mine.view(torch.int32), rank_0.view(torch.int32))\n", "%%ranks\ndef in_step(model):\n    bits = parameters_to_vector(model.parameters()).detach()\n    low, high = bits.clone(), bits.clone()\n    dist.all_reduce(low, op=dist.ReduceOp.MIN)\n    dist.all_reduce(high, op=dist.ReduceOp.MAX)\n    return torch.equal(low, high)\n", "%%ranks\ndef in_step(model):\n    same = True\n    for p in model.parameters():\n        mine = p.detach().view(torch.int32).clone()\n        dist.broadcast(p.data, src=0)\n        same = same and torch.equal(mine, p.detach().view(torch.int32))\n    same = torch.tensor(float(same), device=device)\n    dist.all_reduce(same, op=dist.ReduceOp.MIN)\n    return bool(same)\n"]}
%%ranks
def in_step(model):
    """True, on every rank, if the parameters of all the ranks have the same bits."""
    ...

# %% tags=["check"]
def test_in_step(in_step):
    def ask(spoil=lambda w: None, on=2):
        torch.manual_seed(0)
        model = MLP().to(device)
        weights = model.layers[1].weight.data
        if rank == on or on is None:
            spoil(weights)
        before = parameters_to_vector(model.parameters()).detach().clone().view(torch.int32)
        answer = in_step(model)
        after = parameters_to_vector(model.parameters()).detach().view(torch.int32)
        assert torch.equal(before, after), "the weights changed: work on a copy."
        answers = [None] * world_size
        dist.all_gather_object(answers, answer)
        assert len(set(answers)) == 1, f"the ranks answer {answers}: all must know. Reduce the verdict."
        return bool(answer)
    assert ask(), "four equal models: True is expected."
    assert not ask(lambda w: w[0, 0].neg_()), "a weight of rank 2 has another sign: False is expected."
    assert not ask(lambda w: w.copy_(w.roll(1, 1))), "rank 2 has its weights in other places: sums are blind."
    assert not ask(lambda w: w.copy_(w.nextafter(w + 1))), "the last bits differ on rank 2: no tolerance."
    assert ask(lambda w: w[0, 0].fill_(torch.nan), None), "one NaN everywhere: NaN ≠ NaN, yet its bits agree."

check("in_step", test_in_step, hint="the MIN and the MAX over the ranks, of the bits as integers", timeout=8)

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def in_step(model):
    bits = parameters_to_vector(model.parameters()).detach().view(torch.int32)
    low, high = bits.clone(), bits.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return torch.equal(low, high)               # where all agree, the least is the greatest

# %% tags=["solution"] jupyter={"source_hidden": true}
check("in_step", test_in_step, timeout=8)

# %% [markdown]
# ## Third illness: a NaN is born

# %%
guess = predict("One number of one gradient is NaN, on rank 1. How many ranks have one after the all_reduce?",
                unit="ranks")

# %%
%%ranks
model = fresh()                                 # on every rank now: equal weights, a gradient
p = next(model.parameters())
if rank == 1:
    p.grad[0, 0] = torch.nan
born_here = not all(bool(p.grad.isfinite().all()) for p in model.parameters())     # look BEFORE the reduction
dist.all_reduce(p.grad)
print(f"born here: {born_here} · after all_reduce: {p.grad.isnan().sum().item()} NaN")

# %%
reveal(guess, 4, why="A sum with NaN is NaN. A step later all weights are, and who remembers where it began?")

# %% [markdown]
# So a log of the *averaged* loss and gradient cannot tell the culprit. **Log each rank's own loss, before the
# reduction.** And let all ranks skip the bad step *together*: after the reduction they all see the same NaN, and take
# the same decision without a message.
#
# A NaN that always comes from the same rank is its data, or its GPU. A NaN on all ranks at once is the learning rate,
# or fp16.

# %% [markdown]
# ## Fourth illness: the straggler
#
# Rank 2 is slow (fr. *retardataire*): a GPU that overheats, a data loader that starves.

# %%
guess = predict("Rank 2 needs 60 ms more for its step. Which rank waits the least?",
                options=["rank 0", "rank 2", "all wait alike"])

# %%
%%ranks --timeline
import time

model = MLP(width=256, depth=4).to(device)
for _ in range(2):
    if rank == 2:
        time.sleep(0.06)                        # emulated: its data loader is late
    cross_entropy(model(x_train[:64]), y_train[:64]).backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)

# %%
plots.plot_timeline(ranks.timeline);

# %%
reveal(guess, "rank 2", why="All the others sit in their first all_reduce until it comes.")
ranks.timeline.summary()

# %% [markdown]
# The steps of all the ranks have the same length: looking at step times, you find nobody. **The slow rank is the one
# that never waits.** During BLOOM's training one slow GPU took the whole machine of 384 from about 149 to 141 TFLOP/s;
# without such a log, they found its node by leaving out three nodes at a time.

# %% [markdown] tags=["live"] fidle={"minutes": 4}
# ## Four patients
#
# Here is what to write in a log, for each rank and step: its own loss, how long it waited for the others, and a
# checksum of its weights. This training is well:

# %% tags=["live"]
%%ranks
from fidle_utils.patients import visit

log = visit("healthy", device)
if rank == 0:
    print(*(f"step {row['step']}: loss {row['loss']:.3f}, waited {row['waited_ms']:.1f} ms, "
            f"weights {row['weights']:08x}" for row in log[:3]), sep="\n")

# %% [markdown] tags=["live"]
# And here are four others. Each has one ill rank, from some step on.

# %% tags=["live"]
%%ranks
patients = {name: visit(name, device) for name in ("A", "B", "C", "D")}

# %% tags=["live"]
logs = {"healthy": ranks["log"]}
for name in "ABCD":
    logs[f"patient {name}"] = [of_rank[name] for of_rank in ranks["patients"]]
plots.plot_vital_signs(logs);

# %% [markdown] tags=["live"]
# (A cross is a loss that is NaN.) And the last row of every log, which a figure cannot show:

# %% tags=["live"]
for name in list(logs)[1:]:
    print(name)
    for i, rows in enumerate(logs[name]):
        row = rows[-1]
        print(f"  rank {i}: {len(rows):2} steps, loss {row['loss']:.3f}, waited {row['waited_ms']:6.1f} ms.",
              row["error"][:60])

# %% [markdown] tags=["live"]
# How to tell, in the order in which to look:
#
# | sign | illness | whose |
# |---|---|---|
# | a rank's log is shorter, the others wait until the timeout | hang | the short log's; rank 0 names it |
# | a loss is NaN | NaN | the rank that has it *first* |
# | the checksums differ | desynchronised | the one that differs from most |
# | all steps are long | straggler | the one that waits least |
#
# **Exercise 3.** Diagnose them. The illnesses are `"hang"`, `"desynchronised"`, `"NaN"` and `"straggler"`. For each
# patient, give the illness and the rank where it began, such as `"A": ("hang", 0)`.

# %% tags=["exercise", "live"] fidle={"wrong": ["diagnosis = {\"A\": (\"hang\", 2), \"B\": (\"hang\", 2), \"C\": (\"desynchronised\", 3), \"D\": (\"NaN\", 1)}\n", "diagnosis = {\"A\": (\"straggler\", 1), \"B\": (\"hang\", 2), \"C\": (\"desynchronised\", 3), \"D\": (\"NaN\", 1)}\n", "diagnosis = {\"A\": (\"straggler\", 0), \"B\": (\"hang\", 0), \"C\": (\"desynchronised\", 3), \"D\": (\"NaN\", 1)}\n", "diagnosis = {\"A\": (\"straggler\", 0), \"B\": (\"hang\", 2), \"C\": (\"desynchronised\", 0), \"D\": (\"NaN\", 1)}\n", "diagnosis = {\"A\": (\"straggler\", 0), \"B\": (\"hang\", 2), \"C\": (\"desynchronised\", 3), \"D\": (\"NaN\", 0)}\n", "diagnosis = {\"A\": (\"straggler\", 0), \"B\": (\"NaN\", 1), \"C\": (\"desynchronised\", 3), \"D\": (\"hang\", 2)}\n"]}
diagnosis = {"A": ..., "B": ..., "C": ..., "D": ...}

# %% tags=["check", "live"]
from fidle_utils.patients import second_opinion

check(diagnosis, second_opinion, name="diagnosis")

# %% tags=["solution"] jupyter={"source_hidden": true}
diagnosis = {"A": ("straggler", 0), "B": ("hang", 2), "C": ("desynchronised", 3), "D": ("NaN", 1)}
check(diagnosis, second_opinion, name="diagnosis")

# %% [markdown]
# ## A training that can stop
#
# BLOOM lost a GPU "every week or so". A usual job on Jean Zay (QoS t3) ends after 20 hours. So a training must be able
# to stop anywhere, and to go on as if nothing had happened. We write one as a script: the ranks will import it, and
# `torchrun` will start it. First, who reads which image. **The position is all that there is to remember:**

# %%
import tempfile

folder = tempfile.TemporaryDirectory()
script = Path(folder.name, "resumable.py")

# %%
%%writefile {script}
"""A training that can stop after any step and go on."""
import torch
import torch.distributed as dist

class Batches:
    """Each rank's share of seeded batches; `step` is the position."""
    def __init__(self, n, batch, seed=0):
        self.n, self.batch, self.seed, self.step = n, batch, seed, 0

    def next_share(self):
        epoch, i = divmod(self.step, self.n // self.batch)
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed + epoch))
        self.step += 1
        return order[i * self.batch:(i + 1) * self.batch].chunk(dist.get_world_size())[dist.get_rank()]

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]

# %% [markdown]
# Next, chance: every rank has its own, so every rank saves its own. And the optimizer: a new Adam is *empty*, it makes
# its moments in the first step. `get_optimizer_state_dict` makes them before it loads into them.

# %%
%%writefile -a {script}

from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

class Chance:
    """The random numbers of this rank: what dropout will draw next."""
    def __init__(self, device):
        self.get, self.set = torch.get_rng_state, torch.set_rng_state
        if device.type == "cuda":
            self.get, self.set = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    def state_dict(self):
        return {f"rank {dist.get_rank()}": self.get()}
    def load_state_dict(self, state):
        self.set(state[f"rank {dist.get_rank()}"])

class OptimizerState:
    """The states of an optimizer, whole even when it has made no step yet."""
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
    def state_dict(self):
        return get_optimizer_state_dict(self.model, self.optimizer)
    def load_state_dict(self, state):
        set_optimizer_state_dict(self.model, self.optimizer, optim_state_dict=state)

# %% [markdown]
# Last, the training itself. `fully_shard` (lesson 08) gives every rank its part of the weights, gradients and Adam's
# states: no rank could save them all.

# %%
%%writefile -a {script}

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, dropout
from torch.optim.lr_scheduler import LambdaLR
from fidle_utils.data import digits
from fidle_utils.models import MLP

class Run:
    """All that one training is made of, on this rank."""
    def __init__(self, device, dropout=0.1, seed=0):
        torch.manual_seed(seed)                                 # equal weights…
        self.dropout, self.device = dropout, device
        self.x, self.y = (tensor.to(device) for tensor in digits()[:2])
        self.model = MLP().to(device)
        fully_shard(self.model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = LambdaLR(self.optimizer, lambda step: min(1, (step + 1) / 30))
        self.batches, self.chance = Batches(len(self.x), 64), Chance(device)
        torch.manual_seed(1000 * (seed + 1) + dist.get_rank())  # …other masks

    def weights(self):
        return torch.cat([p.full_tensor().flatten() for p in self.model.parameters()]).detach()

# %%
%%writefile -a {script}

def train(run, until):
    """Train to step `until`; return the loss of each step, over the whole batch."""
    losses = []
    while run.batches.step < until:
        mine = run.batches.next_share()
        run.optimizer.zero_grad()
        loss = cross_entropy(run.model(dropout(run.x[mine], run.dropout)), run.y[mine])
        loss.backward()
        run.optimizer.step()
        run.scheduler.step()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses

# %% [markdown]
# ## What must a checkpoint hold?
#
# *Distributed checkpoint* (DCP; fr. *point de reprise*) saves a dict, name → anything that has a `state_dict`.
# **Every rank calls it and writes its own part**, in parallel; what all ranks share is written once. `dcp.load` reads
# into the objects that you give it.
#
# **Exercise 4.** Which parts of a `run` must a checkpoint hold, so that the resumed training ends with the *same bits*
# as one that was never stopped? A `run` has model, optimizer, scheduler, batches, chance, x, y, dropout, device.

# %%
ranks.push(path=folder.name)

# %%
%%ranks
import sys, tempfile, time
import torch.distributed.checkpoint as dcp

sys.path.insert(0, path)
from resumable import OptimizerState, Run, train

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef contents(run):\n    return {\"model\": run.model}\n", "%%ranks\ndef contents(run):\n    return {\"model\": run.model, \"optimizer\": run.optimizer, \"scheduler\": run.scheduler, \"batches\": run.batches, \"chance\": run.chance}\n", "%%ranks\ndef contents(run):\n    return {\"model\": run.model, \"optimizer\": OptimizerState(run.model, run.optimizer), \"batches\": run.batches, \"chance\": run.chance}\n", "%%ranks\ndef contents(run):\n    return {\"model\": run.model, \"optimizer\": OptimizerState(run.model, run.optimizer), \"scheduler\": run.scheduler, \"chance\": run.chance}\n", "%%ranks\ndef contents(run):\n    return {\"model\": run.model, \"optimizer\": OptimizerState(run.model, run.optimizer), \"scheduler\": run.scheduler, \"batches\": run.batches}\n", "%%ranks\ndef contents(run):\n    return {\"optimizer\": OptimizerState(run.model, run.optimizer), \"scheduler\": run.scheduler, \"batches\": run.batches, \"chance\": run.chance}\n"]}
%%ranks
def contents(run):
    """What a checkpoint of `run` must hold: a dict, name → an object with a state_dict."""
    return {"model": run.model, ...: ...}

# %% [markdown]
# The check stops a run after six steps, saves, loads into a run that started from another seed, and goes on to step 12.

# %% tags=["check"]
def test_contents(contents):
    def moments(run):
        return [state["exp_avg"].to_local().sum().item() for state in run.optimizer.state.values()]
    where = [tempfile.mkdtemp(dir=path) if rank == 0 else None]
    dist.broadcast_object_list(where, device=device)
    whole, first, second = Run(device), Run(device), Run(device, seed=1)
    torch.manual_seed(rank)
    train(whole, 12)
    torch.manual_seed(rank)                             # `first` draws the masks that `whole` drew
    train(first, 6)
    dcp.save(contents(first), checkpoint_id=where[0])
    saved, drawn = first.weights(), first.chance.get()
    torch.manual_seed(1234 + rank)                      # somebody else draws numbers meanwhile
    dcp.load(contents(second), checkpoint_id=where[0])
    assert torch.equal(second.weights(), saved), "the weights are not the saved ones: the model is missing."
    bare = any(isinstance(part, torch.optim.Optimizer) for part in contents(first).values())
    assert not bare, "a new Adam is empty: nothing is loaded into it. Save OptimizerState(model, optimizer)."
    assert moments(second) == moments(first), "Adam's moments are lost: the optimizer is missing."
    assert second.scheduler.last_epoch == 6, "the scheduler starts again: the warm-up would be done twice."
    assert second.batches.step == 6, f"the next batch is {second.batches.step}, not 6: images seen twice."
    assert torch.equal(second.chance.get(), drawn), "dropout would draw other masks: whose state is it?"
    train(second, 12)
    assert torch.equal(whole.weights(), second.weights()), "the end is not the same, bit for bit."

check("contents", test_contents, hint="weights, and whatever else a step changes", timeout=15)

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def contents(run):
    return {"model": run.model, "optimizer": OptimizerState(run.model, run.optimizer),
            "scheduler": run.scheduler, "batches": run.batches, "chance": run.chance}

# %% tags=["solution"] jupyter={"source_hidden": true}
check("contents", test_contents, timeout=15)

# %% [markdown]
# Loss curves would not have told you: a run without its scheduler or its position learns too, a little less well, for
# ever. Bits tell.

# %% [markdown]
# The script needs the answer too.

# %%
%%writefile -a {script}

import os

def contents(run):
    return {"model": run.model, "optimizer": OptimizerState(run.model, run.optimizer),
            "scheduler": run.scheduler, "batches": run.batches, "chance": run.chance}

def device_of_this_rank():
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)

# %% [markdown]
# ## Save on four ranks, go on with two
#
# The queue is long and half of the GPUs are free. Can a checkpoint of four ranks be read by two? Their shards are
# twice as large. DCP knows which part of which tensor lies in which file.
#
# Without dropout, so that only the arithmetic counts: 24 steps on four ranks, a save half-way.

# %%
%%ranks
run = Run(device, dropout=0)
losses = train(run, 12)
shard = sum(p.to_local().nbytes for p in run.model.parameters())
dcp.save(contents(run), checkpoint_id=f"{path}/four")
losses += train(run, 24)
final = run.weights().cpu()
print(f"my shard of the weights: {shard} bytes of {sum(p.nbytes for p in run.model.parameters())}")

# %%
for file in sorted(Path(folder.name, "four").iterdir()):
    print(f"{file.name:15} {file.stat().st_size:7} bytes")

# %% [markdown]
# A file from each rank, and `.metadata`, the plan of it all. It is written last, by one rank, when everybody is done:
# **a folder without `.metadata` is a checkpoint that was interrupted.** Keep the one before until it is there.
#
# Four ranks must be one process, as ever:

# %%
torch.manual_seed(0)
model = MLP()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
x, y, *_ = digits()
epochs = [torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)) for epoch in (0, 1)]
alone = []
for step in range(24):                          # 22 batches of 64 in epoch 0, two in epoch 1
    epoch, i = divmod(step, len(x) // 64)
    mine = epochs[epoch][64 * i:64 * i + 64]
    optimizer.param_groups[0]["lr"] = 0.01 * (step + 1) / 30
    optimizer.zero_grad()
    loss = cross_entropy(model(x[mine]), y[mine])
    loss.backward()
    optimizer.step()
    alone.append(loss.item())
four, uninterrupted = ranks["losses"][0], ranks["final"][0]
torch.testing.assert_close(four, alone, atol=1e-3, rtol=0)
print(f"largest difference of a loss with one process: {max(abs(a - b) for a, b in zip(four, alone)):.0e}")

# %% [markdown]
# A save stops the training. `async_save` copies the states, returns, and writes in the background. It needs a gloo
# group beside NCCL: `init_process_group("cpu:gloo,cuda:nccl")`. **Wait for the last one before you start the next.**

# %%
%%ranks
def milliseconds(action):
    start = time.perf_counter()
    result = action()
    return 1e3 * (time.perf_counter() - start), result

dist.barrier()
if "gloo" in dist.get_backend_config():
    stopped, _ = milliseconds(lambda: dcp.save(contents(run), checkpoint_id=f"{path}/sync"))
    copied, saving = milliseconds(lambda: dcp.async_save(contents(run), checkpoint_id=f"{path}/async"))
    written, _ = milliseconds(saving.result)
    print(f"the training stands still for {stopped:.0f} ms in save, {copied:.0f} ms in async_save, "
          f"which then writes for {written:.0f} ms")
else:
    print("these ranks have no gloo group: async_save would refuse")

# %% [markdown]
# A toy of this size shows the order of things, not the gain: most of it is fixed cost. For BLOOM, 2.3 TB took about
# 40 s: 384 GPUs stood still.
#
# Now two ranks, new processes:

# %%
guess = predict("Two ranks go on from the checkpoint of four. Against those of four, the last weights are…",
                options=["equal, bit for bit", "equal but for rounding", "very different"])

# %%
%ranks 2

# %%
ranks.push(path=folder.name)

# %%
%%ranks
import sys
import torch.distributed.checkpoint as dcp

sys.path.insert(0, path)
from resumable import Run, contents, train

run = Run(device, dropout=0, seed=7)            # another seed: nothing may come from here
dcp.load(contents(run), checkpoint_id=f"{path}/four")
losses = train(run, 24)
final = run.weights().cpu()
print(f"went on at step 12, ended at step {run.batches.step}")

# %%
two, resumed = ranks["losses"][0], ranks["final"][0]
torch.testing.assert_close(resumed, uninterrupted, atol=1e-5, rtol=0)
print(f"4 → 2 ranks: largest difference of a weight {(resumed - uninterrupted).abs().max():.0e}, of a loss "
      f"{max(abs(a - b) for a, b in zip(two, four[12:])):.0e}")
reveal(guess, "equal but for rounding",
       why="The global batch is the same; it is added up in two parts instead of four.")

# %% [markdown]
# Two conditions made it work. The **global** batch stayed 64: keep it, or choose the rate again. And the position
# counts *global* steps, not what one rank has read.
#
# What did not travel: chance. Two ranks cannot go on with four ranks' masks. (Draws that must not depend on the number
# of ranks are keyed to the sample: a generator seeded with step and index.)

# %% [markdown]
# ## Kill a rank
#
# The computing node dies, or the kernel kills the process that takes too much memory. First here:

# %%
guess = predict("Rank 1 of 2 is killed in the middle of a training. What does rank 0 do?",
                options=["goes on alone", "hangs for ever", "fails within seconds"])

# %% tags=["raises-exception"]
%%ranks
import os, signal

if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)        # no exception, no goodbye
train(run, 30)

# %%
reveal(guess, "fails within seconds", why="On gloo a closed connection is noticed at once. NCCL's watchdog "
       "notices too, by default minutes later.")

# %% [markdown]
# Nothing can be rescued from rank 0's memory: half of the weights were on rank 1. What helps is the last checkpoint,
# and somebody who starts everything again: `torchrun --max-restarts`. The script: find the newest *complete*
# checkpoint, go on from there, save every five steps. And, so that you can watch: rank 1 kills itself once.

# %%
job = Path(folder.name, "job.py")

# %%
%%writefile {job}
"""torchrun job.py FOLDER STEPS: train, save every five steps, go on from the newest checkpoint in FOLDER."""
import os, signal, sys
from pathlib import Path
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from resumable import Run, contents, device_of_this_rank, train

folder, steps, attempt = Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
device = device_of_this_rank()
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
run = Run(device)
if complete := sorted(folder.glob("step*/.metadata")):
    dcp.load(contents(run), checkpoint_id=complete[-1].parent)
while run.batches.step < steps:
    if (attempt, run.batches.step, dist.get_rank()) == (0, 18, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    (loss,) = train(run, run.batches.step + 1)
    if dist.get_rank() == 0:
        print(f"attempt {attempt} step {run.batches.step - 1} loss {loss:.6f}", flush=True)
    if run.batches.step % 5 == 0:
        dcp.save(contents(run), checkpoint_id=folder / f"step{run.batches.step:06}")
dist.barrier()
dist.destroy_process_group()

# %% [markdown]
# 28 steps on two processes. Each start imports PyTorch, so this takes ten seconds or more. The first variable below is
# a lesson of its own: without it, processes that restart may read the *old* addresses of their peers, and fail now and
# then ([pytorch#135712](https://github.com/pytorch/pytorch/issues/135712)). One of our first two trials did.

# %%
import subprocess
import sys

environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
           "--max-restarts", "1", str(job), f"{folder.name}/killed", "28"]

def run_to_its_end(command, timeout=110):
    """Return what a command printed: its output and its errors. If it is stopped, so are its children."""
    torchrun = subprocess.Popen(command, env=environment, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = torchrun.communicate(timeout=timeout)
        assert torchrun.returncode == 0, errors
        return output, errors
    finally:
        if torchrun.poll() is None:
            torchrun.terminate()                # torchrun ends its workers, which are sessions of their own
            torchrun.wait()

# %%
output, errors = run_to_its_end(command)
print(*output.splitlines()[13:24], sep="\n")
said = [line for line in errors.splitlines() if "exitcode" in line or "closing signal" in line]
print("torchrun said:", *(line.partition("] ")[2].partition(" of binary")[0] for line in said), sep="\n  ")

# %% [markdown]
# Nobody touched it. Is the end the end of a run that nobody killed? We ask our two ranks.

# %%
ranks.push(path=folder.name)                    # rank 1 is a new process

# %%
%%ranks
import sys
sys.path.insert(0, path)
from resumable import Run, train

never_killed = train(Run(device), 28)

# %%
steps = [line.split() for line in output.splitlines()]              # attempt 0 step 3 loss 2.1…
attempts = [[(int(step), float(loss)) for _, a, _, step, _, loss in steps if int(a) == n] for n in (0, 1)]
reference = list(enumerate(ranks["never_killed"][0]))
plots.plot_attempts(attempts, reference, saved=range(5, 28, 5))
(last, loss), lost = attempts[1][-1], attempts[0][-1][0] - attempts[1][0][0] + 1
print(f"step {last}: {loss:.6f} after the restart, {reference[-1][1]:.6f} never killed; {lost} steps twice")
resumed = [loss for _, loss in attempts[1]]
torch.testing.assert_close(resumed, ranks["never_killed"][0][15:], atol=1e-4, rtol=0)

# %% [markdown]
# On a cluster the node itself may be gone: then Slurm must start the job again (`--requeue`, or a chain of jobs), and
# the script finds its checkpoint in the same way.

# %% [markdown]
# ## How often to save?
#
# Each save costs $C$ seconds. Each failure costs the work since the last save, half an interval $W$ on average; a failure
# comes every $M$ seconds. The share of time lost is about $C/W + W/2M$, which is least at
#
# $$W = \sqrt{2\,C\,M}$$
#
# This is Young's formula (1974); Daly (2006) refines it. BLOOM's chronicle says: about 40 s a save, a dead GPU
# every week or so.

# %%
guess = predict("How many hours should BLOOM have trained between two saves?", unit="hours")

# %%
C, M = 40.0, 7 * 86400.0
best = (2 * C * M) ** 0.5
reveal(guess, best / 3600, unit="hours",
       why="They began with saves too rare, lost 7.3 h, and came down to 3 h.")

# %% [markdown]
# The formula neglects a failure during a save, and several in one interval. So let chance play: intervals that must be
# done again until they succeed.

# %%
def simulated_loss(interval, n=20_000, seed=0):
    """Time spent beyond the useful time, as a share of it; failures come at random, one every M seconds."""
    chance = torch.Generator().manual_seed(seed)
    spent, pending = 0.0, n
    while pending:
        fails_after = torch.empty(pending, dtype=torch.float64).exponential_(1 / M, generator=chance)
        done = fails_after > interval + C
        spent += fails_after[~done].sum().item() + done.sum().item() * (interval + C)
        pending = int((~done).sum())
    return spent / (n * interval) - 1

intervals = [best * factor for factor in (1 / 16, 1 / 4, 1, 4, 16)]
simulated = {interval: simulated_loss(interval) for interval in intervals}
marks = {"Young": best, "BLOOM: 100 iterations, about 3 h": 3 * 3600}
plots.plot_checkpoint_interval(C, M, simulated, marks)
print(f"lost at Young's interval: {simulated[best]:.2%}; at a sixteenth of it: {simulated[best / 16]:.1%}")

# %% [markdown]
# The valley is flat: at twice the best interval the sum is $\tfrac{1}{2} + 2$ instead of $1 + 1$, a quarter more of a small
# number. But $M$ shrinks as GPUs are added: with ten times the GPUs a failure comes about ten times as often.

# %% [markdown]
# ## Feed them: many small files, or few large ones
#
# A file system shared by a whole cluster is good at large reads. Every `open` asks a server that all users share.
# We store the training digits in three ways, and read them all, shuffled, as an epoch does.

# %%
import time

import numpy as np

images = x.numpy()
small, large = Path(folder.name, "small"), Path(folder.name, "shards")
small.mkdir(), large.mkdir()
for i, image in enumerate(images):
    np.save(small / f"{i:05}.npy", image)                       # one file an image
for i, shard in enumerate(np.array_split(images, 8)):
    np.save(large / f"{i:05}.npy", shard)                       # eight shards
np.save(Path(folder.name, "one.npy"), images)                   # one file

# %%
guess = predict("How many times faster than one file an image are eight shards, on a local disk?", unit="×")

# %%
def read_files():
    paths = np.random.default_rng(0).permutation(sorted(small.iterdir()))
    return sum(np.load(path).shape[0] for path in paths)

def read_shards():
    """Shards in random order; inside a shard, its images in random order."""
    chance, n = np.random.default_rng(0), 0
    for path in chance.permutation(sorted(large.iterdir())):
        shard = np.load(path)
        n += sum(image.shape[0] for image in shard[chance.permutation(len(shard))])
    return n

def read_mapped():
    mapped = np.load(Path(folder.name, "one.npy"), mmap_mode="r")       # reads the pages that are touched
    return sum(np.array(mapped[i]).shape[0] for i in np.random.default_rng(0).permutation(len(mapped)))

def images_per_second(read):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert read() == len(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds)

# %%
rates = {"one file an image": (len(images), images_per_second(read_files)),
         "shards": (8, images_per_second(read_shards)),
         "one file, mapped": (1, images_per_second(read_mapped))}
reveal(guess, rates["shards"][1] / rates["one file an image"][1],
       why="No open for each image. These files are in memory by now; on a shared disk an open costs more.")
plots.plot_files(rates);

# %% [markdown]
# This is a local disk with a warm cache: the cost of `open` and of Python alone. On a parallel file system every `open`
# is a message, and thousands of processes send them at once. Besides, files are rationed. On Jean Zay
# ([IDRIS](http://www.idris.fr/en/docs/jean-zay/environnement/espaces-disques)):
#
# | | quota by default | use it for |
# |---|---|---|
# | `$HOME` | 3 GB, 150 000 files a user | settings; point caches elsewhere |
# | `$WORK` | 5 TB, 500 000 files a project | code, environments, what you keep |
# | `$SCRATCH` | 4.6 PB shared | data in use, checkpoints; **not saved, and deleted after 30 days untouched** |
# | `$DSDIR` | 3.3 PB in all | public data sets and models, ready, read-only: look there first |
# | `$STORE` | 50 TB, 100 000 files a project | archives, large files |

# %%
imagenet, quota = 1_281_167, 500_000    # its training images (Russakovsky et al., 2015); files in $WORK
print(f"ImageNet as files: {imagenet / quota:.1f} times the files that $WORK allows; in shards of 1000: "
      f"{-(-imagenet // 1000)} files")

# %% [markdown]
# With shards, whole shards are shared out: over ranks, *and* over the workers of each rank. So make at least
# ranks × workers of them, of equal size, or the ranks will not make the same number of steps: first illness.

# %% [markdown]
# ## Report honestly
#
# A short run with everything that a report needs: `track` times the steps and counts their FLOPs. The peak we measure
# too: the best matrix product, on all ranks at once, since they share this machine.

# %%
%%ranks
import time
from torch.nn.parallel import DistributedDataParallel as DDP
from fidle_utils.data import digits
from fidle_utils.measure import track

def matmul_rate(n=512, trials=15):
    a, best = torch.randn(n, n, device=device), float("inf")
    for _ in range(trials):
        start = time.perf_counter()
        (a @ a).sum().item()                    # item() waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

x, y = (tensor[:512].to(device) for tensor in digits()[:2])
def steps(model, n=10):
    begin = time.perf_counter()
    for _ in track(range(n), samples=len(x), unit="images", flops=True):
        cross_entropy(model(x), y).backward()
    return time.perf_counter() - begin

# %%
%%ranks
from torch.nn.functional import cross_entropy
from fidle_utils.models import MLP

torch.manual_seed(0)
dist.barrier()
peak = matmul_rate()
seconds = steps(DDP(MLP(width=512, depth=4).to(device)))

# %%
together, peaks, seconds = ranks.throughput, ranks["peak"], max(ranks["seconds"])
mfu = together.mfu(min(peaks))
together.summary()

# %%
%%ranks 0
alone = steps(MLP(width=512, depth=4).to(device))       # one rank, while the other rests

# %%
def footprint(gpu_hours, watts, pue=1.0, grams_per_kwh=57):
    """Energy and carbon of a run. watts: of one GPU; pue: what the building takes for a watt of computing."""
    kwh = gpu_hours * watts / 1000 * pue
    return {"device hours": gpu_hours, "kWh": kwh, "kg CO2e": kwh * grams_per_kwh / 1000}

one = ranks.throughput
report = {"images per second": together.samples_per_second, "scaling efficiency":
          together.samples_per_second / len(ranks) / one.samples_per_second, "MFU": mfu.mean(),
          **footprint(len(ranks) * seconds / 3600, watts=15, pue=1.2)}
for name, value in report.items():
    print(f"{name:20} {value:.3g}")

# %% [markdown]
# A number without its assumptions is no number. Here they are:
#
# - **Images per second**: without the warm-up steps, validation, checkpoints, restarts. The whole job is slower.
# - **Scaling efficiency** (fr. *efficacité*) against *one rank of the same code*; weak scaling, 512 images each. On a
#   laptop the ranks share memory and clock, so it says little about data parallelism.
# - **MFU**, model FLOPs utilisation: FLOPs that the *model* needs, over a peak that we *measured*. Against a GPU, give
#   the dense peak of the data sheet, and say which.
# - **Device hours**: reserved × elapsed, idle or not. That is what Jean Zay charges. Add the runs that failed.
# - **kWh**: 15 W for a core is an *assumption*, and so is a PUE of 1.2. On GPUs, `torch.cuda.power_draw()` measures.
# - **CO2e**: 57 g/kWh is the French grid in BLOOM's study; elsewhere it is often several times that.

# %% [markdown]
# ## BLOOM, in its authors' numbers
#
# 176 billion parameters, 384 A100, 1 082 990 GPU hours (Luccioni et al., 2022). Does our function agree with them?

# %%
bloom = footprint(1_082_990, watts=400)
print({name: round(value) for name, value in bloom.items()})
assert abs(bloom["kWh"] - 433_196) < 1 and abs(bloom["kg CO2e"] - 24_690) < 10
print(f"with idle nodes and manufacturing: 50.5 t, {50.5e3 / bloom['kg CO2e']:.1f} times as much")

# %% [markdown]
# 400 W is the A100's limit, not a measurement. And the running GPUs are half of the story: idle nodes (14.6 t) and
# manufacturing (11.2 t) make up the rest.
#
# Now their speed. "150 TFLOP/s for each GPU" is in their logs, out of 312: 48 %? Megatron counts what the *hardware*
# did, and BLOOM computes every activation twice, to save memory: **HFU**. The model itself needs
# $6N$ FLOPs for each token (2 forward, 4 backward), the second forward makes it $8N$.
#
# **Exercise 5.** Write `mfu`, as a fraction, with $6N$ (attention left out), for any training.

# %% tags=["exercise"] fidle={"wrong": ["def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):\n    return 8 * parameters * tokens_per_step / seconds_per_step / gpus / (peak_tflops * 1e12)\n", "def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):\n    return 6 * parameters * tokens_per_step / seconds_per_step / (peak_tflops * 1e12)\n", "def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):\n    return 6 * parameters * tokens_per_step / seconds_per_step / gpus / (2 * peak_tflops * 1e12)\n", "def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):\n    return 6 * parameters * tokens_per_step / seconds_per_step / gpus / peak_tflops\n", "def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):\n    return 2 * parameters * tokens_per_step / seconds_per_step / gpus / (peak_tflops * 1e12)\n"]}
def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):
    """The share of the dense peak that the model's own FLOPs make up; gpus: all of them."""
    ...

# %% tags=["check"]
def test_mfu(mfu):
    def near(value, truth):
        return abs(value / truth - 1) < 0.005
    one = mfu(1e9, 1000, 1.0, 1, 60)
    assert not near(one, 0.1 * 4 / 3), "8 N counts recomputation: that is HFU. The model needs 6 N."
    assert not near(one, 0.1 / 3), "2 N is the forward pass alone; backward is twice as much."
    assert not near(one, 0.05), "half: twice the peak is the one with sparsity. Take the dense peak."
    assert not near(one, 1e11), "check the unit: peak_tflops is in 10¹² FLOP/s."
    assert near(one, 0.1), f"10⁹ parameters, 1000 tokens a second, 60 TFLOP/s: 10 %, not {100 * one:.3g} %."
    assert near(mfu(1e9, 4000, 1.0, 4, 60), 0.1), "four GPUs, four times the work: divide by gpus."
    assert near(mfu(1e9, 1000, 2.0, 1, 60), 0.05), "twice the time, half the MFU."

check(mfu, test_mfu, hint="6 · parameters · tokens / seconds / gpus, over the peak in FLOP/s")

# %% tags=["solution"] jupyter={"source_hidden": true}
def mfu(parameters, tokens_per_step, seconds_per_step, gpus, peak_tflops):
    flops_per_second = 6 * parameters * tokens_per_step / seconds_per_step
    return flops_per_second / gpus / (peak_tflops * 1e12)

check(mfu, test_mfu)

# %%
run = next(row for row in table("jeanzay_bigscience_a100") if "final run" in row["notes"])
tokens = run["global_batch"] * run["sequence_length"]
share = mfu(1e9 * run["parameters_billion"], tokens, run["seconds_per_iteration"], run["n_gpus"], 312)
print(f"published: {run['tflops_per_gpu']} TFLOP/s for each A100, {run['seconds_per_iteration']} s a step")
hfu = run["tflops_per_gpu"] / 312
print(f"HFU {hfu:.1%} · MFU with 6 N {share:.1%}; 3/4 of HFU, which counts attention, {0.75 * hfu:.1%}")

# %% [markdown]
# 48 % and 36 % are the same run. **Before you compare two numbers, ask which FLOPs were counted.** An efficiency has
# such a trap too. Here are runs of IDRIS, 14 billion parameters, two sequences for each GPU: on one node, then on 64 GPUs.

# %%
guess = predict("From one node to 64 H100, equal work for each GPU: which efficiency do the step times give?",
                options=["under 50 %", "50 to 100 %", "more than 100 %"])

# %%
for gpu, n in (("A100", 8), ("H100", 4)):
    one_node, all_64 = (next(row for row in table("jeanzay_idris_sft_2025", n_gpus=gpus)
                             if row["parameters_billion"] < 20 and gpu in row["gpu"]
                             and "PyTorch FSDP2, torch.compile=True" in row["notes"]) for gpus in (n, 64))
    efficiency = one_node["seconds_per_iteration"] / all_64["seconds_per_iteration"]
    recomputed = [row["notes"].split("sAC ratio ")[1][:3] for row in (one_node, all_64)]
    print(f"published · {gpu}: {one_node['seconds_per_iteration']} s on {n} GPUs, "
          f"{all_64['seconds_per_iteration']} s on 64: efficiency {efficiency:.0%}; "
          f"recomputed {recomputed[0]} and {recomputed[1]} of the layers")

# %%
reveal(guess, "more than 100 %", why="Sharded over 64 GPUs, states leave room: fewer layers are recomputed. "
       "The two runs are not the same training, so this is no efficiency.")

# %% [markdown]
# And the A100s' 18 % is no fault of theirs: it is the network between their nodes. Lesson 11 tells that story.

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Before you burn 10 000 GPU hours
#
# 1. **One GPU** first: the loss falls, the profile has no hole (lesson 02), the memory fits with room to spare.
# 2. **Two ranks equal one process** on ten steps, within rounding. Then two nodes equal one.
# 3. The run **stops, resumes, and ends with the same bits**. You tried it with `kill -9`, not with Ctrl-C.
# 4. Batch and rate are chosen on small runs, at the *final global batch*; warm-up is on.
# 5. Seeds: one for the weights, one for each rank; the sampler's position is in the checkpoint.
# 6. Every rank logs its own loss, its waiting, now and then a checksum of its weights. Someone looks, or a script does.
# 7. Timeouts, stacks on a hang, restarts: armed. The job requeues itself. Disk for the checkpoints: counted.
# 8. Evaluation reduces counts, and gives the same number on 1 and on 8 ranks.
# 9. Data in shards, on the right disk; the loader alone is faster than the model.
# 10. A run of 1 % of the hours gave throughput, MFU, hours and kWh as you will report them. Is it worth it?

# %% tags=["live"]
hours, watts, pue, grams = 10_000, 400, 1.2, 57         # A100's limit; PUE and grid as quoted for BLOOM
kwh = hours * watts / 1000 * pue
print(f"10 000 hours of an A100: at most {kwh:.0f} kWh, {kwh * grams / 1000:.0f} kg CO2e; "
      f"on 64 GPUs, {hours / 64 / 24:.1f} days")

# %%
folder.cleanup()

# %% [markdown]
# ## In practice
#
# - Start from a published recipe with *your* global batch; scale linearly to it, with warm-up, and watch the first epochs.
# - `init_process_group(timeout=…)`: by default 10 minutes with NCCL, 30 with gloo. Longer than your longest validation,
#   shorter than your patience.
# - In a script: `faulthandler.register(signal.SIGUSR1)` costs nothing, and `kill -USR1 pid` then prints the stack.
#   `py-spy dump --pid` does it from outside, where you may trace processes.
# - DCP for sharded states; `.metadata` says that a checkpoint is whole. Keep two, and a milestone now and then.
# - Export at the end: `torch.distributed.checkpoint.format_utils.dcp_to_torch_save` makes one ordinary file.
# - Compare like with like: same FLOPs convention, dense peak, same recomputation, same part of the run.

# %% [markdown]
# ## Go further
#
# - Give `learning_rate` a warm-up of one epoch, of ten. When does batch 512 stop falling apart?
# - Add a fifth patient to `fidle_utils/patients.py`: a rank that reads the same images as its neighbour. Which sign
#   would show it?
# - Resume on four ranks what two have saved. What does DCP say about the random state of rank 2, and what will you do?
# - Let a rank die *during* a save. Which checkpoint does the script find?

# %% [markdown]
# ## Sources
#
# - P. Goyal et al., *Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour*, 2017,
#   [arXiv:1706.02677](https://arxiv.org/abs/1706.02677): linear scaling, warm-up, the table.
# - Y. You, I. Gitman, B. Ginsburg, *Large Batch Training of Convolutional Networks*, 2017,
#   [arXiv:1708.03888](https://arxiv.org/abs/1708.03888): LARS. Y. You et al., *Large Batch Optimization for Deep Learning:
#   Training BERT in 76 minutes*, 2019, [arXiv:1904.00962](https://arxiv.org/abs/1904.00962): LAMB.
# - S. McCandlish et al., *An Empirical Model of Large-Batch Training*, 2018,
#   [arXiv:1812.06162](https://arxiv.org/abs/1812.06162): the gradient noise scale.
# - J. W. Young, *A first order approximation to the optimum checkpoint interval*, Commun. ACM 17(9), 1974. J. T. Daly,
#   *A higher order estimate of the optimum checkpoint interval for restart dumps*, Future Generation Computer Systems 22(3), 2006.
# - BigScience, [chronicles of BLOOM's training](https://github.com/bigscience-workshop/bigscience/blob/master/train/tr11-176B-ml/chronicles.md):
#   a dead GPU a week, 40 s a save, 7.3 h lost, the slow node.
# - A. S. Luccioni, S. Viguier, A.-L. Ligozat, *Estimating the Carbon Footprint of BLOOM*, 2022,
#   [arXiv:2211.02001](https://arxiv.org/abs/2211.02001): hours, kWh, CO2e.
# - A. Chowdhery et al., *PaLM*, 2022, [arXiv:2204.02311](https://arxiv.org/abs/2204.02311), appendix B: MFU.
# - IDRIS, [disk spaces of Jean Zay](http://www.idris.fr/en/docs/jean-zay/environnement/espaces-disques) and
#   [Democratizing-LLM-FT](https://github.com/idriscnrs/Democratizing-LLM-FT), logs of 2025.
# - PyTorch documentation: [reproducibility](https://docs.pytorch.org/docs/stable/notes/randomness.html),
#   [distributed checkpoint](https://docs.pytorch.org/docs/stable/distributed.checkpoint.html),
#   [torchrun](https://docs.pytorch.org/docs/stable/elastic/run.html).
# - O. Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, 2015,
#   [arXiv:1409.0575](https://arxiv.org/abs/1409.0575): the number of images.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("You go from 4 to 16 GPUs, each with its share as before. The learning rate…",
             options=["stays", "doubles", "is multiplied by 4, after a warm-up"])
q2 = predict("All steps are slow. Three ranks wait 60 ms a step, one does not wait. Who is slow?",
             options=["the three", "the one"])

# %%
reveal(q1, "is multiplied by 4, after a warm-up",
       why="The global batch is four times larger: linear scaling.")
reveal(q2, "the one", why="It never waits: the others wait for it.")

# %%
q3 = predict("The losses of all ranks fall, nothing is raised, the checksums of the weights differ. You…",
             options=["go on, the loss is fine", "stop: these are different models"])
q4 = predict("A checkpoint holds model, optimizer, scheduler and step; the model has dropout. Resumed on as "
             "many ranks, the end is…", options=["the same bits", "other bits"])
q5 = predict("A save takes four times as long as before. Young's interval is…",
             options=["4 times longer", "twice longer", "unchanged"])
q6 = predict("A paper reports 50 % with activation recomputation counted. Its MFU is about…",
             options=["37 %", "50 %", "67 %"])

# %%
reveal(q3, "stop: these are different models",
       why="Their averaged gradients belong to none of them (lesson 04).")
reveal(q4, "other bits", why="The random state of each rank is missing: other masks from here on.")
reveal(q5, "twice longer", why="W = √(2CM).")
reveal(q6, "37 %", why="Full recomputation computes 8 N instead of 6 N: three quarters of 50 % is 37.5 %.")

# %%
from fidle_utils import progress

progress.show("10")
