"""The roofline of a device, from ceilings measured here, and the learner's own operations under it.

Source: Williams, Waterman, Patterson, Roofline: an insightful visual performance model for multicore
architectures, Commun. ACM 52(4), 2009; one roof for each cache: Ilic, Pratas, Sousa, IEEE CAL 13(1), 2014.
"""

import math
from dataclasses import asdict, dataclass, field
from statistics import median

from fidle_utils.measure import processor
from fidle_utils.measure.flops import flop_counter
from fidle_utils.measure.machine import machine_name
from fidle_utils.measure.work import LAYER_NORM_FLOPS, SOFTMAX_FLOPS
from fidle_utils.reference import table

__all__ = ["Operation", "Roofline", "operation", "published", "roofline"]

MEMORY = "memory"  # the level outside of all caches


@dataclass
class Roofline:
    """The ceilings of a device: FLOP/s by dtype, bytes/s by level of memory.

    At arithmetic intensity I (FLOP/byte) a program reaches at most min(peak, I · bandwidth).
    """

    machine: str
    compute: dict  # "fp32", "bf16", … → FLOP/s
    memory: dict  # "memory", and "L3", "L2" where a cache shows → bytes/s
    capacity: dict = field(default_factory=dict)  # of those caches, in bytes
    device: str = "cpu"
    kind: str = "measured here"
    others_share: float = 0.0  # of the cores, used by other programs while this was measured

    def ridge(self, dtype="fp32", level=MEMORY):
        """Return the intensity, in FLOP/byte, from which on computing is the limit: peak / bandwidth."""
        return self._peak(dtype) / self.memory[level]

    def attainable(self, intensity, dtype="fp32", level=MEMORY):
        """Return the FLOP/s that the roof allows at `intensity`, in FLOP/byte."""
        return min(self._peak(dtype), intensity * self.memory[level])

    def level(self, n_bytes):
        """Return the smallest level that holds `n_bytes`: where repeated calls find them again."""
        holding = [name for name, size in self.capacity.items() if n_bytes <= size]
        return min(holding, key=self.capacity.get, default=MEMORY)

    def judge(self, operation):
        """Return a dict: what bounds an `Operation` ("memory" or "compute"), and its percent of that roof.

        On a CPU the calls come one after the other, so operands that fit in a cache are compared with that
        cache's roof (`level`); on a GPU its cache is emptied between them. Above 100 percent: the ceiling was
        measured on a busier machine (`others_share`), or the operation did less than it was said to do.
        """
        level = self.level(operation.n_bytes) if operation.device == "cpu" else MEMORY
        attainable = self.attainable(operation.intensity, operation.dtype, level)
        return {
            "name": operation.name,
            "dtype": operation.dtype,
            "level": level,
            "intensity": operation.intensity,
            "flops_per_second": operation.flops_per_second,
            "attainable": attainable,
            "bound": "memory" if operation.intensity < self.ridge(operation.dtype, level) else "compute",
            "percent": 100 * operation.flops_per_second / attainable,
        }

    def table(self, operations):
        """Return what `judge` says of each operation, as a pandas.DataFrame."""
        import pandas

        return pandas.DataFrame([self.judge(operation) for operation in operations])

    def to_dict(self):
        """Return the roofline as plain data, ready for JSON; `Roofline(**data)` makes it again."""
        return asdict(self)

    def _peak(self, dtype):
        if dtype not in self.compute:
            raise KeyError(
                f"no ceiling for {dtype} in this roofline: choose one of {', '.join(self.compute)}."
            )
        return self.compute[dtype]

    def __repr__(self):
        lines = [f"{self.machine} ({self.kind})"]
        lines += [f"  {name:<7} {rate / 1e9:8.1f} GB/s" for name, rate in self.memory.items()]
        for name, rate in self.compute.items():
            lines += [f"  {name:<7} {rate / 1e9:8.1f} GFLOP/s, ridge at {self.ridge(name):.3g} FLOP/byte"]
        return "\n".join(lines)


def roofline(device=None, seconds=0.3):
    """Measure the roofline of `device` (the GPU of this process if it has one, else the CPU) in 3 to 5 s.

    Memory: the best of copy, triad and read. Compute: the best matmul of each dtype. On a CPU also L2 and L3,
    on working sets of a half and a quarter of them, if they come out a fifth faster than the next level; L1
    never does, a PyTorch call takes longer than to read it. GPU caches are left out for the same reason.
    """
    from fidle_utils.measure.speed import default_device, measure_speed

    device, capacity = str(device or default_device()), {}
    with processor.watch_others() as shares:
        speeds = measure_speed(device, seconds)
        memory = {MEMORY: max(speed["best"] for speed in speeds if speed["quantity"] == "memory")}
        for name, n_bytes in _cache_sizes() if device == "cpu" else []:
            rate = _cache_rate(n_bytes, seconds)
            if rate > 1.2 * max(memory.values()):
                memory[name], capacity[name] = rate, n_bytes
    compute = {speed["name"]: speed["best"] for speed in speeds if speed["quantity"] == "matmul"}
    kind = device.split(":")[0]
    return Roofline(machine_name(), compute, memory, capacity, kind, others_share=shares[0])


def _cache_sizes():
    """Return (name, bytes in all that the threads of this process share) of L3 and L2, the larger first."""
    import torch

    caches = [cache for cache in processor.caches(processor.cores()) if cache["level"] > 1 and cache["count"]]
    sizes = [(c["name"], c["n_bytes"] * min(c["count"], torch.get_num_threads())) for c in caches]
    return sorted(sizes, key=lambda size: -size[1])


def _cache_rate(n_bytes, seconds):
    from fidle_utils.measure.speed import memory_speed

    rates = [rate for part in (2, 4) for rate in memory_speed("cpu", seconds / 6, n_bytes // part)]
    return max(rate["best"] for rate in rates)


def published(*names, dtype="bf16"):
    """Return the peaks that makers print for GPUs, as `others` of `plot_roofline`: they are not measurements.

    `names` and `dtype` as in `table("gpu_specs")`; on tensor cores, without sparsity. Raises LookupError.
    """
    rows = {row["gpu"]: row for row in table("gpu_specs")}
    for name in names:
        if (
            name not in rows
            or not rows[name].get(f"{dtype}_tflops")
            or not rows[name]["memory_gb_per_second"]
        ):
            raise LookupError(f"no published {dtype} peak and memory of {name!r}: see table('gpu_specs').")
    return [
        {
            "name": f"{name}, {dtype}",
            "flops_per_second": 1e12 * rows[name][f"{dtype}_tflops"],
            "bytes_per_second": 1e9 * rows[name]["memory_gb_per_second"],
            "label": f"published · {rows[name]['source']}",
        }
        for name in names
    ]


# ------------------------------------------------------------------------------------------ operations


@dataclass
class Operation:
    """An operation as it was measured: its FLOPs, its bytes, its seconds."""

    name: str
    flops: float
    n_bytes: float
    seconds: float  # the median
    best_seconds: float
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def intensity(self):
        """The arithmetic intensity, in FLOP/byte."""
        return self.flops / self.n_bytes

    @property
    def flops_per_second(self):
        """FLOP/s of the best call, as ceilings are the best of their calls too."""
        return self.flops / self.best_seconds


def operation(function, *args, name=None, flops=None, n_bytes=None, dtype=None, device=None, seconds=0.3):
    """Measure `function(*args)` and return an `Operation`; it runs for about `seconds`.

    `flops`, unless given: counted by torch.utils.flop_counter (matmul, convolution, attention and their
    gradients) plus 2 a number of the matrix for matrix × vector, 5 a number for softmax, 7 for layer norm,
    1 for each number that an element-wise operation returns or that goes into a sum, mean or maximum.
    Everything else counts 0. `n_bytes`, unless given: the compulsory traffic, each tensor among `args` (and
    each parameter, if `function` is a module) read once, each tensor returned written once. What the function
    reaches or changes in another way is not seen: give `n_bytes`, for `optimizer.step` for instance, of which
    `work.adam_step` knows both. `dtype` ("fp32", "tf32", "bf16", "fp16"): the ceiling to compare with, by
    default of the first tensor. On a GPU its L2 is emptied before each call, and CUDA events take the time.
    On a CPU the memory of one result is kept for the next, where the system is Linux (`kept_pages`).
    """
    from fidle_utils.measure.speed import kept_pages, timings

    inputs = _inputs(function, args)
    result, counted = _count_flops(function, args)
    device = str(device or (inputs[0].device if inputs else "cpu"))
    name = name or getattr(function, "__name__", type(function).__name__)
    if flops is None and not counted:
        raise ValueError(f"counted no FLOPs in {name}: say how many it does, operation(…, flops=…).")
    if n_bytes is None and not inputs:
        raise ValueError(f"no tensor goes into {name}: hand them over as arguments, or say n_bytes=….")
    flops, n_bytes = flops or counted, n_bytes or _traffic(inputs) + _traffic(_tensors(result))
    del result
    with kept_pages():
        samples = timings(lambda: function(*args), device, seconds, flush=True)
    dtype = dtype or _dtype_name(inputs, device)
    return Operation(name, flops, n_bytes, median(samples), min(samples), dtype, device.split(":")[0])


def _inputs(function, args):
    import torch

    state = [*function.parameters(), *function.buffers()] if isinstance(function, torch.nn.Module) else []
    return _tensors((args, state))


def _tensors(value):
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in values for tensor in _tensors(part)]


def _traffic(tensors):
    """Bytes of tensors that differ; a number that `expand` repeats is one number."""
    sizes = {}
    for t in tensors:
        numbers = 1
        for size, stride in zip(t.shape, t.stride(), strict=True):
            numbers *= size if stride else min(size, 1)
        sizes[t.data_ptr(), t.shape, t.stride()] = numbers * t.element_size()
    return sum(sizes.values())


def _dtype_name(tensors, device):
    import torch

    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
    found = [names[t.dtype] for t in tensors if t.dtype in names]
    name = found[0] if found else "fp32"
    tf32 = device.startswith("cuda") and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if name == "fp32" and tf32 else name


ELEMENTWISE = (
    "add sub mul div exp log sqrt rsqrt tanh sigmoid relu gelu silu maximum minimum where pow".split()
)
REDUCTIONS = "sum mean amax max var".split()


def _count_flops(function, args):
    """Call the function once; return its result and the FLOPs counted."""
    with flop_counter(_formulas()) as counter:
        result = function(*args)
    return result, counter.get_total_flops()


def _formulas():
    """Return FLOPs as functions of shapes, for the operators that PyTorch's counter leaves out."""
    import torch

    def for_each_in(flops):
        return lambda shape, *_, **__: flops * math.prod(shape)

    each_in = dict.fromkeys(REDUCTIONS, 1) | {"mv": 2, "dot": 2, "native_layer_norm": LAYER_NORM_FLOPS}
    each_in |= dict.fromkeys(["_softmax", "_log_softmax"], SOFTMAX_FLOPS)
    formulas = {name: for_each_in(flops) for name, flops in each_in.items()}
    for name in ELEMENTWISE:
        formulas[name] = formulas[name + "_"] = lambda *_, out_shape=None, **__: math.prod(out_shape)
    return {getattr(torch.ops.aten, name): f for name, f in formulas.items() if hasattr(torch.ops.aten, name)}
