"""What a training step holds and sends, by the formulas of the papers; no PyTorch needed.

Bytes are exact numbers of the formulas, not rounded; GB in the papers are decimal. `n_parameters` is Ψ.

Sources: Rajbhandari, Rasley, Ruwase and He, ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models, arXiv:1910.02054, 2020. Korthikanti et al., Reducing Activation Recomputation in Large Transformer
Models, arXiv:2205.05198, 2022.
"""

from typing import NamedTuple

__all__ = [
    "PRECISIONS",
    "Precision",
    "activation_bytes",
    "activation_terms",
    "largest_model",
    "model_state_bytes",
    "step_bytes_sent",
]

STAGES = (0, 1, 2, 3)


class Precision(NamedTuple):
    """Bytes for one parameter: the weight, its gradient, the optimizer's (a master weight included)."""

    parameter: float
    gradient: float
    optimizer: float


PRECISIONS = {
    "AdamW, bf16 + fp32 master": Precision(2, 2, 12),  # ZeRO, section 3.1: K = 12
    "AdamW, fp32": Precision(4, 4, 8),
    "AdamW, bf16 only": Precision(2, 2, 4),
    "8-bit AdamW, bf16 + fp32 master": Precision(2, 2, 6),
    "SGD with momentum, bf16 + fp32 master": Precision(2, 2, 8),
}
MIXED = PRECISIONS["AdamW, bf16 + fp32 master"]


def model_state_bytes(n_parameters, stage=0, n_ranks=1, precision=MIXED):
    """Return the bytes of model states on one rank: a dict of parameters, gradients, optimizer states.

    `stage`: 0 is data parallelism, 1 P_os, 2 P_os+g, 3 P_os+g+p of ZeRO (section 5, figure 1): a part that a
    stage partitions is divided by `n_ranks`, exactly; padding and communication buffers are left out.
    Raises ValueError.
    """
    _check(stage, n_ranks)
    cut = {"parameters": stage >= 3, "gradients": stage >= 2, "optimizer states": stage >= 1}
    each = zip(cut.items(), precision, strict=True)
    return {part: n_parameters * n_bytes / (n_ranks if is_cut else 1) for (part, is_cut), n_bytes in each}


def step_bytes_sent(n_parameters, stage=0, n_ranks=1, precision=MIXED):
    """Return the bytes that one rank sends in a step with one micro-batch, by ring algorithms.

    Times (n−1)/n each: reduce_scatter of the gradients, all_gather of the parameters; at stage 0 both halves
    of the all_reduce carry gradients, at stage 3 the parameters are gathered twice. In units of Ψ numbers and
    for many ranks: 2Ψ, 2Ψ, 2Ψ, 3Ψ (ZeRO, section 7). Raises ValueError.
    """
    _check(stage, n_ranks)
    weights, gradients = {0: (0, 2), 1: (1, 1), 2: (1, 1), 3: (2, 1)}[stage]
    each = weights * precision.parameter + gradients * precision.gradient
    return (n_ranks - 1) / n_ranks * n_parameters * each


def largest_model(memory_bytes, stage=0, n_ranks=1, precision=MIXED, model_parallel=1):
    """Return how many parameters have model states that fill `memory_bytes` on each rank; ZeRO, Table 2.

    `model_parallel` ranks share one copy of the model, `n_ranks` copies share the states.
    """
    return model_parallel * memory_bytes / sum(model_state_bytes(1, stage, n_ranks, precision).values())


def activation_terms(sequence, batch, width, n_heads):
    """Return the bytes that a transformer layer saves for backward, operation by operation: a dict.

    Numbers of 2 bytes, dropout masks of 1, in the order of forward. `sequence` s, `batch` b (micro-batch),
    `width` h, `n_heads` a. Together sbh (34 + 5as/h): Korthikanti et al., section 4.1 and equation 1.
    """
    sbh, scores = sequence * batch * width, n_heads * sequence**2 * batch
    return {
        "attention norm: input": 2 * sbh,
        "Q, K, V: input": 2 * sbh,
        "QKᵀ: Q and K": 4 * sbh,
        "softmax: output": 2 * scores,
        "attention dropout: mask": scores,
        "weighted sum: scores and V": 2 * scores + 2 * sbh,
        "attention projection: input": 2 * sbh,
        "attention output dropout: mask": sbh,
        "MLP norm: input": 2 * sbh,
        "MLP, first linear: input": 2 * sbh,
        "MLP, GELU: input": 8 * sbh,
        "MLP, second linear: input": 8 * sbh,
        "MLP dropout: mask": sbh,
    }


def activation_bytes(
    sequence, batch, width, n_heads, recompute="none", tensor_parallel=1, sequence_parallel=False
):
    """Return the bytes of activations that one transformer layer keeps on each of `tensor_parallel` ranks.

    `recompute`: "none", "selective" (scores, softmax and its dropout are computed again) or "full" (only the
    layer's input is kept). Korthikanti et al., Table 2. Raises ValueError.
    """
    sbh, t = sequence * batch * width, tensor_parallel
    if recompute == "full":
        return 2 * sbh / (t if sequence_parallel else 1)
    if recompute not in ("none", "selective"):
        raise ValueError(f"recompute={recompute!r}: say none, selective or full.")
    scores = 0 if recompute == "selective" else 5 * n_heads * sequence / width
    # Without sequence parallelism every rank holds the inputs of norms and of linears, and two masks: 10 sbh.
    return sbh * (10 / (t if sequence_parallel else 1) + (24 + scores) / t)


def _check(stage, n_ranks):
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r}: ZeRO has stages {', '.join(map(str, STAGES))}.")
    if n_ranks < 1:
        raise ValueError(f"n_ranks={n_ranks}: at least 1.")
