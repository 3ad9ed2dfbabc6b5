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
# # 09 · Train with DeepSpeed
#
# **You will** train one small GPT through DeepSpeed's stages 0, 1, 2 and 3, measure what each line of its
# configuration changes, repair five broken configurations, and compress gradients to one bit.
#
# **You learn** to read a DeepSpeed configuration like an open book: what each field costs in bytes held and bytes
# sent, which defaults surprise, how to predict the memory of a run, and how to launch, save and resume it.
#
# **You need** lesson 04 (data parallelism). Lesson 08 builds ZeRO by hand; one paragraph recalls it here. DeepSpeed
# is installed on Linux only (on Windows: WSL). No GPU is needed, nor a compiler; with one GPU for each rank the same
# cells use them.
#
# **Time** 17 min live (the cells tagged `live`), 75 min alone, with three exercises.

# %% tags=["live"]
%load_ext fidle_utils
import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from fidle_utils import plots, ranks
from fidle_utils.teach import check, predict, reveal

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 5}
# ## Three lines of a training loop
#
# DeepSpeed, born at Microsoft in 2020, is a library around one idea, ZeRO: ranks that do data
# parallelism each keep a copy of everything, and most of these copies can be *sharded*, each
# rank keeping one share.
#
# | stage | every rank keeps a share, instead of all, of… |
# |---|---|
# | 0 | nothing: plain data parallelism |
# | 1 | the optimizer's states |
# | 2 | … and the gradients |
# | 3 | … and the parameters |
#
# `import_deepspeed` imports it on each rank. It keeps DeepSpeed from compiling a C++ operator where there is no
# GPU, hides warnings about its own code that you cannot mend, and hands it the process group that the ranks have.

# %% tags=["live"]
%%ranks
from fidle_utils.deepspeed_setup import import_deepspeed

deepspeed = import_deepspeed(device)
print(f"DeepSpeed {deepspeed.__version__} on {deepspeed.accelerator.get_accelerator().device_name()}")

# %% [markdown]
# Here is the text that our GPT reads, and a first configuration: a plain dict (or a JSON file).
# `torch_adam` takes PyTorch's AdamW: DeepSpeed would compile its own.

# %% tags=["live"]
%%ranks
import copy
import torch
from torch.nn.functional import cross_entropy
from fidle_utils.data import batches, topics
from fidle_utils.models import GPT

text = topics(block_size=64)
adam = {"lr": 3e-3, "eps": 1e-6}
first_config = {
    "train_batch_size": 16,                     # sequences, over all ranks
    "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
    "zero_optimization": {"stage": 0},
}

def new_gpt(**options):
    torch.manual_seed(0)                        # the same weights on every rank
    return GPT(len(text.vocab), tied_head=False, **options)

# %% [markdown] tags=["live"]
# Three lines change in a training loop: `deepspeed.initialize` wraps the model in an *engine* (fr. *moteur*), which
# then does `backward` and `step`. The rest is lesson 04: each rank reads its share of every batch.

# %% tags=["live"]
%%ranks
def shares(n_steps):
    """This rank's share of each batch of 16 sequences: pairs of tensors (4, 64)."""
    for (x, y), _ in zip(batches(text, 16, seed=0), range(n_steps)):
        yield (ids.chunk(world_size)[rank].to(device) for ids in (x, y))

def train(config, steps=5):
    engine, *_ = deepspeed.initialize(model=new_gpt(), config=copy.deepcopy(config))
    losses = []
    for x, y in shares(steps):
        loss = cross_entropy(engine(x).flatten(0, 1), y.flatten())
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach().float())
    losses = torch.stack(losses) / world_size
    dist.all_reduce(losses)                     # the mean over the ranks
    return engine, losses

# %% [markdown] tags=["live"]
# The reference is **one process** that trains on whole batches, in plain PyTorch: the same model, AdamW, batches.

# %% tags=["live"]
%%ranks
def train_alone(steps=5):
    model = new_gpt().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), **adam)
    losses = []
    for (x, y), _ in zip(batches(text, 16, seed=0), range(steps)):
        x, y = x.to(device), y.to(device)
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)

alone = train_alone() if rank == 0 else None    # one process is enough

# %% tags=["live"]
guess = predict("Stage 0 shards nothing. After five steps, do its losses equal those of one process?",
                options=["yes", "no"])

# %% tags=["live"]
%%ranks
engine, losses = train(first_config)

# %% tags=["live"]
alone, losses = ranks["alone"][0].cpu(), ranks["losses"][0].cpu()
for step in range(5):
    print(f"step {step}: one process {alone[step]:.6f}, DeepSpeed {losses[step]:.6f}, "
          f"difference {abs(alone[step] - losses[step]):.0e}")
reveal(guess, "no", why="Further apart at every step: something in DeepSpeed changes the updates.")

# %% [markdown] tags=["live"]
# No error, and a loss that goes down: only the comparison with one process shows it. The engine knows the answer:
# what does it do that we did not ask for?

# %% tags=["live"]
%%ranks
x, y = next(shares(1))
model = new_gpt().to(device)
cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
print(f"gradient_clipping {engine.gradient_clipping()} · the norm of my first gradient is {norm:.2f}")

# %% [markdown] tags=["live"]
# Since the summer of 2026 DeepSpeed **clips gradients to a norm of 1 by default** (pull request
# 8068). Adam's first step hides it, for its length hardly depends on the gradient's. Every default is a decision. So
# we write ours down:

# %% tags=["live"]
%%ranks
def configuration(stage, **zero):
    """A configuration without clipping; `zero` are more fields of `zero_optimization`."""
    return {**first_config, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage, **zero}}

engine, losses = train(configuration(0))

# %% tags=["live"]
tolerance = 1e-5 if ranks["device"][0].type == "cpu" else 1e-3      # GPUs add in other orders
torch.testing.assert_close(ranks["losses"][0].cpu(), alone, atol=tolerance, rtol=0)
print(f"largest difference with one process {(ranks['losses'][0].cpu() - alone).abs().max():.0e}")

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## One field: the stage
#
# Now the same cell for stages 1, 2 and 3. Nothing else changes.

# %%
guess = predict("The largest difference between stages 0 and 3, in losses and weights, is…",
                options=["about 1e-2", "about 1e-4", "under 1e-6"])

# %% tags=["live"]
%%ranks
def whole_weights(engine):
    """All the weights as one vector, put together from the shards where they are sharded."""
    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([p.detach().float().flatten() for p in parameters])

curves, weights = {}, {}
for stage in range(4):
    engine, curves[stage] = train(configuration(stage))
    weights[stage] = whole_weights(engine)
    print(f"stage {stage}: {type(engine.optimizer).__name__}, losses {curves[stage].tolist()[0]:.4f} … "
          f"{curves[stage].tolist()[-1]:.4f}")

# %% tags=["live"]
tolerance = 1e-6 if ranks["device"][0].type == "cpu" else 1e-3
for stage in (1, 2, 3):
    for what, values in (("losses", ranks["curves"][0]), ("weights", ranks["weights"][0])):
        torch.testing.assert_close(values[stage], values[0], atol=tolerance, rtol=0)
        print(f"stage {stage}, {what}: largest difference {(values[stage] - values[0]).abs().max():.0e}")

# %%
reveal(guess, "under 1e-6", why="ZeRO shards what is stored, not what is computed.")

# %% [markdown]
# (A detail: with AdamW's usual `eps` of 1e-8, one tensor would differ by 1e-5: the bias of the keys. Softmax ignores
# it, so its gradient is zero but for rounding, and Adam divides this rounding by its own size. Our `eps` is 1e-6.)

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## Count the bytes that a rank keeps
#
# In training, each parameter costs 16 bytes in mixed precision: 2 for itself in bf16, 2 for
# its gradient, 4 for the fp32 master copy that the optimizer updates, 8 for Adam's two moments (Rajbhandari et al.,
# 2020). We turn bf16 on, stop between `backward` and `step`, and count.

# %% tags=["live"]
%%ranks
from fidle_utils.measure import count_communication
from fidle_utils.measure.engine_memory import held_bytes

def measure(config):
    """Bytes a rank keeps (a dict) and what it communicates in a step, once two steps have warmed up."""
    engine, _ = train(config, steps=2)
    x, y = next(shares(1))
    with count_communication() as counted:
        engine.backward(cross_entropy(engine(x).flatten(0, 1), y.flatten()))
        held = held_bytes(engine)
        engine.step()
    return held, counted

def in_bf16(config):
    return {**config, "bf16": {"enabled": True}}

# %%
guess = predict("Stage 3 on four ranks, bf16: how many bytes of weights does a rank keep for each parameter?",
                unit="bytes")

# %% tags=["live"]
%%ranks
small = {"reduce_bucket_size": 100_000}
whole = {"stage3_param_persistence_threshold": 0, **small}
configurations = {f"stage {stage}": configuration(stage, **small) for stage in range(4)}
configurations["stage 3, nothing kept whole"] = configuration(3, **whole)
held = {name: measure(in_bf16(config))[0] for name, config in configurations.items()}
n_parameters = sum(p.numel() for p in new_gpt().parameters())

# %% tags=["live"]
held, n_parameters = ranks["held"][0], ranks["n_parameters"][0]
formulas = {"stage 0": 16, "stage 1": 4 + 12 / 4, "stage 2": 2 + 14 / 4, "stage 3": 16 / 4}
plots.plot_held_bytes(held, n_parameters, formulas);

# %%
reveal(guess, held["stage 3"]["parameters"] / n_parameters,
       why="Its quarter of 2 bytes, and yet a whole copy: tensors under 100,000 numbers stay whole.")

# %% [markdown] tags=["live"]
# Dots are ZeRO's formulas on four ranks: 16, then 4 + 12/4, 2 + 14/4 and 16/4 bytes for each parameter. Two bars miss
# theirs. In stage 1 the paper counts whole gradients; DeepSpeed has them during backward, and has let go of three
# quarters just before the step. Stage 3 as it comes keeps **more** weights than stage 0:
# `stage3_param_persistence_threshold` is 100,000 by default, and all our tensors are smaller. With large layers it only
# keeps norms and biases whole, which saves many small messages. With 0, the measure meets the formula.

# %%
for name in ("stage 0", "stage 2", "stage 3, nothing kept whole"):
    total = sum(n_bytes for part, n_bytes in held[name].items() if part != "buckets") / n_parameters
    formula = formulas[name.split(",")[0]]
    print(f"{name}: {total:.3f} bytes for each parameter, formula {formula}")
    assert abs(total / formula - 1) < 0.01

# %% [markdown]
# All ranks built the whole model first, then gave most of it away. A model that no rank can hold is built inside
# `deepspeed.zero.Init`, which shards each parameter as soon as it exists.

# %%
%%ranks
with deepspeed.zero.Init(config_dict_or_path=configuration(3, **whole)):
    sharded = new_gpt()
weight = sharded.head.weight
print(f"{tuple(weight.ds_shape)} in all, {weight.ds_tensor.numel()} numbers here, {weight.numel()} gathered")

# %% [markdown]
# Stages 1 and 2 look alike: at this moment, just before the step, both have let go of the gradients that are not
# theirs. The difference shows **between** micro-batches, so we need the arithmetic of batches.
#
# ## The arithmetic of batches
#
# `train_batch_size` = `train_micro_batch_size_per_gpu` × `gradient_accumulation_steps` × ranks. Give two, and
# DeepSpeed computes the third.

# %%
guess = predict("Batch of 32, micro-batch of 4, four ranks: how many gradient_accumulation_steps?")

# %%
%%ranks
def accumulating(stage):
    return {**configuration(stage, **small), "train_batch_size": 32, "train_micro_batch_size_per_gpu": 4}

engine, _ = train(accumulating(1), steps=1)
steps = engine.gradient_accumulation_steps()
print(f"{engine.train_batch_size()} = {engine.train_micro_batch_size_per_gpu()} × {steps} × {world_size}")

# %%
reveal(guess, ranks["steps"][0], why="32 / (4 × 4). Every second engine.step() updates the weights.")
guess = predict("After the first of the two micro-batches, which stages have sent gradients?",
                options=["none", "1 and 2", "2 only"])

# %%
%%ranks
def two_micro_batches(config):
    """For each micro-batch: bytes of gradients kept for each parameter, and bytes sent for each parameter."""
    engine, *_ = deepspeed.initialize(model=new_gpt(), config=config)
    rows = []
    for x, y in shares(4):
        with count_communication() as counted:
            engine.backward(cross_entropy(engine(x).flatten(0, 1), y.flatten()))
            kept = held_bytes(engine)["gradients"]
            engine.step()
        rows.append((round(kept / n_parameters, 2), round(counted.bytes_sent() / n_parameters, 2)))
    return rows[2:]

for stage in (0, 1, 2):
    first, second = two_micro_batches(accumulating(stage))
    if rank == 0:
        print(f"stage {stage}: (bytes kept, bytes sent) for each parameter: first {first}, second {second}")

# %%
reveal(guess, "2 only", why="Stage 2 keeps only its share, so it must reduce at once, each time.")

# %% [markdown]
# That is the trade of stage 2: between micro-batches about a quarter of the gradients (tensors that lie across two
# shares are kept whole by both), for a reduction in **every** micro-batch. With long accumulation, stage 1 sends
# less.

# %% [markdown] tags=["live"] fidle={"minutes": 3.5}
# ## Count the bytes that a rank sends
#
# ZeRO's paper counts in units of Ψ, the bytes of the gradients (each times (n−1)/n, which nears 1 with more ranks):
# 2Ψ for plain data parallelism and for stages 1 and 2, 3Ψ for stage 3, which gathers the weights in forward, and
# again in backward.

# %%
guess = predict("DeepSpeed, stage 2, its defaults: a rank sends…", options=["1 Ψ", "2 Ψ", "3 Ψ"])

# %% tags=["live"]
%%ranks
released = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, **whole}
variants = {
    "stage 0": configuration(0),
    "stage 1": configuration(1, **small),
    "stage 2": configuration(2, **small),
    "stage 2, no multi-rank all_reduce": configuration(2, use_multi_rank_bucket_allreduce=False, **small),
    "stage 3": configuration(3, **whole),
    "stage 3, releasing at once": configuration(3, **released),
}
counted = {name: measure(config)[1] for name, config in variants.items()}
psi = 4 * n_parameters * (world_size - 1) / world_size
sent = {name: c.bytes_sent() / psi for name, c in counted.items()}
calls = {name: c.calls() for name, c in counted.items()}

# %% tags=["live"]
sent, calls = ranks["sent"][0], ranks["calls"][0]
published = {"stage 0": 2, "stage 1": 2, "stage 2": 2, "stage 3": 3}
plots.plot_sent_bytes(sent, calls, published);

# %%
reveal(guess, "3 Ψ", why="It all_reduces the gradients (2 Ψ), then gathers the new weights (1 Ψ).")

# %% [markdown] tags=["live"]
# Three fields explain the figure:
#
# - `use_multi_rank_bucket_allreduce` (true): one `all_reduce` of a whole bucket rather than one `reduce` for each
#   owner. Fewer messages, more bytes. Off: the paper's 2Ψ.
# - `stage3_max_live_parameters` and `stage3_max_reuse_distance` (a billion numbers each): a model that small stays
#   gathered between forward and backward, so it is gathered once: 2Ψ. At 0 every layer is released at once: the
#   paper's 3Ψ, and the memory that stage 3 promises.
#
# So the same word, "ZeRO-3", is a range between memory and messages, and these fields choose a place in it.

# %%
as_published = {**published, "stage 2, no multi-rank all_reduce": 2, "stage 3, releasing at once": 3}
for name, expected in as_published.items():
    print(f"{name}: measured {sent[name]:.3f} Ψ in {calls[name]} calls; in the paper {expected} Ψ")
assert abs(sent["stage 2, no multi-rank all_reduce"] / 2 - 1) < 0.01
assert abs(sent["stage 3, releasing at once"] / 3 - 1) < 0.01

# %% [markdown]
# And the time of a step, as it is on this machine:

# %%
%%ranks
import time

def milliseconds_per_step(config, steps=8):
    engine, _ = train(config, steps=2)
    mine = [tuple(pair) for pair in shares(steps)]
    dist.barrier()
    start = time.perf_counter()
    for x, y in mine:
        engine.backward(cross_entropy(engine(x).flatten(0, 1), y.flatten()))
        engine.step()
    if device.type == "cuda":
        torch.cuda.synchronize()                # kernels are asynchronous
    return 1e3 * (time.perf_counter() - start) / steps

times = {name: milliseconds_per_step(config) for name, config in variants.items()}
if rank == 0:
    for name, milliseconds in times.items():
        print(f"{name}: {milliseconds:.0f} ms a step, {calls[name]} calls")

# %% [markdown]
# For a model this small a step is nearly all latency: what has many calls is slow, on GPUs too. On a CPU these
# milliseconds say nothing about the speed of DeepSpeed; the bytes and the calls hold everywhere.
#
# ## Buckets
#
# Gradients travel in buckets of `reduce_bucket_size` **numbers**, not bytes. The default is 500
# million.

# %%
guess = predict("In fp32, how many bytes does stage 3 set aside for one default bucket?", unit="GB")

# %%
%%ranks
rows = []
for bucket in (500_000_000, 100_000, 20_000, 5_000):
    kept, counted = measure(configuration(3, reduce_bucket_size=bucket, stage3_param_persistence_threshold=0))
    rows.append((bucket, kept["buckets"], counted.calls("reduce_scatter")))
if rank == 0:
    for bucket, n_bytes, n_calls in rows:
        print(f"reduce_bucket_size {bucket:>11,}: {n_bytes / 1e9:.4f} GB set aside, {n_calls} reduce_scatter")

# %%
reveal(guess, ranks["rows"][0][0][1] / 1e9, why="500 million numbers of 4 bytes, for a model of 0.0005 GB.")

# %% [markdown]
# On a CPU, memory that nobody writes to costs nothing, so this laptop did not notice. A GPU does: `torch.empty` there
# takes the 2 GB at once (1 GB in bf16). `overlap_comm` (on by default in stage 3) hides the reduction behind backward
# with a second CUDA stream; a CPU has none.
#
# ## Repair five configurations
#
# Five configurations that people really write. `try_config` builds an engine, takes one step, and says
# "trains", or what DeepSpeed says.

# %%
%%ranks
def try_config(config):
    try:
        train(config, steps=1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "trains"

# %%
base = {"train_micro_batch_size_per_gpu": 4, "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True}}}
clipped = {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True, "max_grad_norm": 0.5}}
half = {"device": "cpu", "ratio": 0.5}
broken = {
    "A": {**base, "train_batch_size": 24, "gradient_accumulation_steps": 2},
    "B": {**base, "bf16": {"enabled": True}, "fp16": {"enabled": True}},
    "C": {**base, "zero_optimization": {"stage": 2, "overlap_communication": True}},
    "D": {**base, "zero_optimization": {"stage": 2, "offload_optimizer": half}},
    "E": {**base, "optimizer": clipped, "zero_optimization": {"stage": 1}},
}
for name, config in broken.items():
    print(f"{name} · {ranks.run(lambda config: try_config(config), config)[0]}\n")

# %% [markdown]
# These are DeepSpeed's own words; each says what to do, once you can read it. What their authors meant:
#
# - **A**: two accumulation steps of 4 sequences a rank. The batch size is what is wrong.
# - **B**: bf16.
# - **C**: overlap communication with backward.
# - **D**: stage 2, with **all** optimizer states on the CPU.
# - **E**: clip gradients to a norm of 0.5.
#
# **Exercise 1.** For each, give what to change: a dict, field → new value. A dot goes inside:
# `"zero_optimization.stage": 1`. `None` removes a field.

# %%
def changed(config, changes):
    """A copy of a configuration with fields set, or removed where the value is None."""
    config = copy.deepcopy(config)
    for field, value in changes.items():
        *folders, name = field.split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
        if value is None:
            del place[name]
    return config

# %% tags=["exercise"] fidle={"wrong": ["repairs = {'A': {'gradient_accumulation_steps': 1}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.offload_optimizer.ratio': None}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 16, 'gradient_accumulation_steps': 1}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.offload_optimizer.ratio': None}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 32}, 'B': {'fp16': None, 'bf16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.offload_optimizer.ratio': None}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 32}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None}, 'D': {'zero_optimization.offload_optimizer.ratio': None}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 32}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.offload_optimizer': None}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 32}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.stage': 3}, 'E': {'optimizer.params.max_grad_norm': None, 'gradient_clipping': 0.5}}", "repairs = {'A': {'train_batch_size': 32}, 'B': {'fp16': None}, 'C': {'zero_optimization.overlap_communication': None, 'zero_optimization.overlap_comm': True}, 'D': {'zero_optimization.offload_optimizer.ratio': None}, 'E': {'optimizer.params.max_grad_norm': None}}"]}
repairs = {
    "A": ...,
    "B": ...,
    "C": ...,
    "D": ...,
    "E": ...,
}

# %% [markdown]
# The check trains with each repaired configuration, on the ranks, and looks whether its author would be content.

# %% tags=["check"]
def test_repairs(repairs):
    fixed = {name: changed(config, repairs[name]) for name, config in broken.items()}
    zero = {name: config.get("zero_optimization", {}) for name, config in fixed.items()}
    offload = zero["D"].get("offload_optimizer", {})
    assert zero["D"].get("stage") == 2, "D: keep stage 2; look at the field that only stage 3 knows."
    assert offload.get("device") == "cpu", "D: the states must still go to the CPU: keep offload_optimizer."
    for name, config in fixed.items():
        said = ranks.run(lambda config: try_config(config), config)[0]
        assert said == "trains", f"{name}: {' '.join(said.split())[:160]}"
    assert fixed["A"].get("gradient_accumulation_steps", 2) == 2, "A: keep its two accumulation steps."
    assert fixed["B"].get("bf16") == {"enabled": True}, "B: it trains, but in fp32: keep bf16."
    assert zero["C"].get("overlap_comm") is True, "C: no overlap: the field is overlap_comm."
    assert fixed["E"].get("gradient_clipping") == 0.5, "E: it clips to 1, the default: set gradient_clipping."

check(repairs, test_repairs, name="repairs")

# %% tags=["solution"] jupyter={"source_hidden": true}
repairs = {
    "A": {"train_batch_size": 32},                      # 4 × 2 × 4 ranks
    "B": {"fp16": None},                                # one of the two
    "C": {"zero_optimization.overlap_communication": None, "zero_optimization.overlap_comm": True},
    "D": {"zero_optimization.offload_optimizer.ratio": None},       # a part only is for stage 3
    "E": {"optimizer.params.max_grad_norm": None, "gradient_clipping": 0.5},
}
check(repairs, test_repairs, name="repairs")

# %% [markdown]
# ### Worse: no message at all
#
# DeepSpeed checks the fields *inside* `zero_optimization`. It does not check the names at the top, nor whether a
# stage uses what you ask for.

# %%
guess = predict("zero_optimisation (British spelling) with stage 3: DeepSpeed…",
                options=["stops with an error", "trains in stage 3", "trains in stage 0"])

# %%
%%ranks
misspelt = {**configuration(0), "zero_optimisation": {"stage": 3}}
del misspelt["zero_optimization"]
useless = configuration(2, offload_param={"device": "cpu"}, **small)        # for stage 3 only
engine, _ = train(misspelt, steps=1)
stage_used = engine.zero_optimization_stage()
print(f"misspelt: stage {stage_used} · stage 2 with offload_param: {try_config(useless)}")

# %%
reveal(guess, "trains in stage 0", why="An unknown name at the top is ignored. Nobody tells you.")

# %% [markdown]
# So ask the engine what it does, at the start of every run: `engine.zero_optimization_stage()`,
# `engine.gradient_clipping()`, `engine.train_batch_size()`.
#
# ## Predict the memory before you ask for GPUs
#
# DeepSpeed has *memory estimators* (fr. *estimateurs*). They count, for each GPU and without offload:
#
# - stage 2: 2 bytes of weights for each parameter, and 18 bytes shared out over all the GPUs;
# - stage 3: the 18 bytes shared out, and 4 for each parameter of the largest layer, which is gathered whole (2 of
#   weights, 2 of gradients).
#
# Eighteen: the 16 that you know, and 2 more for a moment in the step when gradients exist in bf16 and in fp32.

# %%
%%ranks
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

cases = [(2851e6, 32e6, 8), (7e9, 200e6, 64), (176e9, 3.6e9, 384)]
truth = {(2, n, gpus, layer): zero2(n, 1, gpus, cpu_offload=False)[1] for n, layer, gpus in cases}
truth |= {(3, n, gpus, layer): zero3(n, layer, 1, gpus, cpu_offload=False, cpu_offload_params=False)[1]
          for n, layer, gpus in cases}

# %% [markdown]
# **Exercise 2.** Write both estimates, in bytes.

# %% tags=["exercise"] fidle={"wrong": ["def estimate(stage, n_parameters, n_gpus, largest_layer=0):\n    shared = 16 * n_parameters / n_gpus\n    return shared + (2 * n_parameters if stage == 2 else 4 * largest_layer)\n", "def estimate(stage, n_parameters, n_gpus, largest_layer=0):\n    shared = 18 * n_parameters / n_gpus\n    return shared + (2 * n_parameters / n_gpus if stage == 2 else 4 * largest_layer)\n", "def estimate(stage, n_parameters, n_gpus, largest_layer=0):\n    shared = 18 * n_parameters / n_gpus\n    return shared + (2 * n_parameters if stage == 2 else 2 * largest_layer)\n", "def estimate(stage, n_parameters, n_gpus, largest_layer=0):\n    shared = 18 * n_parameters / n_gpus\n    return (shared + (2 * n_parameters if stage == 2 else 4 * largest_layer)) / 1e9\n", "def estimate(stage, n_parameters, n_gpus, largest_layer=0):\n    shared = 18 * n_parameters / n_gpus\n    return shared + 2 * n_parameters\n"]}
def estimate(stage, n_parameters, n_gpus, largest_layer=0):
    """Bytes of model states on each GPU, in stage 2 or 3, without offload."""
    ...

# %% [markdown]
# Your estimates against DeepSpeed's own functions, for a 3B model on 8 GPUs, 7B on 64, and BLOOM's 176B on 384.

# %% tags=["check"]
def test_estimate(estimate):
    for (stage, n, gpus, layer), expected in ranks["truth"][0].items():
        answer = estimate(stage, n, gpus, layer)
        ratio, where = answer / expected, f"stage {stage}, {n / 1e9:.0f}B parameters, {gpus} GPUs"
        assert not 0.5e-9 < ratio < 2e-9, "return bytes, not GB."
        if stage == 2:
            undivided = f"{where}: in stage 2 every GPU keeps all the weights, 2 bytes each."
            assert abs(answer - 20 * n / gpus) > 1e6, undivided
        assert abs(answer - (expected - 2 * n / gpus)) > 1e6, f"{where}: 18 bytes are shared out, not 16."
        if stage == 3:
            assert answer < expected + n, f"{where}: in stage 3 no GPU keeps all the weights."
            assert abs(answer - (expected - 2 * layer)) > 1e6, f"{where}: a layer costs 4 bytes, not 2."
        assert abs(ratio - 1) < 1e-6, f"{where}: {answer:.4g} bytes; DeepSpeed says {expected:.4g}."

check(estimate, test_estimate, hint="stage 2: 2 Ψ + 18 Ψ/n; stage 3: 4 × largest layer + 18 Ψ/n")

# %% tags=["solution"] jupyter={"source_hidden": true}
def estimate(stage, n_parameters, n_gpus, largest_layer=0):
    shared = 18 * n_parameters / n_gpus
    return shared + (2 * n_parameters if stage == 2 else 4 * largest_layer)

check(estimate, test_estimate)

# %% [markdown]
# DeepSpeed's documentation prints an example: a model of 2851 million parameters, whose largest layer has 32 million,
# on one node of 8 GPUs. Here it is, from the package; "GB" there means 2³⁰ bytes.

# %%
%%ranks 0
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs_all_cold as table_of_zero3

table_of_zero3(total_params=2851e6, largest_layer_params=32e6, num_gpus_per_node=8, num_nodes=1)

# %%
%%ranks 0
documented = {(True, True): (71.69, 0.12), (True, False): (63.72, 0.78), (False, False): (1.43, 6.09)}
for (optimizer, parameters), expected in documented.items():
    cpu, gpu, _ = zero3(2851e6, 32e6, 8, 1, cpu_offload=optimizer, cpu_offload_params=parameters)
    assert (round(cpu / 2**30, 2), round(gpu / 2**30, 2)) == expected
per_gpu = zero2(2851e6, 8, 1, cpu_offload=False)[1] / 2**30
print(f"stage 3: as documented, cell by cell\nstage 2: {per_gpu:.2f} GB; the documentation prints 15.93")

# %% [markdown]
# Stage 3 agrees to the last digit. In stage 2 the package has moved on: the documentation counts 4 + 16/n bytes for
# each parameter, the code 2 + 18/n. Read the code of the version that you run.
#
# What no estimator counts: activations, buckets, fragmentation. Lesson 08 has the activations.
#
# In the figure, where a line goes flat more GPUs no longer help: the weights in stage 2, the largest layer in stage 3.

# %%
plots.plot_estimates({f"stage {stage}": lambda n_gpus, stage=stage: estimate(stage, 7e9, n_gpus, 200e6)
                      for stage in (2, 3)}, title="7 billion parameters, largest layer 200 million");

# %% [markdown]
# ## Offload: memory that is not on the GPU
#
# `offload_optimizer` moves states, master weights and Adam's work to the CPU's memory; `offload_param` (stage 3) the
# sharded weights too. The GPU then keeps little, and PCIe carries gradients out and weights back at every step.
# ZeRO-Infinity replaces `"cpu"` by `"nvme"`: local disks.

# %%
%%ranks
host = {"device": "cpu"}
both = {"offload_optimizer": host, "offload_param": host}
offloaded = {"stage 2, optimizer": configuration(2, offload_optimizer=host, **small),
             "stage 3, optimizer and parameters": configuration(3, **both, **small)}
for name, config in offloaded.items():
    engine, losses = train({**config, "zero_force_ds_cpu_optimizer": False})
    difference = (losses - curves[0]).abs().max().item()
    print(f"{name}: largest difference with stage 0 {difference:.0e}")
    assert difference < (1e-6 if device.type == "cpu" else 1e-3)
operators = deepspeed.ops.__compatible_ops__
print(f"async_io, which reads and writes NVMe, can be built here: {operators.get('async_io', False)}")

# %% [markdown]
# The result does not change. **A CPU cannot show the saving**: its memory is already "the CPU's". Nor is the usual
# AdamW of offload here: DeepSpeed's own, written for vector units, needs a compiler (`zero_force_ds_cpu_optimizer:
# False` does without).
#
# NVMe needs the operator `async_io` (a C++ compiler and libaio), and a fast disk in the node: on disks that nodes
# share, it makes little sense.
#
# What to expect from PCIe, for 7 billion parameters, each step, if nothing overlaps:

# %%
links = {"V100 (PCIe 3)": 16, "A100 (PCIe 4)": 31, "H100 (PCIe 5)": 63}     # GB/s one way, IDRIS
for name, gb_per_second in links.items():
    seconds = 2 * 2 * 7e9 / 1e9 / gb_per_second         # bf16 gradients out, bf16 weights back
    print(f"{name}: one GPU alone {seconds:.2f} s a step; its share on 8 GPUs {seconds / 8:.2f} s")

# %% [markdown]
# (*Computed* from the nominal speeds of one direction.) That is tolerable beside a step of seconds, and ruinous
# beside one of 100 ms. Accumulate more micro-batches, and you pay it less often.
#
# ## One bit for each number
#
# On a slow network, send less. *1-bit Adam* (Tang et al., 2021) sends the **sign** of each number, and one scale for
# all: 32 times fewer bytes than fp32. DeepSpeed carried it from 2020 until September 2026, then removed it (pull
# request 8490). The idea stays, and it is short enough for us to write.
#
# Four numbers, sent a hundred times as sign × mean size:

# %%
truth = torch.tensor([4.0, 1.0, -0.2, 0.1])
sent = truth.sign() * truth.abs().mean()
print("truth ", [round(v, 2) for v in truth.tolist()])
print("sent, each time", [round(v, 2) for v in sent.tolist()])

# %% [markdown]
# The large number arrives too small and the small ones too large, for ever. The cure is *error feedback* (fr.
# *rétroaction de l'erreur*): **keep what you failed to send, and add it to the next message.** What is lost today
# leaves tomorrow.
#
# **Exercise 3.** Write one message of it. `error` is what remains from the messages before.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef compress(vector, error):\n    scale = vector.abs().mean()\n    sent = torch.where(vector >= 0, scale, -scale)\n    return sent, torch.zeros_like(vector)\n", "%%ranks\ndef compress(vector, error):\n    wanted = vector + error\n    scale = wanted.abs().mean()\n    sent = torch.where(wanted >= 0, scale, -scale)\n    return sent, vector - sent\n", "%%ranks\ndef compress(vector, error):\n    wanted = vector + error\n    scale = wanted.abs().mean()\n    sent = torch.where(wanted >= 0, scale, -scale)\n    return sent, sent - wanted\n", "%%ranks\ndef compress(vector, error):\n    wanted = vector + error\n    sent = wanted.sign() * wanted.abs().max()\n    return sent, wanted - sent\n", "%%ranks\ndef compress(vector, error):\n    wanted = vector + error\n    sent = wanted.sign()\n    return sent, wanted - sent\n", "%%ranks\ndef compress(vector, error):\n    wanted = vector + error\n    return wanted, wanted - wanted\n"]}
%%ranks
def compress(vector, error):
    """Return (what is sent: ± the mean size of what should be sent, the error that remains)."""
    ...

# %% [markdown]
# The check sends one vector many times, and asks for the mean of what arrived.

# %% tags=["check"]
def test_compress(compress):
    vector = torch.tensor([4.0, 1.0, -0.2, 0.1, -2.0])                  # mean size 1.46
    owed, arrived, error = torch.zeros(5), torch.zeros(5), torch.zeros(5)
    for i in range(200):
        sent, error = compress(vector.clone(), error.clone())
        owed, arrived = owed + vector, arrived + sent
        sizes, unsent = sent.abs(), owed - arrived
        assert sizes.max() - sizes.min() < 1e-6, "all sizes must be equal; only signs may differ."
        assert i or abs(sizes[0] - 1.46) < 1e-5, f"it sends ±{sizes[0]:.2f}: send the mean size, 1.46."
        assert error.any(), "the error is dropped: return what was wanted less what was sent."
        assert not torch.allclose(error, -unsent, atol=1e-3), "turn the error's sign: wanted less sent."
        assert torch.allclose(error, unsent, atol=1e-3), "sent + error must be vector + the old error."
    assert (arrived / 200 - vector).abs().max() < 0.2, f"{arrived / 200} arrived on average."

check("compress", test_compress, hint="wanted = vector + error; send ± its mean size; the rest is the error")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def compress(vector, error):
    wanted = vector + error
    scale = wanted.abs().mean()
    sent = torch.where(wanted >= 0, scale, -scale)
    return sent, wanted - sent

# %% tags=["solution"] jupyter={"source_hidden": true}
check("compress", test_compress)

# %% [markdown]
# On the wire, eight signs make a byte. Every rank sends its own to all, then each computes the same mean:

# %%
%%ranks
powers = 2 ** torch.arange(8, dtype=torch.uint8, device=device)

def mean_of_signs(sent):
    """The mean over the ranks of vectors ±scale: eight numbers a byte, and one scale."""
    bits = torch.nn.functional.pad((sent > 0).to(torch.uint8), (0, -len(sent) % 8)).view(-1, 8)
    message = torch.cat([(bits * powers).sum(1, dtype=torch.uint8), sent[:1].abs().view(torch.uint8)])
    everyone = [torch.empty_like(message) for _ in range(world_size)]
    dist.all_gather(everyone, message)
    mean = torch.zeros_like(sent)
    for message in everyone:
        signs = (message[:-4].unsqueeze(1) & powers).ne(0).flatten()[:len(sent)]
        scale = message[-4:].clone().view(torch.float32)
        mean += torch.where(signs, scale, -scale) / world_size
    return mean

vector = torch.randn(8000, device=device)
with count_communication() as counted:
    mean_of_signs(compress(vector, torch.zeros_like(vector))[0])
signs = counted.n_bytes() // world_size - 4             # what one rank gives, less its scale
with count_communication() as ring:
    dist.all_reduce(vector)
print(f"{vector.nbytes} bytes become {signs} bytes of signs, 1/{vector.nbytes // signs}, and 4 of a scale")
print(f"a ring all_reduce sends {ring.bytes_sent():.0f} bytes, these signs {counted.bytes_sent():.0f}")

# %% [markdown]
# Sixteen times fewer bytes on the wire than a ring, not 32: each rank's signs go to everyone. The paper also
# compresses the sum, with an error of its own, and keeps the factor whatever the number of ranks.
#
# Now the proof that it converges. First a problem whose answer we know: rank $i$ wants $w$ to be near its own $a_i$,
# together they want the mean of the four. Ten numbers, plain gradient descent.

# %%
%%ranks
def descend(how, steps=200, lr=0.04):
    """Distance to the known minimum after each step; `how`: "exact", "feedback" or "no feedback"."""
    a = torch.randn(world_size, 10, generator=torch.Generator().manual_seed(0)).to(device)
    w, error, distances = torch.zeros(10, device=device), torch.zeros(10, device=device), []
    for _ in range(steps):
        gradient = w - a[rank]
        if how == "exact":
            dist.all_reduce(gradient)
            gradient /= world_size
        else:
            sent, kept = compress(gradient, error)
            error = kept if how == "feedback" else error
            gradient = mean_of_signs(sent)
        w = w - lr * gradient
        distances.append((w - a.mean(0)).norm().item())
    return distances

known = {how: descend(how) for how in ("exact", "feedback", "no feedback")}

# %% [markdown]
# Then the digits. In **1-bit Adam** the first steps are Adam's, uncompressed. Then the second moment $v$ is *frozen*:
# what is left is linear in the gradient, and linear is what error feedback needs. From then on the ranks send their
# compressed first moments. (A pixel that is always white has $v = 0$: there the update is masked.)

# %%
%%ranks
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from fidle_utils.data import digits
from fidle_utils.models import MLP

images, labels = (tensor.to(device) for tensor in digits()[:2])

def my_gradient(model, step):
    """The gradient of my quarter of this step's 64 images, as one vector."""
    start = 64 * (step % (len(images) // 64))
    x, y = (tensor[start:start + 64].chunk(world_size)[rank] for tensor in (images, labels))
    return parameters_to_vector(torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())))

def exact_mean(vector):
    dist.all_reduce(vector)
    return vector / world_size

# %%
%%ranks
def one_bit_adam(how, warmup=50, steps=150, lr=3e-3, eps=1e-3):
    torch.manual_seed(0)
    model, losses = MLP().to(device), []
    weights = parameters_to_vector(model.parameters()).detach()
    m, v, error = (torch.zeros_like(weights) for _ in range(3))
    for step in range(steps):
        gradient = my_gradient(model, step)
        m = 0.9 * m + 0.1 * gradient                            # was equal on all ranks, and now is not
        if step < warmup or how == "exact":
            m, v = exact_mean(m), 0.999 * v + 0.001 * exact_mean(gradient) ** 2
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        else:                                                   # v_hat is frozen
            sent, kept = compress(m, error)
            error = kept if how == "feedback" else error
            m = m_hat = mean_of_signs(sent)
        weights = weights - lr * torch.where(v_hat > 0, m_hat / (v_hat.sqrt() + eps), 0)
        vector_to_parameters(weights.clone(), model.parameters())
        with torch.no_grad():
            losses.append(cross_entropy(model(images), labels).item())
    return losses

trained = {how: one_bit_adam(how) for how in ("exact", "feedback", "no feedback")}

# %%
known, trained = ranks["known"][0], ranks["trained"][0]
plots.plot_error_feedback(known, trained, warmup=50)
for how in known:
    print(f"{how}: distance to the minimum {known[how][-1]:.3f} · loss on the digits {trained[how][-1]:.3f}")

# %% [markdown]
# With feedback, one bit does what 32 did, up to a small cloud around the minimum, as small as the steps. Without it,
# the descent stops far away and the digits learn slower. The paper reports up to 5 times less communication (the
# warm-up is not compressed) and up to 3.3 times the throughput of BERT-Large's pre-training.
#
# What DeepSpeed still has is simpler: `communication_data_type`. A gradient in bf16 is half the bytes.

# %%
%%ranks
halved = {**configuration(0), "communication_data_type": "bf16"}
full_bytes, half_bytes = (measure(c)[1].n_bytes("all_reduce") for c in (configuration(0), halved))
_, losses = train(halved)
print(f"{full_bytes} → {half_bytes} bytes reduced; losses differ by {(losses - curves[0]).abs().max():.0e}")

# %% [markdown]
# ## Activation checkpointing
#
# DeepSpeed has its own version of activation checkpointing,
# `deepspeed.checkpointing`: forget activations in forward, compute them again in backward. PyTorch's does the same.
# We count what autograd keeps, in a GPT of four blocks.

# %%
%%ranks
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from fidle_utils.measure import memory_ledger

def activations(checkpoint=None):
    """Bytes of activations, and the gradient, of a GPT whose blocks go through `checkpoint`."""
    model = new_gpt(n_layers=4).to(device)
    for block in model.blocks if checkpoint else ():
        block.forward = lambda x, forward=block.forward: checkpoint(forward, x)
    x, y = next(shares(1))
    with memory_ledger(model) as ledger:
        cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    return ledger.activations, torch.cat([p.grad.flatten() for p in model.parameters()])

config = {"train_batch_size": 16, "activation_checkpointing": {}}
deepspeed.checkpointing.configure(None, deepspeed_config=config)
kept, reference = activations()
for name, how in {"PyTorch": lambda f, x: torch_checkpoint(f, x, use_reentrant=False),
                  "DeepSpeed": deepspeed.checkpointing.checkpoint}.items():
    less, gradient = activations(how)
    torch.testing.assert_close(gradient, reference)
    print(f"{name}: {kept / 1e6:.2f} → {less / 1e6:.2f} MB of activations, equal gradients")

# %% [markdown]
# In a configuration, `"activation_checkpointing": {"partition_activations": true}` shares what remains among
# tensor-parallel ranks, and `"cpu_checkpointing": true` moves it to the CPU. Neither does anything by itself: it is
# your model that must call `deepspeed.checkpointing.checkpoint`.
#
# ## Stage 3 beside FSDP2
#
# PyTorch's `fully_shard` (lesson 08) is the same idea in another library: both split **every** parameter over the
# ranks.

# %%
%%ranks
from torch.distributed.fsdp import fully_shard

def train_fsdp2(steps=5):
    model = new_gpt().to(device)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), **adam)
    losses = []
    for x, y in shares(steps):
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    losses = torch.stack(losses) / world_size
    dist.all_reduce(losses)
    return losses

fsdp2 = train_fsdp2(steps=12)
_, zero_3 = train(configuration(3, **whole), steps=12)

# %%
fsdp2, zero_3 = ranks["fsdp2"][0].cpu(), ranks["zero_3"][0].cpu()
tolerance = 1e-5 if ranks["device"][0].type == "cpu" else 1e-3
torch.testing.assert_close(zero_3, fsdp2, atol=tolerance, rtol=0)
plots.plot_equal_losses(fsdp2.tolist(), zero_3.tolist(), tolerance, names=("FSDP2", "DeepSpeed, stage 3"));

# %% [markdown]
# | | FSDP2 | DeepSpeed, stage 3 |
# |---|---|---|
# | what is sharded | each parameter, along its first dimension | each parameter, flattened, cut in equal pieces |
# | what is gathered together | the modules that you wrap | what prefetching decides: `stage3_prefetch_bucket_size` |
# | small parameters | sharded | kept whole under the threshold |
# | your loop | stays PyTorch's | `engine.backward`, `engine.step` |
# | offload | to the CPU | to the CPU, NVMe |
#
# ## The checkpoint
#
# All ranks call `save_checkpoint`; each writes its shard. Two conversions follow. `zero_to_fp32` puts whole fp32
# weights together, for use without DeepSpeed. A *universal checkpoint* can be resumed with another number of ranks.

# %%
folder = tempfile.TemporaryDirectory()
ranks.push(folder=folder.name)

# %%
%%ranks
engine, _ = train(configuration(3, **whole))
expected = whole_weights(engine)
saved = engine.save_checkpoint(folder, tag="step5")

# %%
for path in sorted(Path(folder.name, "step5").iterdir()):
    print(f"{path.name}: {path.stat().st_size:,} bytes")

# %%
%%ranks 0
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

state = get_fp32_state_dict_from_zero_checkpoint(folder)
model = new_gpt()
model.load_state_dict(state)
difference = (torch.cat([p.flatten() for p in model.parameters()]) - expected.cpu()).abs().max()
print(f"{len(state)} tensors of {next(iter(state.values())).dtype}, as in training but for {difference:.0e}")
assert difference == 0

# %% [markdown]
# The folder carries the same conversion as a script, `zero_to_fp32.py`. The universal format is made by
# `deepspeed.checkpoint.ds_to_universal`; we call its `main` where it can save the seconds of an import.

# %%
%%ranks 0
import argparse
from deepspeed.checkpoint.ds_to_universal import main as to_universal

to_universal(argparse.Namespace(
    input_folder=f"{folder}/step5", output_folder=f"{folder}/step5_universal", num_extract_workers=1,
    num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=False))

# %% [markdown]
# The weights go on for three more steps on these four ranks: the losses that a run without interruption has.

# %%
%%ranks
def three_more(engine):
    losses = []
    for i, (x, y) in enumerate(shares(8)):
        if i >= 5:
            loss = cross_entropy(engine(x).flatten(0, 1), y.flatten())
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
    losses = torch.stack(losses) / world_size
    dist.all_reduce(losses)
    return losses

uninterrupted = three_more(engine)

# %%
uninterrupted = ranks["uninterrupted"][0].cpu()

# %% [markdown]
# ## Pipelines and ZeRO
#
# `PipelineModule` cuts a list of layers into pipeline stages (lesson 06: 1F1B); with four ranks and two stages there
# are two data-parallel copies. That is the *hybrid* of lesson 07. ZeRO may shard over these copies.

# %%
guess = predict("With a pipeline, which ZeRO stages work?", options=["0 and 1", "0, 1 and 2", "all"])

# %%
%%ranks
from deepspeed.pipe import PipelineModule

def layers():
    torch.manual_seed(0)
    net = MLP(width=64, depth=3)
    return list(net.layers)

def train_pipeline(stage, steps=3):
    net = PipelineModule(layers(), num_stages=2, loss_fn=cross_entropy)
    config = {**configuration(stage, **small), "train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}
    engine, *_ = deepspeed.initialize(model=net, config=config)
    x, y = (tensor.chunk(2)[engine.grid.get_data_parallel_rank()] for tensor in (images[:64], labels[:64]))
    return [engine.train_batch(iter(zip(x.split(8), y.split(8)))).item() for _ in range(steps)]

# %%
%%ranks
pipeline = {0: train_pipeline(0)}

# %% [markdown]
# DeepSpeed says how it cut: ranks 0 and 1 hold the first five layers, ranks 2 and 3 the last three. Now with ZeRO:

# %%
%%ranks
import contextlib
import io

for stage in (1, 2, 3):
    try:
        with contextlib.redirect_stdout(io.StringIO()):         # it would print the same cut again
            pipeline[stage] = train_pipeline(stage)
    except AssertionError as error:
        pipeline[stage] = str(error)

# %%
reveal(guess, "0 and 1", why="The engine refuses 2 and 3.")
for stage, result in ranks["pipeline"][0].items():
    print(f"stage {stage}: {result}")

# %% [markdown]
# Why? 1F1B accumulates gradients over many micro-batches. Stage 2 would reduce in each of them, and stage 3 would
# gather each stage's weights for each micro-batch: the messages would eat what the pipeline saves. So BLOOM trained
# with a pipeline, tensor parallelism and the equivalent of stage 1.
#
# Is it right? **One process**, the same layers and images:

# %%
%%ranks
net = torch.nn.Sequential(*layers()).to(device)         # every rank does the same, alone, with all 64 images
optimizer = torch.optim.AdamW(net.parameters(), **adam)
one_process = []
for _ in range(3):
    loss = cross_entropy(net(images[:64]), labels[:64])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    one_process.append(loss.item())

# %%
one_process = torch.tensor(ranks["one_process"][0])
for stage in (0, 1):
    hybrid = torch.tensor(ranks["pipeline"][0][stage])
    torch.testing.assert_close(hybrid, one_process, atol=1e-5, rtol=0)
    difference = (hybrid - one_process).abs().max()
    print(f"pipeline, stage {stage}: largest difference with one process {difference:.0e}")

# %% [markdown]
# ## Two instruments, read together
#
# Two new ranks: in this version, a process that has built a `PipelineModule` cannot build another kind of engine.
#
# The **flops profiler** counts multiply-accumulates (MACs) in forward. Predict it: each token meets every weight of a
# matrix once, which is $12\,w^2$ a block and $w \times$ vocabulary; attention adds $2 \times$ length $\times w$ a
# block.

# %%
%ranks 2

# %%
%%ranks
import copy
import torch
from torch.nn.functional import cross_entropy
from fidle_utils.data import batches, topics
from fidle_utils.deepspeed_setup import import_deepspeed
from fidle_utils.models import GPT

deepspeed = import_deepspeed(device)
text, small = topics(block_size=64), {"reduce_bucket_size": 100_000}
adam = {"type": "AdamW", "params": {"lr": 3e-3, "eps": 1e-6, "torch_adam": True}}
config = {"train_batch_size": 16, "gradient_clipping": 0.0, "optimizer": adam}

def engine_of(stage, seed=0, **more):
    torch.manual_seed(seed)
    zero = {"stage": stage, **small, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    model = GPT(len(text.vocab), tied_head=False)
    return deepspeed.initialize(model=model, config={**config, "zero_optimization": zero, **more})[0]

# %%
%%ranks
from deepspeed.profiling.flops_profiler import FlopsProfiler

def macs_of(engine, n_sequences=4):
    profiler = FlopsProfiler(engine.module, ds_engine=engine)
    profiler.start_profile()
    engine(text.ids[:64 * n_sequences].view(-1, 64).to(device))
    macs = profiler.get_total_macs()
    profiler.end_profile()
    return macs

width, blocks, tokens = 64, 2, 4 * 64
predicted = tokens * (blocks * (12 * width**2 + 2 * 64 * width) + width * len(text.vocab))
stage_2, stage_3 = macs_of(engine_of(2)), macs_of(engine_of(3))
print(f"predicted {predicted:,} MACs · profiler in stage 2: {stage_2:,} · in stage 3: {stage_3:,}")

# %% [markdown]
# Stage 2: exact. Stage 3: far more, with the same model! DeepSpeed puts its own `linear` in PyTorch's place there,
# made of a `matmul`; the profiler counts both. An instrument is also a program: check it against a hand count.
#
# The **comms logger** (`"comms_logger"` in a configuration) sees what DeepSpeed sends.

# %%
%%ranks
engine = engine_of(2, comms_logger={"enabled": True, "prof_all": True, "verbose": False})
for (x, y), _ in zip(batches(text, 16, seed=0), range(3)):
    x, y = (ids.chunk(world_size)[rank].to(device) for ids in (x, y))
    engine.backward(cross_entropy(engine(x).flatten(0, 1), y.flatten()))
    engine.step()
deepspeed.comm.log_summary()
deepspeed.comm.configure(enabled=False)
if rank == 0:
    print(f"all the gradients: {4 * sum(p.numel() for p in engine.module.parameters()) / 1024:.2f} KB")

# %% [markdown]
# `broadcast` is rank 0's start weights. The rest is three steps: two buckets of gradients, which add up to all of
# them, and weights gathered again (its size is the share that one rank puts in). Its times are this machine's; its
# bytes and counts hold everywhere.
#
# Together they say whether a network will do. Work of one rank in a step: 3 × forward (backward costs two forwards).
# Bytes: 2Ψ (n−1)/n. On Jean Zay's A100 nodes, for **one** model of 7 billion parameters in bf16, micro-batch of 2 ×
# 2048 tokens:

# %%
flops = 6 * 7e9 * 2 * 2048                      # 2 flops a MAC, times 3, for each weight and token
psi = 2 * 7e9
compute = flops / (0.5 * 312e12)                            # half of an A100's bf16 peak
links = {"NVLink, inside a node": 300, "Omni-Path, 4 × 12.5 GB/s for 8 GPUs": 50 / 8}
for name, gb_per_second in links.items():
    print(f"compute {compute:.1f} s · messages over {name}: {2 * psi / 1e9 / gb_per_second:.1f} s")

# %% [markdown]
# (*Computed*, nominal speeds, each GPU with an eighth of the node's links.) Inside the node, messages hide behind
# compute. Between nodes they do not, unless you accumulate: the remedy is in the configuration,
# `gradient_accumulation_steps`.
#
# ## Resume on half the ranks
#
# `"checkpoint": {"load_universal": true}`, other initial weights on purpose, and two ranks instead of four:

# %%
ranks.push(folder=folder.name)

# %%
%%ranks
engine = engine_of(3, seed=7, checkpoint={"load_universal": True})
engine.load_checkpoint(folder, tag="step5_universal")
resumed = []
for i, ((x, y), _) in enumerate(zip(batches(text, 16, seed=0), range(8))):
    if i >= 5:
        x, y = (ids.chunk(world_size)[rank].to(device) for ids in (x, y))
        loss = cross_entropy(engine(x).flatten(0, 1), y.flatten())
        engine.backward(loss)
        engine.step()
        resumed.append(loss.detach())
resumed = torch.stack(resumed) / world_size
dist.all_reduce(resumed)

# %%
resumed = ranks["resumed"][0].cpu()
tolerance = 1e-5 if ranks["device"][0].type == "cpu" else 1e-3
torch.testing.assert_close(resumed, uninterrupted, atol=tolerance, rtol=0)
print(f"four ranks, uninterrupted: {uninterrupted.tolist()}\n two ranks, resumed:       {resumed.tolist()}")
folder.cleanup()

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## From the notebook to a job
#
# The whole lesson in one cell, with two new ranks: what a script needs, and no more.

# %% tags=["live"]
%ranks 2
%ranks restart

# %% tags=["live"]
%%ranks
import torch
from torch.nn.functional import cross_entropy
from fidle_utils.data import batches, topics
from fidle_utils.deepspeed_setup import import_deepspeed
from fidle_utils.models import GPT

deepspeed = import_deepspeed(device)
config = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 100_000},
}
text = topics(block_size=64)
torch.manual_seed(0)
engine, *_ = deepspeed.initialize(model=GPT(len(text.vocab)), config=config)
for (x, y), step in zip(batches(text, engine.train_batch_size()), range(10)):
    x, y = (ids.chunk(world_size)[rank].to(device) for ids in (x, y))
    loss = cross_entropy(engine(x).flatten(0, 1), y.flatten())
    engine.backward(loss)
    engine.step()
if rank == 0:
    print(f"stage {engine.zero_optimization_stage()}, batch {engine.train_batch_size()}, loss {loss:.4f}")

# %% tags=["live"]
folder = tempfile.TemporaryDirectory()
script = Path(folder.name, "train.py")

# %% tags=["live"]
%ranks export {script}

# %% [markdown]
# Any launcher will do that sets `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. `torchrun`, as
# in lesson 04:

# %%
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
job = subprocess.run([*torchrun, script], capture_output=True, text=True, timeout=110)
print(job.stdout if job.returncode == 0 else job.stderr)
job.check_returncode()

# %% [markdown]
# DeepSpeed's own launcher, `deepspeed`, starts one process for each GPU of this machine, or of all machines of a
# *hostfile*, through SSH. It needs a free port. To see what it sets, we launch a script that prints its environment.

# %%
import socket

who = Path(folder.name, "who.py")
who.write_text("import os\nprint(*(f'{k}={os.environ[k]}' for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')))\n")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port)]
job = subprocess.run([*launcher, str(who)], capture_output=True, text=True, timeout=110,
                     env={**os.environ, "DS_ACCELERATOR": ranks["device"][0].type})
print("\n".join(line for line in job.stdout.splitlines() if "RANK=" in line))
assert job.returncode == 0 and "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2" in job.stdout, job.stderr

# %% [markdown]
# On **Jean Zay** nobody reaches a node without a job there, and Slurm is the launcher: it starts one `torchrun` on
# each node, which is how BLOOM was started. The lines come from the table of the nodes.

# %%
from fidle_utils.reference import table

node = next(row for row in table("jeanzay_nodes") if row["slurm"] == "-C h100")
gpus, cores = int(node["gpus_per_node"]), int(node["cpus_per_task"])
sbatch = Path(folder.name, "train.slurm")
sbatch.write_text(f"""#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:{gpus}
#SBATCH --cpus-per-task={gpus * cores}
#SBATCH --hint=nomultithread
#SBATCH {node["slurm"]}
#SBATCH --time=00:10:00
module purge
module load arch/h100 pytorch-gpu/py3/2.8.0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes 2 --nproc-per-node {gpus} --rdzv-backend c10d --rdzv-endpoint "$head:29500" train.py
""")
print(sbatch.read_text())
subprocess.run(["bash", "-n", sbatch], check=True)          # the shell can read it; only Slurm can run it
folder.cleanup()

# %% [markdown]
# ## In practice
#
# - Begin with the smallest stage that fits: 1, then 2, then 3, then offload. Each saves memory, and some cost
#   messages.
# - Compare with one process, a few steps, `gradient_clipping` included, before you trust a configuration.
# - Print what the engine believes: stage, batch sizes, clipping. A misspelt name at the top says nothing.
# - Inside one node with NVLink, stages 2 and 3 are cheap. Across a slow network prefer stage 1 with accumulation, or
#   a pipeline with stage 1.
# - `reduce_bucket_size` counts numbers. Lower it when memory is short.
# - Pin the version. Between two, defaults and whole features came and went: clipping, 1-bit Adam.

# %% [markdown]
# ## Go further
#
# - `stage3_prefetch_bucket_size` and `stage3_max_live_parameters` between 0 and their defaults: draw bytes sent
#   against numbers kept.
# - Compress the sum as well (*server* compression in the paper): two errors to keep, and the volume no longer grows
#   with ranks.
# - On a GPU: `offload_optimizer`, and the timeline of a step. What does PCIe wait for?
# - On a GPU: ZeRO++ (`zero_quantized_weights`, `zero_quantized_gradients`), which DeepSpeed does not implement on
#   CPUs.

# %% [markdown]
# ## Sources
#
# - S. Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*, SC 2020,
#   [arXiv:1910.02054](https://arxiv.org/abs/1910.02054): the stages, 16 bytes a parameter, 2Ψ and 3Ψ.
# - S. Rajbhandari et al., *ZeRO-Infinity*, SC 2021, [arXiv:2104.07857](https://arxiv.org/abs/2104.07857): NVMe.
# - H. Tang et al., *1-bit Adam*, ICML 2021, [arXiv:2102.02888](https://arxiv.org/abs/2102.02888).
# - S. P. Karimireddy et al., *Error Feedback Fixes SignSGD*, ICML 2019,
#   [arXiv:1901.09847](https://arxiv.org/abs/1901.09847).
# - DeepSpeed: [configuration](https://www.deepspeed.ai/docs/config-json/),
#   [memory estimators](https://deepspeed.readthedocs.io/en/latest/memory.html),
#   [clipping by default](https://github.com/deepspeedai/DeepSpeed/pull/8068),
#   [1-bit Adam removed](https://github.com/deepspeedai/DeepSpeed/pull/8490),
#   [issue 8489](https://github.com/deepspeedai/DeepSpeed/issues/8489).
# - Jean Zay's nodes and links: IDRIS, *Programmation hybride* v4.0 (2024) and the poster *Democratizing LLM
#   Fine-Tuning* (2025); BLOOM's start script: BigScience, `tr11-176B-ml.slurm`.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("Stages 0 and 3 give equal losses. So the configuration does what plain PyTorch does.",
             options=["true", "false"])
q2 = predict("Long gradient accumulation on a slow network: which stage sends less?", options=["1", "2"])

# %%
reveal(q1, "false", why="Both clip, by default. Compare with one process.")
reveal(q2, "1", why="Stage 2 reduces in every micro-batch, stage 1 once.")

# %%
q3 = predict("8 GPUs, micro-batch 2, train_batch_size 64: accumulation steps?")
q4 = predict("Pipeline with ZeRO stage 3 in DeepSpeed:", options=["works", "is refused"])
q5 = predict("One-bit gradients without error feedback:", options=["arrive on average", "never arrive"])

# %%
reveal(q3, 4, why="64 / (8 × 2).")
reveal(q4, "is refused", why="Stages 2 and 3 would send for every micro-batch; 0 and 1 work.")
reveal(q5, "never arrive", why="The same error each time. Kept and sent later, it vanishes in the mean.")

# %%
from fidle_utils import progress

progress.show("09")
