"""While a timeline is recorded: show in it when this rank waits for a collective, and whom it sends to.

The profiler shows neither: an operator that waits looks like one that computes. So the methods of PyTorch
that wait, send and receive are wrapped in annotations, which `trace.py` reads.
"""

import inspect

import torch
import torch.distributed as dist
from torch.profiler import record_function

from fidle_utils.measure.trace import PEERS, WAIT

_originals = []


def install():
    """Wrap the methods. Does nothing where they are wrapped already."""
    if _originals or not dist.is_available():
        return
    _wrap(dist.Work, "wait", lambda work, *_: WAIT)
    _wrap(torch.futures.Future, "wait", lambda future: WAIT)
    _wrap(dist.ProcessGroup, "send", lambda group, tensors, to, *_: _name(group, group.rank(), to))
    _wrap(dist.ProcessGroup, "recv", lambda group, tensors, source, *_: _name(group, source, group.rank()))
    _wrap(dist.ProcessGroup, "recv_anysource", lambda group, *_: PEERS.format(-1, -1))


def remove():
    """Put the methods back."""
    while _originals:
        setattr(*_originals.pop())


def _wrap(owner, method, name):
    original = getattr(owner, method)

    def wrapped(self, *args, **kwargs):
        __tracebackhide__ = True  # IPython shows a learner who fails in here the line of the cell
        try:
            label = name(self, *args, *kwargs.values())
        except Exception:  # of an unknown group; the call itself will say so
            label = "fidle: unknown"
        with record_function(label):
            return original(self, *args, **kwargs)

    # As it stands in the class: what getattr gives for a method of ProcessGroup would no longer bind `self`.
    _originals.append((owner, method, inspect.getattr_static(owner, method)))
    setattr(owner, method, wrapped)


def _name(group, source, destination):
    ranks = dist.get_process_group_ranks(group)
    return PEERS.format(ranks[source], ranks[destination])
