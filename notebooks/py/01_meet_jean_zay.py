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
# # 01 · Meet Jean Zay
#
# **You will** read the drawing of a node, predict how long a 7B model needs to cross each of its links, turn cells into
# a job, submit it, follow it and cancel it, and repair a job file with nine mistakes.
#
# **You learn** what Jean Zay is made of, why a link can decide how a model is split, what a GPU hour is, where files
# go, and how to ask Slurm for what you need, and for nothing else.
#
# **You need** lesson 00 (what a rank is), and to know what a terminal is. No account on Jean Zay, no GPU, no Slurm:
# where there is no Slurm, its answers are *recorded* ones, and every one of them says so.
#
# **Time** 10 min live (the cells tagged `live`), 40 min alone, with two exercises.

# %% tags=["live"]
%load_ext fidle_utils
import tempfile
from pathlib import Path

from fidle_utils import cluster, plots, ranks
from fidle_utils.cluster.rules import findings
from fidle_utils.cluster.session import Session
from fidle_utils.measure.speed import link_speed
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal

# %% tags=["live"]
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 1}
# ## The machine
#
# Jean Zay is a *supercomputer* (fr. *supercalculateur*) at Orsay, run by IDRIS (CNRS) for GENCI. Open research uses it
# free of charge. Projects in AI were 72 in 2019 and more than 1400 in 2024, as reported by [1].
#
# | | what came | peak of the whole machine |
# |---|---|---|
# | 2019 | 1528 nodes without GPU, 261 with four V100 | 13.9 PFlop/s, reported by [2] |
# | 2020 | more V100: 2696 GPUs in all | 28 PFlop/s, reported by [3] |
# | 2022 | nodes with eight A100 | 36.85 PFlop/s, reported by [4] |
# | 2024 | 364 nodes with four H100; part of the V100 left | 125.9 PFlop/s, reported by [5] |
#
# A PFlop/s is $10^{15}$ operations a second, here in double precision. The numbers in brackets are under *Sources*.

# %%
nodes = table("jeanzay_nodes")
print("published · IDRIS, course Programmation hybride v4.0, 2024, p. 18")
print(f"{'node':<18}{'how to ask':<21}{'nodes':>6}{'GPUs':>6}{'cores':>6}{'cores a GPU':>13}")
for row in nodes:
    gpus = row["nodes"] * row["gpus_per_node"]
    print(f"{row['node']:<18}{row['slurm']:<21}{row['nodes']:>6}{gpus:>6}", end="")
    print(f"{row['cores']:>6}{row['cpus_per_task']:>13}")
print("GPUs in all:", sum(row["nodes"] * row["gpus_per_node"] for row in nodes))

# %% [markdown]
# A *node* (fr. *nœud*) is one computer. There are also 720 nodes without a GPU (`cpu_p1`). The last column is the
# share of the node's cores that goes with one GPU: you will need it. (That of the octo V100 was read in a copy of
# IDRIS's template, not at IDRIS.)

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Inside a node
#
# Look for four roads: from a GPU to its own memory, to another GPU (NVLink), to the processor (PCIe), and to another
# node (InfiniBand; on the older nodes Omni-Path).

# %% tags=["live"]
links = {row["gpu"].split("-")[0]: row for row in table("jeanzay_links")}
specs = {name: table("gpu_specs", gpu=row["gpu"])[0] for name, row in links.items()}
plots.plot_node(links["H100"], specs["H100"]);

# %% [markdown] tags=["live"]
# All speeds are *nominal* (fr. *nominaux*), the ones of the data sheet, **one way**. Sellers like to add both ways:
# "NVLink 4, 900 GB/s" is this 450. One pair of H100 is joined by a third of the links of a GPU: 150 GB/s.

# %%
plots.plot_node(links["A100"], specs["A100"]);

# %%
plots.plot_node(links["V100"], specs["V100"]);

# %% [markdown]
# Eight A100 reach each other through switches, at full speed. But the eight share 50 GB/s to other nodes, a quarter of
# what four H100 share.
#
# Sources disagree on the V100 node: a drawing of IDRIS's course shows **two** Omni-Path links; the notes of BigScience,
# the project that trained BLOOM on Jean Zay, count **four** (400 Gb/s). We take four, and say so. On the H100 node, the
# four links are counted on IDRIS's drawing.

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## How long does a 7B model take?
#
# Seven billion parameters in bf16, two bytes each: 14 GB. Take them from one place to another over one link (fr.
# *lien*).

# %% tags=["live"]
n_bytes = 7e9 * 2
guess = predict("14 GB over one Omni-Path link of a V100 or A100 node (100 Gb/s): how long?", unit="s")
guess_ratio = predict("How many times faster than that link is the memory of an H100?", unit="times")

# %% tags=["live"]
h100, a100 = specs["H100"], specs["A100"]
gb_per_second = {
    "memory of an H100": h100["memory_gb_per_second"],
    "NVLink 4, all links of an H100": h100["gpu_link_gb_per_second"],
    "NVLink 4, one pair of H100": links["H100"]["pair_gb_per_second"],
    "PCIe 5.0 (H100 node)": h100["pcie_gb_per_second"],
    "one InfiniBand NDR400 link": links["H100"]["network_gb_per_second"],
    "PCIe 4.0 (A100 node)": a100["pcie_gb_per_second"],
    "one Omni-Path 100 link": links["A100"]["network_gb_per_second"],
}
rows = [dict(link=name, kind="computed", seconds=n_bytes / (speed * 1e9))
        for name, speed in gb_per_second.items()]
slow, fast = gb_per_second["one Omni-Path 100 link"], gb_per_second["memory of an H100"]
reveal(guess, n_bytes / (slow * 1e9), why="100 Gb/s are 12.5 GB/s: divide bits by eight first.")
reveal(guess_ratio, fast / slow, why="The farther the data, the slower the road: the whole course.")

# %% [markdown]
# And your ranks? Measure the link between ranks 0 and 1, with messages of 16 MiB.

# %% tags=["live"]
measured = ranks.run(link_speed, (1 << 24,), 3)[0]
send = next(row for row in measured if row["operation"] == "send 0→1")
here = dict(link="your ranks 0 and 1", kind="measured here", seconds=n_bytes / send["algorithm_bandwidth"])
where = ranks["device"][0]
print(f"measured here: {send['algorithm_bandwidth'] / 1e9:.2f} GB/s between ranks 0 and 1, on {where}")
published = dict(link="an all_reduce on 4 nodes of A100", kind="published",
                 seconds=(n_bytes * 8 / 42e9, n_bytes * 8 / 15e9))     # BigScience: 15 to 42 Gb/s
plots.plot_transfer_times([*rows, published, here], n_bytes);

# %% [markdown] tags=["live"]
# The hatched bar of BigScience is the honest one. Four Omni-Path links are 400 Gb/s on paper; an all_reduce over four
# A100 nodes moved **15 to 42 Gb/s** [6]. (Its bytes travel more than once, so a part of the loss is the algorithm's.)
# A nominal speed is a bound, not a promise: measure. Lesson 03 shows how.

# %% [markdown]
# What does that do to a training? IDRIS fine-tuned a 72B model on 64 GPUs of both kinds, with FSDP2: each GPU holds a
# share of the weights (lesson 08) [7]. A step gathers the weights twice and reduces the gradients once: about 2 + 2 + 4
# bytes a parameter enter each node.

# %%
time_of = {}
for row in table("jeanzay_idris_sft_2025", model="Qwen2.5-72B-Instruct", n_gpus=64, tp=1):
    if "compile=True" in row["notes"] and "Jean Zay" in row["gpu"]:
        seconds, name = row["seconds_per_iteration"], row["gpu"].split("-")[0]
        time_of[name] = seconds
        speed = 8 * row["parameters_billion"] / seconds
        print(f"{name}: {seconds:.1f} s a step, {speed:.1f} GB/s into each node")
print(f"the H100 are {time_of['A100'] / time_of['H100']:.0f} times faster; "
      f"their peak is {h100['bf16_tflops'] / a100['bf16_tflops']:.1f} times higher")

# %% [markdown]
# The step times are *published*, the GB/s *computed* from them; nominal are 50 and 200 GB/s. Faster arithmetic explains
# a factor of three; the network most of the rest. Lesson 11 uses this: on Omni-Path, another way to split the model
# wins. (IDRIS warns that NCCL, which carries messages between GPUs, may fall back to a slow path inside a container:
# `NCCL_DEBUG=WARN` tells. The A100 figure may suffer from it.)

# %% [markdown]
# ## What a GPU hour is
#
# Hours are free, and counted. You are charged for what you **reserve**, times the time that **passes** [8]:
#
# - a GPU that idles costs as much as one that works;
# - asking for more cores than a GPU's share counts as more GPUs;
# - jobs on two nodes or more have them alone: whole nodes are charged;
# - the *time limit* that you ask for is not charged, only the time until the job ends. A long limit waits longer.
#
# One hour of an A100 counts as two hours of a V100 [8]; we did not find the weight of an H100 at its source.
# Requests go to edari.fr: *dynamic access* (fr. *accès dynamique*) up to 50 000 normalised GPU hours at any time of the
# year, *regular access* above, two calls a year [9].

# %% [markdown]
# **Exercise 1.** Complete `charged_hours`: the GPU hours that a job of `nodes` × `gpus` costs, on nodes that have
# `node_gpus`, if it asked for `limit_hours` and ended after `elapsed_hours`.

# %% tags=["exercise"] fidle={"wrong": ["def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):\n    return nodes * gpus * elapsed_hours\n", "def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):\n    each = node_gpus if nodes > 1 else gpus\n    return nodes * each * limit_hours\n", "def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):\n    return nodes * node_gpus * elapsed_hours\n", "def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):\n    each = node_gpus if nodes > 1 else gpus\n    return each * elapsed_hours\n", "def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):\n    each = node_gpus if nodes > 1 else gpus\n    return nodes * each\n"]}
def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):
    """GPU hours that are charged, before any weight of the kind of GPU."""
    ...

# %% tags=["check"]
def test_hours(charged_hours):
    got = [charged_hours(1, 1, 4, 20, 3), charged_hours(1, 4, 4, 10, 10), charged_hours(2, 4, 4, 1, 1)]
    if got[0] == 20 or got[0] != 3 and got[1] == 40 and got[0] % 20 == 0:
        raise AssertionError("the time that passed is charged, not the limit that was asked for.")
    assert got[0] != 12, "on one node, only the reserved GPUs are charged: the others serve somebody else."
    assert got[1] == 40, "GPUs × hours: four GPUs for ten hours are 40."
    assert got[2] != 4, "two nodes are charged: multiply by the nodes."
    two = charged_hours(2, 2, 4, 20, 3)
    assert two != 12, "from two nodes on, whole nodes are charged, also the GPUs that you left out."
    assert got == [3, 40, 8] and two == 24, f"2 nodes × 2 of 4 GPUs × 3 h are {two}? Whole nodes: 24."

check(charged_hours, test_hours, hint="GPUs × hours that passed; whole nodes from two nodes on")

# %% tags=["solution"] jupyter={"source_hidden": true}
def charged_hours(nodes, gpus, node_gpus, limit_hours, elapsed_hours):
    each = node_gpus if nodes > 1 else gpus     # jobs of two nodes or more have them alone
    return nodes * each * elapsed_hours

# %% tags=["solution"] jupyter={"source_hidden": true}
check(charged_hours, test_hours)

# %% [markdown]
# ## Energy and carbon
#
# BLOOM, 176 billion parameters, was trained on 384 A100 of Jean Zay in 2022. Luccioni et al. [10] estimate its
# footprint. Repeat their sum: hours × the power that the data sheet gives × the carbon of the French grid.

# %%
guess = predict("1 082 990 GPU hours at 400 W, at 57 g of CO₂e a kWh: how many tonnes?", unit="t")

# %%
kwh = 1_082_990 * 400 / 1000
tonnes = kwh * 57 / 1e6
reveal(guess, tonnes, why=f"{kwh:,.0f} kWh, computed. The paper prints 433 196 kWh and 24.69 t.")
print(f"computed: with 14.6 t for idle machines and 11.2 t for making them: {tonnes + 14.6 + 11.2:.1f} t")

# %% [markdown]
# 400 W is an upper bound, never reached all the time; and the processors, the network and the cooling are not in it.
# The paper adds the last two terms: **twice the carbon** of the computation alone.
#
# For the whole machine, 17 GWh a year were reported at its 36.85 PFlop/s stage [4]. Warm water cools it (30 °C in,
# 36 °C out, reported by [11]), and since the winter of 2023–2024 its waste heat warms the Paris-Saclay campus: about
# 4000 MWh a year were expected [12]. What to do about yours: fewer wasted jobs, shorter tests, checkpoints.

# %% [markdown]
# ## Where files go
#
# | | default quota | what for |
# |---|---|---|
# | `$HOME` | 3 GB and 150 000 files a user | settings; it is backed up |
# | `$WORK` | 5 TB and 500 000 files a project | code, environments, caches; not backed up |
# | `$SCRATCH` | 4.6 PB shared | fast, large, temporary: files untouched for 30 days are deleted |
# | `$STORE` | 50 TB and 100 000 files a project | archives: few files, large ones |
# | `$DSDIR` | 3.3 PB | public data sets and models, read only: look here before you download |
#
# Quotas from [13]; the 30 days from BigScience's notes [6]: check the page. `idr_quota_user` and `idr_quota_project`
# tell what is left. The caches of pip and of Hugging Face go to `$HOME` unless you move them: 3 GB are soon full.

# %% [markdown]
# ## Three things that surprise everybody
#
# - **Compute nodes have no internet.** Download on the login node (fr. *frontale*), where you arrive, or find it in
#   `$DSDIR`; set `HF_DATASETS_OFFLINE=1` and `WANDB_MODE=offline`.
# - **Ten minutes.** A job that names no time is ended after ten minutes [14].
# - **Modules have an order.** `module load arch/h100` (or `arch/a100`) comes *before* `pytorch-gpu/…`: it decides which
#   PyTorch you get.
#
# JupyterHub, `https://jupyterhub.idris.fr`, opens this notebook on a front end (5 GB of memory) or in a Slurm job on a
# compute node. It answers registered IP addresses only. Logging out ends its Slurm jobs [15].

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Ask for a job
#
# On a cluster, nobody starts a program on a node. You describe a *job* (fr. *travail*), and Slurm runs it when nodes
# are free. First, the work: a cell that knows its rank, and not where it runs.

# %% tags=["live"]
%%ranks
import os
import socket

node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
total = torch.tensor(float(rank), device=device)
dist.all_reduce(total)
assert total.item() == sum(range(world_size))       # what one process finds alone
print(f"rank {rank} of {world_size} on {node}: the sum of all ranks is {total.item():g}")

# %% tags=["live"]
# Beside the notebook, not in /tmp: compute nodes must see this folder too.
temporary = tempfile.TemporaryDirectory(prefix="job-", dir=".")
folder = Path(temporary.name).resolve()
train, hello = folder / "train.py", folder / "hello.py"

# %% tags=["live"]
%ranks export {train} --slurm h100 --nodes 2 --ntasks-per-node 4 --account fidle --qos dev --time 00:30:00
text = train.with_suffix(".slurm").read_text()
for number, line in enumerate(text.splitlines(), 1):
    print(f"{number:2} {line}")
print("what our rules find:", findings(text) or "nothing")

# %% [markdown] tags=["live"]
# Read it line by line. For Slurm, a line that begins with `#SBATCH` is a request; bash takes it for a comment.
#
# | line | says |
# |---|---|
# | `nodes`, `ntasks-per-node`, `gres` | two nodes, four ranks on each, a GPU for each rank |
# | `cpus-per-task=24` | its share of the node: 96 cores for 4 GPUs |
# | `hint=nomultithread` | physical cores, so that two ranks never share one |
# | `constraint=h100`, `account=fidle@h100` | which nodes, and whose hours: they are kept apart by kind of GPU |
# | `qos`, `time` | which queue, and after how long to end it |
# | `module …` | which Python; `arch/h100` first |
# | `MASTER_ADDR`, `MASTER_PORT` | where the ranks meet: on the first node |
# | `srun` | starts the command once **for each task**: without it, one process runs alone |

# %% [markdown]
# The *quality of service*, QoS, limits a job. Those of the H100 nodes, as users report them: check with IDRIS.

# %%
for name in ("h100", "v100-32g"):
    kind = cluster.profile(name)
    print(f"{kind.title} · {kind.confidence.get('qos', 'read')} · {kind.sources['qos']}")
    for qos, limit in kind.qos.items():
        print(f"    {qos:<18} {limit['time']:>9} h, at most {limit['gpus']} GPUs")

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## Submit, follow, cancel
#
# A session runs Slurm's commands here, if a Slurm answers: on a cluster, or beside the small one that `make slurm`
# starts. If not, it shows what a real Slurm answered when this lesson was *recorded*, on two virtual nodes.
# The first line of every answer says which.
#
# What we submit asks for two nodes of *any* cluster, and for no GPU. On Jean Zay, change the line to
# `--slurm h100 --nodes 2 --account YOURS --qos dev`.

# %% tags=["live"]
%ranks export {hello} --slurm generic-cpu --nodes 2 --time 00:05:00
slurm = Session("recorded/slurm/meet_jean_zay.json", folder)
slurm.run("sbatch --parsable hello.slurm")
slurm.run("squeue --jobs={job} --format='%i %j %T %M %l %D %R'");

# %% [markdown] tags=["live"]
# `sbatch` answers with the number of the job, and returns at once. `squeue` tells its state: `PENDING` (fr. *en
# attente*), with a reason, then `RUNNING`. Wait for its end, and read what the four ranks wrote.

# %% tags=["live"]
slurm.wait(60)
slurm.run("cat hello-{job}/rank*.out")
slurm.run("scontrol show job {job} | grep -oE '(JobState|Reason|RunTime|TimeLimit|NumNodes|NumTasks)=[^ ]*'");

# %% [markdown] tags=["live"]
# **The lines of the notebook's cell, on two nodes, and not one line was changed.** The same sum as one process finds.

# %% [markdown]
# A job that you do not need any more costs hours: cancel it. This one would sleep for an hour.

# %%
slurm.run("sbatch --parsable --job-name=forgotten --time=01:00:00 --wrap='sleep 3600'")
slurm.wait(3)
slurm.run("squeue --jobs={job} --format='%i %j %T %M %l %D %R'")
slurm.run("scancel {job}")
slurm.wait(20)
slurm.run("scontrol show job {job} | grep -oE '(JobState|TimeLimit)=[^ ]*'");

# %% [markdown]
# In a notebook, `%ranks submit` does all of this in one line: it exports, submits, and shows the queue and each rank's
# words until the end. `ranks.job.cancel()` ends the job, and `cluster.attach(NUMBER)` finds it again tomorrow.

# %% [markdown]
# ## Repair a job
#
# A colleague wants eight ranks of `train.py` on **two H100 nodes**, and knows that the training takes **three hours**.
# The project is called `fidle`. This file does not do it.

# %%
broken = """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=10
#SBATCH --constraint=h100-80g
#SBATCH --account=fidle
#SBATCH --qos=qos_gpu_h100-dev
#SBATCH --time=03:00:00
module purge
module load pytorch-gpu/py3/2.8.0
module load arch/h100
pip install lightning
python train.py
"""
guess = predict("How many of these mistakes does Slurm name when you submit the file?",
                options=["none", "one", "all"])

# %%
(folder / "broken.slurm").write_text(broken)
slurm.run("sbatch --test-only broken.slurm")        # asks, and submits nothing
reveal(guess, "one", why="It stops at the first that it sees. Others it never sees: they only cost hours.")

# %% [markdown]
# **Exercise 2.** Mend the file. Copy the text above between triple quotes, change its lines, add what is missing.
# The check reads it with the rules of the machine, and names **one** mistake at a time.

# %% tags=["exercise"] fidle={"wrong": ["repaired = broken\n", "repaired = broken\nfor old, new in [('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=48\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@v100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py'), ('03:00:00', '02:00:00')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('python train.py', 'srun python train.py')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', '')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py'), ('#SBATCH --time=03:00:00\\n', '')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py'), ('--nodes=2', '--nodes=1')]:\n    repaired = repaired.replace(old, new)\n", "repaired = broken\nfor old, new in [('gpu:8', 'gpu:4'), ('task=10', 'task=24\\n#SBATCH --hint=nomultithread'), ('h100-80g', 'h100'), ('=fidle', '=fidle@h100'), ('h100-dev', 'h100-t3'), ('module load arch/h100\\n', ''), ('module load pytorch', 'module load arch/h100\\nmodule load pytorch'), ('pip install lightning\\n', ''), ('python train.py', 'srun python train.py'), ('per-node=4', 'per-node=2')]:\n    repaired = repaired.replace(old, new)\n"]}
repaired = ...          # your text, between """ and """

# %% tags=["check"]
def test_file(text):
    found = findings(text)
    assert not found, str(found[0])
    asked = cluster.Request.of(text)
    assert (asked.nodes, asked.tasks, asked.gpus) == (2, 4, 4), "it is eight ranks: 2 nodes, 4 tasks on each."
    assert "h100" in asked.kind.name, "your colleague wants H100 nodes: constraint and account both say h100."
    long_enough = cluster.seconds(asked.options["time"]) >= 3 * 3600
    assert long_enough, "the training takes three hours: change the QoS, not the time."
    assert any("train.py" in command for _, command in asked.body), "the job must still run train.py."

check(repaired, test_file, name="repaired")

# %% tags=["solution"] jupyter={"source_hidden": true}
repaired = broken
for old, new in [
    ("gpu:8", "gpu:4"),
    ("task=10", "task=24\n#SBATCH --hint=nomultithread"),
    ("h100-80g", "h100"),
    ("=fidle", "=fidle@h100"),
    ("h100-dev", "h100-t3"),
    ("module load arch/h100\n", ""),
    ("module load pytorch", "module load arch/h100\nmodule load pytorch"),
    ("pip install lightning\n", ""),
    ("python train.py", "srun python train.py"),
]:
    repaired = repaired.replace(old, new)

# %% tags=["solution"] jupyter={"source_hidden": true}
check(repaired, test_file, name="repaired")
print(repaired)

# %% [markdown]
# The small Slurm checks accounts and QoS by a few rules of ours; Jean Zay's own has its own words, and more rules.
#
# What does Slurm say of the solution? `--test-only` tells when and where the job would start. Then, all that our rules
# find in the broken file, at once. (Its unknown constraint hides those that depend on the kind of node: we mend it
# first.)

# %%
(folder / "repaired.slurm").write_text(repaired)
slurm.run("sbatch --test-only repaired.slurm")
print("\nour rules:", *findings(broken.replace("h100-80g", "h100")), sep="\n  ")

# %% tags=["live"]
temporary.cleanup()

# %% [markdown]
# ## In practice
#
# - Begin with the QoS `dev`: short jobs start sooner, and most mistakes show within a minute.
# - One task for each GPU, and for each task its share of the cores: 10 (V100), 8 (A100), 24 (H100).
# - `sbatch --test-only` before a large job; `squeue --me` for yours; `scancel` for those that you forgot.
# - Save checkpoints: a time limit ends a job without asking (lesson 10).
# - Keep what talks most inside a node, and let little cross the network (lesson 07).
# - Data from `$DSDIR`, environments in `$WORK`, checkpoints in `$SCRATCH`, results that last in `$STORE`.

# %% [markdown]
# ## Go further
#
# - Draw the transfer of *your* model: change `n_bytes`. What of its gradients in fp32?
# - Put another mistake into `repaired` and ask `findings`. Which one does it miss? Its rules are in
#   `fidle_utils/cluster/rules.py`, the numbers in `profiles.toml`: yours are welcome.
# - As root on Debian or Ubuntu, `make slurm` starts the small Slurm. Run the session cells again: they are live now.

# %% [markdown]
# ## Sources
#
# Marked *reported*: read in the press or in another copy, not at its origin. *Excerpt*: the page is the origin, and we
# read only a part of it.
#
# 1. media24.fr, quoting the CNRS (reported). · 2. next.ink, 28 March 2024 (reported). · 3. generation-nt.com, October
#    2020 (reported). · 4. actusduweb.com (reported). · 5. actus365.fr, 2025 (reported); the 364 nodes:
#    [IDRIS, course *Programmation hybride*](https://github.com/idriscnrs/formations), v4.0, 2024, p. 18.
# 6. [BigScience](https://github.com/bigscience-workshop/bigscience), experiments/README.md, experiments/bandwidth, jz/.
# 7. IDRIS, [Democratizing LLM Fine-Tuning](https://github.com/IDRIS-CNRS/Democratizing-LLM-FT), logs and poster v1.2,
#    2025; [DLO-JZ](https://github.com/IDRIS-CNRS/DLO-JZ), day 2: the drawing of the V100 node.
# 8. IDRIS, [hours](http://www.idris.fr/en/docs/jean-zay/gestion-compte/heures-calcul) and
#    [how they compare](http://www.idris.fr/eng/info/gestion/demandes-heures-eng.html) (excerpts).
# 9. IDRIS, [requests for hours](http://www.idris.fr/en/docs/dari/demandes-heures) (excerpt).
# 10. S. Luccioni, S. Viguier, A.-L. Ligozat, *Estimating the Carbon Footprint of BLOOM*,
#     [arXiv:2211.02001](https://arxiv.org/abs/2211.02001); its idle and embodied terms are quoted from a copy.
# 11. actu-environnement.com, March 2024 (reported).
# 12. CNRS, [Jean Zay recycles its heat](https://www.ins2i.cnrs.fr/en/jean-zay-supercomputer-recycling-its-heat).
# 13. IDRIS, [disk spaces](http://www.idris.fr/en/docs/jean-zay/environnement/espaces-disques) (excerpt).
# 14. IDRIS, [GPU partitions](http://www.idris.fr/en/docs/jean-zay/slurm/slurm_partitions_gpu) (excerpt).
# 15. IDRIS, JupyterHub, http://www.idris.fr/docs/jean-zay/jupyterhub/ (excerpt).
#
# Speeds of GPUs and PCIe: vendors' sheets, through
# [ml-engineering](https://github.com/stas00/ml-engineering). Shares of cores, QoS, modules:
# `fidle_utils/cluster/profiles.toml` names the source of each.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("Your job on two H100 nodes asks for 2 GPUs on each. How many GPUs are charged?",
             options=["2", "4", "8"])
q2 = predict("A job names no time. Slurm…", options=["ends it after 10 minutes", "lets it run", "refuses it"])

# %%
reveal(q1, "8", why="From two nodes on, whole nodes are charged: 2 × 4.")
reveal(q2, "ends it after 10 minutes", why="The default of the GPU partitions. Always write --time.")

# %%
q3 = predict("Tensor parallelism (lesson 05) talks in every layer. Its ranks belong…",
             options=["in one node", "one on each node", "it does not matter"])
q4 = predict("A script on a compute node calls load_dataset of a name on the Hub. It…",
             options=["downloads", "fails or hangs"])
q5 = predict("You asked for 20 h; your job ended after 3 h. Charged on one GPU:", options=["3 h", "20 h"])

# %%
reveal(q3, "in one node", why="450 GB/s for a GPU inside an H100 node; 50 GB/s for one link out of it.")
reveal(q4, "fails or hangs", why="No internet there: $DSDIR, or a download on the login node before.")
reveal(q5, "3 h", why="Reserved × elapsed. A shorter limit starts sooner, and costs the same.")

# %%
from fidle_utils import progress

progress.show("01")
