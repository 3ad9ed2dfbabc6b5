"""What an operation must do at the least, in closed form: FLOPs, and bytes between it and the memory.

Bytes are the compulsory traffic: every input read once, every output written once, nothing kept from before.
Caches too small, or a chain of separate kernels, make a program move more. A comparison, an addition, a
multiplication, a division, a root and an exponential count one FLOP each.
Source: Williams, Waterman, Patterson, Roofline, Commun. ACM 52(4), 2009 (operational intensity).
"""

from dataclasses import dataclass

__all__ = ["Work", "adam_step", "attention", "elementwise", "layer_norm", "matmul", "softmax"]

SOFTMAX_FLOPS = 5  # a number: maximum, subtract it, exponential, sum, divide
LAYER_NORM_FLOPS = 7  # a number: sum, subtract the mean, square, sum, times 1/σ, times weight, plus bias
ADAM_FLOPS = 13  # a parameter: m 3, v 4, denominator 3, update 3


@dataclass(frozen=True)
class Work:
    """FLOPs to do and bytes to move."""

    flops: float
    n_bytes: float

    @property
    def intensity(self):
        """The arithmetic intensity, in FLOP/byte."""
        return self.flops / self.n_bytes

    def __add__(self, other):
        return Work(self.flops + other.flops, self.n_bytes + other.n_bytes)

    def __repr__(self):
        return f"{self.flops:.4g} FLOP, {self.n_bytes:.4g} bytes: {self.intensity:.3g} FLOP/byte"


def matmul(m, n, k, bytes_per_number=4):
    """(m, k) @ (k, n): 2·m·n·k FLOPs, (m·k + k·n + m·n) numbers moved.

    Square matrices of side n: n/6 FLOP/byte with 4 bytes a number, n/3 with 2. A matrix times a vector
    (n = 1): close to 2 FLOPs a number, however large.
    """
    return Work(2 * m * n * k, (m * k + k * n + m * n) * bytes_per_number)


def elementwise(n, flops_each=1, n_inputs=1, bytes_per_number=4):
    """`n` numbers out of `n_inputs` tensors of `n` numbers each, `flops_each` FLOPs for each number out."""
    return Work(n * flops_each, n * (n_inputs + 1) * bytes_per_number)


def softmax(rows, columns, bytes_per_number=4):
    """Softmax over each row: 5 FLOPs a number, each number read once and written once.

    5 / (2 · bytes_per_number) FLOP/byte whatever the size: 0.625 in fp32. It supposes that a row stays in a
    cache between the passes over it.
    """
    return elementwise(rows * columns, SOFTMAX_FLOPS, bytes_per_number=bytes_per_number)


def layer_norm(rows, columns, bytes_per_number=4):
    """Layer norm over each row, with weight and bias: 7 FLOPs a number, read once and written once.

    Weight and bias add 2 · columns numbers read. Close to 7 / (2 · bytes_per_number): 0.875 in fp32.
    """
    moved = 2 * rows * columns + 2 * columns
    return Work(LAYER_NORM_FLOPS * rows * columns, moved * bytes_per_number)


def attention(batch, heads, length, head_width, key_length=None, bytes_per_number=2, fused=True):
    """Attention of `length` queries to `key_length` keys (as many by default): 4·b·h·q·k·d FLOPs.

    The FLOPs are those of its two matmuls, as PyTorch counts them; softmax adds 5/(4·d) of that. A causal
    mask is not deducted. Fused, only queries, keys, values and the output move: 2·b·h·(q + k)·d numbers.
    Not fused, the q × k scores are written and read twice: 4·b·h·q·k numbers more.
    Source: Dao et al., FlashAttention, NeurIPS 2022.
    """
    keys = key_length or length
    moved = 2 * batch * heads * (length + keys) * head_width
    if not fused:
        moved += 4 * batch * heads * length * keys
    return Work(4 * batch * heads * length * keys * head_width, moved * bytes_per_number)


def adam_step(n_parameters, bytes_per_number=4, weight_decay=False):
    """One step of Adam in one pass: 13 FLOPs a parameter (14 with decoupled weight decay), 7 numbers moved.

    Read: parameter, gradient, two moments; written: parameter, two moments. In fp32 28 bytes: 0.46 FLOP/byte.
    The corrections of the bias are two numbers a step, not a parameter. `fused=True` runs it in one pass;
    other implementations move more. Source: Kingma, Ba, Adam, ICLR 2015, algorithm 1.
    """
    flops = ADAM_FLOPS + (1 if weight_decay else 0)
    return Work(flops * n_parameters, 7 * n_parameters * bytes_per_number)
