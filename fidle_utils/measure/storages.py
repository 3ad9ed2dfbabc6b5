"""What has bytes: the storages behind tensors, and the tensors that an optimizer keeps."""

import torch


def tensors(value):
    """Yield the tensors in a value: a tensor, or lists, tuples and dicts of them; anything else has none."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def storages(tensor):
    """Yield the storages behind a tensor: of a DTensor that of its local shard; a sparse tensor has two."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    elif tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    else:
        yield tensor.untyped_storage()
        return
    for part in tensors(parts):
        yield from storages(part)


def unique(found, without):
    """Return the storages of tensors by their key, less those `without`."""
    by_key = {storage._cdata: storage for tensor in found for storage in storages(tensor)}
    return {key: storage for key, storage in by_key.items() if key not in without}


def inner(optimizer):
    """Return the optimizer that holds the states: ZeroRedundancyOptimizer and DeepSpeed wrap one."""
    for name in ("optim", "optimizer"):
        if hasattr(getattr(optimizer, name, None), "param_groups"):
            return inner(getattr(optimizer, name))
    return optimizer


def optimizer_tensors(optimizer):
    """Yield the tensors of an optimizer: states, and parameters that may be master copies of the model's."""
    optimizer = inner(optimizer)
    for state in optimizer.state.values():
        yield from tensors(state)
    for group in optimizer.param_groups:
        yield from group["params"]


def predicted_states(optimizers):
    """Bytes of the states after a first step, from the step of a copy that has no data; None if it fails."""
    found = {}
    for optimizer in map(inner, optimizers):
        groups = []
        for group in optimizer.param_groups:
            # These ask for a GPU; the states are the same without.
            plain = dict.fromkeys({"foreach", "fused", "capturable"} & group.keys(), False)
            groups.append({**group, **plain, "params": [_without_data(p) for p in group["params"]]})
        try:
            copy = type(optimizer)(groups)
            copy.step()
        except Exception:  # an optimizer of any make: it may want more arguments, a closure, real numbers
            return None
        states = (tensor for state in copy.state.values() for tensor in tensors(state))
        found |= unique(states, without=())
    return sum(storage.nbytes() for storage in found.values())


def _without_data(parameter):
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    empty = torch.empty_like(local.detach(), device="meta", requires_grad=parameter.requires_grad)
    if parameter.requires_grad:
        empty.grad = torch.empty_like(empty)
    return empty
