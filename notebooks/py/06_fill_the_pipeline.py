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
# # 06 · Fill the pipeline
#
# **You will** cut a model into four stages that wait for each other, keep them busy with micro-batches, write the
# schedule of the large trainings (1F1B) with your own sends and receives, and then reach a time *and* a memory
# target.
#
# **You learn** what a bubble is and what makes it smaller, how many activations each schedule holds, what zero
# bubble does with the two halves of a backward pass, what messages and slow stages cost, and why stale weights
# hurt.
#
# **You need** lesson 00 (what a rank is) and lesson 03 (`send` and `recv`). Lesson 05 cuts models too. No GPU is
# needed; with one GPU for each rank the same cells use them.
#
# **Time** 15 min live (the cells tagged `live`), 120 min alone, with six exercises.

# %% tags=["live"]
%load_ext fidle_utils
import torch
from torch.nn.functional import cross_entropy

from fidle_utils import plots, ranks, schedules
from fidle_utils.data import digits
from fidle_utils.models import residual_chain
from fidle_utils.reference import table
from fidle_utils.schedules import Schedule
from fidle_utils.teach import check, predict, reveal
from fidle_utils.widgets import pipeline_sliders

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 4}
# ## One batch, three idle ranks
#
# A model that does not fit on one device can be cut across its layers. Each rank holds one *stage* (fr. *étage*):
# rank 0 the first layers, rank 3 the last. An activation goes down the ranks; its gradient comes back up.
#
# `schedules` knows in which order each rank works. `simulate` puts that order on a clock: here a stage needs 1 for
# its forward F, 1 for the gradient of its input B, 1 for the gradient of its weights W. Classic backward does B and
# W together.

# %%
guess = predict("One batch goes through four stages and back. Which share of its time does a rank work?",
                options=["all", "a half", "a quarter"])

# %% tags=["live"]
one_batch = schedules.gpipe(n_ranks=4, n_micro_batches=1).simulate()
plots.plot_schedule(one_batch);

# %%
reveal(guess, "a quarter", why=f"{one_batch.busy[0]:g} of {one_batch.total:g}: otherwise it waits.")

# %% [markdown] tags=["live"]
# White is idle time: the *bubble* (fr. *bulle*). Four devices, and the speed of one. But nothing forces the batch
# to travel in one piece.
#
# ## Micro-batches
#
# GPipe (Huang et al., 2019) cuts the batch into micro-batches. While rank 1 works on
# micro-batch 0, rank 0 starts micro-batch 1. All forwards, then all backwards, then **one** update of the weights.

# %% tags=["live"]
plots.plot_schedule(schedules.gpipe(4, 8).simulate());

# %% [markdown] tags=["live"]
# The number in a box is the micro-batch. Look at rank 0: it works for 8 micro-batches and waits as long as 3 more
# would take. With $p$ ranks and $m$ micro-batches every rank waits $p-1$ turns.
#
# Papers divide this loss by two different things. Ask which, whenever somebody tells you a bubble.
#
# **Exercise 1.** Return the bubble of $p$ ranks and $m$ micro-batches as a share of the **ideal** time (the work
# alone; so does NVIDIA's Megatron-LM), then of the **total** time (so do the GPipe paper and most later ones).

# %% fidle={"wrong": ["def bubbles(p, m):\n    return (p - 1) / (m + p - 1), (p - 1) / m", "def bubbles(p, m):\n    return (p - 1) / m, (p - 1) / (m + p)", "def bubbles(p, m):\n    return (p - 1) / (m + p - 1)", "def bubbles(p, m):\n    return p / m, p / (m + p)"]} tags=["exercise", "live"]
def bubbles(p, m):
    """Return (bubble of the ideal time, bubble of the total time), between 0 and 1 or more."""
    ...

# %% tags=["check", "live"]
def test_bubbles(bubbles):
    for p, m in ((4, 8), (4, 1), (8, 32), (1, 5)):
        answer = bubbles(p, m)
        assert isinstance(answer, (tuple, list)) and len(answer) == 2, "return two numbers."
        answer = tuple(answer)
        done = schedules.gpipe(p, m).simulate()
        truth, where = (done.bubble_of_ideal, done.bubble_of_total), f"p = {p}, m = {m}"
        swapped = max(abs(a - t) for a, t in zip(answer, truth[::-1])) < 1e-9 and truth[0] != truth[1]
        assert not swapped, "right, in the other order: the ideal time comes first."
        assert abs(answer[0] - truth[0]) < 1e-9, f"{where}: {p - 1} turns lost for {m} of work."
        assert abs(answer[1] - truth[1]) < 1e-9, f"{where}: {m + p - 1} turns, {p - 1} of them lost."

check(bubbles, test_bubbles)

# %% jupyter={"source_hidden": true} tags=["solution"]
def bubbles(p, m):
    return (p - 1) / m, (p - 1) / (m + p - 1)

# %% jupyter={"source_hidden": true} tags=["solution"]
check(bubbles, test_bubbles)

# %% tags=["live"]
simulated = {}
for m in (1, 2, 4, 8, 16, 32):
    done = schedules.gpipe(4, m).simulate()
    simulated[m] = done.bubble_of_ideal, done.bubble_of_total
plots.plot_bubble(4, simulated);

# %% [markdown] tags=["live"]
# More micro-batches, less bubble. Why not a thousand? The batch is not endless, a device is slow on tiny pieces,
# and every piece is two messages at every border. You will pay for all three in the puzzle below.

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## GPipe on four ranks
#
# Now for real. The model is a chain of eight blocks, two for each rank; between blocks travel 64 numbers an image.
# Every rank builds the whole model from one seed and keeps its part (a real one would build only its part).

# %% tags=["live"]
%%ranks
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from fidle_utils.data import digits
from fidle_utils.models import residual_chain

x_train, y_train, _, _ = digits()
x, y = x_train[:64].flatten(1).to(device), y_train[:64].to(device)
last, size = world_size - 1, 8 // world_size
dist.all_reduce(torch.zeros(1, device=device))  # NCCL: all ranks meet once before two of them talk

def my_blocks(dtype=torch.float32):
    """The blocks of this rank: 0 and 1 on rank 0, 2 and 3 on rank 1…"""
    torch.manual_seed(0)
    return residual_chain(8).to(device, dtype)[rank * size:(rank + 1) * size]

print("my blocks:", ", ".join(my_blocks()._modules))

# %% [markdown]
# A stage keeps what forward made until backward needs it. It knows nothing of other ranks: messages are your
# affair.

# %% tags=["live"]
%%ranks
class Stage:
    """The blocks of this rank; forward holds a micro-batch, backward lets it go."""
    def __init__(self, blocks):
        self.blocks, self.held, self.most, self.order, self.losses = blocks, {}, 0, [], []

    def forward(self, i, h, target):
        """Micro-batch i, from the activation h to the next one; on the last rank to the loss."""
        h = h.detach().requires_grad_()
        out = self.blocks(h)
        if rank == last:
            out = cross_entropy(out, target)
            self.losses.append(out.detach())
        self.held[i] = h, out
        self.most = max(self.most, len(self.held))
        self.order.append(("F", i))
        return out.detach()

    def backward(self, i, gradient):
        """From the gradient of what forward returned to the gradient of what it was given."""
        assert i in self.held, f"no micro-batch {i} here: rank {rank} holds {sorted(self.held)}."
        h, out = self.held.pop(i)
        out.backward(gradient)                  # p.grad adds up over the micro-batches
        self.order.append(("BW", i))
        return h.grad

# %% [markdown]
# And three ways to talk. An activation has the shape of the images that rank 0 reads, so `like` says what will
# come. (On GPUs everything goes through `batch_isend_irecv`: with NCCL, do not mix single messages and batched
# ones.)

# %% tags=["live"]
%%ranks
def talk(*operations):
    for promise in dist.batch_isend_irecv([dist.P2POp(*operation) for operation in operations]):
        promise.wait()

def send(tensor, to):
    """Send a tensor; returns when the other has taken it."""
    if device.type == "cpu":
        return dist.send(tensor.contiguous(), to)
    talk((dist.isend, tensor.contiguous(), to))

def receive(source, like):
    """Return the tensor that comes from `source`; it has the shape of `like`."""
    incoming = torch.empty_like(like)
    dist.recv(incoming, source) if device.type == "cpu" else talk((dist.irecv, incoming, source))
    return incoming

def send_and_receive(tensor, peer, like):
    """Send to `peer`, and receive from it at the same time."""
    incoming = torch.empty_like(like)
    talk((dist.isend, tensor.contiguous(), peer), (dist.irecv, incoming, peer))
    return incoming

# %% [markdown]
# Here is GPipe. The last rank has no next rank: its backward starts from `weight`, what one micro-batch's loss
# counts.

# %% tags=["live"]
%%ranks
def gpipe(stage, inputs, targets, weight):
    for i, like in enumerate(inputs):
        h = receive(rank - 1, like) if rank > 0 else inputs[i]
        out = stage.forward(i, h, targets[i])
        if rank < last:
            send(out, rank + 1)
    for i, like in enumerate(inputs):
        gradient = receive(rank + 1, like) if rank < last else torch.tensor(weight, device=device)
        gradient = stage.backward(i, gradient)
        if rank > 0:
            send(gradient, rank - 1)

# %%
guess = predict("8 micro-batches, each with the mean loss of its 8 images, weight 1. The gradients, against "
                "those of the whole batch:", options=["equal", "8 times too large", "8 times too small"])

# %% tags=["live"]
%%ranks
def gradients(blocks):
    return torch.cat([p.grad.flatten() for p in blocks.parameters()])

def by_gpipe(weight, m=8):
    stage = Stage(my_blocks())
    gpipe(stage, x.chunk(m), y.chunk(m), weight)
    return stage

undivided, divided = by_gpipe(1.0), by_gpipe(1 / 8)
grad_undivided, grad_divided = gradients(undivided.blocks), gradients(divided.blocks)
losses, held_by_gpipe = divided.losses, divided.most
print(f"held at most: {divided.most} micro-batches")

# %% tags=["live"]
x_train, y_train, _, _ = digits()
x, y = x_train[:64].flatten(1), y_train[:64]
torch.manual_seed(0)
whole = residual_chain(8)
loss = cross_entropy(whole(x), y)
loss.backward()
reference = torch.cat([p.grad.flatten() for p in whole.parameters()])

for name in ("grad_undivided", "grad_divided"):
    gathered = torch.cat(ranks[name])           # rank 0's blocks first, as in the model
    print(f"{name}: norm {gathered.norm():.6f}; one process {reference.norm():.6f}")
torch.testing.assert_close(torch.cat(ranks["grad_divided"]), reference, rtol=1e-5, atol=1e-7)
torch.testing.assert_close(torch.stack(ranks["losses"][-1]).mean(), loss.detach(), rtol=1e-5, atol=1e-7)

# %%
reveal(guess, "8 times too large", why="Backward adds up; the loss of the batch is the *mean* of 8 means.")

# %% [markdown] tags=["live"]
# **Four ranks, eight micro-batches, and the gradient of one process.** Micro-batches must be of one size, or the
# mean of means is not the mean (lesson 04).
#
# What did it cost? Messages: one activation and one gradient, for each micro-batch at each of the three borders.
# And memory: all $m$ micro-batches wait for their backward at the same time.

# %%
%%ranks
from fidle_utils.measure import count_communication

with count_communication() as counted:
    by_gpipe(1 / 8)
sent = counted.calls("send")
print(f"{sent} messages, {counted.n_bytes('send')} bytes sent")

# %%
made = schedules.gpipe(4, 8)
assert sum(ranks["sent"]) == made.n_messages
print(f"{sum(ranks['sent'])} messages in all; 2 · m · (p − 1) = {made.n_messages}")

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## 1F1B: the same bubble, less memory
#
# Why wait with the backwards? Micro-batch 0 can go back as soon as it has reached the last rank. *One forward, one
# backward*: after a few forwards to warm up, every rank alternates, and each backward frees what a forward took.

# %%
guess = predict("Does 1F1B have a smaller bubble than GPipe?", options=["yes", "no, the same"])

# %% tags=["live"]
plots.plot_schedules([schedules.gpipe(4, 8).simulate(), schedules.one_f_one_b(4, 8).simulate()]);

# %%
reveal(guess, "no, the same", why="As much white, elsewhere: p − 1 turns. The gain is memory.")

# %% [markdown] tags=["live"]
# Count on rank 0 the micro-batches that have gone forward and not yet back: never more than 4. On rank $r$
# it is $p-r$, with 8 micro-batches or 8000. That is why large trainings use 1F1B and its children.

# %% [markdown]
# What must come out? The loss, the gradients and, after a step of the optimizer, the weights of **one process**, to
# $10^{-5}$ in single precision and $10^{-8}$ in double.

# %%
%%ranks
def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])

def distance(a, b):
    """The largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()

def step(blocks):
    torch.optim.SGD(blocks.parameters(), lr=0.1, momentum=0.9).step()

def one_process(dtype, x, y):
    """From a whole batch: the loss, and of my blocks the gradients, and the weights after a step."""
    torch.manual_seed(0)
    model = residual_chain(8).to(device, dtype)
    loss = cross_entropy(model(x.to(dtype)), y)
    loss.backward()
    step(model)
    mine = model[rank * size:(rank + 1) * size]
    return loss.detach(), gradients(mine), flat(mine.parameters())

# %%
%%ranks
def assert_like_one_process(stage, images, labels, tolerance, m):
    loss, expected, after = one_process(images.dtype, images, labels)
    mine = gradients(stage.blocks)
    last_only = one_process(images.dtype, images.chunk(m)[-1], labels.chunk(m)[-1])[1] / m
    alone = "the gradients of the last micro-batch only: let p.grad add up."
    assert distance(mine, last_only) > tolerance, alone
    large = f"gradients {m} times too large: the loss of each micro-batch counts 1/{m}."
    assert distance(mine / m, expected) > tolerance, large
    fixed = f"gradients {m / 8:g} times too large with {m} micro-batches: 1 / len(inputs), not 1 / 8."
    assert m == 8 or distance(mine * 8 / m, expected) > tolerance, fixed
    far = distance(mine, expected)
    assert far < tolerance, f"gradients {far:.0e} from one process: which micro-batch met which gradient?"
    if rank == last:
        assert distance(torch.stack(stage.losses).mean(), loss) < tolerance, "another loss than one process."
    step(stage.blocks)
    far = distance(flat(stage.blocks.parameters()), after)
    assert far < tolerance, f"weights {far:.0e} from one process after a step."

# %% [markdown]
# **Exercise 2.** Write it. Rank $r$ warms up with $p - 1 - r$ forwards. Then, in turn: one forward, one backward;
# at the end the backwards that are left. You have `send`, `receive`, `send_and_receive`, `rank`, `last` (the last
# rank) and `stage.forward(i, h, target)`, `stage.backward(i, gradient)`. Start from `gpipe`.
#
# Two neighbours that both `send` may wait for each other for ever (gloo: always; NCCL: when messages outgrow its
# buffers): think of lesson 03.

# %% fidle={"wrong": ["%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    gpipe(stage, inputs, targets, 1 / len(inputs))\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)\n    def forward(i):\n        return stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n    for i in range(warm_up):\n        send(forward(i), rank + 1)\n    for i in range(m):\n        if rank == last:\n            forward(i)\n            gradient = torch.tensor(1.0, device=device)\n        elif warm_up + i < m:\n            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)\n        else:\n            gradient = receive(rank + 1, like)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)\n    def forward(i):\n        return stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n    for i in range(warm_up):\n        send(forward(i), rank + 1)\n    for i in range(m):\n        if rank == last:\n            gradient = torch.full_like(forward(i), 1 / m)\n        elif warm_up + i < m:\n            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)\n        else:\n            gradient = receive(rank + 1, like)\n        stage.blocks.zero_grad()\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], last\n    def forward(i):\n        out = stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n        if rank < last:\n            send(out, rank + 1)\n    for i in range(warm_up):\n        forward(i)\n    for i in range(m):\n        if warm_up + i < m:\n            forward(warm_up + i)\n        gradient = receive(rank + 1, like) if rank < last else torch.tensor(1 / m, device=device)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like = len(inputs), inputs[0]\n    for i in range(m):\n        out = stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n        if rank < last:\n            send(out, rank + 1)\n        gradient = receive(rank + 1, like) if rank < last else torch.full_like(out, 1 / m)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)\n    def forward(i):\n        return stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n    for i in range(warm_up):\n        send(forward(i), rank + 1)\n    for i in range(m - warm_up):\n        if rank == last:\n            gradient = torch.full_like(forward(i), 1 / m)\n        else:\n            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)\n    def forward(i):\n        return stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n    for i in range(warm_up):\n        send(forward(i), rank + 1)\n    for i in range(m):\n        if rank == last:\n            gradient = torch.full_like(forward(i), 1 / 8)\n        elif warm_up + i < m:\n            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)\n        else:\n            gradient = receive(rank + 1, like)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = 8, inputs[0], last - rank\n    def forward(i):\n        return stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n    for i in range(warm_up):\n        send(forward(i), rank + 1)\n    for i in range(m):\n        if rank == last:\n            gradient = torch.full_like(forward(i), 1 / m)\n        elif warm_up + i < m:\n            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)\n        else:\n            gradient = receive(rank + 1, like)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n", "%%ranks\ndef one_f_one_b(stage, inputs, targets):\n    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)\n    def forward(i):\n        out = stage.forward(i, receive(rank - 1, like) if rank > 0 else inputs[i], targets[i])\n        if rank < last:\n            send(out, rank + 1)\n    for i in range(warm_up):\n        forward(i)\n    for i in range(m):\n        if warm_up + i < m:\n            forward(warm_up + i)\n        gradient = receive(rank + 1, like) if rank < last else torch.tensor(1 / m, device=device)\n        gradient = stage.backward(i, gradient)\n        if rank > 0:\n            send(gradient, rank - 1)\n"]} tags=["exercise"]
%%ranks
def one_f_one_b(stage, inputs, targets):
    """Forward and backward over all the micro-batches, in the order of 1F1B."""
    ...

# %% [markdown]
# The check runs your function on the four ranks, with 8 micro-batches in single precision and 16 in double, and
# compares with one process. Then it looks at what each rank held. An attempt that hangs is stopped, and you read
# who waited where.

# %% tags=["check"]
def test_1f1b(one_f_one_b):
    for m, dtype, tolerance in ((8, torch.float32, 1e-5), (16, torch.float64, 1e-8)):
        images, labels = x.to(device, dtype), y.to(device)
        stage = Stage(my_blocks(dtype))
        one_f_one_b(stage, images.chunk(m), labels.chunk(m))
        assert stage.order, "no micro-batch went through: call stage.forward and stage.backward."
        assert not stage.held, f"micro-batches {sorted(stage.held)} never went back: finish them."
        done = len(stage.order) // 2
        assert done == m, f"{done} of {m} micro-batches went through: there are len(inputs)."
        assert_like_one_process(stage, images, labels, tolerance, m)
    few = f"right, but {stage.most} in flight: ranks take turns, as with one batch. Warm up: last − rank."
    assert stage.most >= world_size - rank, few
    assert stage.most < m, f"right, but all {m} micro-batches are held at once. Go back as soon as you can."
    many = f"right, but {stage.most} held where {world_size - rank} do: the warm-up depends on the rank."
    assert stage.most == world_size - rank, many

check("one_f_one_b", test_1f1b, hint="warm up, then one forward and one backward in turn", timeout=6)

# %% jupyter={"source_hidden": true} tags=["solution"]
%%ranks
def one_f_one_b(stage, inputs, targets):
    m, like, warm_up = len(inputs), inputs[0], min(len(inputs), last - rank)

    def forward(i):
        h = receive(rank - 1, like) if rank > 0 else inputs[i]
        return stage.forward(i, h, targets[i])

    for i in range(warm_up):
        send(forward(i), rank + 1)
    for i in range(m):
        if rank == last:
            gradient = torch.full_like(forward(i), 1 / m)
        elif warm_up + i < m:                   # the neighbour sends a gradient at the same moment
            gradient = send_and_receive(forward(warm_up + i), rank + 1, like)
        else:
            gradient = receive(rank + 1, like)
        gradient = stage.backward(i, gradient)
        if rank > 0:
            send(gradient, rank - 1)

# %% jupyter={"source_hidden": true} tags=["solution"]
check("one_f_one_b", test_1f1b, timeout=6)

# %% [markdown]
# Run it once more, and compare with one process and with the simulator: the numbers, the order, the peak.

# %%
%%ranks
stage = Stage(my_blocks(torch.float64))
one_f_one_b(stage, x.double().chunk(8), y.chunk(8))
loss, expected, after = one_process(torch.float64, x, y)
far, order, held = distance(gradients(stage.blocks), expected), stage.order, stage.most
step(stage.blocks)
far_weights = distance(flat(stage.blocks.parameters()), after)
print(f"gradients {far:.0e}, weights after a step {far_weights:.0e} from one process; held at most {held}")

# %%
made = schedules.one_f_one_b(4, 8)
assert max(ranks["far"] + ranks["far_weights"]) < 1e-8
assert ranks["order"] == [[operation[:2] for operation in mine] for mine in made.order]
assert ranks["held"] == made.peak_activations() == [4 - r for r in range(4)]
held = {"GPipe: m": ranks["held_by_gpipe"], "1F1B: p − r": ranks["held"]}
plots.plot_peak_activations(held, kind="measured here");

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Interleaved: the same ranks, a finer pipeline
#
# The bubble is $p-1$ turns. Make the turns shorter! In *interleaved* 1F1B (fr. *entrelacé*; Narayanan et al., 2021)
# each rank holds $v$ smaller, *virtual* stages (fr. *étages virtuels*): rank 0 blocks 0 and 4, rank 1 blocks 1 and
# 5, and so on. A micro-batch goes round the ranks $v$ times.

# %%
guess = predict("With 2 stages on each rank the bubble, as a share of the ideal time…",
                options=["stays", "halves", "doubles"])

# %% tags=["live"]
interleaved = schedules.interleaved(4, 8, n_virtual_stages=2)
plots.plot_schedule(interleaved.simulate());

# %%
for v in (2, 4):
    made = schedules.interleaved(4, 8, v)
    print(f"v = {v}: bubble {made.simulate().bubble_of_ideal:.1%} of the ideal, "
          f"(p − 1)/(v·m) = {3 / (v * 8):.1%}; "
          f"{made.n_messages} messages; rank 0 holds {made.peak_activations()[0]:g} micro-batches")
print(f"1F1B : bubble {3 / 8:.1%}; {schedules.one_f_one_b(4, 8).n_messages} messages; rank 0 holds 4")

# %%
reveal(guess, "halves", why="(p − 1)/(v·m). The price: about v times the messages, and more activations.")

# %% [markdown] tags=["live"] fidle={"minutes": 3.5}
# ## Zero bubble: backward is two things
#
# A linear layer computes $y = x\,w^\top$. From the gradient $g$ of $y$, backward makes two gradients, and they have
# different customers:
#
# - **B**, the gradient of the *input*: the previous rank waits for it.
# - **W**, the gradient of the *weights*: nobody waits for it until the optimizer steps.
#
# So W can be put off, and fill a bubble (Qi et al., 2024).

# %% [markdown]
# **Exercise 3.** Write both for a linear layer: `x` is (rows, inputs), `weight` (outputs, inputs), `g` (rows,
# outputs).

# %% fidle={"wrong": ["def backward_halves(g, x, weight):\n    return g @ weight.T, g.T @ x", "def backward_halves(g, x, weight):\n    return g.T @ x, g @ weight", "def backward_halves(g, x, weight):\n    return g @ weight, x.T @ g", "def backward_halves(g, x, weight):\n    return g @ weight, g.T @ x / len(x)"]} tags=["exercise"]
def backward_halves(g, x, weight):
    """Return (B, W): the gradient of x and the gradient of weight."""
    ...

# %% tags=["check"]
def test_halves(backward_halves):
    torch.manual_seed(0)
    h, weight, g = (torch.randn(size, dtype=torch.float64) for size in ((5, 3), (7, 3), (5, 7)))
    h.requires_grad_(), weight.requires_grad_()
    torch.nn.functional.linear(h, weight).backward(g)
    try:
        answer = backward_halves(g, h.detach(), weight.detach())
    except RuntimeError as error:
        raise AssertionError(f"shapes: g is (rows, outputs), weight (outputs, inputs). {error}") from None
    assert isinstance(answer, tuple) and len(answer) == 2, "return two tensors: B, then W."
    shapes = [tuple(part.shape) for part in answer]
    assert shapes != [(7, 3), (5, 3)], "right shapes in the wrong order: B first, the gradient of x."
    assert shapes[0] == (5, 3), f"B has the shape of x, (5, 3); yours is {shapes[0]}."
    assert shapes[1] == (7, 3), f"W has the shape of weight, (7, 3); yours is {shapes[1]}."
    assert torch.allclose(answer[0], h.grad), "B: each output j that read x[i] returns g[j] · weight[j, i]."
    assert torch.allclose(answer[1], weight.grad), "W *sums* over the rows: the loss has taken the mean."

check(backward_halves, test_halves)

# %% jupyter={"source_hidden": true} tags=["solution"]
def backward_halves(g, x, weight):
    return g @ weight, g.T @ x

# %% jupyter={"source_hidden": true} tags=["solution"]
check(backward_halves, test_halves)

# %% [markdown]
# Of a whole stage autograd does it for you: ask first for the gradient of the input only, later for those of the
# weights. Two blocks of our model:

# %%
blocks, h = whole[2:4], torch.randn(8, 64, requires_grad=True)
g = torch.randn(8, 64)

blocks.zero_grad()
blocks(h).backward(g)                                                       # the usual backward
usual = [h.grad, *(p.grad.clone() for p in blocks.parameters())]

out = blocks(h)
(B,) = torch.autograd.grad(out, [h], g, retain_graph=True)                  # now: send it up
W = torch.autograd.grad(out, list(blocks.parameters()), g)                  # later, when there is time
for one, other in zip([B, *W], usual):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
print("B and W, apart: equal to the usual backward")

# %% [markdown]
# The second call walks through the activations again, which is wasteful. PyTorch's zero-bubble schedules keep what
# B found at each layer, so that W is one product a layer.
#
# Until W is done, a part of the activations must stay. For a transformer layer $32bsh$ of $34bsh$ bytes stay,
# nearly all: below we count 0.9. The scores of attention, $5abs^2$ more where they are stored, B frees. ($b$ rows,
# $s$ tokens, $h$ the width, $a$ heads; lesson 08 counts both.)

# %% tags=["live"]
times = dict(forward=1, backward_input=1, backward_weight=1)
shown = [make(4, 8).simulate(**times) for make in (schedules.zb_h1, schedules.zb_h2, schedules.zb_v)]
plots.plot_schedules(shown);

# %% [markdown] tags=["live"]
# - **ZB-H1** is 1F1B whose W fill the end. Same memory as 1F1B.
# - **ZB-H2** also starts with more forwards. No rank waits between its own first and last work, and nearly twice
#   the memory.
# - **ZB-V** gives rank $r$ the stages $r$ and $2p-1-r$: a micro-batch goes down the ranks and up again. No wait
#   either, and no more memory than 1F1B.
#
# In the last two the ranks start and stop one after the other. With the next step right behind, only the time from
# a rank's own start to its own end counts (`longest_rank`). The paper's bubbles are of that time.

# %% tags=["live"]
def cost(make, kept=0.9, **options):
    """Of a schedule: the time that a step costs, and the activations of its fullest rank."""
    made = make(4, 8)
    return made.simulate(**times | options).longest_rank, max(made.peak_activations(kept))

costs = {name: cost(make) for name, make in schedules.SCHEDULES.items()}
for name, (time, held) in costs.items():
    print(f"{name:17} time {time:5.1f}, of which {1 - 24 / time:4.0%} bubble; {held:3.1f} micro-batches held")

# %% tags=["live"]
plots.plot_time_and_memory(costs, note="4 ranks, 8 micro-batches, F = B = W; 0.9 of it waits for W");

# %% [markdown]
# In a real model F, B and W are not equal. The paper measured 18.5, 18.1 and 9.3 ms on one of its models, and these
# fixed orders then leave a bubble; it lets a program search for better ones (its ZB-1p and ZB-2p).

# %%
measured_times = dict(forward=18.522, backward_input=18.086, backward_weight=9.337)     # ms, the authors'
theirs = {}
for name, make in schedules.SCHEDULES.items():
    made = make(8, 24, 3) if name == "interleaved 1F1B" else make(8, 24)          # 3 stages a rank, as there
    theirs[name] = made.simulate(**measured_times, communication=0.601)
    print(f"{name:17} {theirs[name].longest_rank:6.0f} ms, bubble {theirs[name].bubble_rate:6.2%}")

# %%
rows = table("zero_bubble", parameters_billion=1.5, n_micro_batches=24)
printed = {row["schedule"]: row["bubble_rate"] for row in rows}
print("the paper prints", ", ".join(f"{name} {rate:.2%}" for name, rate in printed.items()))
for name in ("1F1B", "ZB-H1", "ZB-H2"):
    assert abs(theirs[name].bubble_rate - printed[name]) < 5.1e-5, name

# %% [markdown]
# Three of them agree to all the digits that the paper prints. The interleaved one (1F1B-I) does not: the authors'
# program lets some micro-batches start before their message has come round from the last rank, ours makes them all
# wait. (`tests/test_schedules.py` reproduces all the twelve rows of the paper, both ways.)

# %% [markdown]
# ## PyTorch's own pipelines
#
# You need not write the sends. `torch.distributed.pipelining` takes stages and a schedule. `step` gives the whole
# batch to the first stage and the targets to the last.

# %%
%%ranks
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage
from fidle_utils.measure.pipeline import record_stages

def run_pytorch(schedule, stage_numbers, n_stages, sleep=0.0, m=8):
    """One step in double precision. Returns the stages, the losses, and who worked when."""
    torch.manual_seed(0)
    model, each = residual_chain(8).to(device, torch.float64), 8 // n_stages
    stages = [PipelineStage(model[n * each:(n + 1) * each], n, n_stages, device) for n in stage_numbers]
    alone = schedule in (pipelining.ScheduleGPipe, pipelining.Schedule1F1B)
    pipeline = schedule(stages[0] if alone else stages, m, loss_fn=cross_entropy)
    losses = []
    given = [x.double()] if any(stage.is_first for stage in stages) else []
    wanted = dict(target=y, losses=losses) if any(stage.is_last for stage in stages) else {}
    pipeline.step(*given, **wanted)             # the first step asks for shapes: we look at the second
    losses.clear()
    for stage in stages:
        stage.submod.zero_grad()
    with record_stages(stages, sleep, sleep, sleep) as events:
        dist.barrier(device_ids=[device.index] if dist.get_backend() == "nccl" else None)
        pipeline.step(*given, **wanted)
    return stages, losses, events

# %% [markdown]
# Six schedules, each against one process: the gradient of every block, and the mean of the losses. PyTorch divides
# by the number of micro-batches itself (`scale_grads=True`).

# %%
%%ranks
p = world_size
SCHEDULES = {                                   # name → (schedule, my stages, stages in all)
    "GPipe": (pipelining.ScheduleGPipe, [rank], p),
    "1F1B": (pipelining.Schedule1F1B, [rank], p),
    "interleaved 1F1B": (pipelining.ScheduleInterleaved1F1B, [rank, rank + p], 2 * p),
    "interleaved zero bubble": (pipelining.ScheduleInterleavedZeroBubble, [rank, rank + p], 2 * p),
    "ZB-H1": (pipelining.ScheduleInterleavedZeroBubble, [rank], p),
    "ZB-V": (pipelining.ScheduleZBVZeroBubble, [rank, 2 * p - 1 - rank], 2 * p),
}

# %%
%%ranks
torch.manual_seed(0)
model = residual_chain(8).to(device, torch.float64)
loss = cross_entropy(model(x.double()), y)
loss.backward()
for name, (schedule, numbers, n_stages) in SCHEDULES.items():
    stages, losses, _ = run_pytorch(schedule, numbers, n_stages)
    each = 8 // n_stages
    far = max(distance(p.grad, q.grad) for stage in stages for p, q in
              zip(stage.submod.parameters(), model[stage.stage_index * each:][:each].parameters()))
    if losses:
        far = max(far, distance(torch.stack(losses).mean(), loss.detach()))
    assert far < 1e-8
    print(f"{name:24} {far:.0e} from one process")

# %% [markdown]
# ### Measured beside simulated
#
# Are they as fast as the simulator says? Four ranks that compute on two cores cannot tell: they wait for a core. So
# the stages **sleep**: each F, B and W lasts 25 ms, and a sleeping rank needs no core. This is an *emulation* (fr.
# *émulation*) of four devices. PyTorch's order, its messages and its waiting are real.

# %%
%%ranks
recorded = {}
for name in ("1F1B", "interleaved 1F1B", "ZB-H1", "ZB-V"):
    recorded[name] = run_pytorch(*SCHEDULES[name], sleep=0.025)[2]

# %%
from fidle_utils.measure.pipeline import measured_simulation

compared = {}
for name in ranks["recorded"][0]:
    simulated = schedules.SCHEDULES[name](4, 8).simulate()
    events = [recorded[name] for recorded in ranks["recorded"]]
    measured = measured_simulation(events, simulated.schedule, seconds_per_unit=0.025)      # checks the order
    compared[name] = measured, simulated
    print(f"{name:17} measured {measured.total:5.2f}, simulated {simulated.total:5.2f}: "
          f"{measured.total / simulated.total - 1:+.1%}; bubble {measured.bubble_of_total:.1%} "
          f"and {simulated.bubble_of_total:.1%} of the total")

# %%
plots.plot_measured_schedule(*compared["1F1B"]);

# %%
plots.plot_measured_schedule(*compared["ZB-V"]);

# %% [markdown]
# The order is the same, box by box. The measured chart is a little longer: every message takes a moment, every
# sleep ends a little late. Look for the small white slits, and remember them for the next section.

# %% [markdown]
# ## What messages cost
#
# So far messages took no time. Let one take as long as a part of a forward. If sends and receives run beside the
# work (*overlap*), a message only delays who needs it. If the receiver does nothing else until it has its message,
# it pays for each one.

# %%
guess = predict("16 micro-batches, messages that are not hidden and take a fifth of a forward. Does "
                "interleaving (v = 4) still beat 1F1B?", options=["yes", "no"])

# %%
messages = [i / 20 for i in range(0, 11)]
makers = {"1F1B": schedules.one_f_one_b, "interleaved, v = 2": schedules.interleaved,
          "interleaved, v = 4": lambda p, m: schedules.interleaved(p, m, 4),
          "ZB-H1": schedules.zb_h1, "ZB-V": schedules.zb_v}

def step_times(overlap):
    return {name: [(c, make(4, 16).simulate(communication=c, overlap=overlap).total) for c in messages]
            for name, make in makers.items()}

panels = {"messages run beside the work": step_times(True),
          "each message occupies its receiver": step_times(False)}
plots.plot_message_cost(panels);

# %%
gains = [dict(one["1F1B"])[0.2] - dict(one["interleaved, v = 4"])[0.2] for one in panels.values()]
reveal(guess, "no" if gains[1] < 0 else "yes",
       why=f"Interleaving gains {gains[0]:+.1f} with hidden messages, {gains[1]:+.1f} when receivers pay.")

# %% [markdown]
# When receivers pay, the finer pipelines rise fastest: they have $v$ times the messages. Hidden messages cost less,
# until one takes longer than the short piece of work that should hide it: then the fine pipeline is late in every
# turn. So interleaving is for fast links. And the clock is kind: on it no link is shared, and sending costs
# nothing.
#
# Move everything yourself. (Where nobody can, one state is shown.)

# %%
pipeline_sliders("1F1B", ranks=4, micro_batches=8, communication=0.2)

# %% [markdown]
# ## A puzzle: time *and* memory
#
# Four ranks, a batch of 64 samples. A device is slow on small pieces: F, B and W each cost 1 ms a sample **plus 2
# ms** to start, for each stage. A message costs 1 ms plus 0.05 ms a sample, and occupies its receiver. Memory
# counts samples whose activations a rank holds at once.

# %%
def price(name, m, v=1):
    """Return (ms of a step, samples held by the fullest rank) of a schedule with m micro-batches."""
    rows = 64 / m
    made = schedules.interleaved(4, m, v) if name == "interleaved 1F1B" else schedules.SCHEDULES[name](4, m)
    work = 2 * made.n_stages / 4 + rows                     # each stage of a rank pays its 2 ms
    done = made.simulate(work, work, work, communication=1 + 0.05 * rows, overlap=False)
    return done.total, max(made.peak_activations(0.9)) * rows

for name in schedules.SCHEDULES:
    time, held = price(name, 8, 2)
    print(f"{name:17} 8 micro-batches: {time:5.0f} ms, {held:4.1f} samples")

# %% [markdown]
# **Exercise 4.** At most **350 ms**, at most **24 samples**. Answer with `(schedule, m, v)`: a name from the list
# above, the micro-batches 4, 8, 16 or 32, and the stages on each rank (2 or 4 for interleaved, otherwise 1).

# %% fidle={"wrong": ["layout = (\"GPipe\", 8, 1)", "layout = (\"1F1B\", 16, 1)", "layout = (\"1F1B\", 32, 1)", "layout = (\"interleaved 1F1B\", 16, 2)", "layout = (\"ZB-H2\", 16, 1)", "layout = (\"ZB-H1\", 8, 1)", "layout = (\"ZB-H1\", 32, 1)", "layout = (\"ZB-V\", 16, 1)", "layout = (\"ZB-H3\", 16, 1)"]} tags=["exercise"]
layout = ...

# %% tags=["check"]
def test_layout(layout):
    name, m, v = layout
    assert name in schedules.SCHEDULES, f"{name!r} is not in the list: {', '.join(schedules.SCHEDULES)}."
    assert m in (4, 8, 16, 32) and v in (1, 2, 4), "m is 4, 8, 16 or 32; v is 1, 2 or 4."
    assert name != "interleaved 1F1B" or v > 1, "interleaved: 2 or 4 stages on each rank."
    time, held = price(name, m, v)
    said = f"{time:.0f} ms, {held:.0f} samples: "
    if held > 24 and time <= 350:
        raise AssertionError(said + "fast enough, too much memory. Smaller pieces, or fewer in flight?")
    assert held <= 24 or name != "GPipe", said + "GPipe holds the whole batch, however you cut it."
    assert held <= 24, said + "too slow, and too much memory."
    if time > 350 and m == 32:
        raise AssertionError(said + "fits memory, too slow: 32 small pieces, each pays its 2 ms.")
    if time > 350 and (v > 1 or name == "ZB-V"):
        raise AssertionError(said + "fits memory, too slow: more stages, more starts and messages.")
    assert time <= 350, said + "fits memory, too slow: the bubble. Who can fill it without holding more?"

check(layout, test_layout, name="layout")

# %% jupyter={"source_hidden": true} tags=["solution"]
layout = ("ZB-H1", 16, 1)

# %% jupyter={"source_hidden": true} tags=["solution"]
check(layout, test_layout, name="layout")

# %%
tried = [("GPipe", 8), ("1F1B", 8), ("1F1B", 16), ("interleaved 1F1B", 8), ("ZB-H1", 16), ("ZB-H2", 8),
         ("ZB-V", 8)]
prices = {f"{name}, m = {m}": price(name, m, 2) for name, m in tried}
plots.plot_time_and_memory(prices, targets=(350, 24), unit="milliseconds of a step", note="invented costs");

# %% [markdown]
# Change the costs and another one wins. With a start of 0 ms and messages of 0 ms, try 32 micro-batches of ZB-V.

# %% [markdown]
# ## A schedule of your own (harder)
#
# A schedule is nothing but an order. Two ranks, four micro-batches. `"F0 F1 B0 W0"` reads: forward of micro-batch
# 0, of 1, then B and W of 0. 1F1B needs 15, with at most 2 micro-batches on rank 0.

# %%
def my_schedule(*lines):
    """Make a Schedule of one text a rank; rank r holds stage r."""
    for word in " ".join(lines).split():
        if word[0] not in "FBW" or not word[1:].isdigit():
            raise ValueError(f"{word!r} is no work: write F, B or W and a number, B0 W0 rather than BW0")
    order = [[(word[0], int(word[1:]), rank) for word in line.split()] for rank, line in enumerate(lines)]
    return Schedule("yours", order)

try:
    my_schedule("F0 F1 B0 W0 B1 W1", "B0 F0 W0 F1 B1 W1").simulate()
except schedules.DeadlockError as error:
    print(error)

# %% [markdown]
# Read it from the end. Rank 1 wants to go back with micro-batch 0 before it has gone forward: it waits for
# *itself*. Rank 0 waits for rank 1. Such a circle is a deadlock, on the clock as on real ranks.
#
# **Exercise 5.** Beat 1F1B: a time of **13** or less (F = B = W = 1, messages free). A micro-batch counts from its
# F until its **W**; no rank may hold more than **2**, as in 1F1B. Every micro-batch needs one F, one B, one W on
# each rank.

# %% fidle={"wrong": ["mine = (\"F0 F1 B0 W0 F2 B1 W1 F3 B2 W2 B3 W3\", \"F0 B0 W0 F1 B1 W1 F2 B2 W2 F3 B3 W3\")", "mine = (\"F0 F1 F2 F3 B0 B1 B2 B3 W0 W1 W2 W3\", \"F0 B0 F1 B1 F2 B2 F3 B3 W0 W1 W2 W3\")", "mine = (\"F0 F1 B0 W0 F2 B1 W1 F3 B2 W2 B3 W3\", \"F0 B0 F1 B1 W0 F2 B2 W1 F3 B3 W2\")", "mine = (\"B0 F0 F1 W0 F2 B1 W1 F3 B2 W2 B3 W3\", \"F0 B0 F1 B1 W0 F2 B2 W1 F3 B3 W2 W3\")", "mine = (\"F0 F1 B0\",)", "mine = (\"F0 F1 BW0 F2 BW1 F3 BW2 BW3\", \"F0 BW0 F1 BW1 F2 BW2 F3 BW3\")"]} tags=["exercise"]
mine = ...

# %% tags=["check"]
def test_mine(mine):
    assert isinstance(mine, tuple) and len(mine) == 2, "two texts in brackets, one for each rank."
    try:
        made = my_schedule(*mine)
        done = made.simulate()
    except schedules.DeadlockError as error:
        raise AssertionError(f"a deadlock: {error}") from None
    except ValueError as error:
        raise AssertionError(f"not a whole schedule: {error}") from None
    assert made.n_micro_batches == 4, f"four micro-batches, 0 to 3; here are {made.n_micro_batches}."
    held = made.peak_activations(kept_for_w=1)
    assert max(held) <= 2, f"{done.total:g}, but a rank holds {max(held):g} micro-batches: do a W earlier."
    if done.total > 13:
        late = max(done.events, key=lambda event: event.end)
        raise AssertionError(f"it works, in {done.total:g}: rank {late.rank} ends last. Rank 0 waits for "
                             "rank 1's B: which work of rank 1 can wait?")

check(mine, test_mine, name="mine")

# %% jupyter={"source_hidden": true} tags=["solution"]
mine = ("F0 F1 B0 W0 F2 B1 W1 F3 B2 W2 B3 W3",
        "F0 B0 F1 B1 W0 F2 B2 W1 F3 B3 W2 W3")              # rank 1 puts its W off by one: this is ZB-H1

# %% jupyter={"source_hidden": true} tags=["solution"]
check(mine, test_mine, name="mine")

# %%
plots.plot_schedules([schedules.one_f_one_b(2, 4).simulate(), my_schedule(*mine).simulate()]);

# %% [markdown]
# ## One slow stage
#
# A model is never cut evenly: the embedding sits on the first stage, the head with its vocabulary on the last. Take
# 32 blocks on four ranks and a head that costs as much as 4 blocks.

# %%
def uneven(blocks_of_rank, head=4, m=16):
    """Simulate 1F1B on ranks with so many blocks each; the head comes on top of the last."""
    work = [blocks / 8 for blocks in blocks_of_rank]        # 8 blocks: 1
    work[-1] += head / 8
    return schedules.one_f_one_b(len(work), m).simulate(work, work, work)

guess = predict("8 blocks on each rank, and the head on rank 3. How much longer does the head make a step?",
                unit="%")

# %%
with_head, without = uneven([8, 8, 8, 8]), uneven([8, 8, 8, 8], head=0)
plots.plot_schedule(with_head)
reveal(guess, 100 * (with_head.total / without.total - 1),
       why="The model grew by an eighth; rank 3, where all must pass, by a half.")

# %% [markdown]
# The slowest stage sets the pace; the others wait, in every turn.
#
# **Exercise 6.** Give each rank its number of blocks, 32 in all, so that a step is as short as can be.

# %% fidle={"wrong": ["blocks = [8, 8, 8, 8]", "blocks = [9, 9, 9, 9]", "blocks = [10, 9, 9, 4]", "blocks = [11, 11, 10, 0]", "blocks = [6, 8, 8, 10]"]} tags=["exercise"]
blocks = [..., ..., ..., ...]

# %% tags=["check"]
def test_blocks(blocks):
    assert len(blocks) == 4 and sum(blocks) == 32, f"four numbers, 32 blocks in all; here are {sum(blocks)}."
    assert min(blocks) > 0, "a rank without a block is a rank too many."
    work = [*blocks[:3], blocks[3] + 4]
    slow = max(range(4), key=work.__getitem__)
    best, time = uneven([9, 9, 9, 5]).total, uneven(blocks).total
    with_its = " with its head" if slow == 3 else ""
    said = f"{time:.1f}, and {best:.1f} is possible: rank {slow} works for {work[slow]} blocks{with_its}, "
    assert time <= best + 1e-9, f"{said}the lightest rank for {min(work)}."

check(blocks, test_blocks, name="blocks")

# %% jupyter={"source_hidden": true} tags=["solution"]
blocks = [9, 9, 9, 5]                                       # 9 and 9 and 9 and 5 + 4

# %% jupyter={"source_hidden": true} tags=["solution"]
check(blocks, test_blocks, name="blocks")

# %%
print(f"even blocks {with_head.total:.1f}, balanced {uneven([9, 9, 9, 5]).total:.1f}, "
      f"the head for free {without.total:.1f}")

# %% [markdown]
# Real models are shaped for this. The zero-bubble paper trains models of 22, 30, 46 and 62 layers on 8 to 32
# stages: two layers fewer than a multiple of 8, so that embedding and head each take the place of one. On Jean Zay,
# BigScience tuned BLOOM with the partition `type:transformer|embedding`, which counts an embedding as a block.

# %% [markdown]
# ## No bubble at all: asynchronous pipelines
#
# The bubble comes from one rule: all micro-batches of a step see the **same weights**, so the pipeline runs empty
# before each update. PipeDream (Narayanan et al., 2019) drops the rule. Every micro-batch is a batch of its own; a
# rank updates its weights after *every* backward; nothing ever runs empty.
#
# Then a micro-batch meets other weights on its way back than on its way there. PipeDream keeps the old ones for it
# (*weight stashing*, fr. *versions de poids*): forward and backward agree, but the gradient belongs to weights that
# are some updates old: *stale* (fr. *périmé*).

# %%
guess = predict("1F1B without a flush, 4 ranks: how many updates old are the weights of rank 0's gradients?",
                unit="updates")

# %%
%%ranks
class AsyncStage(Stage):
    """A stage that updates its weights after every backward."""
    def __init__(self, blocks, lr, stash):
        super().__init__(self.with_weights_of_now)
        self.model, self.lr, self.stash, self.kept, self.age, self.updates = blocks, lr, stash, [], [], 0
        self.now = {name: w.detach() for name, w in blocks.named_parameters()}

    def with_weights_of_now(self, h):
        used = {name: w.clone().requires_grad_() for name, w in self.now.items()}
        self.kept.append((used, self.updates))
        return functional_call(self.model, used, (h,))

    def backward(self, i, gradient):
        used, before = self.kept.pop(0)         # first in, first out
        if not self.stash:                      # nothing was kept: backward meets the weights of today
            for name, w in used.items():
                w.data.copy_(self.now[name])
        h_gradient = super().backward(i, gradient)
        self.now = {name: w - self.lr * used[name].grad for name, w in self.now.items()}
        self.age.append(self.updates - before)  # updates since this micro-batch went forward
        self.updates += 1
        return h_gradient

# %%
%%ranks
def batch(i, rows=16):
    """Batch number i, 16 images; they come again after an epoch."""
    start = rows * (i % (len(x_train) // rows))
    images, labels = x_train[start:start + rows], y_train[start:start + rows]
    return images.flatten(1).to(device, torch.float64), labels.to(device)

def pipedream(lr, stash, steps=128):
    """Your 1F1B over `steps` batches, without ever running empty."""
    inputs, targets = zip(*map(batch, range(steps)))
    stage = AsyncStage(my_blocks(torch.float64), lr * steps, stash)     # × steps: undoes the 1 / m of a mean
    one_f_one_b(stage, inputs, targets)
    return stage

# %%
%%ranks
SMALL, LARGE = 0.02, 0.06                       # two learning rates
stashed = {lr: pipedream(lr, stash=True) for lr in (SMALL, LARGE)}
plain = {lr: pipedream(lr, stash=False) for lr in (SMALL, LARGE)}
age = stashed[SMALL].age
losses = {(lr, stash): [loss.item() for loss in runs[lr].losses]
          for stash, runs in ((True, stashed), (False, plain)) for lr in runs}
print(f"the weights of a gradient are {age[-10]} updates old (at the start {age[:4]})")

# %%
reveal(guess, ranks["age"][0][-10], why="p − 1 − r on rank r: none on the last rank, three on the first.")

# %% [markdown]
# The same in **one process**: keep the weights of the last updates, and compute each gradient with weights that are
# as old as on the ranks. With an age of 0 everywhere it is plain SGD. And we can pretend that the pipeline is four
# times deeper.

# %%
from torch.func import functional_call

torch.set_num_threads(1)                        # small tensors: more threads only wait for each other

def delayed(lr, ages, steps=128, rows=16):
    """SGD in one process; blocks 2r and 2r + 1 use weights that are ages[r] updates old. Returns losses."""
    torch.manual_seed(0)
    model, losses = residual_chain(8).double(), []
    parts = [model[2 * r:2 * r + 2] for r in range(4)]
    past = [[{name: w.detach() for name, w in part.named_parameters()}] for part in parts]
    for step in range(steps):
        used = [{name: w.clone().requires_grad_() for name, w in weights[max(0, step - age)].items()}
                for weights, age in zip(past, ages)]
        start = rows * (step % (len(x_train) // rows))
        h, target = x_train[start:start + rows].flatten(1).double(), y_train[start:start + rows]
        for part, weights in zip(parts, used):
            h = functional_call(part, weights, (h,))
        loss = cross_entropy(h, target)
        loss.backward()
        losses.append(loss.item())
        for weights, then in zip(past, used):
            weights.append({name: w - lr * then[name].grad for name, w in weights[-1].items()})
    return losses

# %%
by_ranks, panels = ranks["losses"][-1], {}
for lr in ranks["SMALL"][0], ranks["LARGE"][0]:
    torch.testing.assert_close(torch.tensor(delayed(lr, ages=(3, 2, 1, 0))), torch.tensor(by_ranks[lr, True]),
                               rtol=1e-6, atol=1e-6)
    panels[f"learning rate {lr}"] = {
        "fresh weights": delayed(lr, ages=(0, 0, 0, 0)), "PipeDream, stashed": by_ranks[lr, True],
        "nothing stashed": by_ranks[lr, False], "4 times as deep": delayed(lr, ages=(12, 8, 4, 0))}
plots.plot_staleness(panels);

# %%
for title, curves in panels.items():
    print(f"{title}, mean loss from update 20 on:")
    for name, losses in curves.items():
        print(f"    {name:19} {sum(losses[20:]) / len(losses[20:]):.2f}")

# %% [markdown]
# The ranks and one process agree: what you see is staleness, not an accident of the pipeline.
#
# - **Small steps**: an age of three updates hardly matters. The weights have not moved far.
# - **Large steps**: stale gradients point to where the loss *was* going down. The training is slower, or wild.
# - **Deeper pipelines**: older weights, more harm, even with small steps.
# - **Nothing stashed**: the gradient is that of no weights at all. With large steps that is worse still; with small
#   ones you cannot tell.
#
# So is it useless? No: with small steps it is harmless, nothing idles, and there are cures: PipeDream-2BW keeps
# only two versions of the weights, so that every gradient has the same small age. But a synchronous schedule
# computes *exactly* the step of one process, and zero bubble leaves little to win.

# %% [markdown]
# ## What others measured
#
# GPipe's own table: its speed on TPUs against the formula, relative to one micro-batch.

# %%
plots.plot_published_gpipe(table("gpipe_throughput", model="Transformer-48 TPUv3"));

# %% [markdown]
# At 32 micro-batches the formula is close. At 4 the real pipeline is *faster*. GPipe recomputes activations in
# backward, and that work needs no gradient from the next stage: it can fill a part of the bubble. Our clock has no
# such work. (That this is the reason is our reading; the table does not say.)
#
# Zero bubble, on up to 32 GPUs: does the throughput follow the bubble?

# %%
guess = predict("6.2 billion parameters: the bubble falls from 23 % (1F1B) to 0.3 % (ZB-2p). "
                "By how much does the throughput rise?", unit="%")

# %%
rows = table("zero_bubble", parameters_billion=6.2)
plots.plot_published_bubbles(rows)
speed = {row["schedule"]: row["samples_per_second_per_gpu"] for row in rows if row["n_micro_batches"] == 24}
shares = {row["schedule"]: 1 - row["bubble_rate"] for row in rows if row["n_micro_batches"] == 24}
reveal(guess, 100 * (speed["ZB-2p"] / speed["1F1B"] - 1),
       why=f"The bubble alone would give {100 * (shares['ZB-2p'] / shares['1F1B'] - 1):.0f} %.")

# %%
for row in rows:
    if row["n_micro_batches"] == 24 and row["memory_gb"]:
        gain = row["samples_per_second_per_gpu"] / speed["1F1B"] - 1
        print(f"{row['schedule']:7} {gain:+5.1%} throughput, {row['memory_gb']} GB on a GPU")

# %% [markdown]
# Interleaving, with four stages a rank here, gains throughput as well, and pays with memory. Points under the line:
# the bubble went, and something else came, such as more messages or smaller kernels. **A simulated bubble is an
# upper bound of the gain.**
#
# BLOOM, tuned on Jean Zay: 12 stages, and a batch that grows during training.

# %%
ramp = [row for row in table("jeanzay_bigscience_a100") if "Batchsize Warmup" in row["source"]]
plots.plot_batch_ramp(ramp)
for row in ramp:
    m = row["global_batch"] / row["dp"] / row["micro_batch"]
    print(f"batch {row['global_batch']:4}: {m:3.0f} micro-batches, bubble {11 / (m + 11):.0%}, "
          f"{row['tflops_per_gpu']} TFLOP/s")

# %% [markdown]
# At a batch of 512 a quarter of the time is bubble. BLOOM's training began at 192, 12 micro-batches, where the
# formula says $11/23$: 48 %. That is the price of a small batch on many stages. The measured speed falls a little
# faster than the formula. (These are *hardware* flops: what recomputation computes twice counts twice. Lesson 10
# takes that apart.)

# %% [markdown]
# ## In practice
#
# - First ask whether you need a pipeline: the model does not fit with the sharding of lesson 08, or links between
#   nodes are too slow for it. Pipelines send little, and only between neighbours: they go *across* nodes, tensor
#   parallelism stays inside.
# - $m \ge 4p$ micro-batches is GPipe's rule for a bubble that hardly counts. Few stages, many micro-batches.
# - Start with 1F1B. Interleave on fast links. Zero bubble needs layers whose backward can be split; and clipping by
#   the norm of *all* gradients makes every stage wait for every other: its authors check after the step instead.
# - The loss: mean over micro-batches, once. Compare the gradient norm with one process on a small model **before**
#   the large run.
# - Balance by measured time, not by counting blocks. Put the head and the embedding on the scales.
# - Print the peak memory of *every* rank: the first is the fullest in 1F1B.
#
# ## Go further
#
# - `%ranks 2`: which cells still run, and what are the peaks now?
# - Write interleaved 1F1B: `Stage` twice on each rank, `schedules.interleaved(4, 8).order[rank]` as your script. A
#   generic interpreter of any schedule is twenty lines.
# - Add activation checkpointing (lesson 08): F is done twice. In which schedule does the second F fit into a
#   bubble?
# - Make rank 2 sleep longer in `record_stages`. Does the measured chart still look like the simulated one?

# %% [markdown]
# ## Sources
#
# - Y. Huang et al., *GPipe: efficient training of giant neural networks using pipeline parallelism*, NeurIPS 2019,
#   [arXiv:1811.06965](https://arxiv.org/abs/1811.06965): micro-batches, bubble, Tables 1 to 3.
# - D. Narayanan et al., *PipeDream: generalized pipeline parallelism for DNN training*, SOSP 2019,
#   [arXiv:1806.03377](https://arxiv.org/abs/1806.03377) (its preprint): 1F1B without a flush, weight stashing.
# - D. Narayanan et al., *Efficient large-scale language model training on GPU clusters using Megatron-LM*, SC 2021,
#   [arXiv:2104.04473](https://arxiv.org/abs/2104.04473): 1F1B with a flush, interleaving, the bubble of the ideal
#   time.
# - D. Narayanan et al., *Memory-efficient pipeline-parallel DNN training*, ICML 2021,
#   [arXiv:2006.09503](https://arxiv.org/abs/2006.09503): PipeDream-2BW and PipeDream-flush (1F1B).
# - P. Qi, X. Wan, G. Huang, M. Lin, *Zero bubble pipeline parallelism*, ICLR 2024,
#   [arXiv:2401.10241](https://arxiv.org/abs/2401.10241): B and W, ZB-H1, ZB-H2, ZB-V, Tables 3 to 5; times and
#   estimates in
#   [sail-sg/zero-bubble-pipeline-parallelism](https://github.com/sail-sg/zero-bubble-pipeline-parallelism).
# - V. Korthikanti et al., *Reducing activation recomputation in large transformer models*, 2022,
#   [arXiv:2205.05198](https://arxiv.org/abs/2205.05198): activations of interleaved schedules.
# - BigScience,
#   [*chronicles-prequel*](https://github.com/bigscience-workshop/bigscience/tree/master/train/tr11-176B-ml): BLOOM
#   tuned on Jean Zay.
# - PyTorch documentation,
#   [*torch.distributed.pipelining*](https://docs.pytorch.org/docs/stable/distributed.pipelining.html).

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("8 stages, 1F1B. From 32 to 64 micro-batches, each of the same size. The memory of activations…",
             options=["doubles", "stays the same", "halves"])
q2 = predict("1F1B instead of GPipe, same sizes. The step is…",
             options=["faster", "as fast, with fewer activations", "slower"])

# %%
reveal(q1, "stays the same",
       why="p − r in flight on rank r, whatever m is. (Cut the same batch finer, and it halves.)")
reveal(q2, "as fast, with fewer activations", why="p − 1 turns of bubble in both.")

# %%
q3 = predict("One of 8 stages is twice as slow as the others. With many micro-batches the step is about…",
             options=["as fast", "an eighth slower", "twice as slow"])
q4 = predict("Which work can a zero-bubble schedule put off?", options=["F", "B", "W"])
q5 = predict("4 micro-batches of mean losses, backward on each, no division. The gradient is…",
             options=["right", "4 times too large", "4 times too small"])
q6 = predict("Somebody says: the bubble is 50 %, with 8 stages and 14 micro-batches. Of which time?",
             options=["the ideal", "the total"])

# %%
reveal(q3, "twice as slow", why="Every micro-batch passes through it: the slowest stage sets the pace.")
reveal(q4, "W", why="Nobody waits for it before the optimizer's step; B is what the previous rank waits for.")
reveal(q5, "4 times too large", why="Divide each loss by 4, or the gradients once at the end.")
reveal(q6, "the ideal", why=f"7/14. Of the total it is 7/21 = {7 / 21:.0%}.")

# %%
from fidle_utils import progress

progress.show("06")
