"""How fast this device is, measured here: memory, matmul, host↔device copies, messages between ranks.

Every rate is a dict: quantity ("memory", "matmul", "transfer"), name, device, threads, n_bytes (of all the
tensors that take part), best and median (of `samples` timings), unit ("B/s" or "FLOP/s").
"""

import contextlib
import ctypes
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

from fidle_utils.measure import processor

__all__ = ["default_device", "link_speed", "measure_speed", "memory_speed", "memory_sweep", "timings"]

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_device():
    """Return the GPU of this process if it has one, else the CPU."""
    return _this_gpu() if torch.cuda.is_available() else torch.device("cpu")


def _this_gpu():
    return torch.device("cuda", torch.cuda.current_device())


def measure_speed(device=None, seconds=0.3):
    """Measure memory and matmul of `device`, and copies to it, about `seconds` each; returns a list of rates.

    `device`: that of `default_device()` unless given. On a GPU this makes a CUDA context. In all 2 to 5 s.
    """
    device = default_device() if device is None else torch.device(device)
    rates = memory_speed(device, seconds) + matmul_speed(device, seconds)
    return rates + transfer_speed(device, seconds) if device.type == "cuda" else rates


# ---------------------------------------------------------------------------------------------- timing


def timings(function, device="cpu", seconds=0.3, most=1000, flush=False):
    """Call `function` for about `seconds`, three to `most` times; returns the seconds of each call.

    The first call, not returned, warms up. On a GPU the seconds lie between two CUDA events: the GPU's own
    time, not that of the Python which gives the order, unless the GPU has to wait for it. With `flush` a fill
    of four times the L2 goes before each call, so that it finds its operands in memory and not in that cache.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _cuda_timings(function, device, seconds, most, flush)
    function()
    samples, end = [], time.perf_counter() + seconds
    while len(samples) < most and (len(samples) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return samples


def _cuda_timings(function, device, seconds, most, flush):
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    filler = torch.empty(4 * cache, dtype=torch.int8, device=device) if flush else None

    def timed(calls):
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            if filler is not None:
                filler.zero_()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()  # the events have no time before the GPU has passed them
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    function()
    estimate = max(statistics.median(timed(3)), 1e-6)
    return timed(int(min(most, max(3, seconds / estimate))))


@contextlib.contextmanager
def kept_pages():
    """Let this process keep the memory that it frees, with glibc, until the block ends.

    A large tensor is otherwise given back to the system at once, and its next one is fetched page by page:
    several times what a softmax takes. On a GPU PyTorch keeps what is freed anyway. Source: mallopt(3).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        # Where glibc's own adjustment ends once a program has freed a large block; setting one stops it.
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)


def _rate(quantity, name, device, work, samples, unit, n_bytes):
    return {
        "quantity": quantity,
        "name": name,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "n_bytes": n_bytes,
        "best": work / min(samples),
        "median": work / statistics.median(samples),
        "samples": len(samples),
        "unit": unit,
    }


# ---------------------------------------------------------------------------------------------- memory


def memory_speed(device="cpu", seconds=0.3, n_bytes=None):
    """Measure copy, triad and read on tensors of `n_bytes` in all.

    Unless given these are 2 GB on a GPU; on a CPU 256 MB, or four times its largest caches if that is more.
    copy: a = b; triad: a = b + s·c; read: the greatest of a. Counted are the bytes that the program reads and
    writes. A processor may first fetch the line that it overwrites: it then moves more than is counted, and
    read comes out fastest. Source: STREAM (McCalpin, 1995) for copy and triad, their count and "the best".
    """
    device = torch.device(device)
    if n_bytes is None:
        caches = [cache["n_bytes"] * (cache["count"] or 1) for cache in processor.caches(processor.cores())]
        n_bytes = 2 * 10**9 if device.type == "cuda" else max(256 * 10**6, 4 * max(caches, default=0))
    return [_stream(name, device, n_bytes, seconds) for name in ("copy", "triad", "read")]


def memory_sweep(device="cpu", sizes=None, seconds=0.04, name="copy"):
    """Measure `name` (copy, triad or read) on working sets of `sizes` bytes: 64 KiB to 128 MiB unless given.

    What fits in a cache is served from there, so the rate falls where a cache ends. A PyTorch call costs some
    microseconds: small sets show that cost, and an L1 cannot be measured so.
    """
    sizes = sizes or [1 << power for power in range(16, 28)]
    return [_stream(name, torch.device(device), n_bytes, seconds) for n_bytes in sizes]


def _stream(name, device, n_bytes, seconds):
    n = n_bytes // 4 // {"copy": 2, "triad": 3, "read": 1}[name]  # 4 bytes a number
    a, b, c = (torch.ones(n if used else 0, device=device) for used in (1, name != "read", name == "triad"))
    result = torch.empty((), device=device)
    calls = {
        "copy": lambda: a.copy_(b),
        "triad": lambda: torch.add(b, c, alpha=2.0, out=a),
        "read": lambda: torch.amax(a, dim=(), out=result),
    }
    samples = timings(calls[name], device, seconds)
    return _rate("memory", name, device, n_bytes, samples, "B/s", n_bytes)


# ---------------------------------------------------------------------------------------------- matmul


def matmul_speed(device="cpu", seconds=0.3, sides=None):
    """Measure square matmuls of growing `sides`, keep the fastest size: one rate for each dtype.

    On the CPU fp32 and bf16; fp16 is left out: most processors emulate it, hundreds of times slower. On a GPU
    fp32, and tf32, bf16, fp16 where it has them. 2·n³ FLOPs each. The entries are drawn from a normal law: a
    GPU that multiplies zeros draws less power and runs faster.
    """
    device = torch.device(device)
    sides = sides or ([2048, 4096, 8192] if device.type == "cuda" else [1024, 2048])
    return [_matmul(name, device, seconds, sides) for name in _matmul_dtypes(device)]


def _matmul_dtypes(device):
    if device.type != "cuda":
        return ["fp32", "bf16"]
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)  # the first with tf32 and bf16
    return ["fp32", "tf32", "bf16", "fp16"] if ampere else ["fp32", "fp16"]


def _matmul(name, device, seconds, sides):
    rates = []
    with fp32_matmul("tf32" if name == "tf32" else "ieee"):
        for n in sides:
            a, b = (torch.randn(n, n, device=device).to(DTYPES[name]) for _ in range(2))
            out = torch.empty_like(a)
            samples = timings(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)
            n_bytes = 3 * n * n * a.element_size()
            rates.append(_rate("matmul", name, device, 2 * n**3, samples, "FLOP/s", n_bytes))
            if min(samples) > seconds / 2:  # the next side takes eight times as long
                break
    return max(rates, key=lambda rate: rate["best"])


@contextlib.contextmanager
def fp32_matmul(precision):
    """Multiply fp32 matrices on the GPU as "ieee" or "tf32" says, then as before."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# ------------------------------------------------------------------------------------- host and device


def transfer_speed(device="cuda", seconds=0.3, n_bytes=256 * 10**6):
    """Measure copies of `n_bytes` host→device and device→host, from pageable and from pinned memory."""
    device, rates = torch.device(device), []
    there = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    for kind in ("pageable", "pinned"):
        here = torch.ones(n_bytes, dtype=torch.uint8, pin_memory=kind == "pinned")
        for name, target, source in (("host→device", there, here), ("device→host", here, there)):
            copy = lambda target=target, source=source: target.copy_(source, non_blocking=True)  # noqa: E731
            samples = timings(copy, device, seconds, most=30)
            rates.append(_rate("transfer", f"{name}, {kind}", device, n_bytes, samples, "B/s", n_bytes))
    return rates


# --------------------------------------------------------------------------------------- between ranks


def link_speed(sizes=(8, 1 << 16, 1 << 20, 1 << 24), repeats=7, calls=None):
    """On every rank at once (`ranks.run(link_speed)`): time messages of `sizes` bytes; returns rows.

    A row is a dict: operation, ranks, n_bytes, `seconds` (median) and `best_seconds` of one message; of the
    smallest message that is the latency. Two rates, of the best, in B/s: `algorithm_bandwidth`, n_bytes /
    seconds, and `bus_bandwidth`, what a link carried. "send 0→1" is half of the way there and back, its two
    rates agree; the last rank, which may sit on another node, gets one too. "all_reduce": bus = 2(n−1)/n ·
    algorithm. Each of the `repeats` times `calls` messages in a row, 10 on a GPU, else 3; the slowest rank's
    time counts. All ranks return the same rows. Source: NVIDIA nccl-tests, PERFORMANCE.md.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise RuntimeError(
            "link_speed() needs two ranks or more: ranks.start(4), then ranks.run(link_speed)."
        )
    n, device = dist.get_world_size(), _this_gpu() if "nccl" in dist.get_backend() else torch.device("cpu")
    calls = calls or (10 if device.type == "cuda" else 3)
    rows = []
    for n_bytes in sizes:
        message = torch.zeros(max(n_bytes // 4, 1), device=device)
        for peer in sorted({1, n - 1}):
            samples = _slowest(lambda m=message, p=peer: _there_and_back(m, p), repeats, calls, device)
            rows.append(_link_row(f"send 0→{peer}", n, message, [s / 2 for s in samples], 1))
        samples = _slowest(lambda m=message: dist.all_reduce(m), repeats, calls, device)
        rows.append(_link_row("all_reduce", n, message, samples, 2 * (n - 1) / n))
    return rows


def _link_row(operation, n, message, samples, bus_factor):
    algorithm = message.nbytes / min(samples)
    return {
        "operation": operation,
        "ranks": n,
        "n_bytes": message.nbytes,
        "seconds": statistics.median(samples),
        "best_seconds": min(samples),
        "algorithm_bandwidth": algorithm,
        "bus_bandwidth": bus_factor * algorithm,
    }


def _there_and_back(message, peer):
    if dist.get_rank() == 0:
        dist.send(message, dst=peer)
        dist.recv(message, src=peer)
    elif dist.get_rank() == peer:
        dist.recv(message, src=0)
        dist.send(message, dst=0)


def _slowest(function, repeats, calls, device):
    """Seconds of one call, for each repeat, on the rank that took longest."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    function()  # the first message also makes the connection
    samples = []
    for _ in range(repeats):
        dist.barrier()
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        samples.append((time.perf_counter() - start) / calls)
    longest = torch.tensor(samples, dtype=torch.float64, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return longest.tolist()
