"""What a DeepSpeed engine keeps on one rank: bytes of parameters, gradients, optimizer states, buckets."""

import torch

__all__ = ["ENGINE_PARTS", "held_bytes"]

ENGINE_PARTS = ("parameters", "gradients", "master weights", "optimizer states", "buckets")


def held_bytes(engine):
    """Return a dict, part → bytes that this rank keeps for `engine`; call it between `backward` and `step`.

    parameters: what `module` computes with, whole or as a shard, and whole copies that stage 3 keeps;
    master weights: the fp32 copy that the optimizer updates, where it is another tensor;
    buckets: what gradients are packed into before they are reduced.
    A view counts with its own bytes: where a shard ends amid a tensor, the whole tensor stays in memory.
    The names of DeepSpeed 0.19's attributes are not public; a part that none of them names counts 0.
    """
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)  # ZeRO's optimizer wraps torch's
    parameters = list(engine.module.parameters())
    masters = [p for group in inner.param_groups for p in group["params"]]
    groups = (
        [*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)],
        [*(p.grad for p in parameters), *_gradient_shards(optimizer)],
        [*masters, *_tensors(getattr(optimizer, "fp32_partitioned_groups_flat", None))],
        [value for state in inner.state.values() for value in state.values()],
        [bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()],
    )
    seen = set()
    return {part: _count(tensors, seen) for part, tensors in zip(ENGINE_PARTS, groups, strict=True)}


def _gradient_shards(optimizer):
    kept = getattr(optimizer, "grad_partitions_flat_buffer", None)  # stage 3
    if kept is not None:
        return [kept]
    # Stages 1 and 2: for the step, or between micro-steps.
    for name in ("averaged_gradients", "all_grad_tensors"):
        if found := _tensors(getattr(optimizer, name, None)):
            return found
    return []


def _tensors(value):
    """All the tensors of nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _count(tensors, seen):
    """Bytes of the tensors not counted before; two that start at one address are one."""
    total = 0
    for tensor in tensors:
        if tensor is not None and torch.is_tensor(tensor) and tensor.numel():
            place = (tensor.device, tensor.data_ptr())
            total += 0 if place in seen else tensor.nbytes
            seen.add(place)
    return total
