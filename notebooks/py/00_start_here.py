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
# # 00 · Start here
#
# To train faster, or to train what does not fit on one GPU, you let several processes train together. In this course
# you do not read about it: you run it. The processes are real, they really send one another messages, and the same
# cells run on your laptop, on a node with GPUs and on a supercomputer such as Jean Zay.
#
# **You will** look at your machine, start four processes, let them talk, then break one and stop a hang on purpose.
#
# **You learn** what a rank is, what a collective is, and how to read what they say when something goes wrong.
#
# **You need** to have written a PyTorch training loop. No GPU. **15 min** alone, 5 min live (the cells tagged `live`).

# %% tags=["live"]
%load_ext fidle_utils
from fidle_utils import ranks
from fidle_utils.measure.machine import device_report
from fidle_utils.plots import plot_machine, plot_moments
from fidle_utils.teach import check, predict, reveal

# %% [markdown] tags=["live"] fidle={"minutes": 0.5}
# ## Your machine
#
# What sets the pace of a training? The processor cores (*cœurs*) or the GPUs (*cartes graphiques*) that compute, the
# memory (*mémoire*) that holds the numbers, and the speed at which numbers move between them: the bandwidth (*débit*).
# Here is what you have. The memory copy is timed as you run the cell: bytes read and bytes written both count.

# %% tags=["live"]
machine = device_report()
machine

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Four ranks
#
# A notebook is one process (*processus*): one program with its own memory, and a number that the system gave it, its
# *pid*. You are about to start four more. Each is called a **rank** (*rang*), and is known by its number: 0, 1, 2, 3.

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"]
# A cell that begins with `%%ranks` runs on every rank, at the same time. It prints the pid of each.

# %%
guess = predict("How many different pids will four ranks print?", unit="pids")

# %% tags=["live"]
%%ranks
import os

pid = os.getpid()
print(f"hello from rank {rank} of {world_size}, on {device}, pid {pid}")

# %% [markdown] tags=["live"]
# You defined neither `rank` nor `world_size` nor `device`. Every rank is born with them: its number, how many ranks
# there are, and where it computes. The four ran the same line, and only these names differ: that is how one program
# does four different things.
#
# `ranks["pid"]` brings a variable to the notebook: a list, one value for each rank, rank 0 first.

# %%
reveal(guess, len(set(ranks["pid"])), why="Each rank is a process of its own; the notebook is a fifth.")

# %% [markdown]
# ## A rank remembers
#
# As in any notebook, variables stay from one cell to the next. But each rank has its own: nothing is shared.

# %%
%%ranks
number = torch.tensor(rank + 1.0, device=device)

# %%
%%ranks 0,2
number = number * 100  # on two of the four ranks only

# %%
ranks["number"]

# %% [markdown] tags=["live"] fidle={"minutes": 1}
# ## The first message
#
# Processes that share nothing must send messages. The most useful of them: `all_reduce` takes a tensor from every
# rank, adds them up, and leaves the sum on every rank. It is a **collective** (*opération collective*): all ranks call
# it, and each waits for the others. Lesson 04 trains a model with hardly anything else.

# %%
guess = predict("Rank 0 holds 1, rank 1 holds 2, rank 2 holds 3, rank 3 holds 4. After it, rank 2 holds…")

# %% tags=["live"]
%%ranks
number = torch.tensor(rank + 1.0, device=device)
dist.all_reduce(number)
print(number.item())

# %%
reveal(guess, ranks["number"][2], why="1 + 2 + 3 + 4, and all ranks hold it: hence the “all” of all_reduce.")

# %% [markdown]
# All four printed the same, so it is shown once.
#
# ## How fast do they talk?
#
# Rank 0 sends 16 MB to rank 1, which sends them back. Half of that time is what one message takes.

# %%
guess = predict("How fast does a message go from rank 0 to rank 1?", unit="GB/s")

# %%
%%ranks
import time

message = torch.ones(4_000_000, device=device)  # 4 bytes each: 16 MB

def seconds_one_way():
    start = time.perf_counter()
    if rank == 0:
        dist.send(message, dst=1)
        dist.recv(message, src=1)
    elif rank == 1:
        dist.recv(message, src=0)
        dist.send(message, dst=0)
    if device.type == "cuda":
        torch.cuda.synchronize()  # a GPU takes orders and works later: wait for it
    return (time.perf_counter() - start) / 2

seconds_one_way()  # the first time they also make the connection
seconds = sorted(seconds_one_way() for _ in range(9))[4]  # the median

# %%
bytes_per_second = 16e6 / ranks["seconds"][0]
why = "Compare with the memory copy. On a CPU, messages between processes take the way of the network."
reveal(guess, bytes_per_second / 1e9, why=why)

# %%
plot_machine(machine, len(ranks), rank_to_rank=bytes_per_second);

# %% [markdown]
# Two speeds: a copy inside the memory of one process, and a message from rank to rank.
#
# Without a GPU for each, the ranks share the cores, and the system decides who runs where. Four ranks on two cores
# are fine for learning: results, messages and bytes are what they would be anywhere. Only their speed is not that of
# four GPUs, and this course never pretends that it is.

# %% [markdown] tags=["live"] fidle={"minutes": 1}
# ## Break one rank
#
# Sooner or later a rank fails. Let it be now, on purpose: on one of them this divides by zero. The cell raises an error:
# read it from the top. Which rank, which line? What had happened to the others?

# %% tags=["raises-exception", "live"]
%%ranks
share = 12 // (rank - 2)
dist.barrier()  # wait here until all ranks have come

# %% [markdown] tags=["live"]
# One traceback (*trace d'appels*), from the rank that failed. The three others waited for it in `barrier`, and would
# have waited for ever: they were freed. The ranks are still there, and so are their variables.

# %%
ranks["number"]

# %% [markdown] tags=["live"] fidle={"minutes": 0.5}
# ## Stop a hang
#
# Now nobody fails, but rank 0 does not take part in the `all_reduce`. The others wait for it: the cell hangs (*est
# bloquée*). `--timeout 4` stops it after four seconds. The stop button ■ of the notebook does the same at any time:
# take `--timeout 4` away and try.

# %% tags=["raises-exception", "live"]
%%ranks --timeout 4
if rank != 0:
    dist.all_reduce(number)

# %% [markdown] tags=["live"]
# The last lines say who waits, in which operation and on which line, and who had finished. That is the first thing to
# find out about a hang, and here is the rule that it teaches: **all ranks call the same collectives, in the same
# order.** When you are lost, `%ranks` says what each rank is doing, and `%ranks restart` gives you new ones.

# %%
%ranks

# %% [markdown]
# ## Who speaks first?
#
# The output of a cell is sorted by rank, not by time. So let every rank note when it spoke: `perf_counter` is one
# clock for all processes of a machine.

# %%
%%ranks
def speak():
    global said_at
    said_at = time.perf_counter()
    print(f"hello from rank {rank}")

speak()

# %%
plot_moments(ranks["said_at"], title="Who spoke when");

# %% [markdown]
# From left to right you read who spoke first. Run the two cells again: the order may change. Ranks run at the same
# time, and nobody is first unless you see to it.
#
# ## Your turn: hello in rank order
#
# Write `hello_in_order(speak)`. Every rank calls it, and it calls `speak()` once: on rank 0 first; on rank 1 when rank 0
# has finished; and so on. `dist.barrier()` holds every rank until all have come; `dist.send` and `dist.recv` do it too.
# To sleep for a while and hope is no order.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef hello_in_order(speak):\n    dist.barrier()\n    speak()", "%%ranks\ndef hello_in_order(speak):\n    time.sleep(0.05 * rank)\n    speak()", "%%ranks\ndef hello_in_order(speak):\n    for turn in range(rank + 1):\n        if rank == turn:\n            speak()\n        dist.barrier()"]}
%%ranks
def hello_in_order(speak):
    ...

# %% [markdown]
# The check brings its own `speak`, which takes 20 ms and notes when it began and ended. It also lets the last rank
# start first, so that luck does not help.

# %% tags=["check"]
import time


def call_it(hello_in_order):
    moments = []
    def speak():
        moments.append(time.perf_counter())
        time.sleep(0.02)
        moments.append(time.perf_counter())
    dist.barrier()
    time.sleep(0.2 * (world_size - 1 - rank))
    hello_in_order(speak)
    assert len(moments) == 2, "every rank calls speak() exactly once."
    return moments

def in_rank_order(moments):
    for rank in range(1, len(moments)):
        in_order = moments[rank][0] >= moments[rank - 1][1]
        assert in_order, f"rank {rank} spoke before rank {rank - 1} had finished."

check("hello_in_order", call_it, together=in_rank_order, timeout=6)

# %% [markdown]
# *A solution is folded below.*

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def hello_in_order(speak):
    for turn in range(world_size):
        if rank == turn:
            speak()
        dist.barrier()  # nobody goes on to the next turn before this one is over

# %% tags=["solution"] jupyter={"source_hidden": true}
check("hello_in_order", call_it, together=in_rank_order, timeout=6)

# %%
%%ranks
hello_in_order(speak)

# %%
plot_moments(ranks["said_at"], title="Who spoke when, in order");

# %% [markdown]
# Now they follow one another. Order has a price: while one rank speaks, three wait. Much of this course is about
# waiting less.
#
# ## In practice
#
# - On a real machine there is one rank for each GPU. `torchrun` or Slurm starts them, with the same `rank`,
#   `world_size` and `device`; lesson 01 does it. `%ranks export train.py` writes the `%%ranks` cells that you ran as a
#   script for `torchrun`.
# - Only rank 0 prints, logs and saves, or you get everything four times.
# - A hang is the most frequent accident. PyTorch gives up too, but late: by default after 10 minutes with NCCL (GPUs),
#   30 with gloo (CPUs) [1]. By then you have paid for every GPU that waited. Lesson 10 finds the guilty rank.
#
# ## Go further
#
# - Start eight ranks with `%ranks 8`. What changes in the cells above? What does not?
# - Write `hello_in_order` with `send` and `recv`: every rank waits for its neighbour only. Which of the two scales better?
# - Lesson 03 opens the collectives one by one; lesson 04 trains with them.
#
# ## Sources
#
# 1. PyTorch documentation, *torch.distributed*, parameter `timeout` of `init_process_group`:
#    https://docs.pytorch.org/docs/stable/distributed.html
# 2. The words *rank* and *collective* come from MPI, the message-passing standard of 1994: https://www.mpi-forum.org/docs/
# 3. This lesson opens the course that follows FIDLE's *Passer à la vitesse supérieure : l'accélération matérielle*,
#    by engineers of IDRIS (CNRS): https://fidle.cnrs.fr

# %%
from fidle_utils import progress

progress.show("00")

# %% [markdown]
# The whole course, and how far you are in it. Run this cell whenever you want to know.

# %%
progress.show()
