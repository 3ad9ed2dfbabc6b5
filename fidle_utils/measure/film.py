"""A film of an algorithm made of messages: what was sent, and what a buffer held before each message."""

from contextlib import contextmanager
from functools import cache

from fidle_utils.collective_steps import Message, Steps

__all__ = ["Film", "film", "frames", "steps_of"]


class Film:
    """What one rank sent, and the values of one tensor before each message and at the end.

    `messages`: dicts with source, destination (ranks), n_bytes, values, and `first`: the place of the first
    value in the filmed tensor, None if another tensor was sent. `snapshots`: lists of values, one more.
    """

    def __init__(self):
        self.messages, self.snapshots = [], []

    def __repr__(self):
        return f"film of {len(self.messages)} messages"


@contextmanager
def film(tensor):
    """Film `tensor` inside the `with`, before each message that this rank sends and at the end; gives a Film.

    It sees send, isend and their batches on any group, called in this thread. Values are kept as Python
    numbers: for small tensors. Collectives of the library are not seen inside.
    """
    made = Film()
    with _camera()(made, tensor):
        yield made
    made.snapshots.append(tensor.flatten().tolist())


def frames(films):
    """Return the frames of an algorithm from the Film of each rank, rank 0 first: a list of dicts.

    Each has `buffers` (one list of values a rank, after the step) and `messages` (those of the step, as in
    Film). The first is the start, with no message. Raises ValueError if ranks sent unequally many messages.
    """
    if len(lengths := {len(one.messages) for one in films}) != 1:
        raise ValueError(f"the ranks sent unequally many messages: {sorted(lengths)}.")
    rounds = zip(*(one.messages for one in films), strict=True)
    states = zip(*(one.snapshots for one in films), strict=True)
    return [
        {"messages": list(messages), "buffers": list(buffers)}
        for messages, buffers in zip([(), *rounds], states, strict=True)
    ]


def steps_of(films, title="What the ranks sent", layout="circle"):
    """Return the `Steps` of `fidle_utils.collective_steps` that the Films of all ranks show, rank 0 first.

    A chunk is as long as the shortest message. What arrived was copied where the values sent stand in the
    buffer afterwards, else added. Where other tensors than the filmed one were sent, there is one chunk.
    """
    shown = frames(films)
    sent = [message for frame in shown for message in frame["messages"]]
    known = all(message["first"] is not None for message in sent)
    length = min(len(message["values"]) for message in sent) if known else 0
    n_values = len(shown[0]["buffers"][0])
    steps = [
        [_message(message, frame["buffers"], length) for message in frame["messages"]] for frame in shown[1:]
    ]
    return Steps(title, len(films), n_values // length if known else 1, steps, layout, "measured here")


def _message(message, buffers, length):
    ends, first, values = (message["source"], message["destination"]), message["first"], message["values"]
    if not length:
        return Message(*ends, (0,), message["n_bytes"], "send")
    chunks = tuple(range(first // length, (first + len(values)) // length))
    copied = buffers[message["destination"]][first : first + len(values)] == values
    return Message(*ends, chunks, message["n_bytes"], "copy" if copied else "add")


@cache
def _camera():
    """The mode that sees every operator. Made here: the notebook side has no need to import torch."""
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    class Camera(TorchDispatchMode):
        def __init__(self, made, tensor):
            super().__init__()
            self.made, self.tensor = made, tensor

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator._schema.name == "c10d::send":
                self.shoot(**_named(operator, args, kwargs))
            return operator(*args, **(kwargs or {}))

        def shoot(self, tensors, process_group, dst, **_):
            unboxed = isinstance(process_group, dist.ProcessGroup)
            group = process_group if unboxed else dist.ProcessGroup.unbox(process_group)
            self.made.snapshots.append(self.tensor.flatten().tolist())
            self.made.messages.append(
                {
                    "source": dist.get_rank(),
                    "destination": dist.get_global_rank(group, dst),
                    "n_bytes": sum(sent.nbytes for sent in tensors),
                    "values": [value for sent in tensors for value in sent.flatten().tolist()],
                    "first": self.place_of(tensors[0]),
                }
            )

        def place_of(self, sent):
            offset = sent.data_ptr() - self.tensor.data_ptr()
            return offset // sent.itemsize if 0 <= offset < self.tensor.nbytes else None

    return Camera


def _named(operator, args, kwargs):
    names = [argument.name for argument in operator._schema.arguments]
    return dict(zip(names, args, strict=False)) | (kwargs or {})
