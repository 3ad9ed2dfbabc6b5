"""How much a rank communicates: calls and bytes by collective and by group, whoever made the call.

`collectives.py` says what the two sizes of a call are: the tensor's, and what this rank sends.
"""

import html
from collections import Counter
from contextlib import contextmanager
from fractions import Fraction
from functools import cache

from fidle_utils.measure.collectives import COLLECTIVES, messages_of

__all__ = ["Communication", "count_communication"]


_FOOT = "counted here: calls, bytes of the tensors · computed: bytes sent, by ring and pairwise algorithms"


class Communication:
    """What one rank communicated; shows itself as a table. `a + b` and `sum(ranks["counted"])` add up.

    A group is called by the name that it was given (a mesh dimension "tp", `new_group(group_desc="tp")`),
    "world" if it is the default group, and else by its ranks: (0, 1).
    """

    def __init__(self, messages=()):
        self._messages = Counter(messages)

    def calls(self, collective=None, group=None):
        """Return how many calls were made: all, or those of one collective, in one group."""
        return sum(self._chosen(collective, group).values())

    def n_bytes(self, collective=None, group=None):
        """Return the bytes of the tensors that the calls worked on, S added up over the calls."""
        return sum(calls * message.n_bytes for message, calls in self._chosen(collective, group).items())

    def bytes_sent(self, collective=None, group=None):
        """Return the bytes that this rank sends by the formulas; a float if n does not divide them."""
        chosen = self._chosen(collective, group).items()
        return _number(sum(calls * message.bytes_sent for message, calls in chosen))

    def sizes(self, collective=None, group=None):
        """Return a dict, bytes of one call's tensors → how many such calls, in the order they came first."""
        sizes = Counter()
        for message, calls in self._chosen(collective, group).items():
            sizes[message.n_bytes] += calls
        return dict(sizes)

    def rows(self):
        """Return the table: a list of dicts with collective, group, calls, n_bytes and bytes_sent."""
        kinds = dict.fromkeys((message.collective, message.group) for message in self._messages)
        return [
            {
                "collective": kind[0],
                "group": kind[1],
                "calls": self.calls(*kind),
                "n_bytes": self.n_bytes(*kind),
                "bytes_sent": self.bytes_sent(*kind),
            }
            for kind in kinds
        ]

    def table(self):
        """Return the table as a pandas.DataFrame, a row for each collective and group."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["collective", "group", "calls", "n_bytes", "bytes_sent"])

    def _chosen(self, collective, group):
        if collective not in (None, *COLLECTIVES):
            raise ValueError(f"{collective!r} is no collective: it is one of {', '.join(COLLECTIVES)}.")
        group = tuple(group) if isinstance(group, (list, range)) else group
        return {
            message: calls
            for message, calls in self._messages.items()
            if collective in (None, message.collective) and group in (None, message.group)
        }

    def __add__(self, other):
        if not isinstance(other, Communication):
            return self if other == 0 else NotImplemented  # `sum` starts with 0
        return Communication(self._messages + other._messages)

    __radd__ = __add__

    def __eq__(self, other):
        return isinstance(other, Communication) and self._messages == other._messages

    __hash__ = None

    def _lines(self):
        """The table as it is shown: a list of cells for each line."""
        yield "collective", "group", "calls", "bytes", "bytes sent"
        for row in self.rows():
            group = row["group"] if isinstance(row["group"], str) else ", ".join(map(str, row["group"]))
            numbers = (row["calls"], row["n_bytes"], row["bytes_sent"])
            yield row["collective"], group, *(f"{number:,.15g}" for number in numbers)

    def __repr__(self):
        if not self._messages:
            return "no communication"
        lines = list(self._lines())
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            [f"{cell:{side}{width}}" for cell, side, width in zip(line, "<<>>>", widths, strict=True)]
            for line in lines
        ]
        return "\n".join([*map("  ".join, texts), _FOOT])

    def _repr_html_(self):
        if not self._messages:
            return "<p>no communication</p>"
        rows = ""
        for i, line in enumerate(self._lines()):
            tag, sides = "td" if i else "th", ("left", "left", "right", "right", "right")
            rows += "<tr>"
            for cell, side in zip(line, sides, strict=True):
                rows += f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
            rows += "</tr>"
        return f"<table>{rows}</table><small>{_FOOT}</small>"


def _number(value):
    value = Fraction(value)
    return value.numerator if value.denominator == 1 else float(value)


@contextmanager
def count_communication():
    """Count what this rank communicates inside the `with`; gives a `Communication` that fills as it goes.

    It sees what PyTorch communicates in this thread and in the backward passes that it starts: what you call,
    and what DDP, FSDP, DTensor, tensor and pipeline parallelism, DeepSpeed or compiled code call for you. One
    call counts once, asynchronous or not, of one tensor or of many together. Object collectives show as the
    collectives that they are made of.

    It does not see other threads that you start, backends called without their process group, kernels that
    write into the memory of other GPUs (symmetric memory), what a replayed CUDA graph repeats, nor the small
    traffic of the store, which makes new groups. It warns of a communicating operator that is unknown to it.

    While it counts, every operator of PyTorch takes some microseconds longer: count one step, and time
    another. Without a process group it counts nothing.
    """
    counted = Communication()
    with _watch()(counted._messages):
        yield counted


@cache
def _watch():
    """The mode that sees every operator. Made here: the notebook side has no need to import torch."""
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        supports_higher_order_operators = True

        @classmethod
        def ignore_compile_internals(cls):
            return True  # torch.compile goes on, and what it compiled shows the collectives that it calls

        def __init__(self, messages):
            super().__init__()
            self.messages = messages

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if any(issubclass(kind, DTensor) for kind in types):
                return NotImplemented  # then it becomes the operators and collectives that it stands for
            # What the operator calls itself is not seen: an operator made of others counts once.
            result = operator(*args, **(kwargs or {}))
            if messages := messages_of(operator, args, kwargs):
                self.messages.update(messages)
            return result

    return Watch
