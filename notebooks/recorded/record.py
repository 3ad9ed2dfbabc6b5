"""Measure the machine this runs on and write what notebooks draw as recorded: README.md tells more."""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from fidle_utils import models, ranks
from fidle_utils.measure import records
from fidle_utils.measure.machine import device_report
from fidle_utils.measure.speed import DTYPES, default_device, fp32_matmul, timings

HERE = Path(__file__).parent
UNDER_TORCHRUN = "RANK" in os.environ


def main():
    options = parse()
    for what in options.what:
        measure, units = MEASUREMENTS[what]
        start = time.perf_counter()
        rows = measure(options.quick)
        torch.cuda.empty_cache()  # the ranks of the next one share this GPU
        if rank_of_launcher() == 0:
            kept = [dict(zip(units, row, strict=True)) for row in rows]
            record = records.new(what, kept, units, device_name(what), command())
            path = records.save(record, options.out)
            print(f"{what}: {len(rows)} samples in {time.perf_counter() - start:.0f} s → {path}", flush=True)
    ranks.stop()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"WHAT: {', '.join(MEASUREMENTS)}")
    parser.add_argument("what", nargs="*", metavar="WHAT", help="what to measure, everything by default")
    parser.add_argument(
        "--out", type=Path, default=HERE, metavar="FOLDER", help="default: beside this script"
    )
    parser.add_argument("--quick", action="store_true", help="a trial in seconds: too short to be kept")
    options = parser.parse_args()
    if unknown := set(options.what) - set(MEASUREMENTS):
        parser.error(f"cannot measure {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    if options.quick and options.out.resolve() == HERE.resolve():
        parser.error("--quick is a trial, not a record: name another folder with --out")
    default = BETWEEN_RANKS if UNDER_TORCHRUN else MEASUREMENTS
    options.what = options.what or list(default)
    if UNDER_TORCHRUN and set(options.what) - set(BETWEEN_RANKS):
        parser.error(f"under torchrun only {' and '.join(BETWEEN_RANKS)}; run the others with plain python")
    return options


# ------------------------------------------------------------------------------------------ one device


def measure_matmul(quick):
    """Square matmuls by dtype and size."""
    device, rows = default_device(), []
    sides = [64, 128] if quick else [2**k for k in range(7, 15 if device.type == "cuda" else 13)]
    for dtype in dtypes(device):
        with fp32_matmul("tf32" if dtype == "tf32" else "ieee"):
            for n in sides:
                a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
                samples = timings(lambda a=a, b=b: torch.mm(a, b), device, seconds(quick), most=50)
                rows += [(device.type, dtype, n, i, t, 2 * n**3 / t) for i, t in enumerate(samples)]
                if min(samples) > 1:  # the next size takes eight times as long
                    break
    return rows


def dtypes(device):
    if device.type != "cuda":
        return ["fp32", "bf16"]  # fp16 is emulated on most processors, hundreds of times slower
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return ["fp32", "tf32", "bf16", "fp16"] if ampere else ["fp32", "fp16"]


def measure_memory(quick):
    """A copy by size: bytes read plus bytes written, as STREAM counts them."""
    device, rows = default_device(), []
    powers = [16, 20] if quick else range(16, 33 if device.type == "cuda" else 29)
    for n_bytes in (2**power for power in powers):
        source, target = (torch.ones(n_bytes // 8, device=device) for _ in range(2))
        samples = timings(lambda s=source, t=target: t.copy_(s), device, seconds(quick), most=50)
        rows += [(device.type, n_bytes, i, t, n_bytes / t) for i, t in enumerate(samples)]
    return rows


def measure_training(quick):
    """Steps of the course's small models by batch size and precision."""
    device, rows = default_device(), []
    sizes = [8] if quick else [2**k for k in range(3, 13, 1 if device.type == "cuda" else 3)]
    precisions = ["fp32", "bf16"] if "bf16" in dtypes(device) else ["fp32", "fp16"]
    for name in ("MLP", "SmallCNN", "GPT"):
        for precision in precisions:
            for batch_size in sizes:
                try:
                    step = training_step(name, batch_size, device, precision)
                    samples = timings(step, device, seconds(quick), most=50)
                except torch.OutOfMemoryError:
                    break
                head = (device.type, name, precision, batch_size)
                rows += [(*head, i, t, batch_size / t) for i, t in enumerate(samples)]
                if min(samples) > 1:
                    break
    return rows


def training_step(name, batch_size, device, precision="fp32", wrap=lambda model: model):
    """A function that trains a small model one step on random data; a sample of GPT is 64 tokens."""
    torch.manual_seed(0)
    if name == "GPT":
        ids = torch.randint(100, (batch_size, 65), device=device)
        x, y, model = ids[:, :-1], ids[:, 1:].flatten(), models.GPT(100, width=256, n_layers=4)
    else:
        x, y = torch.rand(batch_size, 1, 8, 8, device=device), torch.randint(10, (batch_size,), device=device)
        model = models.MLP(width=1024, depth=4) if name == "MLP" else models.SmallCNN(width=64)
    model = wrap(model.to(device))
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        # fp16 would need a gradient scaler to learn; its speed is the same without.
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            loss = torch.nn.functional.cross_entropy(model(x).flatten(0, -2), y)
        loss.backward()
        optimizer.step()

    return step


# ----------------------------------------------------------------------------------------- between ranks


def measure_collectives(quick):
    """Collectives by size of the whole tensor, for two ranks and for all there are."""
    sizes = [2**12, 2**16] if quick else [2**k for k in range(10, 31 if on_gpus() else 25, 2)]
    rows = []
    for n in world_sizes(quick):
        rows += on_ranks(n, time_collectives, sizes, 3 if quick else 20)
    return rows


def time_collectives(sizes, repeats):
    """On every rank: rows of (backend, operation, ranks, bytes, sample, seconds on the slowest, bytes/s)."""
    n, backend = dist.get_world_size(), dist.get_backend()
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    # PyTorch 2.13 renames the two that take one tensor, and warns.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    operations = {  # and how much of the tensor a link carries: NVIDIA nccl-tests, doc/PERFORMANCE.md
        "all_reduce": (lambda whole, part: dist.all_reduce(whole), 2 * (n - 1) / n),
        "all_gather": (lambda whole, part: gather(whole, part), (n - 1) / n),
        "reduce_scatter": (lambda whole, part: scatter(part, whole), (n - 1) / n),
        "broadcast": (lambda whole, part: dist.broadcast(whole, 0), 1),
    }
    rows = []
    for n_bytes in sizes:
        numbers = max(n_bytes // 4 // n, 1)
        whole, part = torch.zeros(n * numbers, device=device), torch.zeros(numbers, device=device)
        for operation, (call, factor) in operations.items():
            samples = slowest(lambda f=call, w=whole, p=part: f(w, p), repeats, device)
            rows += [
                (backend, operation, n, whole.nbytes, i, t, factor * whole.nbytes / t)
                for i, t in enumerate(samples)
            ]
    return rows


def slowest(function, repeats, device, calls=5):
    """Seconds of one call among `calls` in a row, on the rank that took longest, for each repeat."""
    samples = []
    for _ in range(repeats + 2):  # two to warm up: the first message makes the connections
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append((time.perf_counter() - start) / calls)
    longest = torch.tensor(samples[2:], dtype=torch.float64, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return longest.tolist()


def measure_scaling(quick):
    """DistributedDataParallel on more and more ranks, 64 samples each; one process with all threads."""
    batch_size, repeats, rows = (4, 3, []) if quick else (64, 30, [])
    if not UNDER_TORCHRUN:
        step = training_step("GPT", batch_size, default_device())
        samples = timings(step, default_device(), seconds(quick), most=repeats)
        rows += [("none", "one process", 1, batch_size, i, t, batch_size / t) for i, t in enumerate(samples)]
    for n in world_sizes(quick) if UNDER_TORCHRUN or quick else [1, *world_sizes(quick)]:
        rows += on_ranks(n, time_ddp, batch_size, repeats)
    return rows


def time_ddp(batch_size, repeats):
    """On every rank: rows of (backend, mode, ranks, samples a step, sample, seconds, samples/s)."""
    n, backend = dist.get_world_size(), dist.get_backend()
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    step = training_step("GPT", batch_size, device, wrap=torch.nn.parallel.DistributedDataParallel)
    samples = slowest(step, repeats, device, calls=1)
    return [(backend, "ddp", n, batch_size * n, i, t, batch_size * n / t) for i, t in enumerate(samples)]


def on_ranks(n, function, *arguments):
    """Call `function` on `n` ranks and return what rank 0 returned."""
    if UNDER_TORCHRUN:
        return function(*arguments)
    ranks.start(n, device="cuda" if on_gpus() else "cpu")
    return ranks.run(function, *arguments)[0]


def world_sizes(quick):
    """Two ranks, four, … as many as there are GPUs (four on a CPU); under torchrun, those it started."""
    if UNDER_TORCHRUN:
        return [int(os.environ["WORLD_SIZE"])]
    most = torch.cuda.device_count() if on_gpus() else 2 if quick else 4
    powers = [2**k for k in range(1, most.bit_length())]
    return powers if powers[-1] == most else [*powers, most]


def on_gpus():
    """Whether two ranks can have a GPU each; one GPU has nobody to talk to, so ranks then use the CPU."""
    return torch.cuda.device_count() > 1


# ---------------------------------------------------------------------------------------------- bookkeeping


def seconds(quick):
    return 0.01 if quick else 0.5


def rank_of_launcher():
    return int(os.environ.get("RANK", 0))


def command():
    """The line that started this script under torchrun; else None."""
    if not UNDER_TORCHRUN:
        return None
    each = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // each
    return f"torchrun --nnodes {nodes} --nproc-per-node {each} {shlex.join(sys.argv)}"


def device_name(what):
    """What was measured, where it is not simply the GPUs of this machine; else None."""
    if what in BETWEEN_RANKS and torch.cuda.is_available():
        if UNDER_TORCHRUN:
            return f"{dist.get_world_size()} × {torch.cuda.get_device_name()}"
        if not on_gpus():
            return device_report().cpu
    return None


TIMES = {"sample": "1", "seconds": "s"}
MEASUREMENTS = {
    "matmul": (measure_matmul, {"device": "", "dtype": "", "n": "1", **TIMES, "flops_per_second": "FLOP/s"}),
    "memory": (measure_memory, {"device": "", "n_bytes": "bytes", **TIMES, "bytes_per_second": "bytes/s"}),
    "training": (
        measure_training,
        {"device": "", "model": "", "precision": "", "batch_size": "samples", **TIMES}
        | {"samples_per_second": "samples/s"},
    ),
    "collectives": (
        measure_collectives,
        {"backend": "", "operation": "", "ranks": "1", "n_bytes": "bytes", **TIMES}
        | {"bus_bandwidth": "bytes/s"},
    ),
    "scaling": (
        measure_scaling,
        {"backend": "", "mode": "", "ranks": "1", "samples": "samples", **TIMES}
        | {"samples_per_second": "samples/s"},
    ),
}
BETWEEN_RANKS = ["collectives", "scaling"]

if __name__ == "__main__":
    if UNDER_TORCHRUN:
        from fidle_utils.ranks import prelude  # noqa: F401  the lines that every rank runs first: process group, GPU
    sys.exit(main())
