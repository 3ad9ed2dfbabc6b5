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
# # 07 · Combine parallelisms
#
# **You will** arrange four ranks as a grid, data in one direction and pipeline in the other; then eight as a cube,
# with tensor parallelism as its third direction. You train a small GPT on them. Every step equals the step of one
# process.
#
# **You learn** who talks with whom, how much, and how often; why the group that talks most must live inside a node;
# and the traps of a mesh: whose data, whose seed, whose norm, whose checkpoint.
#
# **You need** lesson 04 (data parallelism), 05 (tensor) and 06 (pipeline); each is recalled in one sentence. No GPU
# is needed; with one GPU for each rank the same cells use them.
#
# **Time** 10 min live (the cells tagged `live`), 75 min alone, with four exercises.

# %% tags=["live"]
%load_ext fidle_utils
import torch

from fidle_utils import plots, ranks
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal

# %%
%ranks 4

# %% [markdown] tags=["live"] fidle={"minutes": 1}
# ## Three ways to cut a training step
#
# | | what is cut | who talks, when | what is sent |
# |---|---|---|---|
# | **data** (lesson 04) | the batch | all copies of a weight, once a step | gradients of weights |
# | **pipeline** (lesson 06) | the layers, in stages | neighbouring stages, once a micro-batch | activations, their gradients |
# | **tensor** (lesson 05) | every matrix | four times a block and a micro-batch | sums of activations |
#
# Each alone has a wall. Data parallelism needs a model that fits on one device. A pipeline of many stages has
# bubbles. Tensor parallelism needs a fast link. So large trainings combine them. At IDRIS, *hybrid* (fr.
# *parallélisme hybride*) is data × pipeline, and *3D* adds tensor.

# %% [markdown]
# ## Four ranks, a grid
#
# A *mesh* (fr. *maillage*) gives every rank coordinates: here (stage, data share). `init_device_mesh` numbers
# the ranks row by row, the last coordinate first, and makes a process group for each row and each column.

# %%
guess = predict("A mesh of 2 stages × 2 data shares. Rank 2 shares its weights with…",
                options=["rank 0", "rank 1", "rank 3"])

# %%
%%ranks
from torch.distributed.device_mesh import init_device_mesh

mesh = init_device_mesh(device.type, (2, 2), mesh_dim_names=("pp", "dp"))
stage, replica = mesh.get_coordinate()
pp, dp = mesh.get_group("pp"), mesh.get_group("dp")
groups = {name: dist.get_process_group_ranks(mesh.get_group(name)) for name in ("pp", "dp")}
for group in (pp, dp):
    dist.all_reduce(torch.zeros(1, device=device), group=group)     # NCCL connects at the first call: here
print(f"stage {stage}, data share {replica} · {groups}")

# %% tags=["live"]
def all_groups(groups_of_ranks):
    """From each rank's own groups to all of them: dimension → list of groups, without repetition."""
    names = groups_of_ranks[0]
    return {name: sorted({tuple(mine[name]) for mine in groups_of_ranks}) for name in names}


# %%
reveal(guess, "rank 3", why="Ranks 2 and 3 hold stage 1: the same layers, for two shares of the data.")
plots.plot_grid(all_groups(ranks["groups"]));

# %% [markdown]
# Down a column, micro-batches go through a pipeline. Along a row, the two holders of a stage average their gradients,
# as in lesson 04, and **nobody else** takes part in that average.

# %% [markdown]
# ## A hybrid step, by hand
#
# The model: two stages of the same shape. (64 outputs, of which the ten digits use ten. Equal shapes make a mistake
# give wrong numbers, which we can look at, rather than a hang.) The pipeline is GPipe, as in lesson 06.

# %%
%%ranks
from torch import nn
from torch.nn.functional import cross_entropy
from fidle_utils.data import digits

x_train, y_train = (tensor.to(device) for tensor in digits()[:2])

def new_stages(dtype=torch.float32):
    """The whole model as its two stages, the same on every rank."""
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(64, 64), nn.Tanh()).to(device, dtype) for _ in range(2)]

def batch(dtype=torch.float32):
    return x_train[:64].flatten(1).to(dtype), y_train[:64]

def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def truth(x, y):
    """One process: the gradients of my stage, and those of the other."""
    model = new_stages()
    cross_entropy(model[1](model[0](x)), y).backward()
    return gradient(model[stage]), gradient(model[1 - stage])

# %%
%%ranks
def pipeline(model, micro_batches, loss_of):
    """GPipe over my pipeline group: gradients add up in p.grad of my stage. Returns the sum of the losses."""
    done = []
    for x, y in micro_batches:
        if stage == 1:
            x = torch.empty_like(x)                     # activations have the shape of the images here
            dist.recv(x, group=pp, group_src=0)
            x.requires_grad_()
        h = model(x)
        if stage == 0:
            dist.send(h.detach(), group=pp, group_dst=1)
        done.append((x, h if stage == 0 else loss_of(h, y)))
    for x, h in done:
        if stage == 0:
            dh = torch.empty_like(h)
            dist.recv(dh, group=pp, group_src=1)
            h.backward(dh)
        else:
            h.backward()
            dist.send(x.grad, group=pp, group_dst=0)
    return sum(h.detach() for _, h in done) if stage == 1 else None

# %% [markdown]
# **Exercise 1.** Complete the step. Every rank holds the whole batch `x, y`. Afterwards `p.grad` of *my stage* is the
# gradient of the mean loss over the whole batch, and no image was computed twice. You have `replica` (my data share:
# 0 or 1), `pp`, `dp`, `pipeline` and `cross_entropy`.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad)\n        p.grad /= world_size\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=pp)\n        p.grad /= 2\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        p.grad /= world_size\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        pass\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y))\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        p.grad /= 2\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(world_size)[rank], y.chunk(world_size)[rank]\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        p.grad /= 2\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    pass\n    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        p.grad /= 2\n", "%%ranks\ndef hybrid_step(model, x, y, n_micro):\n    x, y = x.chunk(2)[replica], y.chunk(2)[replica]\n    micro_batches = [(x, y)]\n    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y))\n    for p in model.parameters():\n        dist.all_reduce(p.grad, group=dp)\n        p.grad /= 2\n"]}
%%ranks
def hybrid_step(model, x, y, n_micro):
    """My share of the batch, in n_micro micro-batches through the pipeline; then agree on the gradients."""
    ...

# %% [markdown]
# The check compares with the gradients of the whole model over the whole batch, which each rank computes alone.

# %% tags=["check"]
def test_hybrid(hybrid_step):
    from fidle_utils.measure import count_communication
    (x, y), model = batch(), new_stages()[stage]
    (whole, other), (half, other_half) = truth(x, y), truth(x.chunk(2)[replica], y.chunk(2)[replica])
    with count_communication() as counted:
        hybrid_step(model, x, y, 4)
    sent, images = counted.calls("send"), counted.n_bytes("send") / (64 * 4)
    assert sent == 4, f"{sent} messages went along the pipeline: cut your share in n_micro=4 micro-batches."
    assert images < 64, "each pipeline computed the whole batch: give it its half, x.chunk(2)[replica]."
    assert images > 16, "16 images a rank: both stages of a pipeline need one share, x.chunk(2)[replica]."
    mine = gradient(model)
    alike = {"the gradient of your half alone: all_reduce over the data group, dp.": half,
             "mixed with the other stage's gradients: average over dp, not over all ranks.": whole + other,
             "averaged along the pipeline, with other layers: dp holds your stage.": half + other_half}
    for hint, wrong in alike.items():
        assert torch.cosine_similarity(mine, wrong, dim=0) < 0.9999, hint
    scales = {4: "4 times too large: a sum of 4 means. Divide each micro-batch's loss by n_micro.", 0.5:
              "half of it: 2 ranks hold your stage, not world_size.", 2: "twice it: divide by the 2 of dp."}
    scale = (mine.norm() / whole.norm()).item()
    assert abs(scale - 1) < 1e-4, scales.get(round(scale, 4), f"{scale:.3g} times too large.")
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)

check("hybrid_step", test_hybrid, hint="a share, micro-batches, pipeline, then the mean over dp")

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def hybrid_step(model, x, y, n_micro):
    x, y = x.chunk(2)[replica], y.chunk(2)[replica]             # the same share on both stages of a pipeline
    micro_batches = zip(x.chunk(n_micro), y.chunk(n_micro))
    pipeline(model, micro_batches, lambda h, y: cross_entropy(h, y) / n_micro)
    for p in model.parameters():
        dist.all_reduce(p.grad, group=dp)                       # among the holders of my stage
        p.grad /= dp.size()

# %% tags=["solution"] jupyter={"source_hidden": true}
check("hybrid_step", test_hybrid)

# %% [markdown]
# The whole training step now: loss, gradients, and the weights after one step of AdamW. Each rank also does it alone,
# with the whole model and the whole batch. How far are they apart, relative to the size of what is compared?

# %%
%%ranks
def far(mine, theirs):
    """The relative distance of two tensors."""
    return ((mine - theirs).norm() / theirs.norm()).item()

def after_adamw(model):
    """The weights after one step, as one vector."""
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])

# %%
%%ranks
def step_and_compare(dtype):
    (x, y), stages, model = batch(dtype), new_stages(dtype), new_stages(dtype)[stage]
    loss_alone = cross_entropy(stages[1](stages[0](x)), y)
    loss_alone.backward()

    my_x, my_y = x.chunk(2)[replica], y.chunk(2)[replica]
    loss = pipeline(model, zip(my_x.chunk(4), my_y.chunk(4)), lambda h, y: cross_entropy(h, y) / 4)
    for p in model.parameters():
        dist.all_reduce(p.grad, group=dp)
        p.grad /= dp.size()
    differences = {"gradients": far(gradient(model), gradient(stages[stage]))}
    if stage == 1:                                  # only the last stage knows the loss of its share
        dist.all_reduce(loss, group=dp)
        differences["loss"] = far(loss / dp.size(), loss_alone.detach())
    return differences | {"weights after the step": far(after_adamw(model), after_adamw(stages[stage]))}

single, double = step_and_compare(torch.float32), step_and_compare(torch.float64)

# %% tags=["live"]
def show_equal(single, double):
    """Print the largest difference with one process over the ranks, and insist that it is rounding."""
    for differences, tolerance, name in ((single, 1e-5, "float32"), (double, 1e-8, "float64")):
        worst = {}
        for what, value in (item for of_rank in differences for item in of_rank.items()):
            worst[what] = max(value, worst.get(what, 0))
        said = " · ".join(f"{what} {value:.0e}" for what, value in worst.items())
        print(f"{name}: {said}   (tolerance {tolerance:.0e})")
        assert max(worst.values()) <= tolerance


# %%
show_equal(ranks["single"], ranks["double"])

# %% [markdown]
# **A 2 × 2 grid takes the step of one process.** Nothing but rounding is left, in single and in double precision.

# %% [markdown]
# ### How large is the batch?
#
# One dimension of a mesh makes the batch larger. Only one.

# %%
guess = predict("Micro-batches of 2 images, 8 of them for each pipeline, 4 pipelines of 6 stages. Images "
                "a step?", unit="images")

# %%
def global_batch(micro, n_micro, n_data):
    """Only data parallelism multiplies the batch: a pipeline cuts layers, and tensor parallelism matrices."""
    return micro * n_micro * n_data

reveal(guess, global_batch(2, 8, 4), why="micro × micro-batches × data shares. Stages do not count.")

# %%
bloom = table("jeanzay_bigscience_a100", model="BLOOM-176B")[0]
n_micro = bloom["global_batch"] // (bloom["micro_batch"] * bloom["dp"])
n_gpus, tp, pp, dp = (bloom[name] for name in ("n_gpus", "tp", "pp", "dp"))
print(f"BLOOM (published): {n_gpus} GPUs = tensor {tp} × pipeline {pp} × data {dp}")
print(f"batch {bloom['global_batch']} = micro {bloom['micro_batch']} × {n_micro} micro-batches × data {dp}")

# %% [markdown] tags=["live"] fidle={"minutes": 2.5}
# ## Eight ranks, a cube
#
# Add tensor parallelism: 2 stages × 2 data shares × 2 tensor shares. The order of the names in the mesh is the order
# of the digits: with (pp, dp, tp), rank = (pp · 2 + dp) · 2 + tp.

# %% [markdown]
# **Exercise 2.** Write all the groups, as lists of ranks, for any sizes. A group holds the ranks that differ in one
# coordinate only. (*All* groups: `new_group` must be called by every rank for every group, in the same order, as in
# lesson 03.)

# %% tags=["exercise"] fidle={"wrong": ["def groups(n_pp, n_dp, n_tp):\n    grid = torch.arange(n_pp * n_dp * n_tp).view(n_tp, n_dp, n_pp)\n    return {name: grid.movedim(axis, -1).flatten(0, 1).tolist() for axis, name in enumerate((\"tp\", \"dp\", \"pp\"))}", "def groups(n_pp, n_dp, n_tp):\n    return {\"pp\": [[i * n_dp * n_tp for i in range(n_pp)]], \"dp\": [[i * n_tp for i in range(n_dp)]], \"tp\": [list(range(n_tp))]}", "def groups(n_pp, n_dp, n_tp):\n    grid = torch.arange(n_pp * n_dp * n_tp).view(n_dp, n_pp, n_tp)\n    return {name: grid.movedim(axis, -1).flatten(0, 1).tolist() for axis, name in enumerate((\"dp\", \"pp\", \"tp\"))}", "def groups(n_pp, n_dp, n_tp):\n    return {\"pp\": [[0, 4], [1, 5], [2, 6], [3, 7]], \"dp\": [[0, 2], [1, 3], [4, 6], [5, 7]], \"tp\": [[0, 1], [2, 3], [4, 5], [6, 7]]}", "def groups(n_pp, n_dp, n_tp):\n    n = n_pp * n_dp * n_tp\n    pairs = [list(range(i, i + n_tp)) for i in range(0, n, n_tp)]\n    return {\"pp\": pairs, \"dp\": pairs, \"tp\": pairs}", "def groups(n_pp, n_dp, n_tp):\n    return [[0, 1], [0, 2], [0, 4]]"]}
def groups(n_pp, n_dp, n_tp):
    """Return {"pp": …, "dp": …, "tp": …}, each a list of groups; a group is a list of ranks."""
    ...

# %% tags=["check"]
def test_groups(groups):
    for sizes in ((2, 2, 2), (2, 3, 4)):
        grid, names = torch.arange(sizes[0] * sizes[1] * sizes[2]).view(sizes), ("pp", "dp", "tp")
        truth = {name: sorted(grid.movedim(i, -1).flatten(0, 1).tolist()) for i, name in enumerate(names)}
        answer = groups(*sizes)
        assert isinstance(answer, dict) and set(answer) == set(truth), "return a dict with pp, dp and tp."
        answer = {name: sorted(map(list, answer[name])) for name in names}
        for name, members in answer.items():
            one = [group for group in truth[name] if 0 in group]
            assert members != one, f"{name}: rank 0's group only. Every rank calls new_group for all of them."
            seen = sorted(rank for group in members for rank in group)
            whole = seen == list(range(grid.numel()))
            assert whole, f"{name}, {sizes}: each of {grid.numel()} ranks must be in one group."
        assert answer["tp"] != truth["pp"], "you count the other way: tp comes last, so ranks 0 and 1."
        assert answer["pp"] != truth["dp"], "pp and dp are swapped: pp is first, its ranks are far apart."
        for name in names:
            theirs, yours = truth[name][0], answer[name][0]
            assert answer[name] == truth[name], f"{name}, {sizes}: rank 0 is with {theirs}, not with {yours}."

check(groups, test_groups, hint="reshape range(n) to (n_pp, n_dp, n_tp), and walk along one axis")

# %% tags=["solution"] jupyter={"source_hidden": true}
def groups(n_pp, n_dp, n_tp):
    grid = torch.arange(n_pp * n_dp * n_tp).view(n_pp, n_dp, n_tp)
    return {name: grid.movedim(axis, -1).flatten(0, 1).tolist()         # this axis last, the others together
            for axis, name in enumerate(("pp", "dp", "tp"))}

# %% tags=["solution"] jupyter={"source_hidden": true}
check(groups, test_groups)

# %% tags=["live"]
%ranks 8

# %% [markdown] tags=["live"]
# PyTorch makes the same groups. And a second mesh, with the three names in the opposite order: the sizes are equal,
# the groups are not.

# %% tags=["live"]
%%ranks
from torch.distributed.device_mesh import init_device_mesh

mesh = init_device_mesh(device.type, (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
reverse = init_device_mesh(device.type, (2, 2, 2), mesh_dim_names=("tp", "dp", "pp"))
by_mesh, by_reverse = ({name: dist.get_process_group_ranks(m.get_group(name))
                        for name in ("tp", "dp", "pp")} for m in (mesh, reverse))
print(dict(zip(mesh.mesh_dim_names, mesh.get_coordinate())), by_mesh)

# %%
ranks.push(by_hand=groups(2, 2, 2))

# %%
%%ranks
mine = {}
for name, lists in by_hand.items():
    for members in lists:
        group = dist.new_group(members)                 # by every rank, for every group
        if rank in members:
            mine[name] = dist.get_process_group_ranks(group)

# %%
assert ranks["mine"] == ranks["by_mesh"]
print("new_group, from your lists, and init_device_mesh: the same groups on all eight ranks")

# %% tags=["live"]
guess = predict("Two nodes of four GPUs, ranks 0–3 on the first. In the order (pp, dp, tp), which group "
                "must use the network between the nodes?", options=["pipeline", "data", "tensor"])

# %% tags=["live"]
plots.plot_mesh({"order pp, dp, tp": all_groups(ranks["by_mesh"]),
                 "order tp, dp, pp": all_groups(ranks["by_reverse"])}, node=4)
reveal(guess, "pipeline", why="Its ranks differ in the first coordinate: 0 and 4. Tensor: 0 and 1.")

# %% [markdown] tags=["live"]
# One colour is one group; a dotted line leaves its node. `init_device_mesh` knows nothing of nodes: **you** choose,
# by the order of the names. The last name lives on neighbouring ranks, and launchers put neighbouring ranks on one
# node.
#
# So: which group talks most? It deserves the last place. Count.

# %% [markdown] tags=["live"]
# ## A small GPT on the mesh
#
# Four blocks, cut in two stages. (`tied_head=False`: a weight shared by the embedding and the head would live on both
# ends of the pipeline, and its two gradients would have to be added.) Every rank holds the same batch of 32 windows
# of text, and takes from it what its coordinates say.

# %% tags=["live"]
%%ranks
from torch import nn
from torch.nn.functional import cross_entropy
from fidle_utils.data import batches, topics
from fidle_utils.models import GPT

text = topics(block_size=32)
x, y = (ids.to(device) for ids in next(iter(batches(text, 32, seed=0))))

def new_gpt(dtype):
    torch.manual_seed(0)
    return GPT(len(text.vocab), 32, n_layers=4, width=32, tied_head=False).to(device, dtype)

def token_loss(logits, y):
    return cross_entropy(logits.flatten(0, 1), y.flatten())

def share(mesh):
    """My windows: those of my data share. Ranks that differ in pp or tp only get the same ones."""
    n, mine = mesh["dp"].size(), mesh.get_local_rank("dp")
    return x.chunk(n)[mine], y.chunk(n)[mine]

# %% [markdown]
# The comparison, for all that follows: one process does the same step, and we compare the loss, the gradients that
# this rank holds, and its weights after one step of AdamW. A weight cut by DTensor is put together first
# (`full_tensor`).

# %% tags=["live"]
%%ranks
from torch.distributed.tensor import DTensor

def compare(loss, model, dtype):
    """Relative differences with one process, after the backward pass; then AdamW, and again."""
    alone = new_gpt(dtype)
    loss_alone = token_loss(alone(x), y)
    loss_alone.backward()
    theirs = dict(alone.named_parameters())

    def differ(pick):
        mine = [pick(p) for p in model.parameters()]
        mine = [t.full_tensor() if isinstance(t, DTensor) else t for t in mine]
        other = [pick(theirs[name]) for name, _ in model.named_parameters()]
        mine, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (mine, other))
        return ((mine - other).norm() / other.norm()).item()

    differences = {"loss": abs(loss / loss_alone - 1).item(), "gradients": differ(lambda p: p.grad)}
    for part in (model, alone):
        torch.optim.AdamW(part.parameters(), lr=1e-3, foreach=False).step()
    return differences | {"weights after the step": differ(lambda p: p.detach())}

# %% [markdown]
# `foreach=False`: AdamW handles the weights one by one. Its faster loops over lists refuse a list of plain tensors
# and DTensors together, which we are about to have.
#
# ### Data × pipeline
#
# A stage keeps its blocks under their old names. `PipelineStage` sends and receives, `Schedule1F1B` decides the order
# (lesson 06).

# %% tags=["live"]
%%ranks
class Stage(nn.Module):
    """A share of the blocks of a GPT; the first stage embeds, the last has the head."""

    def __init__(self, gpt, index, n_stages):
        super().__init__()
        each = len(gpt.blocks) // n_stages
        self.blocks = nn.ModuleDict({str(i): b for i, b in enumerate(gpt.blocks) if i // each == index})
        self.first, self.last = index == 0, index == n_stages - 1
        if self.first:
            self.token_embedding, self.position_embedding = gpt.token_embedding, gpt.position_embedding
        if self.last:
            self.norm, self.head = gpt.norm, gpt.head

    def forward(self, x):
        if self.first:
            positions = torch.arange(x.shape[1], device=x.device)
            x = self.token_embedding(x) + self.position_embedding(positions)
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x)) if self.last else x

# %% tags=["live"]
%%ranks
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

class Pipeline:
    """One training step of a stage: 1F1B along pp, then the mean of the gradients along dp."""

    def __init__(self, mesh, model, n_micro=4):
        self.mesh, self.model, self.pp = mesh, model, mesh.get_group("pp")
        self.stage = PipelineStage(model, mesh.get_local_rank("pp"), self.pp.size(), device, group=self.pp)
        self.schedule = Schedule1F1B(self.stage, n_micro, loss_fn=token_loss)   # it divides by n_micro

    def backward(self, x, y):
        """Leave the gradients of the whole batch in p.grad; x, y is my data share. Returns its loss."""
        losses, inputs, dp = [], (x,) if self.stage.is_first else (), self.mesh.get_group("dp")
        last = {"target": y, "losses": losses} if self.stage.is_last else {}
        self.schedule.step(*inputs, **last)
        for p in self.model.parameters():
            gradient = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
            dist.all_reduce(gradient, group=dp)
            gradient /= dp.size()
        return torch.stack(losses).mean() if losses else gradient.new_zeros(())

# %% [markdown]
# Only the last stage knows its loss. To print it on every rank, it goes to the mean along `dp`, then from the last
# stage to the others along `pp`.

# %% tags=["live"]
%%ranks
def mean_loss(loss, mesh):
    dp, pp = mesh.get_group("dp"), mesh.get_group("pp")
    dist.all_reduce(loss, group=dp)
    dist.broadcast(loss, group=pp, group_src=pp.size() - 1)
    return loss / dp.size()

def my_stage(mesh, dtype):
    return Stage(new_gpt(dtype), mesh.get_local_rank("pp"), mesh["pp"].size())

grid = init_device_mesh(device.type, (2, 4), mesh_dim_names=("pp", "dp"))      # groups cost: make them once

def hybrid(dtype):
    pipeline = Pipeline(grid, my_stage(grid, dtype))
    loss = mean_loss(pipeline.backward(*share(grid)), grid)
    return compare(loss, pipeline.model, dtype)

# %%
%%ranks
single, double = hybrid(torch.float32), hybrid(torch.float64)

# %%
show_equal(ranks["single"], ranks["double"])

# %% [markdown]
# Two stages, four data shares: the step of one process.
#
# ### FSDP2 × tensor
#
# No pipeline now. Along `tp`, every block is cut as in lesson 05: columns, then rows. Along `dp`, FSDP2 (lesson 08)
# keeps on each rank only its part of what tensor parallelism left, and gathers a block when its turn comes.

# %% tags=["live"]
%%ranks
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (ColwiseParallel, PrepareModuleInput, RowwiseParallel,
                                               parallelize_module)

def cut(block, tp_mesh):
    """Cut a block along tp: query, key, value and the first linear by columns, the linears after them by rows."""
    once = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    parallelize_module(block, tp_mesh, {
        "attention": once,                          # one input for three matrices: one sum backward, not three
        "attention.query": ColwiseParallel(), "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(), "attention.output": RowwiseParallel(),
        "mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()})

# %%
%%ranks
import logging
from torch.distributed.fsdp import fully_shard

logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)   # full_tensor gathers twice, aloud

shards = init_device_mesh(device.type, (4, 2), mesh_dim_names=("dp", "tp"))

def sharded_tensor(dtype):
    gpt = new_gpt(dtype)
    for block in gpt.blocks:
        cut(block, shards["tp"])                        # first tensor,
        fully_shard(block, mesh=shards["dp"])           # then FSDP, around it
    fully_shard(gpt, mesh=shards["dp"])
    my_x, my_y = share(shards)
    loss = token_loss(gpt(my_x), my_y)
    loss.backward()                                     # FSDP averages along dp by itself
    mean = loss.detach().clone()
    dist.all_reduce(mean, group=shards.get_group("dp"))
    return compare(mean / shards["dp"].size(), gpt, dtype), gpt

single, _ = sharded_tensor(torch.float32)
double, gpt = sharded_tensor(torch.float64)

# %%
show_equal(ranks["single"], ranks["double"])

# %% [markdown]
# What does rank 0 hold of one matrix? Its placements say, one for each dimension of the mesh.

# %%
%%ranks 0
for name in ("mlp.0.weight", "mlp.2.weight", "mlp_norm.weight"):
    p = gpt.blocks[0].get_parameter(name)
    shapes = f"{tuple(p.shape)!s:10} here {tuple(p.to_local().shape)!s:9}"
    print(f"{name:16} {shapes}", p.device_mesh.mesh_dim_names, p.placements)

# %% [markdown]
# `mlp.0` is cut twice along the same axis: in two by `tp`, then each half in four by `dp`. Its order is not the usual
# one (the mesh says `dp` first), which is what `_StridedShard`, a name of DTensor's own, notes. The norm is whole on
# both tensor ranks, and cut by FSDP only.

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ### Pipeline × data × tensor
#
# Each stage cuts its blocks along `tp` before the pipeline takes it. One more line, no more.

# %% tags=["live"]
%%ranks
def three_d(dtype):
    stage = my_stage(mesh, dtype)
    for block in stage.blocks.values():
        cut(block, mesh["tp"])
    return Pipeline(mesh, stage)

def step_in_three_d(dtype):
    pipeline = three_d(dtype)
    loss = mean_loss(pipeline.backward(*share(mesh)), mesh)
    return compare(loss, pipeline.model, dtype)

single = step_in_three_d(torch.float32)

# %% tags=["live"]
%%ranks
double = step_in_three_d(torch.float64)

# %% tags=["live"]
show_equal(ranks["single"], ranks["double"])

# %% [markdown] tags=["live"]
# **Eight ranks, three parallelisms, the step of one process.** No rank computed with more than half of the blocks,
# half of their matrices and half of the batch.

# %% [markdown]
# ## Who sends how much?
#
# The first step also tells the stages each other's shapes, so we count the second.

# %%
guess = predict("In which group does a rank of this mesh send most bytes?",
                options=["pipeline", "data", "tensor"])

# %%
%%ranks
from fidle_utils.measure import count_communication

pipeline = three_d(torch.float32)
pipeline.backward(*share(mesh))
pipeline.model.zero_grad()
with count_communication() as counted:
    pipeline.backward(*share(mesh))

held = sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in pipeline.model.parameters())

# %%
plots.plot_group_bytes(ranks["counted"])
reveal(guess, "tensor", why="It talks at every block of every micro-batch, in both passes.")

# %%
ranks["counted"][0]

# %% [markdown]
# **Exercise 3.** Write the three numbers as formulas, for a stage with one neighbour. You know: the `blocks` of the
# stage; the bytes of one micro-batch's `activation`s, as they enter a block; `n_micro`; the sizes of the groups; the
# bytes of the `gradients` that the rank holds. A ring all_reduce of S bytes sends 2(n−1)/n · S (lesson 03).

# %% tags=["exercise"] fidle={"wrong": ["def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 2 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * activation, \"pp\": n_micro * activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": 2 * n_micro * activation, \"dp\": 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": n_micro * 2 * (n_dp - 1) / n_dp * gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": gradients}", "def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):\n    return {\"tp\": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation, \"pp\": n_micro * activation, \"dp\": (n_dp - 1) * gradients}"]}
def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):
    """Return {"tp": …, "pp": …, "dp": …}: the bytes that one rank sends in a step."""
    ...

# %% tags=["check"]
def test_bytes(bytes_by_group):
    answer = bytes_by_group(3, 1000, 5, 8, 4, 7000)             # sizes unlike each other tell mistakes apart
    assert isinstance(answer, dict) and set(answer) == {"tp", "pp", "dp"}, "return a dict: tp, pp and dp."
    ring = "a ring sends 2(n−1)/n of the tensor"
    mistakes = {"tp": (105_000, {1 / 2: "two all_reduces a block forward, two backward",
                                 1 / 3: "in each block", 1 / 5: "for each micro-batch", 1 / 1.75: ring}),
                "pp": (5_000, {1 / 5: "one message for each micro-batch",
                               2: "one way: the first stage sends activations, the last their gradients"}),
                "dp": (10_500, {5: "once a step, not once a micro-batch", 1 / 1.5: ring,
                                2: "(n−1) · S is everything to everybody; a ring needs less"})}
    for name, (truth, said) in mistakes.items():
        ratio = answer[name] / truth
        hint = next((text for wrong, text in said.items() if abs(ratio / wrong - 1) < 1e-6), "count again")
        assert abs(ratio - 1) < 1e-6, f"{name}: {ratio:.3g} times the truth: {hint}."
    for counted, held in zip(ranks["counted"], ranks["held"]):
        windows = 32 // 2 // 4                                  # a micro-batch: 2 shares of 32, cut in 4
        for name, value in bytes_by_group(2, windows * 32 * 32 * 4, 4, 2, 2, held).items():
            truth = counted.bytes_sent(group=name)
            assert value == truth, f"{name}: {value} bytes by you, {truth} counted on the ranks."

check(bytes_by_group, test_bytes)

# %% tags=["solution"] jupyter={"source_hidden": true}
def bytes_by_group(blocks, activation, n_micro, n_tp, n_dp, gradients):
    return {"tp": 4 * blocks * n_micro * 2 * (n_tp - 1) / n_tp * activation,   # 2 forward, 2 backward
            "pp": n_micro * activation,
            "dp": 2 * (n_dp - 1) / n_dp * gradients}

# %% tags=["solution"] jupyter={"source_hidden": true}
check(bytes_by_group, test_bytes)

# %%
expected = [bytes_by_group(2, 4 * 32 * 32 * 4, 4, 2, 2, held) for held in ranks["held"]]
plots.plot_group_bytes(ranks["counted"], expected, title="Counted, and by the formula");

# %% [markdown] tags=["live"] fidle={"minutes": 4.5}
# ## What if tensor parallelism leaves the node?
#
# A real case: BLOOM, 176 billion parameters, trained on Jean Zay in 2022 with tensor 4 × pipeline 12 × data 8. What
# does one GPU of a middle stage send in a step? BLOOM computed
# its activations again in backward (lesson 08), which repeats the two all_reduces of the forward pass: six a block.

# %% tags=["live"]
bloom = table("jeanzay_bigscience_a100", model="BLOOM-176B")[0]                 # published [1]
tp, pp, dp, micro = (bloom[name] for name in ("tp", "pp", "dp", "micro_batch"))
n_micro = bloom["global_batch"] // (dp * micro)
blocks = 6                                                                     # of 70, on a middle stage [1]
activation = micro * bloom["sequence_length"] * bloom["hidden"] * 2            # bytes, in bfloat16
weights = blocks * 12 * bloom["hidden"] ** 2 / tp                              # this GPU's

def ring(n):
    return 2 * (n - 1) / n

bloom_sends = {"tp": 6 * blocks * n_micro * ring(tp) * activation,
               "pp": 2 * n_micro * activation,                                 # to both neighbours
               "dp": ring(dp) * 4 * weights}                                   # once; float32 is assumed
for name, n_bytes in bloom_sends.items():
    print(f"{name}: {n_bytes / 1e9:5.0f} GB a step")

# %% tags=["live"]
guess = predict("A step of BLOOM took 105 s. With its tensor groups across nodes, how long would their "
                "messages alone take?", unit="s")

# %% [markdown] tags=["live"]
# The links, for one GPU and one way. A node of eight A100 has four Omni-Path links of 12.5 GB/s; a node of four H100
# has four InfiniBand links of 50 GB/s [2]. Inside, NVLink [3]. All nominal: what the sheet says, and nobody reaches.

# %% tags=["live"]
nvlink = {row["gpu"]: row["gpu_link_gb_per_second"] for row in table("gpu_specs")}
links = {"A100: NVLink": nvlink["A100-SXM4-80GB"], "A100: Omni-Path": 4 * 12.5 / 8,
         "H100: NVLink": nvlink["H100-SXM5-80GB"], "H100: InfiniBand": 4 * 50 / 4}          # GB/s for one GPU
seconds = {f"{link}\n{speed:g} GB/s": {name: n_bytes / 1e9 / speed for name, n_bytes in bloom_sends.items()}
           for link, speed in links.items()}
published = "BLOOM's step\non A100\n(published)"
plots.plot_crossing(seconds, bloom["seconds_per_iteration"], published, "nominal links, BLOOM's bytes");

# %% tags=["live"]
reveal(guess, bloom_sends["tp"] / 1e9 / links["A100: Omni-Path"], why="More than the whole step. On NVLink: "
       f"{bloom_sends['tp'] / 1e9 / links['A100: NVLink']:.1f} s.")

# %% [markdown] tags=["live"]
# Read the figure by colour. Tensor groups belong inside the node: nothing else sends as much, and blocks *wait* for
# it. Pipeline and data groups can live with the network: they send less, and their messages can hide behind
# computation.
#
# The ratio NVLink : network is what changes from machine to machine:

# %%
for node in ("A100", "H100"):
    inside, outside = (speed for link, speed in links.items() if link.startswith(node))
    print(f"{node} node of Jean Zay: NVLink {inside:g} GB/s, network {outside:g} GB/s for a GPU: "
          f"{inside / outside:.0f} times")

# %% [markdown]
# ### BLOOM on its 48 nodes
#
# DeepSpeed, which it used, numbers the ranks in the order pipeline, data, tensor [4], as you did. Where does every
# group live?

# %%
plots.plot_cluster({"pp": pp, "dp": dp, "tp": tp}, node=8, mark=32 * 3);

# %% [markdown]
# A node holds two tensor groups: two data shares of one stage. A data group spans four nodes, a pipeline all twelve
# stages, one node in four. The network carries only what was cheap in the last figure.
#
# ### What they tried first
#
# Before the training, BigScience measured many meshes. Here is one model (72 blocks, 64 heads, micro-batches of 2) on
# seven meshes, on one day, with 384 A100; one mesh ran twice. Beside them we compute three losses. *Tensor*: its
# bytes at 177 GB/s, the bus bandwidth of eight A100 in an all_reduce of this size (published [3]). *Bubble*:
# (p−1)/(m+p−1) of the published step (lesson 06). *Data*: gradients, in float16 as these runs had them, over nominal
# Omni-Path.

# %%
def seconds_lost(row):
    m = row["global_batch"] // (row["dp"] * row["micro_batch"])
    blocks = row["layers"] / row["pp"]
    activation = row["micro_batch"] * row["sequence_length"] * row["hidden"] * 2
    weights = row["parameters_billion"] * 1e9 / (row["tp"] * row["pp"])
    bubble = (row["pp"] - 1) / (m + row["pp"] - 1)
    return {"tensor, on NVLink": 6 * blocks * m * ring(row["tp"]) * activation / 177e9,
            "bubble": bubble * row["seconds_per_iteration"],
            "data, on Omni-Path": ring(row["dp"]) * 2 * weights / 6.25e9}

probes = table("jeanzay_bigscience_a100", layers=72, heads=64, micro_batch=2, n_gpus=384)
probes = [row for row in probes if "GBS Variations" in row["source"] and row["global_batch"] > 2000
          and row["seconds_per_iteration"]]
probes.sort(key=lambda row: (row["tp"], row["pp"]))
lost = [seconds_lost(row) for row in probes]

# %%
plots.plot_topologies(probes, lost, "bigscience, tr11-176B-ml")
for row, one in zip(probes, lost):
    step, losses = row["seconds_per_iteration"], sum(one.values())
    print(f"TP {row['tp']} · PP {row['pp']:2} · DP {row['dp']:2}: {step:.0f} s, lost {losses:.0f} s, "
          f"the rest {step - losses:.0f} s")

# %% [markdown]
# If our three losses were all, *the rest* would be the same everywhere: the same FLOP on the same GPUs. It is not. It
# grows with TP, probably since a matrix cut in eight is thin, and thin matrix products are slow; and TP 2 · PP 24
# stands out as well. **Counting bytes does not predict a step; it tells you what to try.** TP 4 inside the node won:
# BLOOM ran with TP 4, PP 12, DP 8.

# %% [markdown]
# ### Measured far below the sheet
#
# In 2025 IDRIS published logs of Qwen2.5 trained with FSDP2 alone on 64 GPUs [2]. FSDP2 receives, for each weight, 2
# bytes to gather it forward, 2 backward, and 4 to reduce its gradient (bfloat16, and float32 for gradients, we
# assume). A ring enters every node once. Beside it, the least time of computing: 6 FLOP for each weight and token, at
# the best matrix product that somebody measured on that GPU (published [3]).

# %%
def network_and_compute(row):
    """GB/s into a node if nothing is hidden, what is nominal, and the least seconds of computing."""
    ceiling = table("matmul_ceilings", gpu=row["gpu"].split()[0], dtype="bf16")[0]
    tokens = row["global_batch"] * row["sequence_length"]
    flops = 6e9 * row["parameters_billion"] * tokens / row["n_gpus"]
    speed = 8 * row["parameters_billion"] / row["seconds_per_iteration"]
    return speed, 4 * (12.5 if "OPA" in row["gpu"] else 50), flops / (1e12 * ceiling["tflops"])

idris = table("jeanzay_idris_sft_2025", n_gpus=64)
for row in idris:
    if "torch.compile=True" in row["notes"] and row["gpu"][:4] in ("A100", "H100"):
        speed, nominal, computing = network_and_compute(row)
        print(f"{row['gpu'][:4]} {row['model'][8:11]}: {row['seconds_per_iteration']:5.1f} s (published), "
              f"computing ≥ {computing:4.1f} s; {speed:4.1f} GB/s a node, {speed / nominal:.0%} of nominal")

# %% [markdown]
# On Omni-Path, computing explains a fourteenth of the step, a little more if you count what is recomputed: the
# network decides, at 6 % of its sheet. BigScience had measured 15 to 42 Gb/s (1.9 to 5.2 GB/s) in all_reduce between
# four such nodes [1]. IDRIS warns that NCCL may fall back silently to a slower path inside a container [2], so this
# may not be the best that Omni-Path can do. It is what was published. On InfiniBand, computing explains about half of
# the step, and the network is asked for less than a third of its sheet.
#
# So does tensor parallelism inside the node help FSDP2 across nodes? Two answers, from the same logs (NeMo, full
# recomputation in all):

# %%
def seconds(row):
    return row["seconds_per_iteration"], "chrono" in row["notes"]         # its note warns of stalls

pairs = {}
for row in idris:
    network = {"A100": "A100, Omni-Path", "H100": "H100, InfiniBand"}.get(row["gpu"][:4])
    same = [other for other in idris if other["tp"] > 1 and
            (other["model"], other["gpu"]) == (row["model"], row["gpu"])]
    if network and row["tp"] == 1 and "NeMo" in row["notes"] and same:
        model = f"{row['model'][8:11]}, TP {same[0]['tp']}"
        pairs.setdefault(network, []).append((model, seconds(row), seconds(same[0])))

plots.plot_two_networks(pairs, "IDRIS, Democratizing-LLM-FT, 2025");

# %% [markdown]
# On Omni-Path tensor parallelism wins, on InfiniBand it loses. Read with care. The runs without it used Liger
# kernels, the others did not. Some logs warn of stalls (hatched). Each bar is one run. And our count of bytes does
# not explain the gain: eight rings of an eighth bring as many bytes into a node as one whole ring. (Eight at once may
# use the four links better; the logs do not say.) The lesson stands: **the same choice wins on one network and loses
# on the next. Measure yours.**

# %% [markdown]
# ## Traps of a mesh
#
# ### Whose data?
#
# A sampler wants to know how many shares there are, and which is mine. On a mesh that is *not* `world_size` and
# `rank`.

# %%
guess = predict("Each rank takes x.chunk(8)[rank]: eight shares. What does PyTorch say?",
                options=["an error", "a warning", "nothing"])

# %%
%%ranks
from torch.utils.data import DistributedSampler

def gradient_error(my_x, my_y):
    """How far this rank's gradients are from one process, if it feeds the mesh with these windows."""
    pipeline = three_d(torch.float32)
    pipeline.backward(my_x, my_y)
    return compare(torch.ones((), device=device), pipeline.model, torch.float32)["gradients"]

by_rank = gradient_error(x.chunk(8)[rank], y.chunk(8)[rank])
by_share = gradient_error(*share(mesh))
n, mine = mesh["dp"].size(), mesh.get_local_rank("dp")
right = list(DistributedSampler(range(8), num_replicas=n, rank=mine, shuffle=False))
wrong = list(DistributedSampler(range(8), shuffle=False))
print(f"DistributedSampler() {wrong} · with the data share {right}")

# %%
reveal(guess, "nothing", why="Shapes agree, sums are taken, a loss comes out. Only the numbers are wrong.")
for r, (wrong, right) in enumerate(zip(ranks["by_rank"], ranks["by_share"])):
    print(f"rank {r}: gradient off by {wrong:.0%} with x.chunk(8)[rank], {right:.0e} with its data share")

# %% [markdown]
# Two tensor ranks multiplied halves of a matrix with *different* inputs, and added the results. Pass `num_replicas`
# and `rank` of the data dimension to every sampler.
#
# ### Whose seed?
#
# Dropout draws a mask. On activations that tensor ranks hold whole, they must draw the *same* one; two data shares
# should draw different ones. Three ways to seed:

# %%
%%ranks
def mask(seed):
    """The first eight decisions of a dropout with this seed, as a text."""
    drawn = torch.rand(8, generator=torch.Generator().manual_seed(seed)) > 0.5
    return "".join("■" if kept else "·" for kept in drawn.tolist())

coordinate = dict(zip(mesh.mesh_dim_names, mesh.get_coordinate()))
masks = {"seed 0": mask(0), "seed rank": mask(rank),
         "seed of (pp, dp)": mask(100 * coordinate["pp"] + coordinate["dp"])}

# %%
tensor_pairs, data_pairs = ([(a, b) for a, b in all_groups(ranks["by_mesh"])[name]] for name in ("tp", "dp"))
for way in ranks["masks"][0]:
    drawn = [masks[way] for masks in ranks["masks"]]
    same = all(drawn[a] == drawn[b] for a, b in tensor_pairs)
    differ = all(drawn[a] != drawn[b] for a, b in data_pairs)
    print(f"{way:16} {' '.join(drawn)}\n{'':16} equal along tp: {same} · unlike along dp: {differ}")

# %% [markdown]
# A seed made of all coordinates but `tp` does it. (Where activations are cut along `tp`, as in sequence parallelism,
# the masks must differ along `tp` too.)
#
# ### Whose norm?
#
# Clipping divides all gradients by one norm, that of the whole gradient. Each rank of a mesh holds a part, and some
# parts are held twice. PyTorch's own function does not accept such a mixture:

# %%
%%ranks
try:
    torch.nn.utils.clip_grad_norm_(pipeline.model.parameters(), 1.0)
except RuntimeError as error:
    print(str(error).partition(",")[0])
local = sum((p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).square().sum()
            for p in pipeline.model.parameters()).sqrt().item()

# %%
print("norm of the gradients that each rank holds:", *[f"{norm:.3f}" for norm in ranks["local"]])

# %% [markdown]
# Clip each rank by its own norm, and the parts of one gradient are scaled by different numbers: another direction.
# **Exercise 4.** Return the norm of the whole gradient, on every rank. Of the gradients in `model`, some are cut
# along `tp` (`p.grad.placements[0].is_shard()`); some are DTensors that every tensor rank holds whole (the bias of a
# linear cut by rows); and the norms and embeddings are plain tensors, also whole on every tensor rank.

# %% tags=["exercise"] fidle={"wrong": ["%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    return (cut + kept).sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    total = cut + kept\n    dist.all_reduce(total, group=mesh.get_group(\"pp\"))\n    return total.sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    dist.all_reduce(cut, group=mesh.get_group(\"tp\"))\n    return (cut + kept).sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    total = cut + kept\n    dist.all_reduce(total, group=mesh.get_group(\"tp\"))\n    dist.all_reduce(total, group=mesh.get_group(\"pp\"))\n    return total.sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    total = cut + kept\n    dist.all_reduce(total)\n    return total.sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor):\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    dist.all_reduce(cut, group=mesh.get_group(\"tp\"))\n    total = cut + kept\n    dist.all_reduce(total, group=mesh.get_group(\"pp\"))\n    return total.sqrt()\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    dist.all_reduce(cut, group=mesh.get_group(\"tp\"))\n    total = cut + kept\n    dist.all_reduce(total, group=mesh.get_group(\"pp\"))\n    return total\n", "%%ranks\ndef mesh_norm(model, mesh):\n    cut = kept = torch.zeros((), device=device)\n    for p in model.parameters():\n        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad\n        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():\n            cut = cut + local.square().sum()\n        else:\n            kept = kept + local.square().sum()\n    dist.all_reduce(cut, group=mesh.get_group(\"tp\"))\n    total = (cut + kept).sqrt()\n    dist.all_reduce(total, group=mesh.get_group(\"pp\"))\n    return total\n"]}
%%ranks
def mesh_norm(model, mesh):
    """The norm of the whole gradient, over all stages and tensor shares; the same number on every rank."""
    ...

# %% tags=["check"]
def test_norm(mesh_norm):
    pipeline, alone = three_d(torch.float32), new_gpt(torch.float32)
    pipeline.backward(*share(mesh)), token_loss(alone(x), y).backward()
    truth = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm().item()
    answer, squares = float(mesh_norm(pipeline.model, mesh)) / truth, torch.zeros(3)
    for p in pipeline.model.parameters():
        kind = 2 if not isinstance(p.grad, DTensor) else 0 if p.grad.placements[0].is_shard() else 1
        squares[kind] += (p.grad.to_local() if kind < 2 else p.grad).square().sum().item()
    dist.all_gather_object(parts := [None] * world_size, squares / truth**2)
    cut, kept, plain = torch.stack(parts).view(2, 2, 2, 3)[:, 0].double().unbind(-1)    # each is pp × tp
    (me, t), every = (mesh.get_local_rank(name) for name in ("pp", "tp")), cut + kept + plain
    by_stage = cut.sum(1) + (kept + plain)[:, 0]                    # these two add up to the truth
    said = {"the norm of what you hold: other ranks hold the rest.": every[me, t],
            "the other tensor rank's part of the cut gradients is missing.": every[:, t].sum(),
            "the other stage is missing: sum the squares along pp too.": by_stage[me],
            "what both tensor ranks hold whole counts twice.": every.sum(),
            "data ranks hold copies: leave dp out.": 2 * every.sum(),
            "a DTensor can be whole too: placements[0].is_shard().": (cut + kept).sum() + plain[:, 0].sum(),
            "that is the square: take its root at the end.": torch.tensor(truth**2),
            "add squares, not norms; the root comes last.": by_stage.sqrt().sum()**2}
    same = [hint for hint, square in said.items() if abs(answer - square.sqrt()) < 1e-5]
    assert not same, same[0]
    assert abs(answer - 1) < 1e-5, f"you return {answer:.5f} times the norm of the whole gradient."

check("mesh_norm", test_norm)

# %% tags=["solution"] jupyter={"source_hidden": true}
%%ranks
def mesh_norm(model, mesh):
    cut, whole = torch.zeros(2, device=device)
    for p in model.parameters():
        local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        if isinstance(p.grad, DTensor) and p.grad.placements[0].is_shard():
            cut += local.square().sum()
        else:
            whole += local.square().sum()
    dist.all_reduce(cut, group=mesh.get_group("tp"))            # the parts of what is cut
    total = cut + whole                                         # once, what every tensor rank holds
    dist.all_reduce(total, group=mesh.get_group("pp"))          # the stages; data ranks hold copies
    return total.sqrt()

# %% tags=["solution"] jupyter={"source_hidden": true}
check("mesh_norm", test_norm)

# %% [markdown]
# ### Who saves what?
#
# Data ranks hold copies: one of them saves. What is cut along `tp`, every tensor rank saves; what is whole, one of
# them.

# %%
%%ranks
saved = {}
for name, p in pipeline.model.named_parameters():
    is_cut = isinstance(p, DTensor) and p.placements[0].is_shard()
    if coordinate["dp"] == 0 and (is_cut or coordinate["tp"] == 0):
        saved[name] = p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes
whole_model = sum(p.nbytes for p in new_gpt(torch.float32).parameters())
print(f"{coordinate} saves {len(saved):2} tensors, {sum(saved.values())} bytes")

# %%
total = sum(sum(saved.values()) for saved in ranks["saved"])
assert total == ranks["whole_model"][0]
print(f"all together {total} bytes: the model, once, from four of eight ranks")

# %% [markdown]
# `torch.distributed.checkpoint` does this for you, and reads the result back on another mesh (lesson 10).

# %% [markdown]
# ## Go further: HSDP, two kinds of data ranks
#
# FSDP over all GPUs gathers weights across the network. *Hybrid sharding*, HSDP (another use of the word), cuts the
# weights among the ranks of a node and keeps a copy on each node: `fully_shard` on a mesh of two dimensions, first
# the copies, then the shards.

# %%
%%ranks
hsdp = init_device_mesh(device.type, (2, 4), mesh_dim_names=("replicate", "shard"))

def hybrid_sharding(dtype):
    gpt = new_gpt(dtype)
    for part in (*gpt.blocks, gpt):
        fully_shard(part, mesh=hsdp)
    my_x, my_y = x.chunk(8)[rank], y.chunk(8)[rank]             # here every rank is a data rank
    with count_communication() as by_hsdp:
        loss = token_loss(gpt(my_x), my_y)
        loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return compare(mean / world_size, gpt, dtype), by_hsdp

(single, by_hsdp), (double, _) = hybrid_sharding(torch.float32), hybrid_sharding(torch.float64)

# %%
show_equal(ranks["single"], ranks["double"])
for group in ("shard", "replicate"):
    print(f"{group:10} {ranks['by_hsdp'][0].bytes_sent(group=group) / 1e3:6.0f} kB sent by rank 0")
pairs = [[i, i + 4] for i in range(4)]
plots.plot_mesh({"HSDP": {"shard": [[0, 1, 2, 3], [4, 5, 6, 7]], "replicate": pairs}}, node=4);

# %% [markdown]
# The network carries the sum of a *quarter* of the gradients, once. The gathering stays at home.
#
# ## Go further: experts, a fourth dimension
#
# A *mixture of experts* (MoE, fr. *mélange d'experts*) replaces the MLP of a block by several, the *experts*. A
# *router* chooses, for each token, the one (Switch [6]) or the two (GShard [7]) that it goes to: many more weights,
# and for a token only the FLOP of one or two experts. *Expert parallelism* puts every expert on a rank of its own.
# Then tokens must travel: an `all_to_all` there, and one back.
#
# `all_to_all_single` gives every rank the pieces meant for it. Backward, the gradients go the way back: sizes
# swapped.

# %%
%%ranks
class Exchange(torch.autograd.Function):
    """Send rows to the ranks: the first send[0] to rank 0, and so on; receive[r] rows come from rank r."""

    @staticmethod
    def forward(ctx, rows, send, receive):
        ctx.sizes = send, receive
        arrived = rows.new_empty(sum(receive), rows.shape[1])
        dist.all_to_all_single(arrived, rows.contiguous(), receive, send)
        return arrived

    @staticmethod
    def backward(ctx, gradient):
        send, receive = ctx.sizes
        back = gradient.new_empty(sum(send), gradient.shape[1])
        dist.all_to_all_single(back, gradient.contiguous(), send, receive)
        return back, None, None

# %% [markdown]
# The layer, for `k` experts a token. Its tokens are sorted by expert, sent, transformed, sent back, and added with
# the weight that the router gave.

# %%
%%ranks
def route(x, router, k):
    """The k experts of each token, and their weights, which add up to 1 when k > 1."""
    weights, experts = router(x).softmax(-1).topk(k, dim=-1)
    return experts, weights if k == 1 else weights / weights.sum(-1, keepdim=True)

def expert_parallel(x, router, my_expert, k):
    experts, weights = route(x, router, k)
    order = experts.flatten().argsort(stable=True)              # copies of tokens, by expert
    token = order // k
    send = experts.flatten().bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)                       # first, how many
    send, receive = send.tolist(), receive.tolist()
    arrived = Exchange.apply(x[token], send, receive)
    back = Exchange.apply(my_expert(arrived), receive, send)
    return torch.zeros_like(x).index_add(0, token, back * weights.flatten()[order, None]), send

# %% [markdown]
# One process holds all eight experts, sees all tokens, and sends nothing.

# %%
%%ranks
def layer(dtype):
    torch.manual_seed(0)
    experts = [nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(world_size)]
    return [module.to(device, dtype) for module in (nn.Linear(32, world_size, bias=False), *experts)]

def one_process(x, router, experts, k):
    chosen, weights = route(x, router, k)
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        token, place = (chosen == e).nonzero(as_tuple=True)
        y = y.index_add(0, token, expert(x[token]) * weights[token, place, None])
    return y

def tokens(dtype):
    """512 tokens as the second block of our GPT receives them."""
    stage = Stage(new_gpt(dtype), 0, 4)                         # the embeddings and the first of four blocks
    with torch.no_grad():
        return nn.functional.layer_norm(stage(x[:16]).flatten(0, 1), (32,))

# %%
%%ranks
def moe_and_compare(k, dtype):
    """Relative differences with one process: outputs, gradients of my expert, of the router, of my tokens."""
    all_x, (router, *experts) = tokens(dtype).requires_grad_(), layer(dtype)
    y = one_process(all_x, router, experts, k)
    y.square().mean().backward()

    my_x, (my_router, *others) = tokens(dtype).chunk(world_size)[rank].requires_grad_(), layer(dtype)
    mine = others[rank]                                             # the only expert that this rank keeps
    my_y, send = expert_parallel(my_x, my_router, mine, k)
    (my_y.square().sum() / y.numel()).backward()
    dist.all_reduce(my_router.weight.grad)                          # the router has a copy on every rank

    def far(a, b):
        return ((a - b).norm() / b.norm()).item()
    pairs = zip(mine.parameters(), experts[rank].parameters())
    return {"outputs": far(my_y, y.chunk(world_size)[rank]),
            "router": far(my_router.weight.grad, router.weight.grad),
            "my expert": max(far(p.grad, q.grad) for p, q in pairs),
            "my tokens": far(my_x.grad, all_x.grad.chunk(world_size)[rank])}, send

(single, top_1), (double, _) = moe_and_compare(1, torch.float32), moe_and_compare(1, torch.float64)
after = None                                                        # rank 0 trains a router below
(single_2, top_2), (double_2, _) = moe_and_compare(2, torch.float32), moe_and_compare(2, torch.float64)

# %%
show_equal(ranks["single"], ranks["double"])
show_equal(ranks["single_2"], ranks["double_2"])

# %% [markdown]
# Top-1 and top-2, outputs and gradients: equal. Note who averages what. An expert's gradient is complete as it is:
# its tokens came from everywhere. The router's is a sum over all ranks.
#
# Now look at who travelled where.

# %%
guess = predict("512 tokens, 8 experts, a router that has learned nothing. The fullest expert gets how many "
                "times the fair share of 64?", unit="times")

# %%
plots.plot_expert_load(ranks["top_1"])
loads = torch.tensor(ranks["top_1"]).sum(0)
reveal(guess, (loads.max() / loads.float().mean()).item(), why="And everybody waits for the fullest expert.")

# %% [markdown]
# Two cures. A **capacity** (fr. *capacité*): an expert takes at most factor × fair share, and a token that finds no
# place is *dropped*: it passes by the layer on the residual path. And a **loss** that pushes the router to share out:
# n · Σ fₑ · Pₑ, where fₑ is the share of tokens that expert e gets and Pₑ its mean probability [6]. Let us train the
# router alone with it.

# %%
%%ranks 0
def loads_of(router, x):
    return router(x).argmax(-1).bincount(minlength=8)

x_all, router = tokens(torch.float32), layer(torch.float32)[0]
optimizer = torch.optim.Adam(router.parameters(), lr=0.01)
print(f"tokens of each expert: {loads_of(router, x_all).tolist()}", end=" → ")
for _ in range(200):
    probabilities = router(x_all).softmax(-1)
    f = probabilities.argmax(-1).bincount(minlength=8) / len(x_all)
    balance = 8 * (f * probabilities.mean(0)).sum()                 # 1 when all is even
    optimizer.zero_grad()
    balance.backward()
    optimizer.step()
after = loads_of(router, x_all)
print(after.tolist())

# %%
factors = [1, 1.25, 1.5, 2, 2.5, 3]
before, after = loads, ranks["after"][0]

def dropped(loads, factor):
    capacity = factor * loads.sum() / len(loads)
    return ((loads - capacity).clamp(min=0).sum() / loads.sum()).item()

plots.plot_drops(factors, {"untrained router": [dropped(before, f) for f in factors],
                           "after 200 steps of the balancing loss": [dropped(after, f) for f in factors]});

# %% [markdown]
# A capacity also makes every message of the all_to_all the same size, known in advance. Its price is what you read
# here: at a factor of 1, each token above the fair share is lost; at 2, twice the memory and the messages are
# reserved, mostly for nobody.

# %% [markdown]
# ## In practice
#
# - Order: the group that talks most goes last in the mesh. Megatron's runs take tensor parallelism up to 8, the size
#   of their nodes, before any pipeline, and data with what remains [5, Table 1]. DeepSpeed numbers (pipeline, data,
#   tensor) [4], torchtitan (pipeline, data, context, tensor) [9].
# - Sizes: the smallest tensor × pipeline at which weights, states and activations fit; the rest is data. More
#   micro-batches than stages, several times.
# - In a node of four (H100 of Jean Zay), tensor 8 already crosses the network. Check which ranks share a node: print
#   it once.
# - FSDP or ZeRO-1 along the data dimension is the usual choice now, rather than plain copies (lesson 08).
# - Samplers, seeds, norms, metrics and checkpoints: for each, say along which dimensions it is the same, and along
#   which it differs.
# - Build all groups at the start, on all ranks. On NCCL, every group costs memory and seconds: make them once.
# - Compare one step with one process, on a small model, before every large run. You have the cell.
#
# ## Go further
#
# - Cut the GPT in four stages: a mesh (4, 2, 1). What changes in the bytes?
# - Give the tensor dimension four ranks, (1, 2, 4): `n_heads=4` still allows it. And eight?
# - Put sequence parallelism (lesson 05) into `cut`: which all_reduces become reduce_scatter and all_gather? Count
#   again.
# - In `Pipeline`, replace the averaging by `fully_shard` along `dp`. What does FSDP do at every micro-batch, and what
#   would you rather it did?
# - Send the tokens of the MoE layer to experts of your own node only. How many are misrouted?

# %% [markdown]
# ## Sources
#
# 1. BigScience, [*tr11-176B-ml*](https://github.com/bigscience-workshop/bigscience/tree/master/train/tr11-176B-ml):
#    README (the mesh, the stages), chronicles (times), and `experiments/` for bandwidths
#    (`fidle_utils/reference/jeanzay_bigscience_a100.csv`).
# 2. IDRIS, [*Democratizing-LLM-FT*](https://github.com/idriscnrs/Democratizing-LLM-FT), 2025: the nodes' links
#    (poster, read off a drawing) and the logs (`jeanzay_idris_sft_2025.csv`).
# 3. S. Bekman, [*ml-engineering*](https://github.com/stas00/ml-engineering): NVLink, measured all_reduce, best matrix
#    products.
# 4. DeepSpeed,
#    [`runtime/pipe/topology.py`](https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/pipe/topology.py):
#    the order of the ranks.
# 5. D. Narayanan et al., *Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM*, 2021,
#    [arXiv:2104.04473](https://arxiv.org/abs/2104.04473).
# 6. W. Fedus, B. Zoph, N. Shazeer, *Switch Transformers*, 2021, [arXiv:2101.03961](https://arxiv.org/abs/2101.03961):
#    one expert a token, capacity, the balancing loss.
# 7. D. Lepikhin et al., *GShard*, 2020, [arXiv:2006.16668](https://arxiv.org/abs/2006.16668): two experts a token,
#    experts across devices.
# 8. PyTorch documentation: [DeviceMesh](https://docs.pytorch.org/docs/stable/distributed.html#devicemesh),
#    [pipelining](https://docs.pytorch.org/docs/stable/distributed.pipelining.html),
#    [tensor parallelism](https://docs.pytorch.org/docs/stable/distributed.tensor.parallel.html),
#    [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
# 9. PyTorch, [*torchtitan*](https://github.com/pytorch/torchtitan), `torchtitan/distributed/parallel_dims.py`: its
#    meshes.

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("A mesh (pp 4, dp 2, tp 8) on nodes of eight GPUs. Inside the node live…",
             options=["the pipeline groups", "the data groups", "the tensor groups"])
q2 = predict("Micro-batch 1, 16 micro-batches, mesh (pp 4, dp 2, tp 8). Samples in a step:",
             options=["16", "32", "1024"])

# %%
reveal(q1, "the tensor groups", why="The last dimension has neighbouring ranks, and there are eight of them.")
reveal(q2, "32", why="1 × 16 × 2: only data shares multiply.")

# %%
q3 = predict("The gradients of a hybrid run are averaged over…",
             options=["all ranks", "the data group", "the pipeline group"])
q4 = predict("Tensor ranks of one group read…", options=["the same data", "different data"])
q5 = predict("A tensor group goes from NVLink to the network of Jean Zay's A100 nodes. Its messages take…",
             options=["2 times longer", "9 times longer", "48 times longer"])
q6 = predict("Twice the micro-batches in a step, of the same size. The bytes of the data group…",
             options=["double", "do not change", "halve"])

# %%
reveal(q3, "the data group", why="Only its ranks hold the same weights.")
reveal(q4, "the same data", why="Each has a part of every matrix, and the sum needs one input.")
reveal(q5, "48 times longer", why="300 against 6.25 GB/s for a GPU, by the sheet; and see what was measured.")
reveal(q6, "do not change", why="Once a step, whatever its length. Those of tensor and pipeline double.")

# %%
from fidle_utils import progress

progress.show("07")
