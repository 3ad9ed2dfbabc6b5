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
# # 04 · Split the data
#
# **You will** cut one batch in four, train one model on four ranks by hand, and arrive at the same loss curve as one
# process. Then you will make it fast: buckets, overlap, and at last the one line that does it all,
# `DistributedDataParallel`.
#
# **You learn** what data parallelism computes, what it sends, why its ranks stay equal, and the traps in which real
# trainings fall: uneven batches, batch norm, a sampler that repeats itself, an accuracy that counts some images twice.
#
# **You need** PyTorch's training loop, and lesson 00 (what a rank is). Lesson 03 explains `all_reduce`; one sentence
# about it is enough here. No GPU is needed; with one GPU for each rank the same cells use them.
#
# **Time** 17 min live (the cells tagged `live`), 90 min alone, with three exercises.

# %% tags=["live"]
%load_ext fidle_utils
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fidle_utils import plots, ranks
from fidle_utils.data import digits
from fidle_utils.measure import track
from fidle_utils.models import MLP
from fidle_utils.teach import check, predict, reveal

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Why split the data?
#
# A training step reads a *batch* (fr. *lot*), computes the mean loss of its images, and follows the gradient of that
# mean. The gradient of a mean is the mean of the gradients:
#
# $$\nabla \frac{1}{B}\sum_{i=1}^{B} \ell_i \;=\; \frac{1}{n}\sum_{r=0}^{n-1}
# \underbrace{\nabla \frac{n}{B}\sum_{i \,\in\, \text{share } r} \ell_i}_{\text{rank } r \text{ computes this alone}}$$
#
# So $n$ ranks can each take one share of the batch, and work without a word to each other until the very end.
# There they need **one** thing: the mean of $n$ gradients. That is *data parallelism*
# (fr. *parallélisme de données*), the first tool to reach for when training is slow and the model fits on one device.

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## One batch, four ranks
#
# Here is a batch of 64 digits. The frame says which rank gets which images.

# %% tags=["live"]
x_train, y_train, x_test, y_test = digits()
plots.plot_batch_split(x_train[:64], n_ranks=4);

# %% [markdown] tags=["live"]
# Every rank will hold the **whole model** and **a quarter of the batch**. The four models start equal.

# %%
guess = predict("Each rank runs backward on its own quarter. Are the four gradients equal?",
                options=["yes", "no"])

# %% tags=["live"]
%%ranks
from torch.nn.functional import cross_entropy
from fidle_utils.data import digits
from fidle_utils.models import MLP

x_train, y_train, x_test, y_test = (tensor.to(device) for tensor in digits())

def gradient(model):
    """All the gradients of a model, as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])

torch.manual_seed(0)                            # the same seed on every rank: the same model
model = MLP().to(device)
x, y = x_train[:64].chunk(world_size)[rank], y_train[:64].chunk(world_size)[rank]
cross_entropy(model(x), y).backward()
print(f"{len(x)} images, gradient norm {gradient(model).norm():.6f}")

# %%
reveal(guess, "no", why="Each rank saw other images. After one step, these would be four different models.")

# %% [markdown] tags=["live"] fidle={"minutes": 4}
# ## Make the four gradients agree
#
# What should they have been? Ask **one process** (the notebook itself), with all the 64 images.
# This gradient is our *reference*: whatever we build, it must give this one.

# %% tags=["live"]
def gradient(model):
    """All the gradients of a model, as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])

torch.manual_seed(0)
whole = MLP()
cross_entropy(whole(x_train[:64]), y_train[:64]).backward()
reference = gradient(whole)
print(f"whole batch, one process: gradient norm {reference.norm():.6f}")

# %% [markdown] tags=["live"]
# `dist.all_reduce(tensor)` adds up the tensors of all ranks, **in place, on every rank**. All the ranks must call it,
# in the same order: a rank that does not come makes the others wait.
#
# **Exercise 1.** Complete `average_gradients`: after the call, every `p.grad` is the mean over the ranks
# (fr. *gradient moyen*). You have `dist`, `rank` and `world_size`.

# %% tags=["exercise", "live"] fidle={"wrong": ["%%ranks\ndef average_gradients(model):\n    for p in model.parameters():\n        dist.all_reduce(p.grad)\n", "%%ranks\ndef average_gradients(model):\n    for p in model.parameters():\n        dist.all_reduce(p.data)\n        p.data /= world_size\n", "%%ranks\ndef average_gradients(model):\n    if rank == 0:\n        for p in model.parameters():\n            dist.all_reduce(p.grad)\n            p.grad /= world_size\n", "%%ranks\ndef average_gradients(model):\n    for p in model.parameters():\n        p.grad /= world_size\n"]}
%%ranks
def average_gradients(model):
    """Replace every gradient by its mean over the ranks."""
    ...

# %% [markdown]
# The check trains nothing. On every rank it runs backward on a quarter, calls your function, and compares with the
# gradient that the rank computes alone from the whole batch.
# The tolerance is $10^{-5}$: adding floats in another order changes the last digits, and only those.

# %% tags=["check", "live"]
def test_average(average_gradients):
    torch.manual_seed(1)
    mine, whole = MLP().to(device), MLP().to(device)
    whole.load_state_dict(mine.state_dict())
    x, y = x_train[:64].to(device), y_train[:64].to(device)
    cross_entropy(whole(x), y).backward()
    cross_entropy(mine(x.chunk(world_size)[rank]), y.chunk(world_size)[rank]).backward()
    before, weights, expected = gradient(mine), parameters_to_vector(mine.parameters()), gradient(whole)

    average_gradients(mine)
    after = gradient(mine)
    far, far_from_sum = (after - expected).abs().max(), (after - world_size * expected).abs().max()
    moved = not torch.equal(weights, parameters_to_vector(mine.parameters()))
    assert not moved, "the weights changed. Average p.grad, and leave the weights to the optimizer."
    assert far_from_sum > 1e-5, f"every gradient is {world_size} times too large: all_reduce adds. Divide."
    assert not torch.equal(before, after), "the gradients are as before: reduce p.grad itself, in place."
    assert far < 1e-5, f"a gradient is {far:.1e} away from the whole batch's: sum over ranks, then divide."

check("average_gradients", test_average, hint="for each p: sum p.grad over the ranks, then divide")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def average_gradients(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)         # the sum over the ranks, on every rank
        p.grad /= world_size            # the mean

# %% tags=["solution"] jupyter={"source_hidden": true}
check("average_gradients", test_average)

# %% [markdown] tags=["live"]
# Back to the four gradients of the first cell. Two lines make them agree:

# %% tags=["live"]
%%ranks
for p in model.parameters():
    dist.all_reduce(p.grad)
    p.grad /= world_size
averaged = gradient(model)
print(f"gradient norm {gradient(model).norm():.6f}")

# %% tags=["live"]
for i, averaged in enumerate(ranks["averaged"]):
    torch.testing.assert_close(averaged, reference, atol=1e-5, rtol=0)
    print(f"rank {i}: largest difference with one process {(averaged - reference).abs().max():.1e}")

# %% [markdown] tags=["live"]
# **Four ranks, each with a quarter of the batch, hold the gradient of the whole batch.** All the rest of this lesson
# makes these two lines faster, and keeps them true.

# %% [markdown]
# ## What did it cost? Count the bytes
#
# `count_communication` sees every collective that a rank takes part in, whoever calls it.

# %%
%%ranks
from fidle_utils.measure import count_communication

with count_communication() as counted:
    average_gradients(model)
parameter_bytes = sum(p.nbytes for p in model.parameters())
print(f"{counted.calls('all_reduce')} all_reduce, {counted.n_bytes('all_reduce')} bytes; "
      f"the parameters weigh {parameter_bytes} bytes")

# %% [markdown]
# One message for each tensor, and exactly the bytes of the parameters: $S$. That is what we *asked* to reduce.
# What does a rank *send* to get it done? It could send its whole gradient to each of the others: $(n-1)\,S$.

# %%
guess = predict("Four ranks all_reduce a tensor of S bytes. Each rank sends…",
                options=["1 × S", "1.5 × S", "3 × S", "4 × S"])

# %% [markdown]
# We can look. On one machine without GPUs, ranks speak through the *loopback* interface, and Linux counts its bytes.
# We reduce 4 MiB on two, three and four ranks, and read the counter before and after. (It counts everyone's bytes: a
# busy machine adds a few.)

# %%
%%ranks
groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 3, 4)}      # every rank must call new_group
tensor = torch.ones(2**20, device=device)                              # 4 MiB

def reduce_five_times(n):
    if rank < n:
        for _ in range(5):
            dist.all_reduce(tensor, group=groups[n])

# %%
def loopback_bytes():
    """Bytes that this machine has sent to itself since it started (Linux only)."""
    counters = Path("/proc/net/dev").read_text().split("lo:")[1]
    return int(counters.split()[8])

sent = {}                                       # ranks → bytes sent by each, as a multiple of S
if Path("/proc/net/dev").exists() and ranks["device"][0].type == "cpu":
    for n in (2, 3, 4):
        before = loopback_bytes()
        ranks.run(lambda n: reduce_five_times(n), n)
        sent[n] = (loopback_bytes() - before) / 5 / n / (4 * 2**20)
        print(f"{n} ranks: each sent {sent[n]:.3f} S; 2(n−1)/n = {2 * (n - 1) / n:.3f}")
else:
    print("these ranks do not speak through a loopback that we can read: the figure shows the formula alone")

# %%
reveal(guess, "1.5 × S", why="A ring sends 2(n−1)/n · S: every rank passes pieces of S/n on, 2(n−1) times.")
plots.plot_ring_bytes(sent);

# %% [markdown]
# The curve stays under $2S$, **however many ranks**: one more rank costs the others almost no byte. This bound, and the
# ring that reaches it, are Patarasuk and Yuan's (2009); lesson 03 builds that ring. With it and with what follows, Li
# et al. (2020) report near-linear scaling to 256 GPUs.
#
# On GPUs, NCCL chooses among a ring, trees and others; there the figure shows the formula alone.

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## The same start, on every rank
#
# Equal gradients keep equal models equal. They do not *make* models equal. Three trainings, forty steps each:
#
# | | start | gradients |
# |---|---|---|
# | A | another seed on every rank | averaged |
# | B | the same seed | **not** averaged |
# | C | the same seed | averaged |

# %%
guess = predict("In A, how does the distance between two ranks' weights change during the training?",
                options=["it shrinks", "it stays the same", "it grows"])

# %% tags=["live"]
%%ranks
from torch.nn.utils import parameters_to_vector

def share(step):
    """My quarter of the batch of this step: 64 images, in the order of the data set."""
    start = 64 * (step % (len(x_train) // 64))
    x, y = x_train[start:start + 64], y_train[start:start + 64]
    return x.chunk(world_size)[rank], y.chunk(world_size)[rank]

def distance_to_rank_0(model):
    mine = parameters_to_vector(model.parameters()).detach()
    rank_0 = mine.clone()
    dist.broadcast(rank_0, src=0)
    return (mine - rank_0).norm().item()

# %% tags=["live"]
%%ranks
def drift(seed, average, steps=40):
    torch.manual_seed(seed)
    model = MLP().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    distances = []
    for step in range(steps):
        distances.append(distance_to_rank_0(model))
        x, y = share(step)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        if average:
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= world_size
        optimizer.step()
    return distances

A, B, C = drift(seed=rank, average=True), drift(seed=0, average=False), drift(seed=0, average=True)

# %%
reveal(guess, "it stays the same", why="All take the same step, so what separates them at the start stays.")

# %% tags=["live"]
plots.plot_drift({"A: other seeds, averaged": ranks["A"], "B: same seed, not averaged": ranks["B"],
                  "C: same seed, averaged": ranks["C"]});

# %% [markdown] tags=["live"]
# B drifts apart, C stays together. A is the dangerous one. It does not crash and its loss goes down; yet its gradients
# are the mean of gradients taken at four different points, and belong to no model at all. The cure does not trust
# seeds: **rank 0 gives its weights to all**, with a *broadcast*.

# %%
%%ranks
torch.manual_seed(rank)                         # four different models…
model = MLP().to(device)
before = distance_to_rank_0(model)
for p in model.parameters():
    dist.broadcast(p.data, src=0)               # …now four times rank 0's
print(f"distance to rank 0: {before:.2f} before, {distance_to_rank_0(model):.2f} after")

# %% [markdown]
# ## The trap of the last batch
#
# Ten images on four ranks: 3, 3, 3 and 1. Each rank computes the mean loss of its images, and you average the four.

# %%
guess = predict("Is the mean of the four means the mean loss of the ten images?", options=["yes", "no"])

# %%
%%ranks
x, y = x_train[:10].chunk(world_size)[rank], y_train[:10].chunk(world_size)[rank]
with torch.no_grad():
    mean_loss = cross_entropy(model(x), y)
    mean_of_means = mean_loss / world_size
    dist.all_reduce(mean_of_means)
    total = torch.stack([mean_loss * len(x), torch.tensor(float(len(x)), device=device)])   # my sum, my count
    dist.all_reduce(total)
    true_mean = cross_entropy(model(x_train[:10]), y_train[:10])
print(f"images: {len(x)} · my mean loss: {mean_loss:.4f}")
if rank == 0:
    print(f"mean of means {mean_of_means:.4f} · sums / counts {total[0] / total[1]:.4f} · truth {true_mean:.4f}")

# %%
reveal(guess, "no", why="The single image of rank 3 weighs a quarter of the result, instead of a tenth.")

# %% [markdown]
# The gradients suffer just the same. Two cures: drop the uneven last batch (`drop_last=True`, the habit in training),
# or let each rank weigh its loss by its share: `loss_sum · n / total_count` before `backward()`, then average as usual.

# %%
%%ranks
def mean_gradient(loss):
    model.zero_grad()
    loss.backward()
    mean = gradient(model) / world_size
    dist.all_reduce(mean)
    return mean

plain = mean_gradient(cross_entropy(model(x), y))
weighed = mean_gradient(cross_entropy(model(x), y, reduction="sum") * world_size / total[1])
model.zero_grad()
cross_entropy(model(x_train[:10]), y_train[:10]).backward()
truth = gradient(model)
if rank == 0:
    print(f"relative error of the gradient: mean of means {(plain - truth).norm() / truth.norm():.0%}, "
          f"weighed {(weighed - truth).norm() / truth.norm():.0e}")

# %% [markdown]
# ## Train by hand
#
# Everything is there: the same start, a share each, the mean gradient. Train for 60 steps on four ranks…

# %%
%%ranks
torch.manual_seed(0)
trained = MLP().to(device)
optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
losses = []
for step in range(60):
    x, y = share(step)
    optimizer.zero_grad()
    loss = cross_entropy(trained(x), y)
    loss.backward()
    for p in trained.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world_size
    optimizer.step()
    mean_loss = loss.detach() / world_size
    dist.all_reduce(mean_loss)                  # only to draw it
    losses.append(mean_loss.item())

# %% [markdown]
# …and in one process, on the whole batches. The momentum needs no message: equal gradients build equal momenta.

# %%
torch.manual_seed(0)
model = MLP()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses = []
for step in range(60):
    start = 64 * (step % (len(x_train) // 64))
    x, y = x_train[start:start + 64], y_train[start:start + 64]
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
torch.testing.assert_close(ranks["losses"], [losses] * len(ranks), atol=1e-3, rtol=0)
plots.plot_equal_losses(losses, ranks["losses"][0], tolerance=1e-3);

# %%
accuracy = (model(x_test).argmax(1) == y_test).float().mean()
print(f"one process: {accuracy:.1%} of {len(y_test)} test images right after 60 steps of 64 images")

# %% [markdown]
# The two curves are one. (A step without a dot: equal to the last digit.) They differ by rounding, and a step starts
# from the rounding of all the steps before: compare gradients rather than the ends of two long trainings.

# %% [markdown]
# ## Buckets: fewer, larger messages
#
# A message has a fixed cost, whatever its size: lesson 03 calls it $\alpha$, the latency. A deep model has many small
# tensors. A *bucket* (fr. *paquet*) glues neighbours into one flat tensor: one message for all of them.

# %%
%%ranks
def reduce_together(gradients):
    flat = torch.cat([g.flatten() for g in gradients]) / world_size
    dist.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(piece.view_as(gradient))

def average_in_buckets(model, bucket_bytes):
    bucket = []
    for p in reversed(list(model.parameters())):        # the order in which backward finishes them
        bucket.append(p.grad)
        if sum(g.nbytes for g in bucket) >= bucket_bytes:
            reduce_together(bucket)
            bucket = []
    if bucket:
        reduce_together(bucket)

# %%
guess = predict("A model of 42 tensors, 1.3 MB in all. How many times faster is one bucket than 42 messages?",
                options=["as fast", "about 2 times", "more than 4 times"])

# %% [markdown]
# The slowest rank decides, so we keep its time; and the median of five trials, since the machine does other things.

# %%
%%ranks
import statistics, time

def median_ms(function, *args, trials=5):
    times = []
    for _ in range(trials + 1):
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize()            # kernels are asynchronous: wait before reading the clock
        start = time.perf_counter()
        function(*args)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])         # the first trial warms up

deep = MLP(width=128, depth=20).to(device)
cross_entropy(deep(x_train[:8]), y_train[:8]).backward()
rows = []                                       # messages, milliseconds
for bucket_bytes in (1, 2**17, 2**18, 2**19, 2**22):
    with count_communication() as counted:
        average_in_buckets(deep, bucket_bytes)
    rows.append((counted.calls(), median_ms(average_in_buckets, deep, bucket_bytes)))

# %%
slowest = [(rows[0][0], max(ms for _, ms in rows)) for rows in zip(*ranks["rows"], strict=True)]
plots.plot_buckets(slowest)
(many, many_ms), (one, one_ms) = slowest[0], slowest[-1]
print(f"{many} messages: {many_ms:.0f} ms · {one} message: {one_ms:.1f} ms "
      f"· about {(many_ms - one_ms) / (many - one):.1f} ms a message")

# %%
ratio = many_ms / one_ms
reveal(guess, "more than 4 times" if ratio > 4 else "about 2 times" if ratio > 1.4 else "as fast",
       why=f"{ratio:.0f} times here: the bytes are the same, the messages are not.")

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## Overlap: send while you compute
#
# Backward goes from the last layer to the first. The last layer's gradient is ready long before the first's: why
# should it wait? PyTorch calls a *hook* as soon as one gradient is final, and `async_op=True` starts the `all_reduce`
# without waiting for it. This is *overlap* (fr. *recouvrement*) of communication and computation.

# %%
%%ranks
def send_when_ready(model):
    """From now on every gradient leaves as soon as it is final; call the returned function to wait for all."""
    pending = []
    def send(p):
        p.grad /= world_size
        pending.append(dist.all_reduce(p.grad, async_op=True))
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(send)
    def wait():
        while pending:
            pending.pop().wait()
    return wait

torch.manual_seed(0)
model = MLP().to(device)
wait = send_when_ready(model)
x, y = x_train[:64].chunk(world_size)[rank], y_train[:64].chunk(world_size)[rank]
cross_entropy(model(x), y).backward()
wait()                                          # before the optimizer reads p.grad
sent_early = gradient(model)

# %%
for sent_early in ranks["sent_early"]:
    torch.testing.assert_close(sent_early, reference, atol=1e-5, rtol=0)
print("still the gradient of the whole batch, on every rank")

# %% [markdown] tags=["live"]
# But is it faster? On a laptop we cannot honestly see: gloo's all_reduce needs
# the same cores as backward. On a GPU node, links and network cards do most of that work.
#
# So we **emulate** the network, on two ranks. A bucket spends a fixed time on one emulated link, asleep, before its
# real all_reduce. That time is what one layer's backward takes on your device. Everything else is real.

# %% tags=["live"]
%%ranks
import time
from concurrent.futures import ThreadPoolExecutor
from torch import nn

pair = dist.new_group([0, 1])
link = ThreadPoolExecutor(1)                    # one link: the buckets leave one after the other
plain = overlapped = link_seconds = None        # what ranks 0 and 1 will measure

def now():
    if device.type == "cuda":
        torch.cuda.synchronize(device)          # so that the stamp tells when the work ended
    return time.monotonic()                     # one clock for all the ranks of this machine

def communicate(gradient, bucket, link_seconds, events):
    start = now()
    time.sleep(link_seconds)                    # emulated
    dist.all_reduce(gradient, group=pair)
    events.append(("communication", bucket, start, now()))

# %% tags=["live"]
%%ranks
def timed_step(model, x, link_seconds, overlap):
    """One backward and its communication, as (kind, layer, start, end) events in seconds."""
    backward, communication, jobs = [], [], []
    layer_of = {p: layer for layer, p in enumerate(model.parameters())}
    def send(p):
        jobs.append(link.submit(communicate, p.grad, layer_of[p], link_seconds, communication))
    def ready(p):
        backward.append(("backward", layer_of[p], backward[-1][3] if backward else start, now()))
        if overlap:
            send(p)
    hooks = [p.register_post_accumulate_grad_hook(ready) for p in model.parameters()]
    model.zero_grad()
    loss = model(x).square().mean()
    dist.barrier(group=pair)
    start = now()
    loss.backward()
    if not overlap:
        for p in reversed(list(model.parameters())):
            send(p)
    for waiting in jobs:
        waiting.result()
    for hook in hooks:
        hook.remove()
    return backward + communication

# %%
guess = predict("Six layers; a bucket's trip takes as long as one layer's backward. Without overlap a step "
                "lasts 12 such times. How many with overlap?", options=["6", "7", "9", "12"])

# %% tags=["live"]
%%ranks 0,1
torch.manual_seed(0)
tower = nn.Sequential(*(nn.Sequential(nn.Linear(768, 768, bias=False), nn.Tanh()) for _ in range(6))).to(device)
x = torch.randn(512, 768, device=device)
timed_step(tower, x, 0, overlap=False)                          # warm up
layers = timed_step(tower, x, 0, overlap=False)[:6]
seconds = torch.tensor((layers[-1][3] - layers[0][2]) / 6, device=device)
dist.all_reduce(seconds, group=pair)
link_seconds = seconds.item() / 2                               # the same emulated link on both ranks
plain, overlapped = (timed_step(tower, x, link_seconds, overlap) for overlap in (False, True))

# %% tags=["live"]
plain, overlapped = ranks["plain"][:2], ranks["overlapped"][:2]
plots.plot_overlap(plain, overlapped);

# %%
def milliseconds(events_of_ranks):
    stamps = [stamp for events in events_of_ranks for event in events for stamp in event[2:]]
    return 1000 * (max(stamps) - min(stamps))

print(f"without overlap {milliseconds(plain):.0f} ms, with {milliseconds(overlapped):.0f} ms "
      f"(a link time, emulated: {1000 * ranks['link_seconds'][0]:.0f} ms)")
reveal(guess, "7", why="Only the last bucket to be ready, the first layer's, has nothing to hide behind. "
       "The two times above also hold the real all_reduce, on the same cores.")

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## The same in one line
#
# Broadcast, buckets, hooks, overlap: you now know what `DistributedDataParallel` (DDP) does. We even give every rank
# another seed, on purpose.

# %%
guess = predict("Seeds differ from rank to rank. Whose weights does DDP train?",
                options=["rank 0's", "the mean of all", "each rank its own"])

# %% tags=["live"]
%%ranks
from torch.nn.parallel import DistributedDataParallel as DDP

torch.manual_seed(rank)
ddp = DDP(MLP().to(device))                     # the one line
x, y = x_train[:64].chunk(world_size)[rank], y_train[:64].chunk(world_size)[rank]
cross_entropy(ddp(x), y).backward()             # averages the gradients, while it computes
by_ddp = gradient(ddp)
print(f"gradient norm {by_ddp.norm():.6f}")

# %%
for by_ddp in ranks["by_ddp"]:
    torch.testing.assert_close(by_ddp, reference, atol=1e-5, rtol=0)
reveal(guess, "rank 0's", why="Its constructor broadcasts rank 0's weights; the reference has rank 0's seed.")

# %% [markdown]
# What did DDP decide? `bucket_cap_mb` is 25 by default; the first bucket is smaller, to start sending early. After
# the first step, DDP orders its buckets again, in the order in which the gradients really came.
# `_get_ddp_logging_data` is private, and may change: read it, do not build on it.

# %%
%%ranks 0
info = ddp._get_ddp_logging_data()
for name in ("bucket_cap_bytes", "bucket_sizes", "num_parameter_tensors", "total_parameter_size_bytes",
             "gradient_as_bucket_view", "find_unused_parameters", "broadcast_buffers"):
    print(f"{name:28} {info.get(name)}")

# %% [markdown]
# Our MLP fits in one bucket: no overlap to hope for. With a deeper model and a smaller cap there are more.
# And with `gradient_as_bucket_view=True` each `p.grad` *is* a piece of a bucket: no second copy of the gradients.

# %%
%%ranks
def bytes_of_storages(tensors):
    """Bytes behind some tensors; storage that they share counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

for view in (False, True):
    ddp = DDP(MLP(width=128, depth=20).to(device), bucket_cap_mb=0.25, gradient_as_bucket_view=view)
    for _ in range(3):
        cross_entropy(ddp(x), y).backward()
    gradients = [p.grad for p in ddp.parameters()]
    storages = len({g.untyped_storage().data_ptr() for g in gradients})
    print(f"gradient_as_bucket_view={view!s:5}: {len(gradients)} gradients in {storages} storages, "
          f"{bytes_of_storages(gradients)} bytes")
info = ddp._get_ddp_logging_data()
print(f"buckets at first: {info.get('bucket_sizes')} bytes\nand after a step: {info.get('rebuilt_bucket_sizes')}")

# %% [markdown]
# `False`: each gradient has its own storage, *beside* the buckets, which weigh as much again. `True`: the buckets
# are the gradients' only storage.

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## The timeline of a real step
#
# A wider model, so that backward takes a while, and DDP with several buckets. `--timeline` records the cell with
# PyTorch's profiler, on all the ranks, on one clock.

# %% tags=["live"]
%%ranks
wide = DDP(MLP(width=512, depth=6).to(device), bucket_cap_mb=2)
x, y = x_train[:256], y_train[:256]
for _ in range(3):                              # warm up, and let DDP order its buckets
    cross_entropy(wide(x), y).backward()
dist.barrier()

# %% tags=["live"]
%%ranks --timeline
cross_entropy(wide(x), y).backward()

# %% tags=["live"]
plots.plot_timeline(ranks.timeline);

# %% tags=["live"]
ranks.timeline.summary()

# %% [markdown] tags=["live"]
# The first bucket leaves **before** backward has ended: that is DDP's overlap, a real one this time.
#
# - `overlap_ms`: communication while this rank computed. It is hidden: it costs the step nothing, or little.
# - `exposed_ms`: communication while it computed nothing. This is what the step pays.
# - `waiting_ms`: the part of communication in which another rank had not come yet. A faster link does not help there.
#
# On two cores, most is waiting: for the slower ranks, and for a core. On a GPU node, run these very cells again. To
# zoom into every operator, `ranks.timeline.to_chrome("step.json")` writes a file that
# [ui.perfetto.dev](https://ui.perfetto.dev) opens in your browser, which keeps it to itself.

# %% [markdown]
# ## Gradient accumulation: k micro-steps, one reduction
#
# The batch you want may not fit in memory, even split: accumulate the gradients of `k` micro-batches (lesson 02). But
# DDP averages after each backward: k reductions, where one is enough. Inside `with ddp.no_sync():` it does not reduce.
#
# **Exercise 2.** `micro_batches` is a list of `(x, y)`, all of one size. Leave in `p.grad` the gradient of the mean
# loss over all of them and all ranks, and reduce **once**.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef accumulate(ddp, micro_batches):\n    for x, y in micro_batches:\n        (cross_entropy(ddp(x), y) / len(micro_batches)).backward()\n", "%%ranks\ndef accumulate(ddp, micro_batches):\n    with ddp.no_sync():\n        for x, y in micro_batches[:-1]:\n            cross_entropy(ddp(x), y).backward()\n    x, y = micro_batches[-1]\n    cross_entropy(ddp(x), y).backward()\n", "%%ranks\ndef accumulate(ddp, micro_batches):\n    with ddp.no_sync():\n        for x, y in micro_batches:\n            (cross_entropy(ddp(x), y) / len(micro_batches)).backward()\n", "%%ranks\ndef accumulate(ddp, micro_batches):\n    for i, (x, y) in enumerate(micro_batches):\n        loss = cross_entropy(ddp(x), y) / len(micro_batches)\n        if i < len(micro_batches) - 1:\n            with ddp.no_sync():\n                loss.backward()\n        else:\n            loss.backward()\n"]}
%%ranks
def accumulate(ddp, micro_batches):
    """Backward over the micro-batches; DDP reduces the gradients once, at the last."""
    ...

# %% tags=["check"]
def test_accumulate(accumulate):
    from torch.nn.parallel import DistributedDataParallel
    torch.manual_seed(2)
    ddp, whole = DistributedDataParallel(MLP().to(device)), MLP().to(device)
    whole.load_state_dict(ddp.module.state_dict())
    x, y = x_train[:64].to(device), y_train[:64].to(device)
    cross_entropy(whole(x), y).backward()
    x, y = x.chunk(world_size)[rank], y.chunk(world_size)[rank]

    with count_communication() as counted:
        accumulate(ddp, list(zip(x.chunk(4), y.chunk(4), strict=True)))
    n = counted.calls("all_reduce")             # DDP keeps this small model in one bucket
    assert n > 0, "DDP never reduced: the last micro-batch must be outside no_sync()."
    assert n == 1, f"DDP reduced {n} times, not once. no_sync() holds all but the last, forward too."
    far = (gradient(ddp) - gradient(whole)).abs().max()
    assert far < 1e-5, f"a gradient is {far:.1e} off: did you add the micro-batches' means without dividing?"

check("accumulate", test_accumulate, hint="all but the last inside `with ddp.no_sync():`, forward too")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def accumulate(ddp, micro_batches):
    k = len(micro_batches)
    with ddp.no_sync():
        for x, y in micro_batches[:-1]:
            (cross_entropy(ddp(x), y) / k).backward()
    x, y = micro_batches[-1]
    (cross_entropy(ddp(x), y) / k).backward()           # this one reduces all that has been accumulated

# %% tags=["solution"] jupyter={"source_hidden": true}
check("accumulate", test_accumulate)

# %% [markdown]
# ## Batch norm sees only its share
#
# *Batch norm* (fr. *normalisation par lots*) subtracts the mean of the batch. Of *which* batch? DDP averages
# gradients; nobody averages what batch norm measures in the forward pass.

# %%
guess = predict("Four ranks, a quarter of the batch each: do they normalise with the same mean?",
                options=["yes", "no"])

# %%
%%ranks
torch.manual_seed(0)
features = nn.Linear(64, 12).to(device)
with torch.no_grad():
    h = features(x_train[:64].flatten(1))               # the whole batch, for reference
    mine = h.chunk(world_size)[rank]
local_mean, whole_mean = mine.mean(0), h.mean(0)
print(f"mean of feature 0: my quarter {local_mean[0]:+.3f}, whole batch {whole_mean[0]:+.3f}")

# %% [markdown]
# The cure: share the *sums*, not the means. One all_reduce of the sum, the sum of squares and the count.

# %%
%%ranks
count = torch.full((1, 12), float(len(mine)), device=device)
sums = torch.cat([mine.sum(0, keepdim=True), mine.square().sum(0, keepdim=True), count])
dist.all_reduce(sums)
mean = sums[0] / sums[2]
variance = sums[1] / sums[2] - mean**2

truth = nn.functional.batch_norm(h, None, None, training=True).chunk(world_size)[rank]
by_hand = (mine - mean) / torch.sqrt(variance + 1e-5)
print(f"batch norm of the whole batch: largest difference {(by_hand - truth).abs().max():.0e}")
assert (by_hand - truth).abs().max() < 1e-4

# %%
reveal(guess, "no", why="Each rank measures its own quarter. The sums of all four give the true mean.")
plots.plot_batch_means(ranks["local_mean"], ranks["mean"][0]);

# %% [markdown]
# A dot is the mean of one quarter, the line that of the whole batch.
#
# `torch.nn.SyncBatchNorm` does this for you, backward included: `SyncBatchNorm.convert_sync_batchnorm(model)` before
# DDP. It exists for GPUs only; on a CPU it says so:

# %%
%%ranks
try:
    normalised = nn.SyncBatchNorm(12).to(device)(mine)
    print(f"SyncBatchNorm: largest difference with the whole batch {(normalised - truth).abs().max():.0e}")
except ValueError as error:
    print(f"ValueError: {error}")

# %% [markdown]
# Do you need it? The larger the share, the closer its mean comes to the whole batch's: with few images a rank, yes.
# Layer norm, which transformers use, looks at one sample at a time and has no such problem.

# %% [markdown]
# ## Who reads which image? Two traps
#
# Until now every rank held the whole data set and took its chunk. In a real job a `DistributedSampler` gives every
# rank its indices, and the `DataLoader` reads only those. **First trap.** Three epochs (fr. *époques*):

# %%
guess = predict("Three epochs with shuffle=True: does each rank see its images in a new order each time?",
                options=["yes", "no"])

# %%
%%ranks 0
from torch.utils.data import DistributedSampler

sampler = DistributedSampler(range(16), shuffle=True)
for epoch in range(3):
    print(f"epoch {epoch}: {list(sampler)}")
for epoch in range(3):
    sampler.set_epoch(epoch)
    print(f"epoch {epoch}: {list(sampler)}   after set_epoch({epoch})")

# %%
reveal(guess, "no", why="The order comes from seed + epoch, and only set_epoch tells the sampler the epoch.")

# %% [markdown]
# Why so? All ranks must draw the *same* permutation to share it out without overlap. So it comes from a seed, not
# from each rank's own chance.
#
# **Second trap.** Ten images on four ranks:

# %%
%%ranks
from torch.utils.data import DistributedSampler

sampler = DistributedSampler(range(10), shuffle=False)
print(list(sampler))

# %% [markdown]
# Twelve indices for ten images: 0 and 1 come twice, so that all ranks make the same number of steps. (Otherwise the
# longer ones would wait for ever in their last `all_reduce`.) In training it hardly matters. In **evaluation** it
# gives a wrong number, and one that changes with the number of ranks.
#
# **Exercise 3.** Every rank holds all of `x` and `y`. Return the exact accuracy, on every rank; each image must be
# evaluated by one rank only.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef accuracy(model, x, y):\n    mine = list(DistributedSampler(x, shuffle=False))\n    correct = (model(x[mine]).argmax(1) == y[mine]).sum()\n    counts = torch.stack([correct, torch.tensor(len(mine), device=device)])\n    dist.all_reduce(counts)\n    return (counts[0] / counts[1]).item()\n", "%%ranks\ndef accuracy(model, x, y):\n    x, y = x[rank::world_size], y[rank::world_size]\n    mean = (model(x).argmax(1) == y).float().mean()\n    dist.all_reduce(mean)\n    return mean.item() / world_size\n", "%%ranks\ndef accuracy(model, x, y):\n    return (model(x).argmax(1) == y).float().mean().item()\n", "%%ranks\ndef accuracy(model, x, y):\n    x, y = x[rank::world_size], y[rank::world_size]\n    return (model(x).argmax(1) == y).float().mean().item()\n"]}
%%ranks
def accuracy(model, x, y):
    """The accuracy over all of x, y (tensors), computed together by all the ranks: a float."""
    ...

# %% tags=["check"]
def test_accuracy(accuracy):
    y = torch.arange(10, device=device)
    logits = torch.eye(10, device=device)
    logits[[0, 5]] = logits[[1, 1]]                     # answers "1" for images 0 and 5: 8 of 10 are right
    rows = []
    def model(x):
        rows.append(len(x))
        return x
    answer = float(accuracy(model, logits, y))
    total = torch.tensor(sum(rows), device=device)
    dist.all_reduce(total)
    assert total >= 10, f"only {total} of 10 images were evaluated."
    assert total < 10 * world_size, "every rank evaluated all the images: share them out."
    assert total == 10, f"{total} images were evaluated instead of 10: some counted twice."
    assert abs(answer - 0.8) < 1e-6, f"8 of 10 are right, a rank returns {answer:.4f}. Add up counts."

check("accuracy", test_accuracy, hint="all_reduce the number of correct answers; divide by len(y)")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def accuracy(model, x, y):
    mine = slice(rank, None, world_size)                # rank, rank + n, rank + 2n…: no padding
    correct = (model(x[mine]).argmax(1) == y[mine]).sum()
    dist.all_reduce(correct)                            # counts, so shares of any size are right
    return correct.item() / len(y)

# %% tags=["solution"] jupyter={"source_hidden": true}
check("accuracy", test_accuracy)

# %% [markdown]
# On a real model: the one that you trained by hand, and its test images, less one so that four does not divide them.

# %%
%%ranks
with torch.no_grad():
    right = (trained(x_test[:-1]).argmax(1) == y_test[:-1]).long()       # 1 where the answer is right
padded = list(DistributedSampler(right, shuffle=False))
counts = torch.tensor([right[padded].sum(), len(padded), right[rank::world_size].sum(), len(right[rank::world_size])],
                      device=device)
dist.all_reduce(counts)
print(f"padded {counts[0]}/{counts[1]} = {counts[0] / counts[1]:.4%} · "
      f"exact {counts[2]}/{counts[3]} = {counts[2] / counts[3]:.4%}")

# %% [markdown]
# ## A language model, the same way
#
# Nothing above was about digits. Here is a small GPT that learns to write like Python's own reference manual, which
# ships inside CPython. Each step reads 16 windows of 64 characters; each rank gets four.

# %%
%%ranks
from fidle_utils.data import batches, topics
from fidle_utils.models import GPT

def train_gpt(model, my_windows, steps=30):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for (x, y), _ in zip(batches(text, 16, seed=0), range(steps)):
        x, y = my_windows(x).to(device), my_windows(y).to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)

text = topics(block_size=64)
torch.manual_seed(0)
gpt = DDP(GPT(len(text.vocab)).to(device))
losses = train_gpt(gpt, lambda windows: windows.chunk(world_size)[rank]) / world_size
dist.all_reduce(losses)
one_process = None                              # rank 0 computes it below

# %%
%%ranks 0
torch.manual_seed(0)
one_process = train_gpt(GPT(len(text.vocab)).to(device), lambda windows: windows)    # all 16 windows, rank 0 alone
print(f"{len(text.vocab)} characters, {sum(p.numel() for p in gpt.parameters())} parameters; "
      f"loss {one_process[0]:.3f} → {one_process[-1]:.3f}, largest difference {(losses - one_process).abs().max():.0e}")

# %%
four_ranks, alone = ranks["losses"][0], ranks["one_process"][0]
torch.testing.assert_close(four_ranks, alone, atol=1e-3, rtol=0)
plots.plot_equal_losses(alone.tolist(), four_ranks.tolist(), tolerance=1e-3);

# %% [markdown]
# ## Is it faster? An honest table
#
# - *Strong scaling* (fr. *passage à l'échelle fort*): the same global batch, on more ranks. Ideal: time divided by n.
# - *Weak scaling* (*faible*): the same batch **for each rank**. Ideal: the same time, for n times the images.
#
# `track` goes around the loop's iterable. It records every step of every rank, shows their *throughput* (images a
# second) while they run, and leaves out the first two steps, which warm up.

# %%
%%ranks
from fidle_utils.measure import track

groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 4)}

def train_wide(n, batch, steps=8):
    """Backward of a wide MLP with DDP on the first n ranks, `batch` images each."""
    if rank < n:
        ddp = DDP(MLP(width=512, depth=4).to(device), process_group=groups[n])
        x, y = x_train[:batch], y_train[:batch]
        for _ in track(range(steps), samples=batch, unit="images"):
            cross_entropy(ddp(x), y).backward()

# %%
def measure(n, batch):
    ranks.run(lambda n, batch: train_wide(n, batch), n, batch)
    return ranks.throughput

guess = predict("512 images a step on 4 ranks: how many times the throughput of 1 rank, on this machine?",
                unit="×")

# %%
strong = {n: measure(n, 512 // n) for n in (1, 2, 4)}

# %%
strong[4].summary()

# %% [markdown]
# One more measurement, which is often left out: **one process that uses all the cores**.

# %%
model = MLP(width=512, depth=4)
x, y = x_train[:512], y_train[:512]
for _ in (alone := track(range(8), samples=512, unit="images")):
    cross_entropy(model(x), y).backward()

# %%
plots.plot_scaling(strong, alone.throughput, unit="images", title="Strong scaling: 512 images in all")
reveal(guess, strong[4].by_step.median() / strong[1].by_step.median(),
       why="A rank needs a core, or a GPU, of its own; and every step waits for the slowest.")

# %%
weak = {n: measure(n, 256) for n in (1, 2, 4)}

# %%
plots.plot_scaling(weak, unit="images", title="Weak scaling: 256 for each rank");

# %% [markdown]
# And over time, the last of these trainings. A rank that is slow, or a loader that starves it, shows here.

# %%
plots.plot_throughput(ranks.throughput);

# %%
import os

if ranks["device"][0].type == "cpu":
    print(f"{os.cpu_count()} cores for {len(ranks)} ranks")
else:
    print("one GPU for each rank")

# %% [markdown]
# On a CPU, these curves say more about your cores than about data parallelism. A rank here has one thread; when ranks
# outnumber cores they take turns, and every `all_reduce` waits for the last. Look at the dashed line: one process with
# all the threads shares its memory and sends no message. **On a laptop, data parallelism is for learning.** With one GPU for
# each rank, the ranks share neither compute nor memory, and these same cells draw other figures.
#
# Four ranks also mean a batch four times larger, if each keeps its share (weak scaling). The learning rate must then
# be chosen again: that is for lesson 10.

# %% [markdown]
# ## From the notebook to a job
#
# The whole lesson in one cell: find the sampler and its epoch, DDP, the batch that is dropped, the exact accuracy.
# Two new ranks this time, which remember nothing: no line of the cell says how many there are.

# %%
%ranks 2

# %%
%%ranks
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from fidle_utils.data import digits
from fidle_utils.measure import track
from fidle_utils.models import MLP

x_train, y_train, x_test, y_test = (tensor.to(device) for tensor in digits())
train_set = TensorDataset(x_train, y_train)
sampler = DistributedSampler(train_set, drop_last=True)
loader = DataLoader(train_set, batch_size=16, sampler=sampler, drop_last=True)      # 16 for each rank
torch.manual_seed(0)
ddp = DDP(MLP().to(device))
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
for epoch in range(5):
    sampler.set_epoch(epoch)
    for x, y in track(loader, name=f"epoch {epoch}", unit="images"):
        optimizer.zero_grad()
        cross_entropy(ddp(x), y).backward()
        optimizer.step()
correct = (ddp.module(x_test[rank::world_size]).argmax(1) == y_test[rank::world_size]).sum()
dist.all_reduce(correct)
if rank == 0:
    print(f"{correct} of {len(y_test)} test images right")

# %% [markdown]
# Now it may leave the notebook. `%ranks export` writes the cells run since the start, after the lines that set up a
# rank.

# %%
import subprocess
import sys
import tempfile

folder = tempfile.TemporaryDirectory()
script = Path(folder.name, "train.py")

# %%
%ranks export {script}

# %%
print(*script.read_text().splitlines()[:24], "…", sep="\n")

# %% [markdown]
# `torchrun` starts one process for each rank. On a node with four GPUs, `--nproc-per-node 4` is the whole change;
# lesson 01's `sbatch` goes to several nodes. The same number must come out. It takes longer than the cell did: every
# process imports PyTorch again.

# %%
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
job = subprocess.run([*torchrun, str(len(ranks)), script], capture_output=True, text=True, timeout=100)
print(job.stdout if job.returncode == 0 else job.stderr)
job.check_returncode()
folder.cleanup()

# %% [markdown]
# ## In practice
#
# - Wrap with DDP *after* `model.to(device)` and before the first step; build the optimizer from `ddp.parameters()`.
# - One process for each GPU. `DataParallel`, with its one process and many threads, is the old way: PyTorch's own
#   documentation recommends DDP, even on one node.
# - Save on rank 0 only, `ddp.module.state_dict()`; all ranks hold the same weights. Print on rank 0 too.
# - `set_epoch` every epoch; `drop_last=True` in training; count, then reduce, in evaluation.
# - Give each rank its own seed for dropout and data augmentation; DDP takes care of the weights.
# - A layer that gets no gradient in a step stops DDP at the next one, with an error that names
#   `find_unused_parameters=True`.
#   That option walks the graph at every step: repair the model first.
# - The model, its gradients and the optimizer's states must fit on **one** device. When they do not: lesson 08.

# %% [markdown]
# ## Go further
#
# - Change `lr` of A in *The same start* to 1, or its optimizer to AdamW. Does the distance still stay the same?
# - Overlap needs buckets: in the emulation, let the link be three times slower. What is the best you can hope for?
# - `ddp.register_comm_hook` replaces the reduction. Send the gradients as bfloat16: half the bytes. How far is the
#   result from the reference?

# %% [markdown]
# ## Sources
#
# - S. Li et al., *PyTorch Distributed: Experiences on Accelerating Data Parallel Training*, VLDB 2020,
#   [arXiv:2006.15704](https://arxiv.org/abs/2006.15704): buckets, overlap, no_sync, as DDP does them.
# - A. Sergeev, M. Del Balso, *Horovod: fast and easy distributed deep learning in TensorFlow*, 2018,
#   [arXiv:1802.05799](https://arxiv.org/abs/1802.05799): ring all-reduce and tensor fusion.
# - P. Patarasuk, X. Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, Journal of Parallel
#   and Distributed Computing 69(2), 2009: the bound 2(n−1)/n · S and a ring that reaches it.
# - PyTorch documentation: [DistributedDataParallel](https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html),
#   [DDP notes](https://docs.pytorch.org/docs/stable/notes/ddp.html),
#   [torch.utils.data](https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler).
# - E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998: the digits.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("You double the number of ranks at the same model. The bytes that each rank sends…",
             options=["double", "almost do not change", "halve"])
q2 = predict("One rank skips the last batch of the epoch. The others…",
             options=["average without it", "wait", "raise at once"])

# %%
reveal(q1, "almost do not change", why="2(n−1)/n · S: 1.5 S with 4 ranks, 1.75 S with 8, never over 2 S.")
reveal(q2, "wait", why="A collective needs every rank: they wait, until the timeout or until you stop them.")

# %%
q3 = predict("You accumulate over 8 micro-batches without no_sync(). The gradients are…",
             options=["wrong", "right, with 8 times the communication"])
q4 = predict("Twelve GPUs, 1000 test images, DistributedSampler, accuracies averaged. The result is…",
             options=["exact", "slightly wrong"])
q5 = predict("Weights, gradients and Adam states do not fit on one GPU. Data parallelism on 8 GPUs…",
             options=["makes them fit", "does not help"])

# %%
reveal(q3, "right, with 8 times the communication",
       why="DDP averages p.grad after each backward. The mean of what is equal already changes nothing.")
reveal(q4, "slightly wrong", why="1008 indices: 8 images count twice. Reduce counts, without padding.")
reveal(q5, "does not help", why="Every rank holds them all: split the states (lesson 08) or the model (05).")

# %%
from fidle_utils import progress

progress.show("04")
