"""Memory of the GPU that takes most, by part, in bytes.

Sources: ZeRO, arXiv:1910.02054, Section 3 (model states); Korthikanti et al. 2022, arXiv:2205.05198,
Section 4 (activations); FlashAttention, arXiv:2205.14135 (no scores).
"""

from fidle_utils import memory_formulas
from fidle_utils.planner import calibration
from fidle_utils.planner.layout import layers_by_stage

__all__ = ["PARTS", "activation_bytes", "in_flight", "memory_by_part", "model_state_bytes"]

PARTS = ("parameters", "gradients", "optimizer", "activations", "one layer", "logits", "outside PyTorch")


def model_state_bytes(parameters, zero=0, shards=1, gradient_bytes=2, optimizer_bytes=12):
    """Return (parameters, gradients, optimizer) in bytes, of mixed-precision Adam on one rank.

    2Ψ, 2Ψ and 12Ψ; stage 1 splits the last, 2 the last two, 3 all, over `shards` ranks (arXiv:1910.02054,
    Sections 3.1 and 5; Table 1). `gradient_bytes` is 4 where gradients are kept in fp32.
    """
    precision = memory_formulas.Precision(2, gradient_bytes, optimizer_bytes)
    return tuple(memory_formulas.model_state_bytes(parameters, zero, shards, precision).values())


def activation_bytes(model, layout, software, checkpointing=None):
    """Return the bytes that one layer keeps for backward, of one micro-batch, on one GPU.

    With b·s = n tokens and t = tensor: n·h·(10 + 24/t) + 5·a·s·n/t for a GPT with dropout, n·h/t·(34 + 5as/h)
    with sequence parallelism, without 5as if "selective" or flash, 2·n·h if "full" (arXiv:2205.05198,
    equations 1 to 6, Table 2). Counted here tensor by tensor, so that gated and grouped-query models follow.
    """
    checkpointing = layout.checkpointing if checkpointing is None else checkpointing
    n = layout.micro_batch * model.sequence_length / layout.context
    t, h = layout.tensor, model.hidden
    outside = t if layout.sequence_parallel else 1
    if checkpointing == "full":
        return 2 * n * h / outside
    # Inputs of two norms and of the two products behind them; eager norms also keep fp32 and a scaled copy.
    norms = (8 if software.fused else 16) * h + (2 * h if software.dropout else 0)
    attention = 2 * h + 4 * model.kv_hidden + 2 * h  # q; k and v; the input of the projection
    if not software.fused and model.kv_heads < model.heads:
        attention += 4 * h  # eager code repeats k and v for each head
    # gelu: its input and output; gated: gate, silu(gate), up and their product.
    feed_forward = (8 if model.gated else 4) * model.ffn
    scores = 0
    if not software.flash and checkpointing == "none":
        scores = (5 if software.dropout else 2) * model.heads * model.sequence_length
    return n * (norms / outside + (attention + feed_forward + scores) / t)


def in_flight(layout, stage):
    """Return how many micro-batches (of all layers of a rank) stage `stage`, from 0, holds at most.

    GPipe m; 1F1B p − stage (arXiv:2104.04473, Section 2.2.1); interleaved p(1 + (p−1)/pv) on the first
    (arXiv:2205.05198, Section 4.2.3); ZB-H2 2p − 1 at most, ZB-V p (arXiv:2401.10241, Sections 2.2 and 6).
    """
    p, m, v = layout.pipeline, layout.micro_batches, layout.virtual_stages
    held = {
        "GPipe": m,
        "1F1B": p - stage,
        "interleaved": ((v - 1) * p + 2 * (p - 1 - stage) + 1) / v,
        "ZB-H1": p - stage,
        "ZB-H2": 2 * (p - stage) - 1,
        "ZB-V": p,
    }[layout.schedule]
    return min(m, held)


def memory_by_part(model, machine, layout, software):
    """Return part → bytes, on the GPU that takes most; the keys are PARTS.

    The peak is the larger of two moments: the loss, with all activations and, in FSDP, no gradient yet; and
    the end of backward, with all gradients and the activations of one layer.
    """
    layers = layers_by_stage(model, layout)
    last = layout.pipeline - 1
    stages = [
        _stage(model, layout, software, stage, layers[stage]) for stage in sorted({0, min(1, last), last})
    ]
    parts = max(stages, key=lambda parts: sum(parts.values()))
    if software.nvidia_smi:
        reserved = (calibration.RESERVED - 1) * sum(parts.values())
        parts["outside PyTorch"] = 1e9 * calibration.CONTEXT_GB + reserved
    return parts


def stage_parameters(model, layout, stage, layers):
    """Return the parameters of a stage on one tensor rank, embedding and head included."""
    parameters = layers * model.layer_parameters
    if stage == 0:
        parameters += model.embedding_parameters
    if stage == layout.pipeline - 1:
        # A tied head on another stage than the embedding is a second copy.
        parameters += model.head_parameters if layout.pipeline == 1 else model.vocab * model.hidden
    return parameters / layout.tensor


def _stage(model, layout, software, stage, layers):
    parameters = stage_parameters(model, layout, stage, layers)
    weights, gradients, optimizer = model_state_bytes(
        parameters,
        layout.zero,
        layout.shards,
        software.gradient_bytes,
        software.optimizer_bytes,
    )
    if layout.zero == 3:
        # FSDP keeps fp32 shards only, which are the optimizer's; DeepSpeed also keeps them in 16 bits.
        weights = (weights if software.gradient_bytes == 2 else 0) + _gathered(
            model, layout, parameters, stage
        )
    checkpointed = layers * layout.checkpointed if layout.checkpointing != "none" else 0
    kept = checkpointed * activation_bytes(model, layout, software)
    kept += (layers - checkpointed) * activation_bytes(model, layout, software, "none")
    n = layout.micro_batch * model.sequence_length / layout.context
    one_layer = activation_bytes(model, layout, software, "none") + _layer_gradients(
        model, layout, software, n
    )
    if software.keeps_outputs and layout.pipeline > 1:
        kept += 2 * n * model.hidden
    is_last = stage == layout.pipeline - 1
    logits = calibration.LOGIT_BYTES * n * model.vocab / layout.tensor if is_last else 0
    parts = dict.fromkeys(PARTS, 0.0) | {"parameters": weights, "optimizer": optimizer}
    at_loss = parts | {
        "gradients": 0 if layout.zero == 3 and layout.micro_batches == 1 else gradients,
        "activations": in_flight(layout, stage) * kept,
        "one layer": one_layer if layout.checkpointing != "none" and not is_last else 0,
        "logits": 0 if software.fused_loss else logits,
    }
    # Where the head follows, its logits are gone when the first layer is computed again.
    in_backward = at_loss | {"one layer": one_layer if layout.checkpointing != "none" else 0, "logits": 0}
    at_end = parts | {"gradients": gradients, "one layer": one_layer}
    return max((at_loss, in_backward, at_end), key=lambda parts: sum(parts.values()))


def _layer_gradients(model, layout, software, n):
    """The bytes of the gradients that backward of one layer holds at once: of its widest tensors."""
    wide = 2 * (2 if model.gated else 1) * model.ffn
    scores = 0 if software.flash else 4 * model.heads * model.sequence_length
    return n * ((wide + scores) / layout.tensor + 4 * model.hidden)


def _gathered(model, layout, parameters, stage):
    """The bytes of whole parameters that FSDP holds: all without reshard, else two layers and both ends."""
    if not layout.reshard:
        return 2 * parameters
    ends = (model.embedding_parameters + model.head_parameters) / layout.tensor if stage == 0 else 0
    return 2 * (ends + 2 * model.layer_parameters / layout.tensor)
