"""The collectives as PyTorch's operators, and the two sizes of each call.

Every call has two sizes. With n ranks in the group, `n_bytes` is S, the whole tensor that the collective
works on, and `bytes_sent` is what this rank sends if the collective is done with the least traffic:

    collective       S is                               this rank sends
    all_reduce       the tensor                         2 (n−1)/n · S                              ring
    all_gather       the result, all n shares           (n−1)/n · S                                ring
    reduce_scatter   the input, all n shares            (n−1)/n · S                                ring
    all_to_all       this rank's input, all n pieces    S less its own piece; even: (n−1)/n · S    pairwise
    broadcast        the tensor                         S; the last rank of the chain 0            chain
    reduce           the tensor                         S; the root 0                              chain
    gather           the result, all n shares           S/n; the root 0                            direct
    scatter          the input, all n shares            0; the root (n−1)/n · S                    direct
    send             the message                        S                                          direct
    recv             the message                        0
    barrier          nothing: 0                         0

The chain of a broadcast starts at the root and passes small pieces on through the group, rank after rank;
that of a reduce ends at the root. `bytes_sent` is what the formula says: a library chooses among rings, trees
and others, and builds some collectives from others. Only counters of the system know what crossed a wire.

Sources: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, J. Parallel
Distrib. Comput. 69, 2009 (all_reduce). Thakur, Rabenseifner and Gropp, Optimization of collective
communication operations in MPICH, Int. J. High Perform. Comput. Appl. 19, 2005 (all_gather and reduce_scatter
by a ring, all_to_all by pairwise exchange). NVIDIA, nccl-tests, doc/PERFORMANCE.md: the same factors, and 1
for broadcast and reduce.
"""

import warnings
from fractions import Fraction
from functools import cache
from typing import NamedTuple

# PyTorch's operator → the collective, the argument with the tensors, and whether that is one share of n.
_OPERATORS = {
    "c10d::allreduce_": ("all_reduce", "tensors", False),
    "c10d::allreduce_coalesced_": ("all_reduce", "tensors", False),
    "c10d::allgather_": ("all_gather", "output_tensors", False),
    "c10d::_allgather_base_": ("all_gather", "output_tensor", False),
    "c10d::allgather_coalesced_": ("all_gather", "output_lists", False),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "outputs", False),
    "c10d::reduce_scatter_": ("reduce_scatter", "input_tensors", False),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "input_tensor", False),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs", False),
    "c10d::alltoall_": ("all_to_all", "input_tensors", False),
    "c10d::alltoall_base_": ("all_to_all", "input", False),
    "c10d::broadcast_": ("broadcast", "tensors", False),
    "c10d::reduce_": ("reduce", "tensors", False),
    "c10d::gather_": ("gather", "input_tensors", True),
    "c10d::scatter_": ("scatter", "output_tensors", True),
    "c10d::send": ("send", "tensors", False),
    "c10d::recv_": ("recv", "tensors", False),
    "c10d::recv_any_source_": ("recv", "tensors", False),
    "c10d::barrier": ("barrier", None, False),
    "c10d::monitored_barrier_": ("barrier", None, False),
    "_c10d_functional::all_reduce": ("all_reduce", "input", False),
    "_c10d_functional::all_reduce_": ("all_reduce", "input", False),
    "_c10d_functional::all_reduce_coalesced": ("all_reduce", "inputs", False),
    "_c10d_functional::all_reduce_coalesced_": ("all_reduce", "inputs", False),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", "input", True),
    "_c10d_functional::all_gather_into_tensor_out": ("all_gather", "input", True),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all_gather", "inputs", True),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", "input", False),
    "_c10d_functional::reduce_scatter_tensor_out": ("reduce_scatter", "input", False),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce_scatter", "inputs", False),
    "_c10d_functional::all_to_all_single": ("all_to_all", "input", False),
    "_c10d_functional::broadcast": ("broadcast", "input", False),
    "_c10d_functional::broadcast_": ("broadcast", "input", False),
    "_c10d_functional::isend": ("send", "tensor", False),
    "_c10d_functional::irecv": ("recv", "tensor", False),
    "_dtensor::shard_dim_alltoall": ("all_to_all", "input", False),
}
COLLECTIVES = tuple(dict.fromkeys(collective for collective, _, _ in _OPERATORS.values()))
_BATCH = "_c10d_functional::batch_p2p_ops"
_SILENT = {"c10d::check_for_nan", "_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd"}
_NAMESPACES = ("c10d::", "_c10d_functional::", "_dtensor::shard_dim_alltoall", "symm_mem::")


class Message(NamedTuple):
    """One call: what, among whom, and its two sizes in bytes."""

    collective: str
    group: str | tuple
    n_bytes: int
    bytes_sent: Fraction


def messages_of(operator, args, kwargs):
    """The Messages of a call of a PyTorch operator: none if it does not communicate, several of a batch."""
    name, arguments = _signature(operator)
    if name is None:
        return []
    given = dict(zip(arguments, args, strict=False)) | (kwargs or {})
    if name == _BATCH:
        pairs = zip(given["op_list"], given["tensors"], strict=True)
        return [_message(kind.removeprefix("i"), _n_bytes(tensor), given) for kind, tensor in pairs]
    if name not in _OPERATORS:
        warnings.warn(f"{name} communicates, and is not counted.", stacklevel=4)
        return []
    collective, argument, is_share = _OPERATORS[name]
    n_bytes = _n_bytes(given[argument]) if argument else 0
    own = _own_piece(given, argument) if collective == "all_to_all" else 0
    return [_message(collective, n_bytes * (_group(given).size() if is_share else 1), given, own)]


def _message(collective, n_bytes, given, own=0):
    group = _group(given)
    root = given.get("root_rank", given.get("src"))
    sent = _bytes_sent(collective, n_bytes, group.size(), group.rank(), root, own)
    return Message(collective, _name(group), n_bytes, Fraction(sent))


@cache
def _signature(operator):
    """The name of an operator and of its arguments; no name if it does not communicate."""
    name = operator._schema.name if hasattr(operator, "_schema") else ""
    if not name.startswith(_NAMESPACES) or name in _SILENT:
        return None, ()
    return name, [argument.name for argument in operator._schema.arguments]


def _bytes_sent(collective, n_bytes, n, rank, root, own):
    """The formulas of this module; `own`: the piece of an all_to_all that stays."""
    share = Fraction(n_bytes, n)
    if collective == "all_reduce":
        return 2 * (n - 1) * share
    if collective in ("all_gather", "reduce_scatter"):
        return (n - 1) * share
    if collective == "all_to_all":
        return n_bytes - own
    if collective == "broadcast":
        return n_bytes if (rank - root) % n < n - 1 else 0
    if collective == "reduce":
        return n_bytes if rank != root else 0
    if collective == "gather":
        return share if rank != root else 0
    if collective == "scatter":
        return (n - 1) * share if rank == root else 0
    return n_bytes if collective == "send" else 0


def _own_piece(given, argument):
    """The bytes that a rank gives to itself in an all_to_all: they are not sent."""
    tensors, splits, group = given[argument], given.get("input_split_sizes"), _group(given)
    if isinstance(tensors, (list, tuple)):
        return _n_bytes(tensors[group.rank()])
    if splits:
        return Fraction(_n_bytes(tensors) * splits[group.rank()], sum(splits) or 1)
    return Fraction(_n_bytes(tensors), group.size())


def _n_bytes(tensors):
    if isinstance(tensors, (list, tuple)):
        return sum(map(_n_bytes, tensors))
    if tensors.is_sparse:
        return tensors._indices().nbytes + tensors._values().nbytes
    return tensors.nbytes


def _group(given):
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group

    group = given.get("process_group", given.get("group_name"))
    if isinstance(group, str):
        return _resolve_process_group(group)
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)


def _name(group):
    import torch.distributed as dist

    name = group.group_desc
    if name == "default_pg":
        return "world"
    if name and name != "undefined":
        return name.removeprefix("mesh_")
    return tuple(dist.get_process_group_ranks(group))
