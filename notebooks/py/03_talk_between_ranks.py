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
# # 03 · Talk between ranks
#
# **You will** see what each collective does to the memory of every rank, make a deadlock and escape from it, write
# the ring all_reduce with your own hands, and measure what a message costs on this machine, well enough to predict.
#
# **You learn** the eight collectives, the two numbers α and β that price any conversation, why a bandwidth has two
# values, and the accidents that PyTorch does not report.
#
# **You need** lesson 00 (what a rank is). No GPU is needed; with one GPU for each rank the same cells use them.
#
# **Time** 8 min live (the cells tagged `live`), 60 min alone, with three exercises.

# %% tags=["live"]
%load_ext fidle_utils
import statistics

import torch

from fidle_utils import plots, ranks
from fidle_utils.collective_steps import tree_all_reduce_steps
from fidle_utils.measure.alpha_beta import all_reduce_cost, fit, r_squared
from fidle_utils.measure.film import steps_of
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal
from fidle_utils.widgets import step_through

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Numbers with a name on them
#
# To see where a number goes, every rank marks its own. Rank 0 holds 1, 2, 3, 4; rank 1 ten times that; rank 2 a
# hundred times; rank 3 a thousand times. After an addition you can still read who gave what: in 1200, the thousand
# comes from rank 3 and the two hundred from rank 2.
#
# Two libraries carry the messages: **NCCL** between GPUs, **gloo** between CPUs.

# %% tags=["live"]
%%ranks
n = world_size
mine = torch.arange(1, n + 1, device=device) * 10**rank     # labelled values
results = {}                                                # what each collective will leave here
mine.tolist()

# %% tags=["live"]
guess = predict("After an all_reduce (a sum), rank 2 holds…",
                options=["100, 200, 300, 400", "1111, 2222, 3333, 4444", "1, 20, 300, 4000", "nothing"])

# %% tags=["live"]
%%ranks
after = mine.clone()
dist.all_reduce(after)                                      # in place, on every rank
results["all_reduce"] = after

# %% tags=["live"]
reveal(guess, "1111, 2222, 3333, 4444", why="The sum of all, and every rank holds it.")
plots.plot_collective(ranks["mine"], ranks["after"], "all_reduce");

# %% [markdown] tags=["live"]
# The figure is drawn from the values that came back from the ranks. A box is painted in the colours of the ranks whose
# numbers are in it. **A collective is a pattern of such boxes**: here all of them go to everybody. There are seven
# more, and you can guess each from its name.

# %% [markdown]
# ## One speaks to all
#
# `broadcast` (fr. *diffusion*): rank `src` gives all that it has to everybody.

# %%
%%ranks
after = mine.clone()
dist.broadcast(after, src=0)
results["broadcast"] = after

# %%
plots.plot_collective(ranks["mine"], ranks["after"], "broadcast from rank 0");

# %% [markdown]
# `scatter` (fr. *répartition*): rank `src` deals its pieces out, one to each, as one deals cards.

# %%
%%ranks
before = mine if rank == 0 else None
after = torch.zeros(1, dtype=mine.dtype, device=device)     # room for one piece
dist.scatter(after, list(mine.chunk(n)) if rank == 0 else None, src=0)
results["scatter"] = after

# %%
plots.plot_collective(ranks["before"], ranks["after"], "scatter from rank 0");

# %% [markdown]
# ## All speak to one
#
# `gather` (fr. *collecte*) is scatter backwards. `reduce` (fr. *réduction*) also adds up on the way.
# Here rank r gives its piece number r.

# %%
%%ranks
piece = mine[rank:rank + 1].clone()
after = torch.zeros_like(mine) if rank == 0 else None
dist.gather(piece, list(after.chunk(n)) if rank == 0 else None, dst=0)
results["gather"] = after

# %%
plots.plot_collective(ranks["piece"], ranks["after"], "gather on rank 0");

# %%
guess = predict("After a reduce on rank 0, what does rank 1 find in its tensor?",
                options=["what it had before", "the sum too", "nothing to rely on"])

# %%
%%ranks
after = mine.clone()
dist.reduce(after, dst=0)
results["reduce"] = after

# %%
reveal(guess, "nothing to rely on", why="Only rank 0 is promised the sum [1]. Read what is left elsewhere.")
plots.plot_collective(ranks["mine"], ranks["after"], "reduce on rank 0");

# %% [markdown]
# Rank 0 has the sum. What is left in the other tensors depends on the library: gloo, on a CPU, uses them for
# half-finished sums. PyTorch promises the result to `dst`, and nothing to the others.
#
# ## All speak to all
#
# `all_gather`: gather, for everybody. `reduce_scatter`: everybody gets *one piece* of the sum.

# %%
%%ranks
after = torch.zeros_like(mine)
dist.all_gather(list(after.chunk(n)), piece)                # the chunks are views: `after` is filled
results["all_gather"] = after

# %%
plots.plot_collective(ranks["piece"], ranks["after"], "all_gather");

# %%
%%ranks
after = torch.zeros(1, dtype=mine.dtype, device=device)
dist.reduce_scatter(after, list(mine.chunk(n)))
results["reduce_scatter"] = after

# %%
plots.plot_collective(ranks["mine"], ranks["after"], "reduce_scatter");

# %% [markdown]
# And `all_to_all`: every rank has a piece for every other.

# %%
guess = predict("Stack the four rows into a matrix. What does all_to_all do to it?",
                options=["sums its rows", "transposes it", "turns it upside down"])

# %%
%%ranks
after = torch.zeros_like(mine)
dist.all_to_all_single(after, mine)
results["all_to_all"] = after

# %%
reveal(guess, "transposes it", why="Piece j of rank i becomes piece i of rank j.")
plots.plot_collective(ranks["mine"], ranks["after"], "all_to_all");

# %% [markdown]
# ### Checked in one process
#
# A collective is one line of PyTorch when one process holds everything. Stack the four tensors, and compare.

# %%
whole = torch.stack(ranks["mine"])                          # row r: what rank r had
n, results = len(whole), ranks["results"]
expected = {
    "all_reduce": [whole.sum(0)] * n,
    "broadcast": [whole[0]] * n,
    "scatter": whole[0].chunk(n),
    "gather": [whole.diag()],                               # on rank 0 only
    "reduce": [whole.sum(0)],                               # on rank 0 only
    "all_gather": [whole.diag()] * n,
    "reduce_scatter": whole.sum(0).chunk(n),
    "all_to_all": whole.T,
}
for name, tensors in expected.items():
    for i, tensor in enumerate(tensors):
        torch.testing.assert_close(results[i][name], tensor)
print(f"{', '.join(expected)}: all eight equal to one process")

# %% [markdown]
# Where will you meet them? `all_reduce` in data parallelism (lesson 04), `all_gather` and `reduce_scatter` where states
# are sharded (08) and inside tensor parallelism (05), `send` and `recv` in pipelines (06), `all_to_all` in mixtures of
# experts (07).

# %% [markdown]
# ## Two by two
#
# Under every collective there are messages from one rank to one other: *point to point* (fr. *point à point*).
# `send` gives, `recv` takes; both wait until the message has gone (with NCCL only the GPU's queue waits, Python goes
# on). `isend` and `irecv` (i for *immediate*) return at once, with a promise: `.wait()` when you need it kept.
# (Between GPUs, the first message of a pair also sets up their link, and even `irecv` may wait for that.)

# %%
%%ranks
import time

buffer = torch.zeros(4, device=device)
dist.barrier()
start = time.perf_counter()
if rank == 0:
    time.sleep(0.3)                                         # rank 1 will have to wait for its message
    dist.send(torch.ones(4, device=device), dst=1)
elif rank == 1:
    promise = dist.irecv(buffer, src=0)
    returned = time.perf_counter() - start
    promise.wait()
    total = buffer.sum().item()                             # reading it waits for a GPU too
    print(f"irecv returned after {1e3 * returned:.0f} ms, the message was here after "
          f"{1e3 * (time.perf_counter() - start):.0f} ms: {buffer.tolist()}")

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## A deadlock, made on purpose
#
# Four ranks in a ring. Each gives its tensor to the neighbour on its right, and takes that of the neighbour on its
# left. All run the same two lines.

# %%
guess = predict("All four send first, then receive. What happens?", options=["it works", "it hangs"])

# %% tags=["raises-exception", "live"]
%%ranks --timeout 3
right, left = (rank + 1) % world_size, (rank - 1) % world_size
gloo = dist.new_group(backend="gloo")   # NCCL's send returns once it is queued
outgoing, received = mine.cpu(), torch.zeros_like(mine, device="cpu")
dist.send(outgoing, dst=right, group=gloo)
dist.recv(received, src=left, group=gloo)

# %%
reveal(guess, "it hangs", why="Each send waits for a recv that its neighbour has not reached: it waits too.")

# %% [markdown] tags=["live"]
# Read the report as you would read a real one. It says **where each rank waits**. All four wait in `send`, on the
# same line: nobody is in `recv`, so nobody can ever leave. A circle of ranks that wait for each other is a
# *deadlock* (fr. *interblocage*).
#
# It is treacherous: a library may copy a small message aside and let `send` return. Then the program works, until
# the day when the message is longer. The MPI standard calls such programs *unsafe* [2].
#
# **Cure one**: break the circle. Even ranks send first, odd ranks receive first.

# %%
%%ranks
mine = torch.arange(1, world_size + 1, device=device) * 10**rank    # again: GPUs may have got new ranks
right, left = (rank + 1) % world_size, (rank - 1) % world_size
received = torch.zeros_like(mine)
if rank % 2 == 0:
    dist.send(mine, dst=right)
    dist.recv(received, src=left)
else:
    dist.recv(received, src=left)
    dist.send(mine, dst=right)

# %%
expected = [ranks["mine"][i - 1] for i in range(len(ranks))]    # rank 0 hears from the last: item −1
torch.testing.assert_close(ranks["received"], expected)
plots.plot_collective(ranks["mine"], ranks["received"], "everyone to the right");

# %% [markdown] tags=["live"]
# **Cure two**, the one to remember: start both, then wait for both. `batch_isend_irecv` starts a list of them
# together, which also suits NCCL and its GPUs.

# %% tags=["live"]
%%ranks
def exchange(outgoing, destination, incoming, source):
    """Send one tensor while receiving another."""
    send = dist.P2POp(dist.isend, outgoing, destination)
    receive = dist.P2POp(dist.irecv, incoming, source)
    for promise in dist.batch_isend_irecv([send, receive]):
        promise.wait()

def pass_on(outgoing, incoming):
    """Give `outgoing` to the right neighbour, fill `incoming` from the left one."""
    exchange(outgoing, (rank + 1) % world_size, incoming, (rank - 1) % world_size)

mine = torch.arange(1, world_size + 1, device=device) * 10**rank
received = torch.zeros_like(mine)
pass_on(mine, received)

# %%
torch.testing.assert_close(ranks["received"], [ranks["mine"][i - 1] for i in range(len(ranks))])

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## The ring, by your own hand
#
# How would *you* build all_reduce from messages? Let all send everything to rank 0, which adds up and sends back:
# correct, but rank 0 carries everybody's bytes, while the others wait. In the **ring** (fr. *anneau*) all links
# work all the time. Every rank cuts its tensor into n pieces, and only talks to its two neighbours.
#
# One step: rank r passes its piece r to the right, and adds what comes from the left to its piece r − 1.

# %%
%%ranks
tensor = mine.clone()
pieces = list(tensor.chunk(world_size))                     # views: what you add to a piece is in `tensor`
incoming = torch.empty_like(pieces[0])
pass_on(pieces[rank], incoming)
pieces[(rank - 1) % world_size] += incoming

# %%
plots.plot_collective(ranks["mine"], ranks["tensor"], "one step of the ring");

# %% [markdown]
# Now rank 1 holds 11: pieces of ranks 0 and 1. Next it passes *that* piece on, rank 2 adds its own, and so on.
#
# - **Phase one**, n − 1 steps. In step k = 0, 1, 2…, rank r passes piece (r − k) on, and adds what comes in to piece
#   (r − k − 1). Numbers are taken modulo n.
# - Then each rank holds *one* complete piece: rank r has piece (r + 1).
# - **Phase two**, n − 1 steps: the complete pieces go round. In step k, rank r passes piece (r + 1 − k) on, and what
#   comes in *replaces* piece (r − k).

# %% [markdown]
# **Exercise 1.** Write it. In place; n divides the length of the tensor. You have `pass_on(outgoing, incoming)`,
# `rank` and `world_size`. The check counts what you send.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef ring_all_reduce(tensor):\n    outgoing, incoming = tensor.clone(), torch.empty_like(tensor)\n    for step in range(world_size - 1):\n        pass_on(outgoing, incoming)\n        tensor += incoming\n        outgoing.copy_(incoming)\n", "%%ranks\ndef ring_all_reduce(tensor):\n    pieces = list(tensor.chunk(world_size))\n    incoming = torch.empty_like(pieces[0])\n    for step in range(world_size - 1):\n        pass_on(pieces[(rank - step) % world_size], incoming)\n        pieces[(rank - step - 1) % world_size] += incoming\n", "%%ranks\ndef ring_all_reduce(tensor):\n    dist.all_reduce(tensor)\n", "%%ranks\ndef ring_all_reduce(tensor):\n    pieces = list(tensor.chunk(world_size))\n    incoming = torch.empty_like(pieces[0])\n    for step in range(world_size - 1):\n        pass_on(pieces[(rank - step) % world_size], incoming)\n        pieces[(rank - step - 1) % world_size] += incoming\n    for step in range(world_size - 1):\n        pass_on(pieces[(rank - step) % world_size], pieces[(rank - step - 1) % world_size])\n", "%%ranks\ndef ring_all_reduce(tensor):\n    for piece in tensor.chunk(world_size):\n        incoming = torch.empty_like(piece)\n        dist.send(piece, (rank + 1) % world_size)\n        dist.recv(incoming, (rank - 1) % world_size)\n"]}
%%ranks
def ring_all_reduce(tensor):
    """Leave in `tensor`, on every rank, the sum of the tensors of all ranks."""
    ...

# %% [markdown]
# The check compares with `dist.all_reduce`, and counts with `count_communication`: it sees every call that
# communicates, and its bytes. (If an attempt kills a rank, a new one takes its place, and knows nothing: run the
# cells that define `mine` and `pass_on` again.)

# %% tags=["check"]
def test_ring(ring_all_reduce):
    from fidle_utils.measure.communication import count_communication
    tensor = torch.arange(1, 3 * world_size + 1, device=device) * 10**rank
    expected, before, size = tensor.clone(), tensor.clone(), tensor.nbytes
    dist.all_reduce(expected)
    with count_communication() as counted:
        ring_all_reduce(tensor)
    messages, sent = counted.calls("send"), counted.bytes_sent("send")
    assert messages == counted.calls() - counted.calls("recv"), "no collective: send and recv only."
    assert not torch.equal(tensor, before), "the tensor is as before: work in place, on views of it."
    few = "the sum is not complete everywhere: after phase one, n−1 more steps."
    assert messages >= 2 * (world_size - 1) or torch.equal(tensor, expected), few
    assert torch.equal(tensor, expected), "not the sum: which piece leaves, and where does it go? Try n = 2."
    too_much = f"right, but you sent {sent / size:.2f} S: pass on pieces of S/n, not the whole."
    assert sent == 2 * (world_size - 1) * size // world_size, too_much
    assert messages == 2 * (world_size - 1), f"{messages} messages; 2(n−1) = {2 * (world_size - 1)} do."

check("ring_all_reduce", test_ring, hint="piece (rank − step) % world_size leaves in phase one", timeout=6)

# %% tags=["solution", "live"] jupyter={"source_hidden": true}
%%ranks
def ring_all_reduce(tensor):
    pieces = list(tensor.chunk(world_size))                 # views of the tensor
    incoming = torch.empty_like(pieces[0])
    for step in range(world_size - 1):                      # phase one: reduce_scatter
        pass_on(pieces[(rank - step) % world_size], incoming)
        pieces[(rank - step - 1) % world_size] += incoming
    for step in range(world_size - 1):                      # phase two: all_gather
        pass_on(pieces[(rank + 1 - step) % world_size], pieces[(rank - step) % world_size])

# %% tags=["solution"] jupyter={"source_hidden": true}
check("ring_all_reduce", test_ring, timeout=6)

# %% [markdown] tags=["live"]
# ### Watch it
#
# `film` keeps what the tensor of each rank held before every message. This is *your* ring, from start to end.

# %% tags=["live"]
%%ranks
from fidle_utils.measure.communication import count_communication
from fidle_utils.measure.film import film

tensor = mine.clone()
with film(tensor) as ring, count_communication() as counted:
    ring_all_reduce(tensor)
print(counted)

# %% tags=["live"]
plots.plot_film(ranks["ring"], "ring all_reduce");

# %% [markdown]
# Follow one box: 1 on rank 0 becomes 11 on rank 1, 111 on rank 2, 1111 on rank 3; then 1111 goes round.
#
# The same film once more, with the links. Press play, or go step by step: what travels, and how many bytes each link
# has carried so far? (Where nobody can press, all steps are shown.)

# %%
step_through(steps_of(ranks["ring"], "Your ring"))

# %%
guess = predict("A ring of 1000 ranks instead of 4: the bytes that each rank sends…",
                options=["are about the same", "are 250 times more"])

# %%
for n in (2, 4, 8, 64, 1000):
    messages, sent = all_reduce_cost(n, 1)
    print(f"{n:4} ranks: {messages:4} messages, {sent:.3f} S sent by each rank")
reveal(guess, "are about the same", why="2(n−1)/n · S stays under 2 S. The number of messages grows instead.")

# %% [markdown]
# As long as the ranks themselves do the sums, no algorithm can send less: 2(n−1)/n · S is the least for an
# all_reduce [3]. But 1000 ranks send 1998 messages one after the other, and even an empty message takes time. We come
# back to that.
#
# ## The two halves of an all_reduce
#
# Your phase one *is* a reduce_scatter, your phase two *is* an all_gather. The library's two do the same:

# %%
%%ranks
piece = torch.zeros(1, dtype=mine.dtype, device=device)
dist.reduce_scatter(piece, list(mine.chunk(world_size)))
after = torch.zeros_like(mine)
dist.all_gather(list(after.chunk(world_size)), piece)

# %%
moments = {"before": ranks["mine"], "reduce_scatter": ranks["piece"], "all_gather": ranks["after"]}
plots.plot_buffers(moments, "all_reduce in two halves")
for after in ranks["after"]:
    torch.testing.assert_close(after, whole.sum(0))

# %% [markdown]
# Remember this equality. Between the halves, each rank holds a *quarter* of the sum. If the optimizer does its work
# right there, it needs a quarter of its memory, and not one byte more is sent: that is ZeRO, stages 1 and 2
# (lesson 08); stage 3 sends half as much again.

# %% [markdown]
# ## Fewer steps: trees
#
# In a ring, a number takes n − 1 steps to reach the last rank. Ranks can also double their reach at each step:
# with the neighbour at distance 1, then 2, then 4… This is *recursive doubling*.

# %%
guess = predict("Recursive doubling on 1024 ranks: how many steps?", unit="steps")

# %%
%%ranks
def doubling_all_reduce(tensor):
    """log₂ n steps, the whole tensor in each. n is 2, 4, 8…"""
    incoming, distance = torch.empty_like(tensor), 1
    while distance < world_size:
        partner = rank ^ distance                           # the rank whose number differs in one bit
        exchange(tensor, partner, incoming, partner)
        tensor += incoming
        distance *= 2

tensor = mine.clone()
with film(tensor) as doubling:
    doubling_all_reduce(tensor)

# %%
reveal(guess, all_reduce_cost(1024, 1, "recursive doubling")[0], why="log₂ 1024; the ring takes 2046.")
plots.plot_film(ranks["doubling"], "recursive doubling");

# %% [markdown]
# Two steps instead of six, but each carries the whole tensor. A *binomial tree* (fr. *arbre binomial*) is its older
# cousin: sums climb to rank 0, the result comes down again. Here on eight ranks, computed:

# %%
step_through(tree_all_reduce_steps(8, 2**20))

# %% [markdown]
# Count what rank 0 sends, and what rank 7 sends; count also the ranks that do nothing in step 3. The work is not
# shared evenly. The best of ring and tree is Rabenseifner's: halve the tensor from step to step on the way down (a
# reduce_scatter), double it on the way up (an all_gather).

# %%
%%ranks
def halving_doubling_all_reduce(tensor):
    """2 log₂ n steps of a half, a quarter… of the tensor, and back."""
    kept, distance, halves = tensor, world_size // 2, []
    while distance:
        low, high = kept.chunk(2)
        kept, given = (high, low) if rank & distance else (low, high)
        incoming = torch.empty_like(kept)
        exchange(given, rank ^ distance, incoming, rank ^ distance)
        kept += incoming
        halves.append((kept, given, rank ^ distance))
        distance //= 2
    for kept, given, partner in reversed(halves):
        exchange(kept, partner, given, partner)

tensor = mine.clone()
with film(tensor) as halving:
    halving_doubling_all_reduce(tensor)

# %%
plots.plot_film(ranks["halving"], "halving and doubling", columns=3);

# %%
films = {"ring": ranks["ring"], "doubling": ranks["doubling"], "halving, doubling": ranks["halving"]}
for name, films_of_ranks in films.items():
    for one in films_of_ranks:
        assert one.snapshots[-1] == whole.sum(0).tolist(), name
plots.plot_links(films, n_bytes=ranks["mine"][0].nbytes, node=2);

# %% [markdown]
# All three give the library's sum. The figure says who sent how much to whom. Imagine that ranks 0 and 1 sit in one
# node and ranks 2 and 3 in another, beyond the thick lines. Between nodes links are slower: it matters what crosses.

# %% [markdown]
# ## Groups: who talks with whom
#
# A collective need not be for all. `dist.new_group([0, 1])` makes a *group* (fr. *groupe de processus*) of two
# ranks, to be given as `group=` to any collective. One rule, and it is where everybody stumbles:
#
# > **Every rank calls `new_group` for every group, in the same order**, also for groups it does not belong to.
#
# Ranks that make only "their" groups may hang, or be paired with whoever asked at the same moment, and add the
# numbers of the wrong rank without a word.
#
# With four ranks as a grid of two rows and two columns, there are four groups:
#
# | | column 0 | column 1 |
# |---|---|---|
# | **row 0** | rank 0 | rank 1 |
# | **row 1** | rank 2 | rank 3 |
#
# **Exercise 2.** Return the two groups of this rank: its row, and its column. Lessons 05 and 07 live on such grids:
# tensor parallelism along the rows, data parallelism along the columns.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef grid_groups(n_columns):\n    row, column = divmod(rank, n_columns)\n    n_rows = world_size // n_columns\n    mine = dist.new_group([row * n_columns + j for j in range(n_columns)])\n    return mine, dist.new_group([i * n_columns + column for i in range(n_rows)])\n", "%%ranks\ndef grid_groups(n_columns):\n    n_rows = world_size // n_columns\n    rows = [dist.new_group([i * n_columns + j for j in range(n_columns)]) for i in range(n_rows)]\n    columns = [dist.new_group([i * n_columns + j for i in range(n_rows)]) for j in range(n_columns)]\n    return columns[rank % n_columns], rows[rank // n_columns]\n", "%%ranks\ndef grid_groups(n_columns):\n    n_rows = world_size // n_columns\n    rows = [dist.new_group([i * n_columns + j for j in range(n_columns)]) for i in range(n_rows)]\n    return rows[rank // n_columns], rows[rank // n_columns]\n", "%%ranks\ndef grid_groups(n_columns):\n    return None, None\n"]}
%%ranks
def grid_groups(n_columns):
    """Return (row_group, column_group) of this rank: it sits at divmod(rank, n_columns)."""
    ...

# %% tags=["check"]
def test_grid(grid_groups):
    groups = grid_groups(2)
    assert isinstance(groups, (tuple, list)) and len(groups) == 2, "return two groups: (row, column)."
    row, column = divmod(rank, 2)
    members = [2 * row, 2 * row + 1], list(range(column, world_size, 2))
    for group, ranks_of_group, name in zip(groups, members, ("row", "column")):
        assert group is not None, f"the {name} is None: that would mean all the ranks."
        assert group != dist.GroupMember.NON_GROUP_MEMBER, f"rank {rank} is not in the {name} you return."
        theirs = dist.get_process_group_ranks(group)
        assert theirs == ranks_of_group, f"the {name} of rank {rank} is {ranks_of_group}, yours is {theirs}."
        number = torch.tensor(10**rank, device=device)
        dist.all_reduce(number, group=group)
        assert number == sum(10**r for r in ranks_of_group), f"a sum over the {name} gives {number}."

check("grid_groups", test_grid, hint="make all rows and all columns on every rank, then pick yours",
      timeout=6)

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def grid_groups(n_columns):
    n_rows = world_size // n_columns
    rows = [dist.new_group([i * n_columns + j for j in range(n_columns)]) for i in range(n_rows)]
    columns = [dist.new_group([i * n_columns + j for i in range(n_rows)]) for j in range(n_columns)]
    return rows[rank // n_columns], columns[rank % n_columns]

# %% tags=["solution"] jupyter={"source_hidden": true}
check("grid_groups", test_grid, timeout=6)

# %% [markdown]
# ## Two nodes: talk at home first
#
# With groups, a *hierarchical* all_reduce is three lines: add up inside each node; only the first rank of each node
# (its *leader*) talks to the other nodes; tell the sum at home.

# %%
%%ranks
from fidle_utils.measure.communication import count_communication

mine = torch.arange(1, world_size + 1, device=device) * 10**rank    # again: a failed attempt may have lost it
nodes = [dist.new_group([0, 1], group_desc="node 0"), dist.new_group([2, 3], group_desc="node 1")]
leaders = dist.new_group([0, 2], group_desc="leaders")

def hierarchical_all_reduce(tensor):
    node, leader = nodes[rank // 2], rank - rank % 2
    dist.reduce(tensor, dst=leader, group=node)
    if rank == leader:
        dist.all_reduce(tensor, group=leaders)
    dist.broadcast(tensor, src=leader, group=node)

tensor = mine.clone()
with count_communication() as counted:
    hierarchical_all_reduce(tensor)

# %%
for tensor in ranks["tensor"]:
    torch.testing.assert_close(tensor, whole.sum(0))
plots.plot_communication(ranks["counted"], title="Hierarchical all_reduce: what each rank sends");

# %% [markdown]
# Only the leaders speak to the other node, and each sends S there once: 2 S cross in all, against 3 S and 4 S
# above. The price: more steps for the same tensor, and leaders that work while others wait. Libraries choose by
# size and by network; NCCL has rings, trees, and more.

# %% [markdown]
# ## Objects
#
# Not everything is a tensor. `all_gather_object` and `broadcast_object_list` carry any Python object that can be
# pickled: a configuration, a file name, a list of strings.

# %%
%%ranks
note = {"rank": rank, "files": [f"part-{rank}-{i}" for i in range(rank)]}
notes = [None] * world_size
with count_communication() as counted:
    dist.all_gather_object(notes, note)
if rank == 0:
    print(notes)
    print(counted)

# %% [markdown]
# One call, two collectives: first the lengths, then the bytes, padded to the longest. And pickling takes time.
# **Objects are for words, tensors are for numbers.** Unpickling also runs whatever code the sender put there: fine
# between your own ranks, never with strangers.

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## What does a message cost?
#
# Time for numbers. We measure all_reduce between **two** ranks, from 1 KiB to 16 MiB. Four habits of an honest
# measurement: warm up, start together (`barrier`), keep the time of the slowest rank, and go round all sizes several
# times, so that a moment when the machine is busy does not fall on one size alone.

# %% tags=["live"]
%%ranks
import time

pair = dist.new_group([0, 1])

def timed(tensor, group):
    """Seconds that this rank spends in one all_reduce."""
    dist.all_reduce(tensor, group=group)                    # one that does not count: it warms up
    dist.barrier(group=group)
    if device.type == "cuda":
        torch.cuda.synchronize()                            # kernels are asynchronous: wait, then read
    start = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start

def measure(sizes, group=None, rounds=15):
    """Return a dict, bytes → the seconds of each round, on the slowest rank."""
    tensors = [torch.zeros(n_bytes // 4, device=device) for n_bytes in sizes]
    seconds = [[timed(tensor, group) for tensor in tensors] for _ in range(rounds)]
    seconds = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=group)
    return dict(zip(sizes, seconds.T.tolist()))

# %%
guess = predict("1 MiB has 1024 times the bytes of 1 KiB. How many times longer does its all_reduce take?",
                unit="times")

# %% tags=["live"]
sizes = [2**power for power in range(10, 25)]               # 1 KiB, 2 KiB, … 16 MiB
samples = ranks.run(lambda sizes: measure(sizes, pair), sizes, only=[0, 1])[0]
medians = {n_bytes: statistics.median(seconds) for n_bytes, seconds in samples.items()}
ratio = medians[2**20] / medians[2**10]

# %%
reveal(guess, ratio, why="A short message costs about as much as a shorter one: there is a fixed price.")

# %% [markdown] tags=["live"]
# So a message has a **fixed price α**, the latency (fr. *latence*), and a **price for each byte β**. One over β is the
# bandwidth. Hockney's model [4] is one line:
#
# $$t \;=\; \text{messages} \cdot \alpha \;+\; \text{bytes sent} \cdot \beta$$
#
# A ring all_reduce of S bytes on n ranks sends 2(n−1) messages and 2(n−1)/n · S bytes: on two ranks, 2 messages and
# S bytes. Two unknowns, fifteen measurements: least squares (fr. *moindres carrés*), each squared error divided by the
# measured time so that short messages count too, finds α and β.

# %% tags=["live"]
model = fit(list(medians), list(medians.values()), messages=2)
explained = r_squared(list(medians.values()), [model.all_reduce(2, n_bytes) for n_bytes in medians])
print(model)
print(f"R² = {explained:.3f}: the share of the variance of the medians that two numbers explain")
plots.plot_alpha_beta(samples, model);

# %% [markdown]
# On the left α rules, on the right β; they meet at 2α/β bytes. R² alone flatters: the largest messages make nearly
# all of the variance, and a curve that is wrong by half for every short one would hardly show. So look at the
# relative errors too.

# %%
errors = {n_bytes: model.all_reduce(2, n_bytes) / seconds - 1 for n_bytes, seconds in medians.items()}
print(f"typical error {statistics.median(map(abs, errors.values())):.0%}, "
      f"worst {max(map(abs, errors.values())):.0%}, at {max(errors, key=lambda s: abs(errors[s])):,} bytes")
if explained < 0.9:
    print("R² is under 0.9: this machine was busy with something else. Run the measurement again.")

# %% [markdown]
# Where it errs, and why: α is not one number (a library changes its way of sending with the size), a message longer
# than a processor's cache goes through the memory and costs more a byte, and the addition is counted in β. Real
# curves have knees; two numbers have none.
#
# ### Predict what you have not measured
#
# A model is worth what it predicts. Three sizes that the fit has not seen:

# %%
unseen = [3 * 2**12, 3 * 2**16, 3 * 2**21]                  # 12 KiB, 192 KiB, 6 MiB
guess = predict("6 MiB: what will it take, in milliseconds? Use the model's α and β.", unit="ms")

# %%
later = ranks.run(lambda sizes: measure(sizes, pair, rounds=45), unseen, only=[0, 1])[0]
later = {n_bytes: statistics.median(seconds) for n_bytes, seconds in later.items()}
for n_bytes, seconds in later.items():
    print(f"{n_bytes / 1024:5.0f} KiB: predicted {1e3 * model.all_reduce(2, n_bytes):6.2f} ms, "
          f"measured {1e3 * seconds:6.2f} ms")
reveal(guess, 1e3 * later[unseen[2]], why=f"The model said {1e3 * model.all_reduce(2, unseen[2]):.3g} ms.")

# %%
plots.plot_alpha_beta(samples, model, predicted=later);

# %% [markdown]
# And the same α and β on **four** ranks? The ring has six messages now, and 1.5 S bytes.

# %%
guess = predict("On four ranks, will the model's prediction be…",
                options=["about right", "too optimistic", "too pessimistic"])

# %%
four = ranks.run(lambda sizes: measure(sizes), [2**12, 2**18, 2**22, 2**24])[0]
misses = []
for n_bytes, seconds in four.items():
    misses.append(statistics.median(seconds) / model.all_reduce(4, n_bytes))
    print(f"{n_bytes / 1024:6.0f} KiB: predicted {1e3 * model.all_reduce(4, n_bytes):6.2f} ms, "
          f"measured {1e3 * statistics.median(seconds):6.2f} ms: {misses[-1]:.1f} times")
miss = statistics.median(misses)
verdict = "too optimistic" if miss > 1.5 else "too pessimistic" if miss < 0.67 else "about right"
reveal(guess, verdict, why={
    "too optimistic": "It gives every rank a processor and a link of its own.",
    "too pessimistic": "Much of α is paid once a collective, not once a message: starting a kernel, say.",
    "about right": "A processor and a link for each rank, as the model supposes.",
}[verdict])

# %%
import os

on_gpus = ranks["device"][0].type == "cuda"
print("one GPU for each rank" if on_gpus else f"{len(ranks)} ranks on {os.cpu_count()} cores")

# %% [markdown]
# When ranks outnumber the cores, each step of the ring also waits until the system gives its neighbour a turn: that
# is not in α. Then the model may be right about messages, **and wrong about this machine**. Check what a model
# assumes before you trust its numbers. With a core or a GPU for each rank, run these cells again.
#
# ### Which algorithm, then?
#
# With α and β every algorithm has its price. Here for eight ranks, with *your* α and β:

# %%
guess = predict("For messages of a few KiB on 8 ranks, the cheapest is…",
                options=["the ring", "recursive doubling", "halving and doubling"])

# %%
reveal(guess, "recursive doubling", why="Short messages: only the steps count, 3 against 14 and 6.")
plots.plot_algorithms(model, n_ranks=8);

# %% [markdown]
# Long messages: only the bytes count. Ring and halving-doubling send equally few, and on paper the ring never wins. It
# does in real networks: it uses only links between neighbours, and α–β knows no links that are shared. That is why
# libraries carry several algorithms and choose by size; and why you should send **few, long messages** (DDP's
# buckets, in lesson 04).

# %% [markdown]
# ## Two bandwidths
#
# How fast is an all_reduce? Divide the bytes of the tensor by the time: the *algorithm bandwidth*, S/t. It depends
# on the number of ranks, since each must send 2(n−1)/n · S. Multiplied by that factor, it is the **bus bandwidth**: what a
# link carries if the ranks do the sums. (Switches that add, NVLink SHARP or NVLS, make ranks send less. Then it may
# exceed the data sheet: look for 8×H200 in the figure.) That is the number to compare with a data sheet, on any
# number of ranks [5].
#
# **Exercise 3.** Write both, in bytes per second. The check applies your function to published measurements.

# %% tags=["exercise"] fidle={"wrong": ["def bandwidths(n_ranks, n_bytes, seconds):\n    return n_bytes / seconds, (n_ranks - 1) / n_ranks * n_bytes / seconds", "def bandwidths(n_ranks, n_bytes, seconds):\n    return 2 * (n_ranks - 1) / n_ranks * n_bytes / seconds, n_bytes / seconds", "def bandwidths(n_ranks, n_bytes, seconds):\n    return n_bytes / seconds, n_bytes / seconds * n_ranks", "def bandwidths(n_ranks, n_bytes, seconds):\n    print(n_bytes / seconds)"]}
def bandwidths(n_ranks, n_bytes, seconds):
    """Return (algorithm_bandwidth, bus_bandwidth) of an all_reduce, in bytes per second."""
    ...

# %% tags=["check"]
a100 = table("nccl_allreduce_busbw", system="8×A100, NVLink 3")     # published [6]

def test_bandwidths(bandwidths):
    for row in a100:
        answer = bandwidths(row["n_gpus"], row["n_bytes"], 1e-6 * row["time_us"])
        assert isinstance(answer, tuple) and len(answer) == 2, "return two numbers."
        algorithm, bus = (value / 1e9 for value in answer)
        said = row["algorithm_gb_per_second"], row["bus_gb_per_second"]
        where = f"{row['n_bytes']} bytes in {row['time_us']} µs on {row['n_gpus']} GPUs"
        assert abs(algorithm / said[0] - 1) < 0.01, f"{where}: algorithm {said[0]} GB/s, not {algorithm:.3g}."
        assert abs(bus / said[1] - 1) < 0.01, f"{where}: bus {said[1]} GB/s, not {bus:.3g}."

check(bandwidths, test_bandwidths)

# %% tags=["solution"] jupyter={"source_hidden": true}
def bandwidths(n_ranks, n_bytes, seconds):
    algorithm = n_bytes / seconds
    return algorithm, 2 * (n_ranks - 1) / n_ranks * algorithm

# %% tags=["solution"] jupyter={"source_hidden": true}
check(bandwidths, test_bandwidths)

# %% [markdown]
# Your ranks beside published measurements of NCCL on GPUs. The axes are logarithmic: a step of the grid is a factor
# of ten.

# %%
guess = predict("16 MiB on 8 GPUs with NVLink, or on 2 ranks here: how many times the bus bandwidth?",
                unit="times")

# %%
rows = []
for n_ranks, times in ((2, samples), (4, four)):
    for n_bytes, seconds in times.items():
        bus = bandwidths(n_ranks, n_bytes, statistics.median(seconds))[1]
        rows.append({"operation": "all_reduce", "ranks": n_ranks, "n_bytes": n_bytes, "bus_bandwidth": bus})
published = table("nccl_allreduce_busbw", collective="all_reduce")
plots.plot_bus_bandwidth(rows, published=published);

# %%
theirs = next(row["bus_gb_per_second"] for row in a100 if row["n_bytes"] == 2**24)
ours = 1e-9 * bandwidths(2, 2**24, medians[2**24])[1]
reveal(guess, theirs / ours, why=f"{theirs:.0f} GB/s on 8 A100 (published) against {ours:.2g} GB/s here.")

# %% [markdown]
# Not the same height, yet the same shape: a slope where α rules, a plateau where β does. The same two numbers,
# fitted to the published curve of eight A100:

# %%
sent = [all_reduce_cost(8, row["n_bytes"])[1] for row in a100]
seconds = [1e-6 * row["time_us"] for row in a100]
a100_model = fit(sent, seconds, messages=14)
predicted = [a100_model.all_reduce(8, row["n_bytes"]) for row in a100]
worst = max(abs(p / s - 1) for p, s in zip(predicted, seconds))
print(f"8×A100 (published): {a100_model}")
print(f"R² = {r_squared(seconds, predicted):.4f}, worst error {worst:.0%}")
print(f"a message that reaches half of the bandwidth: {a100_model.half_bytes / 1e3:.0f} kB there, "
      f"{model.half_bytes / 1e3:.0f} kB here")

# %% [markdown]
# R² is 1 to four digits, and yet the shortest message is off by more than a half and 16 MiB by nearly a third: R² sees
# only the gigabytes. One reason is in the table: 1, 2 and 4 MiB all take between 101 and 102 µs. NCCL probably
# changes its way of sending there; α and β know one way only.
#
# The data sheet of the A100 says 600 GB/s for its NVLink, both directions added: 300 each way. About 235 are reached
# [6]. Four fifths of the sheet is a *good* result.
#
# ## Traps
#
# ### Same bytes, another shape
#
# Rank 3 has transposed its tensor by mistake: 3 × 2 instead of 2 × 3. (These cells use gloo and the CPU even where
# you have GPUs: what a library does with a mistake is its own affair.)

# %%
guess = predict("all_reduce with shapes 2×3, 2×3, 2×3 and 3×2:", options=["an error", "a hang", "a result"])

# %%
%%ranks
gloo = dist.new_group(backend="gloo")
grid = torch.arange(6.0).view(2, 3)
if rank == 3:
    grid = grid.T.contiguous()                              # the mistake
truth = 4 * torch.arange(6.0).view(2, 3)                    # the sum of four equal tensors
dist.all_reduce(grid, group=gloo)
print(f"{grid.tolist()}   should be {truth.tolist()}")

# %%
reveal(guess, "a result", why="Six numbers are six numbers. It added apples to pears, and nobody was told.")

# %% [markdown]
# ### Three ranks succeed
#
# Now rank 3 has twice as many numbers. Every value is the rank's number plus one: the sum is 10.

# %% tags=["raises-exception"]
%%ranks --timeout 3
gloo = dist.new_group(backend="gloo")
numbers = torch.full((8 if rank == 3 else 4,), rank + 1.0)
dist.all_reduce(numbers, group=gloo)
print(numbers.tolist())

# %% [markdown]
# Read it twice. **Three ranks finished**, without a word, and *their sums differ*: pieces of the wrong length were
# added in the wrong place. Only rank 3, the one with the mistake, waits, and in a script without our `--timeout` it
# would wait for half an hour. A crash would at least have told you.
#
# ### Let PyTorch compare
#
# With `TORCH_DISTRIBUTED_DEBUG=DETAIL`, set before the ranks start, PyTorch compares operation, shape and type on
# all ranks before each collective. It costs time: use it to search, not to train. For one group, the same without a
# restart:

# %%
%%ranks
dist.set_debug_level(dist.DebugLevel.DETAIL)
checked = dist.new_group(backend="gloo")
dist.set_debug_level(dist.DebugLevel.OFF)

numbers = torch.full((8 if rank == 3 else 4,), rank + 1.0)
try:
    dist.all_reduce(numbers, group=checked)
except RuntimeError as error:
    said = " ".join(str(error).split())
    print("RuntimeError: …", said[said.find("Collectives differ"):])

# %% [markdown]
# Every rank says what differs, before any harm is done. Or ask yourself, once, where a shape comes from data:

# %%
%%ranks
def agree(value):
    """Return the values of all ranks that are unlike rank 0's: {} when all agree."""
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return {r: v for r, v in enumerate(values) if v != values[0]}

print(agree(tuple(numbers.shape)) or "all agree")

# %% [markdown]
# ## The lines that make a rank
#
# Where do `rank`, `world_size`, `device` and `dist` come from? From this file. `%ranks` runs it on each process
# before your first cell, and `%ranks export` writes it at the top of the script. Nothing else is hidden.

# %%
from importlib.resources import files

prelude = files("fidle_utils.ranks").joinpath("prelude.py").read_text()
for number, line in enumerate(prelude.splitlines(), start=1):
    print(f"{number:2}  {line}")

# %% [markdown]
# Line by line:
#
# - `os.environ[...]`: whoever starts the processes (`%ranks`, `torchrun`, Slurm) tells each who it is, in
#   **environment variables**. The program reads three numbers, and never counts its colleagues itself.
# - `rank` against `local_rank`: on the second node of two with four GPUs, rank 5 is the local rank 1. `local_rank`
#   chooses the GPU, `rank` everything else.
# - `gpu_each`: as many GPUs as ranks on this machine? Otherwise all compute on the CPU. `RANKS_DEVICE` is how
#   `%ranks --device cpu` overrides it.
# - `torch.cuda.set_device(device)`: otherwise four ranks would crowd on GPU 0.
# - `init_process_group(...)`: the ranks meet. Each goes to the address in `MASTER_ADDR` and `MASTER_PORT`, where a
#   small store waits, leaves its own address, and reads the others'. From then on there is a group of all ranks.
#   **NCCL** talks between GPUs, **gloo** between CPUs: the *backend*.

# %%
%%ranks 1
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    print(f"{name:17} {os.environ[name]}")
print("backend          ", dist.get_backend())

# %% [markdown]
# ## In practice
#
# - Same collectives, same order, same shapes, on every rank. `if rank == 0:` around a collective is a hang.
# - Print, save, log on rank 0; *compute* on all of them.
# - Prefer few long messages to many short ones. Keep the chatty groups (tensor parallelism) inside a node.
# - In a hang, look first at who is *not* in the collective. `%ranks` says where each rank is; in a script, `py-spy
#   dump` and NCCL's flight recorder do (lesson 10).
# - Compare *bus* bandwidth with the sheet; run `nccl-tests` on a new machine before you blame your model.
# - `destroy_process_group()` at the end of a script, after a last `barrier()`.
#
# ## Go further
#
# First `%ranks 4`, and run the cells that define `timed` and `pass_on` again.
#
# - In the ring, send the pieces as bfloat16 and add in float32: half the bytes. How far is the sum?
# - `%ranks 8`, then the cells up to the trees: films of eight ranks. How many steps has each algorithm now?
# - Write broadcast as a *chain* of pieces and as a *tree*. Which wins for 16 MiB, which for 1 KiB?
# - Rank 3 is slow: `time.sleep(0.05 * (rank == 3))` before `timed`. Whose time grows?
#
# ## Sources
#
# 1. PyTorch documentation, [*torch.distributed*](https://docs.pytorch.org/docs/stable/distributed.html): collectives,
#    point to point, groups, `TORCH_DISTRIBUTED_DEBUG`.
# 2. MPI Forum, [*MPI: A Message-Passing Interface Standard*](https://www.mpi-forum.org/docs/), chapter on
#    point-to-point communication: buffering and safe programs.
# 3. P. Patarasuk, X. Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, Journal of Parallel
#    and Distributed Computing 69(2), 2009: the ring and the bound.
# 4. R. W. Hockney, *The communication challenge for MPP: Intel Paragon and Meiko CS-2*, Parallel Computing 20(3),
#    1994: two numbers for a message. R. Thakur, R. Rabenseifner, W. Gropp, *Optimization of collective communication
#    operations in MPICH*, Int. J. High Perform. Comput. Appl. 19(1), 2005: collectives priced with them, recursive
#    doubling, halving and doubling.
# 5. NVIDIA, [*nccl-tests, PERFORMANCE.md*](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md): the
#    two bandwidths.
# 6. S. Bekman, [*ml-engineering*](https://github.com/stas00/ml-engineering), chapter on networks: all_reduce measured
#    on A100, H200 and B200 (`fidle_utils/reference/nccl_allreduce_busbw.csv`), NVLink speeds.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("all_reduce of 1 GB on 8 GPUs, then on 64 of the same kind. The bytes that each sends…",
             options=["grow 8 times", "grow by an eighth", "shrink 8 times"])
q2 = predict("All ranks wait in `send`. This is…", options=["a slow network", "a deadlock", "a crashed rank"])

# %%
reveal(q1, "grow by an eighth", why="2(n−1)/n: 1.75 GB with 8, 1.97 GB with 64.")
reveal(q2, "a deadlock", why="A circle: nobody is in `recv`. A crashed rank would be missing from the list.")

# %%
q3 = predict("1000 tensors of 1 kB, one all_reduce each. To go faster…",
             options=["buy a faster link", "send one tensor of 1 MB"])
q4 = predict("reduce_scatter, then all_gather. Together they are…",
             options=["an all_to_all", "an all_reduce"])
q5 = predict("Only rank 0 calls new_group([0, 1]). Then…",
             options=["ranks 0 and 1 share a group",
                      "it is a mistake: all ranks must call it (default arguments)"])
q6 = predict("8 GPUs all_reduce 1 GB in 8 ms. The bus bandwidth is about…",
             options=["125 GB/s", "219 GB/s", "1000 GB/s"])

# %%
reveal(q3, "send one tensor of 1 MB", why="1000 α against one: for short messages the link hardly counts.")
reveal(q4, "an all_reduce", why="Each rank gets a piece of the sum, then all pieces go to all.")
reveal(q5, "it is a mistake: all ranks must call it (default arguments)",
       why="Also those outside the group, in the same order.")
algorithm, bus = bandwidths(8, 1e9, 8e-3)
reveal(q6, "219 GB/s", why=f"S/t = {algorithm / 1e9:.0f} GB/s, times 2·7/8: {bus / 1e9:.0f} GB/s.")

# %%
from fidle_utils import progress

progress.show("03")
