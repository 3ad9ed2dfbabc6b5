"""Seconds of computation of one layer and of the head, on one GPU, for one micro-batch.

A matrix product costs its FLOPs at an achieved ceiling plus its bytes through memory; everything else costs
its bytes (roofline: Williams et al. 2009). Bytes are counted kernel by kernel.
"""

import math
from dataclasses import dataclass

from fidle_utils.planner import calibration

# The tile of a matrix product that one multiprocessor computes at a time.
TILE = (128, 256)

__all__ = ["LayerTime", "head_seconds", "layer_seconds", "matmul_seconds"]


@dataclass(frozen=True)
class LayerTime:
    """Seconds of forward, of backward split in input and weight gradients, and of computing again."""

    forward: float
    backward_input: float
    backward_weight: float
    again: float

    @property
    def total(self):
        return self.forward + self.backward_input + self.backward_weight + self.again


def matmul_seconds(gpu, precision, m, n, k, count=1):
    """Return the seconds of `count` products of (m × k) by (k × n), one direction.

    2mnk FLOPs at GEMM_FRACTION of the ceiling, plus the 2(mk + kn + mn) bytes of its operands. A size that is
    no multiple of 8 elements is slower: NVIDIA, Matrix Multiplication Background User's Guide, Section 3.1.
    """
    fraction = calibration.GEMM_FRACTION[gpu.generation] * _alignment(n, k) * _waves(gpu, m, n)
    rate = 1e12 * gpu.ceiling_tflops[precision] * fraction
    moved = 2 * (m * k + k * n + m * n)
    return count * (2 * m * n * k / rate + moved / _memory_rate(gpu))


def _alignment(*sizes):
    return calibration.UNALIGNED if any(size % 8 for size in sizes) else 1.0


def _waves(gpu, m, n):
    """The part of the multiprocessors that is busy, on average: tiles are computed in waves of one each."""
    tiles = math.ceil(m / TILE[0]) * math.ceil(n / TILE[1])
    return tiles / (math.ceil(tiles / gpu.multiprocessors) * gpu.multiprocessors)


def _memory_rate(gpu):
    return 1e9 * gpu.memory_gb_per_second * calibration.MEMORY_FRACTION


def layer_seconds(model, gpu, layout, software):
    """Return the LayerTime of one layer, its communication left out."""
    t, h = layout.tensor, model.hidden
    n = layout.micro_batch * model.sequence_length / layout.context
    products = [
        (n, (h + 2 * model.kv_hidden) / t, h),
        (n, h, h / t),
        (n, (2 if model.gated else 1) * model.ffn / t, h),
        (n, h, model.ffn / t),
    ]
    matrices = sum(matmul_seconds(gpu, layout.precision, *sizes) for sizes in products)
    attention, attention_back = _attention(model, gpu, layout, software, n)
    elementwise = _elementwise_bytes(model, layout, software, n) / _memory_rate(gpu)
    # The processor launches kernels one by one: a layer cannot be faster than its launches.
    launches = calibration.LAUNCH_SECONDS * (
        calibration.KERNELS_FUSED if software.fused else calibration.KERNELS_EAGER
    )
    forward = max(launches, matrices + attention + elementwise)
    backward_input = max(launches, matrices + attention_back + 2 * elementwise)
    again = {"none": 0.0, "selective": 0.0 if software.flash else attention, "full": forward}
    return LayerTime(forward, backward_input, matrices, layout.checkpointed * again[layout.checkpointing])


def _attention(model, gpu, layout, software, n):
    """Seconds of attention, forward and backward.

    Scores in memory: 4·n·s·h FLOPs and, of each score, 6.5 passes of 2 bytes forward (write, softmax, dropout
    with its mask, read) and 9.5 backward. Flash: half of the pairs, 2.5 times the FLOPs backward
    (arXiv:2307.08691, Section 4.1), reads and writes of q, k, v and the result only.
    """
    heads, s, d = model.heads / layout.tensor, model.sequence_length, model.head_size
    precision = "bf16" if layout.precision == "fp8" else layout.precision
    ceiling = 1e12 * gpu.ceiling_tflops[precision]
    flops = 4 * n * s * heads * d
    if software.flash:
        gain = calibration.FLASH_3_GAIN if software.flash_version == 3 and gpu.generation == "Hopper" else 1
        forward = flops / 2 / (ceiling * gain * calibration.FLASH_FRACTION[gpu.generation])
        return forward, 2.5 * forward
    scores = 2 * n * s * heads / _memory_rate(gpu)
    products = flops / (ceiling * calibration.GEMM_FRACTION[gpu.generation] * _alignment(d))
    passes = (6.5, 9.5) if software.dropout else (4, 6)
    return products + passes[0] * scores, 2 * products + passes[1] * scores


def _elementwise_bytes(model, layout, software, n):
    """Bytes that norms, dropout, residuals and activations of one layer read and write in forward.

    Fused, in tensors of 2·n·h bytes: 2 of each norm, 3 of each residual (3.5 with dropout), once over the
    sequence-parallel ranks if there are any; 2 of gelu or 3 of a gated one for f instead of h, 2 to lay out
    q, k and v. Eager (one kernel an operator, norms in fp32): 18 of each norm, 5 of a gated activation, 10 of
    rotary positions.
    """
    tensor = 2 * n * model.hidden
    wide = model.ffn / model.hidden
    residual = 3.5 if software.dropout else 3
    outside = 2 * (2 + residual) if software.fused else 2 * (18 + (8.5 if software.dropout else 3))
    inside = (3 if model.gated else 2) * wide + 2 * (1 + 2 * model.kv_hidden / model.hidden)
    if not software.fused:
        inside += 2 * wide + 10
    if layout.precision == "fp8":
        inside += 2 * (3 + wide)  # each input is read in 16 bits and written in 8, plain and transposed
    split = layout.tensor if layout.sequence_parallel else 1
    return tensor * (outside / split + inside / layout.tensor)


def head_seconds(model, gpu, layout, software):
    """Return (forward, backward) seconds of the head and the loss: one product of n × V × h, and logits.

    The loss reads and writes its 4-byte logits about 4 times forward and 3 backward.
    """
    n = layout.micro_batch * model.sequence_length / layout.context
    product = matmul_seconds(
        gpu,
        "bf16" if layout.precision == "fp8" else layout.precision,
        n,
        model.vocab / layout.tensor,
        model.hidden,
    )
    logits = 4 * n * model.vocab / layout.tensor / _memory_rate(gpu)
    return product + 4 * logits, 2 * product + 3 * logits
