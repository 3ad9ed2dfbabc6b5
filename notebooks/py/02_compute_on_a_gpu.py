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
# # 02 · Compute on a GPU
#
# Before you use many GPUs, use one well. A device that waits for its memory, its data or its orders is a device that
# you pay for nothing, and eight of them are eight times nothing.
#
# **You will** measure how fast your device computes and how fast its memory feeds it, predict which of the two slows
# down each operation of a transformer, catch a clock that lies, train in 16 bits, lose the gradients and get them
# back, and find out why three programs are slow.
#
# **You learn** the roofline, asynchronous execution, mixed precision, `torch.compile`, data loading, and how to read
# the timeline of a training step.
#
# **You need** PyTorch's training loop. No GPU is needed: your processor has a roofline too, and the same cells use a
# GPU if there is one. What only a GPU shows comes with published numbers, and says so.
#
# **Time** 10 min live (the cells tagged `live`), 75 min alone, with three exercises.

# %% tags=["live"]
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import pandas as pd
import torch
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention

from fidle_utils import plots
from fidle_utils.data import batches, digits, topics
from fidle_utils.measure import work
from fidle_utils.measure.machine import device_report
from fidle_utils.measure.memory import memory_ledger
from fidle_utils.measure.roofline import operation, published, roofline
from fidle_utils.measure.speed import kept_pages, memory_sweep, timings
from fidle_utils.measure.timeline import Timeline, collect, record
from fidle_utils.measure.tracking import track
from fidle_utils.models import GPT, MLP, SmallCNN
from fidle_utils.reference import table
from fidle_utils.teach import check, predict, reveal

# %% tags=["live"]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
print(f"this lesson runs on: {device}")

# %% [markdown]
# Two models will serve us: a wide MLP that reads digits, and a small GPT that reads Python's manual.

# %%
x_train, y_train, x_test, y_test = digits()
text = topics(block_size=64)
torch.manual_seed(0)
mlp, gpt = MLP(width=1024, depth=4).to(device), GPT(len(text.vocab)).to(device)
images, labels = x_train[:512].to(device), y_train[:512].to(device)
ids, next_ids = (tensor.to(device) for tensor in next(iter(batches(text, 16))))

# %% [markdown]
# ## Near memory is fast, far memory is large
#
# A device computes with numbers that it must first fetch. Close to its arithmetic units lies a small, fast memory, the
# *cache* (fr. *mémoire cache*); farther away a large, slow one. Your processor has both, and so has a GPU.

# %%
guess = predict("A copy of data that fits in a cache, against one that does not: how many times faster?",
                unit="×")

# %% [markdown]
# We copy tensors of growing size, many times each. Small ones stay in a cache from one copy to the next. The very
# smallest are slow for another reason: a PyTorch call takes some microseconds, whatever it does.

# %%
machine = device_report()
sweep = memory_sweep(device)
plots.plot_memory_sweep(sweep, machine.caches[-1:] if device.type == "cpu" else []);

# %%
rates = [rate["best"] for rate in sweep]                # bytes per second, the smallest tensors first
reveal(guess, max(rates) / rates[-1],
       why=f"{max(rates) / 1e9:.0f} GB/s at best, {rates[-1] / 1e9:.0f} at the end.")

# %% [markdown]
# The same ladder on a GPU node, with the numbers that its maker prints. NVLink joins the GPUs of a node, PCIe joins a
# GPU to the processor.

# %%
h100 = table("gpu_specs", gpu="H100-SXM5-80GB")[0]
ladder = [
    ("your cache", max(rates), "measured here"),
    ("your memory", rates[-1], "measured here"),
    ("H100: its memory", 1e9 * h100["memory_gb_per_second"], "published"),
    ("H100 to another GPU, NVLink", 1e9 * h100["gpu_link_gb_per_second"], "published"),
    ("H100 to the processor, PCIe", 1e9 * h100["pcie_gb_per_second"], "published"),
]
plots.plot_memory_ladder(ladder, source=h100["source"]);

# %% [markdown]
# So a program is fast when it fetches a number once and computes with it often. How often is often enough?

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## The roofline: two limits, one figure
#
# Count two things about an operation: its FLOP (floating-point additions, multiplications…), and the bytes that it
# must read and write (fp32: 32-bit numbers, PyTorch's default; fp16, bf16: 16 bits, below). Their ratio is its
# *arithmetic intensity* (fr. *intensité arithmétique*), in FLOP/byte.
#
# Memory delivers so many bytes a second, so an operation of intensity $I$ runs at no more than $I$ times that. And
# never faster than the arithmetic units can: the *peak* (fr. *performance crête*).
#
# $$\text{FLOP/s} \;\le\; \min(\,\text{peak},\; I \times \text{memory bandwidth}\,)$$
#
# Left of the *ridge*, where the two limits meet, memory decides: the operation is **memory bound**. Right of it,
# arithmetic decides: **compute bound**.

# %%
guess = predict("On your device, from how many FLOP/byte on is arithmetic (fp32) the limit?",
                unit="FLOP/byte")

# %% tags=["live"]
roof = roofline(device, seconds=0.2)        # copies and matmuls of several sizes, the best of each
roof

# %%
reveal(guess, roof.ridge("fp32"),
       why="The peak over the bandwidth. An operation must do as much with each byte.")

# %% tags=["live"]
plots.plot_roofline(roof);

# %% [markdown]
# ## Count before you measure
#
# Take a matmul of two $n \times n$ matrices. Each of the $n^2$ results is a sum of $n$ products: $2n^3$ FLOP. At the
# least it reads two matrices and writes one.
#
# **Exercise 1.** Return the arithmetic intensity of three operations on tensors of $n \times n$ numbers of
# `bytes_per_number` bytes each. Count every tensor that must be read once, and every one that must be written once.
#
# - `matmul`: as above.
# - `softmax` of each row: 5 FLOP a number (find the maximum, subtract it, take the exponential, add up, divide).
# - one step of `adam`: 13 FLOP a parameter. Here it is, with its FLOP. Which tensors does it read, which does it write?
#
# | for each parameter $p$ with gradient $g$ | FLOP |
# |---|---|
# | $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$ | 3 |
# | $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$ | 4 |
# | $d = \sqrt{v} \,/\, c + \varepsilon$, with a number $c$ that all share | 3 |
# | $p \leftarrow p - \eta\, m \,/\, d$ | 3 |

# %% tags=["exercise"] fidle={"wrong": ["def intensities(n, bytes_per_number):\n    return {\"matmul\": 2 * n**3 / (2 * n**2 * bytes_per_number), \"softmax\": 5 / bytes_per_number, \"adam\": 13 / (2 * bytes_per_number)}", "def intensities(n, bytes_per_number):\n    return {\"matmul\": 2 * n**3 / (3 * n**2 * bytes_per_number), \"softmax\": 5 / (2 * bytes_per_number), \"adam\": 13 / (4 * bytes_per_number)}", "def intensities(n, bytes_per_number):\n    return {\"matmul\": 2 * n**3 / (3 * n**2), \"softmax\": 5 / 2, \"adam\": 13 / 7}", "def intensities(n, bytes_per_number):\n    return {\"matmul\": n**3 / (3 * n**2 * bytes_per_number), \"softmax\": 5 / (2 * bytes_per_number), \"adam\": 13 / (7 * bytes_per_number)}"]}
def intensities(n, bytes_per_number):
    """FLOP per byte: {"matmul": …, "softmax": …, "adam": …}"""
    ...

# %% tags=["check"]
def test_intensities(intensities):
    for n, size in ((64, 4), (1024, 2)):
        answer = intensities(n, size)
        truth = {"matmul": work.matmul(n, n, n, size), "softmax": work.softmax(n, n, size),
                 "adam": work.adam_step(n * n, size)}                   # the course's own formulas
        for name in truth:
            ratio = answer[name] / truth[name].intensity
            assert not math.isclose(ratio, size), f"{name}: {size} bytes for each number, not one."
            assert not math.isclose(ratio, 0.5), f"{name}: a product and an addition are two FLOP."
            assert math.isclose(ratio, 1, rel_tol=1e-6), f"{name}: {ratio:.2f} times the truth. All tensors?"

check(intensities, test_intensities, hint="return a dict of three numbers, FLOP over bytes")

# %% tags=["solution"] jupyter={"source_hidden": true}
def intensities(n, bytes_per_number):
    tensor = n**2 * bytes_per_number
    return {
        "matmul": 2 * n**3 / (3 * tensor),              # n/6 in fp32: it grows with n
        "softmax": 5 * n**2 / (2 * tensor),             # the same for all n
        "adam": 13 * n**2 / (7 * tensor),               # reads p, g, m, v; writes p, m, v
    }

# %% tags=["solution"] jupyter={"source_hidden": true}
check(intensities, test_intensities, hint="return a dict of three numbers, FLOP over bytes")

# %% [markdown]
# Does PyTorch count the same? `operation` measures a function, counts its FLOP as PyTorch runs it, and adds up the
# bytes of the tensors that go in and out.

# %%
a, b = torch.randn(2, 512, 512, device=device)
for measured in (operation(torch.mm, a, b, name="matmul", seconds=0.05),
                 operation(torch.softmax, a, -1, name="softmax", seconds=0.05)):
    print(f"{measured.name}: {measured.flops:.0f} FLOP, {measured.n_bytes} bytes, "
          f"{measured.intensity:.3f} FLOP/byte")
print(f"formulas: n/6 = {512 / 6:.3f}, 5/8 = {5 / 8}; Adam: {work.adam_step(512**2)}")

# %% [markdown] tags=["live"] fidle={"minutes": 3}
# ## Where do they land?
#
# The operations of a transformer's step: the matmuls of its linear layers; attention; softmax; layer norm; Adam.
# Predict for two of them which limit they meet.

# %%
layer_norm_guess = predict("Layer norm of 8192 rows of 1024 numbers is…",
                           options=["memory bound", "compute bound"])
attention_guess = predict("Attention over 512 tokens, 64 numbers a head, in one pass that never writes "
                          "the scores to memory (*fused*), is…",
                          options=["memory bound", "compute bound"])

# %% tags=["live"]
def randn(*shape):
    return torch.randn(shape, device=device)

n = 1024 if device.type == "cpu" else 4096
p = randn(1 << 22).requires_grad_()
p.grad = randn(1 << 22)
adam, of_adam = torch.optim.Adam([p], fused=True), work.adam_step(1 << 22)
q, k, v, x = randn(4, 8, 512, 64), randn(4, 8, 512, 64), randn(4, 8, 512, 64), randn(8192, 1024)
operations = [
    operation(torch.mm, randn(n, n), randn(n, n), name="matmul", seconds=0.15),
    operation(torch.mv, randn(4096, 4096), randn(4096), name="matrix × vector", seconds=0.15),
    operation(torch.softmax, x, -1, name="softmax", seconds=0.15),
    operation(lambda x: layer_norm(x, x.shape[-1:]), x, name="layer norm", seconds=0.15),
    operation(scaled_dot_product_attention, q, k, v, name="attention", seconds=0.15),
    operation(adam.step, name="Adam", flops=of_adam.flops, n_bytes=of_adam.n_bytes, device=device),
]

# %% tags=["live"]
plots.plot_roofline(roof, operations);

# %%
verdicts = roof.table(operations).set_index("name")
for guess, name in ((layer_norm_guess, "layer norm"), (attention_guess, "attention")):
    reveal(guess, f"{verdicts.bound[name]} bound", why=f"{name}: {verdicts.intensity[name]:.3g} FLOP/byte.")
verdicts[["level", "intensity", "bound", "percent"]].round(2)

# %% [markdown]
# `percent` compares with the roof right above the point. Far below it is a program to look at; near it is as good as it
# gets on this device. (Above 100 % the machine was busier while we measured the roof. `level`: on a CPU, operands that
# fit in a cache are compared with that cache.)

# %% [markdown] tags=["live"]
# **Only large matmuls and fused attention *can* have the intensity to reach the peak.** The rest is limited by memory:
# there a faster GPU helps little, and fewer bytes help much. Half of this lesson is about that.

# %% [markdown]
# Here are three GPUs of Jean Zay over your own roof, with the peaks that the maker prints.

# %%
gpus = published("V100-SXM2-32GB", dtype="fp16") + published("A100-SXM4-80GB", "H100-SXM5-80GB", dtype="bf16")
plots.plot_roofline(roof, operations, others=gpus);

# %%
for gpu in gpus:
    ridge = gpu["flops_per_second"] / gpu["bytes_per_second"]
    print(f"{gpu['name']:24} ridge at {ridge:.0f} FLOP/byte (published)")

# %% [markdown]
# Your points count 4 bytes a number. In 16 bits each moves to twice its intensity: imagine that before you compare.
# Attention over 512 tokens would still be memory bound on an H100.
#
# From one GPU to the next the peak grew faster than the memory, so the ridge moves to the right: what was
# compute bound becomes memory bound. Peaks are never reached, either; the best matmul that others measured:

# %%
for row in table("matmul_ceilings", dtype="bf16"):
    spec = table("gpu_specs", gpu=row["gpu"])
    if spec and spec[0]["bf16_tflops"]:
        print(f"{row['gpu']:16} {row['tflops']:6.0f} of {spec[0]['bf16_tflops']:6.0f} TFLOP/s (published)")

# %% [markdown]
# ### Move the roof yourself
#
# The sliders change the machine and the sizes of an operation. The *linear layer* multiplies a matrix of `tokens` rows by
# a matrix of weights. A language model that writes does so with one token at a time.

# %%
guess = predict("An H100 in bf16, a linear layer of width 4096: from how many tokens on is it compute bound?",
                options=["1", "32", "512", "8192"])

# %%
from fidle_utils.widgets import roofline_sliders

roofline_sliders(roof, operation="linear layer", dtype="bf16" if "bf16" in roof.compute else "fp16")

# %%
ridge = gpus[-1]["flops_per_second"] / gpus[-1]["bytes_per_second"]
tokens = next(m for m in (1, 32, 512, 8192) if work.matmul(m, 4096, 4096, 2).intensity > ridge)
reveal(guess, str(tokens),
       why=f"One token: {work.matmul(1, 4096, 4096, 2).intensity:.2f} FLOP/byte. Every weight is read to "
       "be used once. Batches make it fast, in training as in service.")

# %% [markdown] tags=["live"] fidle={"minutes": 2}
# ## The clock that lies
#
# A GPU takes orders and carries them out later. `torch.mm(a, b)` puts a *kernel* (fr. *noyau*) in the GPU's queue, the
# *stream*, and returns at once: execution is *asynchronous* (fr. *asynchrone*). Python runs ahead of the device.
#
# Without a GPU we **emulate** one, honestly: a thread that takes orders from a queue and carries them out one by one.
# With a GPU these cells use the real thing.

# %% tags=["live"]
if device.type == "cuda":
    def order(job):
        job()                                           # PyTorch puts it in the GPU's own queue
    wait = torch.cuda.synchronize
else:
    queue = ThreadPoolExecutor(1)                       # an emulated device
    order = queue.submit
    def wait():
        queue.submit(int).result()                      # comes last in the queue

a, b, c = randn(n, n), randn(n, n), randn(n, n)
def multiply():
    torch.mm(a, b, out=c)

# %%
guess = predict("Eight matmuls are ordered and the clock is stopped. Against the truth they seem…",
                options=["as fast", "slower", "many times faster"])

# %% tags=["live"]
def seconds_of_eight(wait_for_the_device):
    wait()
    start = time.perf_counter()
    for _ in range(8):
        order(multiply)
    if wait_for_the_device:
        wait()
    return time.perf_counter() - start

order(multiply)                                         # warm up
naive, honest = seconds_of_eight(False), seconds_of_eight(True)
wait()
flop = 8 * 2 * n**3
rates = {"naive clock": flop / naive, "honest clock": flop / honest, "the roof": roof.compute["fp32"]}
for name, rate in rates.items():
    print(f"{name:12} {rate / 1e9:12,.0f} GFLOP/s")

# %%
reveal(guess, "many times faster",
       why="It timed how long it takes to give orders. A result far above the roof: "
       "suspect the clock.")

# %% [markdown]
# Let us watch both sides. `mark()` puts a mark in the queue, which notes the time when the device comes by; on a GPU
# that is a CUDA event. Between two orders the host (fr. *hôte*), your Python program, has work of its own, half as long
# as a matmul: here it sleeps. So does the emulated device, as long as a matmul takes, to leave the host its cores.

# %%
def mark():
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return queue.submit(time.perf_counter)

def ms_between(first, second):
    return first.elapsed_time(second) if device.type == "cuda" else 1e3 * (second.result() - first.result())

# %%
def follow(ask_each_time, n_orders=6, host_seconds=honest / 16):
    """(start, end) of each order in milliseconds: on the host, on the device."""
    job = multiply if device.type == "cuda" else partial(time.sleep, honest / 8)
    wait()
    zero, start, host, marks = mark(), time.perf_counter(), [], []
    for _ in range(n_orders):
        begin = time.perf_counter()
        time.sleep(host_seconds)
        marks.append([mark(), order(job), mark()])
        host.append([1e3 * (begin - start), 1e3 * (time.perf_counter() - start)])
        if ask_each_time:
            wait()                                      # what loss.item() does
    wait()
    return host, [(ms_between(zero, before), ms_between(zero, after)) for before, _, after in marks]

# %%
guess = predict("The loop asks for the loss after each order: loss.item(). How many times longer?",
                unit="×")

# %%
runs = {"the host waits once, at the end": follow(False), "the host waits after each order": follow(True)}
plots.plot_orders(runs, "measured here" if device.type == "cuda" else "emulated");

# %%
ahead, asking = (device_spans[-1][1] for _, device_spans in runs.values())
reveal(guess, asking / ahead,
       why="Host and device take turns instead of working together: 1.5 if nothing disturbs.")

# %% [markdown]
# A colour is an order. In the first run the host gives its orders while the device works; in the second, one of the two
# is always idle.
#
# Two rules follow. **Time with** `torch.cuda.synchronize()` before each look at the clock, or with CUDA events; the
# course's `timings`, `track` and `operation` do. **And do not make the host wait inside the loop**: `loss.item()`,
# `print(loss)`, `tensor.cpu()` and `if loss > 3` all do. Keep the losses as tensors, read them every hundred steps.
#
# On a CPU alone PyTorch is synchronous: each call returns when its work is done, and the naive clock is right.

# %% [markdown] tags=["live"] fidle={"minutes": 1.5}
# ## Fewer bits
#
# Half the bytes for each number: half the time for all that is memory bound, and on GPUs far more than twice the peak,
# as *tensor cores* multiply small matrices in 16 or 8 bits. What do fewer bits cost? A format has bits for the
# **exponent**, which give its range, and bits for the **mantissa**, which give its digits.

# %% tags=["live"]
formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
           "fp8 e5m2": torch.float8_e5m2, "fp8 e4m3": torch.float8_e4m3fn}
infos = {name: torch.finfo(dtype) for name, dtype in formats.items()}
pd.DataFrame({name: {"bits": info.bits, "largest": f"{info.max:.3g}", "next after 1": f"{1 + info.eps:.8g}",
                     "smallest": f"{info.smallest_normal * info.eps:.1e}",
                     "pi becomes": torch.tensor(math.pi).to(formats[name]).item()}
              for name, info in infos.items()}).T

# %% [markdown]
# **bf16** has the range of fp32 and two to three digits. **fp16** has one digit more and a narrow range. **tf32** is no
# storage format: tensor cores from the A100 on read fp32 numbers, keep the 8 bits of exponent and round the mantissa to
# 10 bits, as many as fp16's. We can do that by hand:

# %%
def to_tf32(x):
    """Round the 23 bits of an fp32 mantissa to 10."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

x = torch.linspace(1, 2, 10_001)
versions = {"tf32": to_tf32(x)} | {name: x.to(dtype).float() for name, dtype in formats.items()}
for name, rounded in versions.items():
    print(f"{name:9} largest relative error {((rounded - x) / x).abs().max():.1e}")

# %% [markdown]
# `torch.set_float32_matmul_precision("high")` allows tf32 where the GPU has it. The peaks that come with each format
# (published, without sparsity, TFLOP/s):

# %%
columns = ["fp32_tflops", "tf32_tflops", "fp16_tflops", "bf16_tflops", "fp8_tflops"]
of_jean_zay = ["V100-SXM2-32GB", "A100-SXM4-80GB", "H100-SXM5-80GB"]
specs = pd.DataFrame(table("gpu_specs")).set_index("gpu").loc[of_jean_zay]
specs[columns].astype(object).where(specs[columns].notna(), "–")

# %% [markdown] tags=["live"]
# A training adds many small steps to a weight. Does a format with few digits notice them?

# %% tags=["live"]
guess = predict("A weight of 1 in bf16. You add 0.001 to it, a thousand times. It becomes…", unit="")

# %% tags=["live"]
for name in ("fp32", "fp16", "bf16"):
    weight = torch.ones((), dtype=formats[name])
    for _ in range(1000):
        weight += 0.001
    print(f"{name}: {weight.item():.4f}")
reveal(guess, weight, why="The next number after 1 is 1.0078: each 0.001 is rounded away.")

# %% [markdown] tags=["live"]
# So weights stay in fp32, the *master weights*, and only the computation goes to 16 bits: *mixed precision* (fr.
# *précision mixte*). `torch.autocast` does it, operation by operation.

# %%
layer, x = torch.nn.Linear(64, 10, device=device), randn(32, 64)
with torch.autocast(device.type, torch.bfloat16):
    y = layer(x)
    loss = cross_entropy(y, torch.zeros(32, dtype=torch.int64, device=device))
print(f"weights {layer.weight.dtype}, linear layer {y.dtype}, loss {loss.dtype}")
loss.backward()
print(f"gradient of the weights {layer.weight.grad.dtype}")

# %% [markdown]
# The matmul in bf16, the loss (sums of many exponentials) in fp32, the gradient in fp32 for the optimizer.
#
# ### Is it faster here?
#
# Forward and backward of our two models.

# %%
def forward_backward(model, x, y, autocast=False):
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
    loss.backward()
    model.zero_grad()
    return loss.detach()

def milliseconds(function, *args, seconds=0.3):
    return 1e3 * median(timings(lambda: function(*args), device, seconds))

# %%
mlp_guess = predict("With bf16 autocast, the MLP is how many times faster on your device?", unit="×")
gpt_guess = predict("And the small GPT (two layers of width 64)?", unit="×")

# %%
def compare(name, model, x, y):
    losses = [forward_backward(model, x, y, autocast).item() for autocast in (False, True)]
    fp32, bf16 = (milliseconds(forward_backward, model, x, y, autocast) for autocast in (False, True))
    print(f"{name}: fp32 {fp32:.1f} ms, bf16 {bf16:.1f} ms; losses {losses[0]:.4f} and {losses[1]:.4f}")
    return fp32 / bf16

reveal(mlp_guess, compare("MLP", mlp, images, labels), why="Large matmuls: the arithmetic decides.")
reveal(gpt_guess, compare("GPT", gpt, ids, next_ids),
       why="Small matmuls: the casts to bf16 and back cost as much.")

# %% [markdown]
# Where this lesson was written, a processor with bf16 instructions and no GPU, the MLP gained and the small GPT lost. Each
# cast is an operation more, memory bound, and a small model does not win it back. A processor without such
# instructions may lose on both. On a GPU with tensor cores large models gain most. Measure yours.

# %% [markdown]
# ## fp16: the gradients that vanish
#
# V100s have no bf16: there it is fp16, whose smallest number is near $6 \times 10^{-8}$. Gradients are small. How small? Here
# are those of the GPT, over what each format can hold.

# %%
cross_entropy(gpt(ids).flatten(0, 1), next_ids.flatten()).backward()
gradients = torch.cat([p.grad.flatten() for p in gpt.parameters()]).cpu()
gpt.zero_grad()
plots.plot_number_formats(infos, gradients);

# %% [markdown]
# They fit, barely, on the left side of fp16, and its right side stays empty. This is a batch of 1024
# characters: each token's part of the gradient, as it travels back through the layers, is divided by the tokens that
# the loss averages on this device.
#
# We exaggerate: the loss of 64 digits is divided by $2^{16}$, and the learning rate multiplied by as much, so that
# fp32 does not notice. A layer's backward in fp16 is done with casts (fp16 matmuls on
# a CPU are far too slow): the gradient that passes through a layer is rounded to fp16.

# %%
class RoundGradient(torch.autograd.Function):
    """Forward: nothing. Backward: round the gradient to fp16."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()

def in_fp16(model):
    """Make every linear layer hand on, and receive, gradients in fp16."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: RoundGradient.apply(output))
            module.weight.register_hook(lambda gradient: gradient.half().float())
            module.bias.register_hook(lambda gradient: gradient.half().float())
    return model

# %%
parts = 2**16

def new_model(fp16):
    torch.manual_seed(0)
    return in_fp16(MLP()) if fp16 else MLP()

def loss_of(model, step=0):
    start = 64 * (step % 20)
    return cross_entropy(model(x_train[start:start + 64]), y_train[start:start + 64]) / parts

def gradient(model, scale=1.0):
    (loss_of(model) * scale).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

# %%
guess = predict("Of the gradients that fp32 finds, how many become 0 in fp16?", unit="%")

# %%
truth = gradient(new_model(fp16=False))
present = truth != 0                                    # ReLU makes true zeros, which count for nothing
lost, overflown, scales = [], [], [2.0**power for power in range(0, 45, 4)]
for scale in scales:
    rounded = gradient(new_model(fp16=True), scale)[present]
    lost.append((rounded == 0).float().mean().item())
    overflown.append((~rounded.isfinite()).float().mean().item())
reveal(guess, 100 * lost[0],
       why="They are below the smallest number of fp16: underflow (fr. soupassement).")

# %% [markdown]
# ### Loss scaling
#
# A trick of one line: multiply the loss by a large number. By the chain rule all the gradients grow with it and move to
# the right, into fp16's range. Divide them again, in fp32, before the optimizer reads them. How large? So large that
# nothing is lost, and not so large that something becomes infinite. That changes during a training, so it is done by
# trial:
#
# 1. backward on loss × scale;
# 2. if any gradient is infinite or not a number: **skip the step** and halve the scale;
# 3. otherwise divide the gradients by the scale and step; after `growth_interval` good steps in a row, double it.
#
# **Exercise 2.** Write it. `scaler` is a dict: `scale`, `good_steps` (in a row, since the scale last changed) and
# `growth_interval`. The gradients of the step before are still there: clear them first.

# %% tags=["exercise"] fidle={"wrong": ["def scaled_step(model, optimizer, loss, scaler):\n    optimizer.zero_grad()\n    (loss * scaler[\"scale\"]).backward()\n    optimizer.step()", "def scaled_step(model, optimizer, loss, scaler):\n    optimizer.zero_grad()\n    (loss * scaler[\"scale\"]).backward()\n    for p in model.parameters():\n        p.grad /= scaler[\"scale\"]\n    optimizer.step()", "def scaled_step(model, optimizer, loss, scaler):\n    optimizer.zero_grad()\n    (loss * scaler[\"scale\"]).backward()\n    if not all(p.grad.isfinite().all() for p in model.parameters()):\n        return\n    for p in model.parameters():\n        p.grad /= scaler[\"scale\"]\n    optimizer.step()", "def scaled_step(model, optimizer, loss, scaler):\n    optimizer.zero_grad()\n    (loss * scaler[\"scale\"]).backward()\n    if not all(p.grad.isfinite().all() for p in model.parameters()):\n        scaler[\"scale\"] /= 2\n        scaler[\"good_steps\"] = 0\n        return\n    for p in model.parameters():\n        p.grad /= scaler[\"scale\"]\n    optimizer.step()"]}
def scaled_step(model, optimizer, loss, scaler):
    """One training step with a scaled loss; brings `scaler` up to date."""
    ...

# %% tags=["check"]
def test_scaled_step(scaled_step):
    model, reference = (torch.nn.Linear(3, 1) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, reference))
    scaler, x = {"scale": 1024.0, "good_steps": 0, "growth_interval": 3}, torch.ones(4, 3)
    for _ in range(2):
        scaled_step(model, optimizer, model(x).square().mean(), scaler)
        plain.zero_grad()
        reference(x).square().mean().backward()
        plain.step()
    far = (model.weight - reference.weight).abs().max()
    assert far < 1e-5, f"after two steps a weight is {far:.1e} off: divide the gradients before the step."
    before = model.weight.detach().clone()
    scaled_step(model, optimizer, model(x).mean() * math.inf, scaler)
    assert torch.equal(before, model.weight), "a gradient was infinite, the weights changed: skip the step."
    assert scaler["scale"] == 512, f"after an overflow the scale must be halved: it is {scaler['scale']}."
    for _ in range(3):
        scaled_step(model, optimizer, model(x).square().mean(), scaler)
    assert scaler["scale"] == 1024, f"three good steps after the overflow must double 512: {scaler['scale']}."
    scaled_step(model, optimizer, model(x).square().mean(), scaler)
    assert scaler["scale"] == 1024, "count the good steps from 0 again when the scale has changed."

check(scaled_step, test_scaled_step, hint="backward on loss × scale; isfinite(); divide; step")

# %% tags=["solution"] jupyter={"source_hidden": true}
def scaled_step(model, optimizer, loss, scaler):
    optimizer.zero_grad()
    (loss * scaler["scale"]).backward()
    if not all(p.grad.isfinite().all() for p in model.parameters()):
        scaler["scale"] /= 2
        scaler["good_steps"] = 0
        return
    for p in model.parameters():
        p.grad /= scaler["scale"]
    optimizer.step()
    scaler["good_steps"] += 1
    if scaler["good_steps"] == scaler["growth_interval"]:
        scaler["scale"] *= 2
        scaler["good_steps"] = 0

# %% tags=["solution"] jupyter={"source_hidden": true}
check(scaled_step, test_scaled_step, hint="backward on loss × scale; isfinite(); divide; step")

# %% [markdown]
# Three trainings: in fp32, in fp16, and in fp16 with your step. The scale starts much too high, on purpose.

# %%
def train(fp16, step_function, steps=100):
    model = new_model(fp16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2 * parts)
    losses = []
    for step in range(steps):
        loss = loss_of(model, step)
        losses.append(parts * loss.item())
        step_function(model, optimizer, loss)
    return losses

def plain_step(model, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

scaler = {"scale": 2.0**38, "good_steps": 0, "growth_interval": 20}
fp32, fp16 = train(False, plain_step), train(True, plain_step)
scaled = train(True, lambda *args: scaled_step(*args, scaler))
curves = {"fp32": fp32, "fp16": fp16, "fp16, loss scaled": scaled}
plots.plot_loss_scaling(scales, lost, overflown, curves);

# %%
print(f"loss after {len(fp32)} steps: fp32 {fp32[-1]:.3f}, fp16 {fp16[-1]:.3f}, fp16 scaled {scaled[-1]:.3f}")
print(f"the scale came down from 2^38 to 2^{math.log2(scaler['scale']):.0f}")

# %% [markdown]
# Left: between losing and overflowing there is a wide place where nothing happens to the gradients. Right: without
# scaling a few gradients survive, roughly rounded, and lead nowhere; no error says so. With it the training runs like
# fp32, late by the steps that it skipped while it looked for its scale.
#
# PyTorch's `torch.amp.GradScaler` is this very algorithm. Is it?

# %%
library = torch.amp.GradScaler("cpu", init_scale=2.0**38, growth_interval=20)

def library_step(model, optimizer, loss):
    optimizer.zero_grad()
    library.scale(loss).backward()
    library.step(optimizer)                             # divides, looks for inf, steps or not
    library.update()

# Its backoff_factor is 0.5 and its growth_factor 2: ours
torch.testing.assert_close(train(True, library_step), scaled, atol=1e-3, rtol=0)
print(f"the same losses; its scale ended at 2^{math.log2(library.get_scale()):.0f}")

# %% [markdown]
# bf16 needs none of this: its range is that of fp32. Hence its success from the A100 on. **fp8** needs more: its range
# and its digits are so few that every tensor gets a scale of its own (Transformer Engine, torchao). Micikevicius
# et al. (2018) [1] brought the three parts of fp16 training together: master weights, loss scaling, sums in fp32.

# %% [markdown]
# ## One kernel instead of four: `torch.compile`
#
# Here is a piece of a model, four operations on each number. Each is a kernel that reads its operands from memory and
# writes its result there, and all are memory bound.

# %%
def activation(x, bias):
    return torch.relu(x + bias).square() + x

x, bias = randn(8192, 1024), randn(1024)

# %% [markdown]
# Count the tensors of the size of `x` that go through memory: the first addition reads one and writes one; `relu` and
# `square` the same; the last addition reads two and writes one.

# %%
guess = predict("One kernel for all reads x and writes the result. By which factor do the bytes shrink?",
                unit="×")

# %%
reveal(guess, (2 + 2 + 2 + 3) / 2,
       why="Nine tensors through memory against two: the intermediate results stay inside.")

# %% [markdown]
# `torch.compile` does that: it follows the Python of the first call, keeps the graph of operations, and generates code
# in which neighbours are *fused* (fr. *fusionnés*), with Triton for a GPU, in C++ for a CPU. The backend `recording`
# below only keeps the graph:

# %%
graphs = []
def recording(graph, example_inputs):
    graphs.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
    return graph.forward                                # no code is generated

torch.compile(activation, backend=recording)(x[:8], bias)
print(graphs)

# %% [markdown]
# Now for good. The first call compiles; this takes ten seconds or so. Where there is no C++ compiler we keep to
# the graph, which is neither fused nor faster.

# %%
import os
import shutil

# PyTorch would first compile small tests of the processor, for longer than our code; its own list will do
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
compilers = [os.environ.get("CXX", "g++"), "g++", "clang++", "cl"]
has_compiler = device.type == "cuda" or any(map(shutil.which, compilers))
torch.compiler.reset()
fused, compiled, start = True, torch.compile(activation), time.perf_counter()
try:
    assert has_compiler, "no C++ compiler on this machine"
    compiled(x, bias)
except Exception as error:
    print(f"not compiled ({type(error).__name__}: {str(error).splitlines()[0][:90]}): the graph runs unfused")
    fused, compiled = False, torch.compile(activation, backend="aot_eager")
    compiled(x, bias)
compile_seconds = time.perf_counter() - start
torch.testing.assert_close(compiled(x, bias), activation(x, bias))

# %%
best, tensors = {}, {"four kernels": 9, "compiled": 2 if fused else 9}     # tensors like x through memory
with kept_pages():                                      # the memory of a result is kept for the next
    for name, function in {"four kernels": activation, "compiled": compiled}.items():
        best[name] = min(timings(partial(function, x, bias), device, 0.4, flush=True))
        rate = tensors[name] * x.nbytes / best[name]
        print(f"{name}: {1e3 * best[name]:.2f} ms; as we counted the bytes, {rate / 1e9:.0f} GB/s")
saved = best["four kernels"] - best["compiled"]
print(f"{best['four kernels'] / best['compiled']:.1f} times faster, for {compile_seconds:.0f} s of compiling")
print(f"paid back after {compile_seconds / saved:,.0f} calls" if fused and saved > 0 else "never paid back")

# %% [markdown]
# In the roofline's words: the same FLOP, fewer bytes, so the point moves to the right and up along the slope. (The best
# of many calls, as for the roof. A compiled CPU kernel has threads of its own, and a busy machine disturbs it much.)
#
# ### When it does not pay
#
# - The training is shorter than the compilation, as in most notebooks.
# - Large matmuls are most of the time: the libraries already have good kernels for them, and there is little to fuse.
# - The graph breaks, or has to be captured again. Our backend that only records can show both.

# %%
guess = predict("A function with `if y.sum() > 0:` in its middle. How many graphs?", unit="graphs")

# %%
def careful(x):
    y = x * 2
    if y.sum() > 0:                                     # needs a value: the graph ends here
        y = y + 1
    return y.relu()

graphs.clear()
torch.compile(careful, backend=recording)(torch.ones(4))
reveal(guess, len(graphs), why=f"Python must see a number to go on: {graphs}.")

# %%
def simple(x):
    return x * 2 + 1

graphs.clear()
follower = torch.compile(simple, backend=recording)
for length in (8, 9, 10, 11):
    follower(torch.ones(length))
    print(f"length {length}: {len(graphs)} graphs so far")

# %% [markdown]
# One graph for the first length; a second one, for any length, when the length has changed; then no more. Each new kind
# of input pays the compilation again: keep shapes fixed, or pad them. `TORCH_LOGS=graph_breaks,recompiles` names
# the lines.

# %% [markdown]
# ## The starving device
#
# A step begins with its data. Here reading one image takes half a millisecond (emulated: it sleeps, as if a disc were
# slow), and the model is a small CNN. `track` records how long the loop waits for each batch.

# %%
import warnings

from torch.utils.data import DataLoader

from fidle_utils.slow_data import SlowDigits

torch.manual_seed(0)
cnn = SmallCNN(width=32).to(device)
optimizer = torch.optim.SGD(cnn.parameters(), lr=0.1)

def train_cnn(loader, steps, name=""):
    for x, y in (tracked := track(itertools.islice(loader, steps), name=name, total=steps, unit="images")):
        optimizer.zero_grad()
        cross_entropy(cnn(x.to(device)), y.to(device)).backward()
        optimizer.step()
    return tracked.throughput

def loader(workers, milliseconds=0.5):
    return DataLoader(SlowDigits(milliseconds), batch_size=64, num_workers=workers)

# %%
guess = predict("Batches of 64 images, read one after the other. Which share of the time does the loop wait?",
                unit="%")

# %%
starving = train_cnn(loader(0), 10, name="no workers")
data_wait = starving.summary().data_wait[0]
reveal(guess, 100 * data_wait, why="64 × 0.5 ms are 32 ms for each batch, and meanwhile nobody computes.")

# %% [markdown]
# *Workers* (`num_workers`) are processes that read the next batches while the device computes this one; each keeps
# `prefetch_factor` batches ahead, 2 by default.

# %%
step = starving.steady
compute_ms = 1e3 * (step.seconds - step.data_seconds).median()
read_ms = 1e3 * step.data_seconds.median()
guess = predict(f"A batch takes {read_ms:.0f} ms to read and {compute_ms:.0f} to compute. Workers needed?")

# %%
warnings.filterwarnings("ignore", "This DataLoader will create")     # more workers than cores: they sleep
waits = {0: data_wait}
for workers in (1, 2, 4, 8):
    waits[workers] = train_cnn(loader(workers), 22, name=f"{workers} workers").summary().data_wait[0]
plots.plot_workers(waits);

# %%
reveal(guess, math.ceil(read_ms / compute_ms), why="So many together read a batch in the time of a step.")

# %% [markdown]
# One worker changes little: it reads no faster than the loop did, and hides only the time of the step. (Where the figure
# still shows some waiting with enough workers, they had just been started, or the machine was busy.)
#
# A sleep needs no core. If your data must be *decoded*, each worker needs a core of its own, and more workers than
# cores only get in each other's way. On Jean Zay a job gets cores with each GPU, 24 with an H100 (lesson 01).
#
# **Pinning.** To send a batch to the GPU the driver needs pages of memory that the system will not move: *pinned* (fr.
# *épinglées*). `DataLoader(pin_memory=True)` puts batches there, then `x.to(device, non_blocking=True)` returns at
# once and Python goes on. For the copy to run *while the GPU computes* it must also be on a stream of its own
# (`torch.cuda.Stream`). Copies from ordinary pages pass through a pinned buffer first, and are slower. On a GPU this
# cell measures both ways.

# %%
if device.type == "cuda":
    from fidle_utils.measure.speed import transfer_speed

    for rate in transfer_speed(device, 0.2):
        print(f"{rate['name']}: {rate['best'] / 1e9:.1f} GB/s (measured here)")
else:
    print(f"no GPU here, nothing to send. An H100's PCIe: {h100['pcie_gb_per_second']} GB/s (published), "
          f"{h100['memory_gb_per_second'] / h100['pcie_gb_per_second']:.0f} times slower than its memory")

# %% [markdown]
# ## The order of the numbers: channels last
#
# An image batch (n, channels, height, width) can lie in memory channel by channel, or pixel by pixel: all the
# channels of a pixel side by side. The second is *channels last*. The tensor's shape stays, its strides change.

# %%
colours = torch.rand(2, 3, 4, 4)
print(colours.stride(), colours.to(memory_format=torch.channels_last).stride())

# %%
guess = predict("A CNN of width 64 on digits, channels last: how many times faster on your device?", unit="×")

# %%
torch.manual_seed(0)
planar = SmallCNN(width=64).to(device)
pixels = SmallCNN(width=64).to(device)
pixels.load_state_dict(planar.state_dict())
pixels = pixels.to(memory_format=torch.channels_last)

x, y = x_train[:256].to(device), y_train[:256].to(device)
x_pixels = x.to(memory_format=torch.channels_last)
torch.testing.assert_close(planar(x), pixels(x_pixels), atol=1e-3, rtol=0)
times = [milliseconds(forward_backward, *args) for args in ((planar, x, y), (pixels, x_pixels, y))]
print(f"channels first {times[0]:.1f} ms, channels last {times[1]:.1f} ms (measured here)")
reveal(guess, times[0] / times[1],
       why="The same results, whatever the time: only the order in memory differs.")

# %% [markdown]
# Large gain or none: it depends on the processor, the size and the library. On GPUs the reason is better known: tensor
# cores multiply along the channels, and cuDNN's kernels for them read channels last; from the other order they first
# transpose [2]. There, use it for every CNN in 16 bits.

# %% [markdown]
# ## Waves: why 1153 can be slower than 1152
#
# A GPU cuts the result of a matmul in tiles, say 128 × 256, and gives each to a *multiprocessor* (SM). An A100 has 108
# of them. 108 tiles are one *wave* (fr. *vague*); the 109th needs a second wave, in which 107 sit idle.

# %%
sms = {row["gpu"]: row["multiprocessors"] for row in table("gpu_specs") if row["multiprocessors"]}
a100 = sms["A100-SXM4-80GB"]

def waves(rows, columns, multiprocessors, tile=(128, 256)):
    tiles = math.ceil(rows / tile[0]) * math.ceil(columns / tile[1])
    return tiles, math.ceil(tiles / multiprocessors)

guess = predict("9 × 12 tiles: 108. An A100 computes 1152 × 3072, then 1153 × 3072: how many times longer?",
                unit="×")

# %%
for rows in (1152, 1153):
    tiles, n_waves = waves(rows, 3072, a100)
    print(f"{rows} × 3072: {tiles} tiles, {n_waves} waves on {a100} multiprocessors (computed)")
reveal(guess, waves(1153, 3072, a100)[1] / waves(1152, 3072, a100)[1],
       why="One row more, one wave more. In theory; "
       "a library may choose other tiles.")

# %%
plots.plot_waves({name: sms[name] for name in ("V100-SXM2-32GB", "A100-SXM4-80GB", "H100-SXM5-80GB")});

# %% [markdown]
# The teeth shrink as the matrix grows: with many waves one that is half empty hardly counts. Two habits come of it:
# sizes that are multiples of 64 or 128, and batches that fill the GPU. This is computed; a CPU has few cores and no such
# waves, so there is nothing to measure on one.

# %% [markdown]
# ## A larger batch than fits
#
# What fills a GPU's memory in training is often the *activations* (fr. *activations*): what forward keeps for backward.
# They grow with the batch. *Gradient accumulation* (fr. *accumulation de gradients*) runs the batch in `k`
# *micro-batches* (fr. *micro-lots*) and adds up.

# %%
def accumulate(model, x, y, k):
    model.zero_grad()
    for x_part, y_part in zip(x.chunk(k), y.chunk(k)):
        (cross_entropy(model(x_part), y_part) / k).backward()       # p.grad adds up
    return torch.cat([p.grad.flatten() for p in model.parameters()])

guess = predict("Four micro-batches instead of one batch: the activations take which share of the memory?",
                options=["all of it", "a half", "a quarter"])

# %%
ledgers, whole = {}, accumulate(cnn, x, y, 1)
for k in (1, 2, 4, 8):
    with memory_ledger(cnn) as ledger:
        far = (accumulate(cnn, x, y, k) - whole).abs().max()
    ledgers[k] = ledger
    assert far < 1e-3                                   # a GPU may multiply in tf32; here far less
    print(f"{k} micro-batches: activations {ledger.activations:,} bytes, gradients off by {far:.0e} at most")

# %%
share = ledgers[4].activations / ledgers[1].activations
reveal(guess, "a quarter" if share < 0.3 else "a half" if share < 0.6 else "all of it",
       why=f"{share:.2f}, counted.")
plots.plot_accumulation({k: {"activations": ledger.activations, "gradients": ledger.gradients,
                             "parameters": ledger.parameters} for k, ledger in ledgers.items()});

# %% [markdown]
# The gradient is that of the whole batch. The price: smaller matmuls, so less intensity. And batch norm would see
# only a micro-batch.

# %% [markdown]
# ## Read a step together
#
# PyTorch's profiler notes when each operation began and ended: that is a *timeline* (fr. *chronologie*). Here is one
# training step of the GPT: forward, backward, AdamW. White is time between two operations.

# %%
def timeline_of(function, *args):
    record()
    function(*args)
    return Timeline.of_ranks([collect()])

adamw = torch.optim.AdamW(gpt.parameters(), lr=3e-3)

def gpt_step():
    adamw.zero_grad()
    cross_entropy(gpt(ids).flatten(0, 1), next_ids.flatten()).backward()
    adamw.step()

for _ in range(3):
    gpt_step()                                          # warm up

# %%
guess = predict("Backward takes how many times as long as forward?", unit="×")

# %%
step = timeline_of(gpt_step)
plots.plot_timelines({"one step of the GPT": step});

# %%
total_ms = step.events.assign(ms=step.events.end_ms - step.events.start_ms).groupby("kind").ms.sum()
reveal(guess, total_ms["backward"] / total_ms["forward"],
       why="Each matmul of forward has two in backward, for the gradients of its input and of its weights: "
       "about 2 where matmuls fill the time. Where the rest or the launches weigh as much, it may be less.")
total_ms.round(2)

# %% [markdown]
# Which operations take the time? An operator that calls others counts with them, so read only the leaves: `mm` and
# `addmm` are the matmuls. (On a GPU: its kernels, and not the operators that launch them.)

# %%
operators = step.events if device.type == "cuda" else step.operators
operators = operators.assign(ms=operators.end_ms - operators.start_ms)
if device.type == "cpu":
    operators = operators[operators.name.str.startswith("aten::")]
operators.groupby("name").ms.agg(["count", "sum"]).sort_values("sum", ascending=False).head(8).round(2)

# %% [markdown]
# `step.to_chrome("step.json")` writes the timeline for <https://ui.perfetto.dev>, where you can zoom.
#
# ## Three sick programs
#
# Three programs were written for you (the cell is folded; look at it afterwards). Each is slow for another reason:
#
# - **data**: the device waits for its batches;
# - **compute**: the arithmetic is at work all the time, and there is simply much to do;
# - **overhead**: many tiny operations, so giving the orders takes longer than carrying them out. On a GPU one says
#   *launch bound*.

# %% jupyter={"source_hidden": true}
tiny, wide = MLP(width=8, depth=16).to(device), MLP(width=n, depth=4).to(device)     # n: 1024, on a GPU 4096
tiny_sgd = torch.optim.SGD(tiny.parameters(), lr=0.1, foreach=False)
wide_sgd = torch.optim.SGD(wide.parameters(), lr=0.1)
large = [tensor.repeat(n // 1024, *[1] * (tensor.dim() - 1)) for tensor in (images, labels)]

def sgd_step(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()

def one():
    for _ in range(4):
        sgd_step(tiny, tiny_sgd, large[0][:4], large[1][:4])

def two():
    for x, y in itertools.islice(slow, 3):
        sgd_step(cnn, optimizer, x.to(device), y.to(device))

def three():
    sgd_step(wide, wide_sgd, *large)

slow = loader(0, milliseconds=1)
one(), three()                                          # warm up
sick = {"A": timeline_of(two), "B": timeline_of(one), "C": timeline_of(three)}
truth = {"A": "data", "B": "overhead", "C": "compute"}

# %%
plots.plot_timelines(sick);

# %%
rows = {}
for letter, timeline in sick.items():
    durations = (timeline.events.end_ms - timeline.events.start_ms)[timeline.events.kind != "data loading"]
    summary = timeline.summary().iloc[0]
    rows[letter] = {"milliseconds": summary.span_ms,
                    "computing": f"{summary.compute_ms / summary.span_ms:.0%}",
                    "waiting for data": f"{summary.data_loading_ms / summary.span_ms:.0%}",
                    "operations": len(durations), "median µs": round(1e3 * durations.median(), 1)}
pd.DataFrame(rows).T

# %% [markdown]
# **Exercise 3.** Find the bottleneck (fr. *goulot d'étranglement*) of each: `"data"`, `"compute"` or `"overhead"`.

# %% tags=["exercise"] fidle={"wrong": ["bottlenecks = {\"A\": \"compute\", \"B\": \"data\", \"C\": \"overhead\"}", "bottlenecks = {\"A\": \"data\", \"B\": \"compute\", \"C\": \"overhead\"}", "bottlenecks = {\"A\": \"data\", \"B\": \"compute\", \"C\": \"compute\"}"]}
bottlenecks = {"A": ..., "B": ..., "C": ...}

# %% tags=["check"]
check(bottlenecks, truth, name="bottlenecks",
      hint="What fills the time: waiting for data, few long operations, or very many short ones?")

# %% tags=["solution"] jupyter={"source_hidden": true}
bottlenecks = {
    "A": "data",        # the largest part of the time is data loading: more workers
    "B": "overhead",    # hundreds of operations of a few microseconds: larger batches, fused operations
    "C": "compute",     # few operations, each long: fewer bits, a faster device, or more devices
}

# %% tags=["solution"] jupyter={"source_hidden": true}
check(bottlenecks, truth, name="bottlenecks",
      hint="What fills the time: waiting for data, few long operations, or very many short ones?")

# %% [markdown]
# Each sickness has its own cure, and the others' do nothing for it: a faster GPU does not read faster, more workers do
# not multiply faster. Only C deserves more GPUs. That is why you look at a timeline **before** you ask for eight.

# %% [markdown]
# ## In practice
#
# 1. Look at one step first: `torch.profiler`, or `%%ranks --timeline` in this course. Is the device busy?
# 2. Idle: more workers, `pin_memory=True`, `non_blocking=True`, no `.item()` in the loop.
# 3. Busy with tiny kernels: larger batches, `fused=True` optimizers, fused attention, `torch.compile`.
# 4. Busy with large ones: bf16 `autocast` (fp16 and `GradScaler` on V100), tf32, channels last for CNNs, sizes that are
#    multiples of 64.
# 5. Out of memory: gradient accumulation; activation checkpointing (lesson 08).
# 6. Report what you reached as a share of a ceiling, and say which one: the maker's peak or the one that you measured.
#    Lesson 10 does it for whole trainings.

# %% [markdown]
# ## Go further
#
# - Attention without fusion writes its scores to memory: `fidle_utils.measure.work.attention(…, fused=False)`. Where does
#   it move on the roofline when the text grows from 512 to 4096 tokens?
# - In *Where do they land?* give `operation` bf16 tensors. Which points move, and where?
# - In *The clock that lies* give `follow` a `host_seconds` of two matmuls: who waits for whom now?
# - Compile one training step of the GPT on a GPU with `mode="reduce-overhead"`: it records the launches once (CUDA
#   graphs). Which of the three sick programs does that cure?

# %% [markdown]
# ## Sources
#
# - [1] P. Micikevicius et al., *Mixed Precision Training*, ICLR 2018,
#   [arXiv:1710.03740](https://arxiv.org/abs/1710.03740).
# - [2] NVIDIA, *Convolutional Layers User's Guide*, tensor layouts; *Matrix Multiplication Background User's Guide*, tile
#   and wave quantization: https://docs.nvidia.com/deeplearning/performance/
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009.
# - T. Dao et al., *FlashAttention*, NeurIPS 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135): fused attention.
# - D. Kingma, J. Ba, *Adam*, ICLR 2015, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980).
# - Peaks and bandwidths of GPUs: the table `gpu_specs` of `fidle_utils.reference`, whose README names every source.
# - PyTorch documentation: [autocast and GradScaler](https://docs.pytorch.org/docs/stable/amp.html),
#   [torch.compile](https://docs.pytorch.org/docs/stable/torch.compiler.html),
#   [data loading](https://docs.pytorch.org/docs/stable/data.html),
#   [CUDA semantics](https://docs.pytorch.org/docs/stable/notes/cuda.html).

# %% [markdown]
# ## Quiz
#
# Answer each, then run the next cell.

# %%
q1 = predict("A new GPU has three times the peak and the same memory bandwidth. Layer norm becomes…",
             options=["three times faster", "hardly faster", "slower"])
q2 = predict("A matmul of 8192 × 8192 takes 20 µs by your clock, without synchronize. You measured…",
             options=["the matmul", "the giving of the order"])

# %%
reveal(q1, "hardly faster",
       why="It is memory bound: the slope of the roof decides, and the slope is the bandwidth.")
reveal(q2, "the giving of the order",
       why="The call returns while the GPU still works; wait before you read the clock.")

# %%
q3 = predict("Training in fp16 on V100, without loss scaling: the loss stays where it began. First suspect:",
             options=["overflow", "gradients that underflow", "too many workers"])
q4 = predict("data_wait is 70 %. What helps?", options=["bf16", "torch.compile", "more workers"])
q5 = predict("Adam in bf16 instead of fp32 (states too) moves half the bytes. Its intensity…",
             options=["doubles", "stays", "halves"])
q6 = predict("torch.compile fuses four element-wise operations. What shrinks?",
             options=["the FLOP", "the bytes", "both"])

# %%
reveal(q3, "gradients that underflow", why="Zeros move no weight and raise no error. Scale the loss.")
reveal(q4, "more workers", why="Faster computing only makes the device wait longer. Feed it first.")
reveal(q5, "doubles", why="The same FLOP over half the bytes: about twice as fast, if the digits suffice.")
reveal(q6, "the bytes",
       why="Every operation is still done; the results between them no longer travel to memory.")

# %%
from fidle_utils import progress

progress.show("02")
