"""Runs of which one rank is ill, for lesson 10: real processes, real logs. The answers are in here."""

import math
import time
import zlib
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fidle_utils.data import batches, digits
from fidle_utils.models import MLP

__all__ = ["ILLNESSES", "NAMES", "second_opinion", "visit"]

ILLNESSES = ("hang", "desynchronised", "NaN", "straggler")
NAMES = ("A", "B", "C", "D")
_BEGINS = 5  # the step at which an illness shows
_SLOW_SECONDS = 0.06
_FILES = {"A": "3:0", "B": "0:2", "C": "1:3", "D": "2:1", "healthy": "-1:-1"}


def _truth(name):
    """(illness, rank) of a patient; (None, -1) of one who is well."""
    illness, rank = map(int, _FILES[name].split(":"))
    return (ILLNESSES[illness] if illness >= 0 else None), rank


def visit(name, device, steps=12, timeout_seconds=1.5):
    """Train for some steps, by hand, with all the ranks, and return this rank's log, a list of dicts.

    `name`: one of NAMES, or "healthy". Needs four ranks. A row holds step, loss (of this rank's own share,
    before anything is averaged), waited_ms (for the last rank to arrive, before the gradients are averaged),
    weights (a checksum after the step; None if it did not come to that) and error (the first line of what was
    raised, or ""). Raises ValueError.
    """
    if name not in _FILES:
        raise ValueError(f"no patient {name!r}: there are {', '.join(_FILES)}.")
    if dist.get_world_size() != 4:
        raise ValueError(f"{dist.get_world_size()} ranks: the patients are runs on four, %ranks 4 first.")
    illness, sick_rank = _truth(name)
    ill = illness if dist.get_rank() == sick_rank else None
    group = dist.new_group(backend="gloo")  # monitored_barrier exists for gloo only
    x, y, *_ = digits()
    torch.manual_seed(0)
    model = MLP().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    log = []
    for step, (images, labels) in zip(range(steps), batches((x, y), 64), strict=False):
        images, labels = (t.to(device).chunk(4)[dist.get_rank()] for t in (images, labels))
        if ill == "hang" and step == _BEGINS:
            break  # as a loader does that has one batch less than the others'
        if ill == "NaN" and step == _BEGINS:
            images = images / 0.0  # an image that was never written, divided by its maximum
        if ill == "straggler":
            time.sleep(_SLOW_SECONDS)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        log.append(dict(step=step, loss=loss.item(), waited_ms=math.nan, weights=None, error=""))
        if device.type == "cuda":
            torch.cuda.synchronize()  # kernels are asynchronous: to arrive is to have computed
        start = time.perf_counter()
        try:
            dist.monitored_barrier(group, timedelta(seconds=timeout_seconds), wait_all_ranks=True)
        except RuntimeError as error:
            log[-1]["error"] = str(error).partition("\n")[0]
        log[-1]["waited_ms"] = 1e3 * (time.perf_counter() - start)
        if log[-1]["error"]:
            break
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= 4
        if ill == "desynchronised" and step == _BEGINS:
            optimizer.param_groups[0]["lr"] *= 1.01  # a hair: it read another configuration file
        optimizer.step()
        log[-1]["weights"] = _checksum(model)
    dist.barrier()  # the others may still wait in theirs
    dist.destroy_process_group(group)
    return log


def _checksum(model):
    vector = parameters_to_vector(model.parameters()).detach().cpu()
    return zlib.crc32(vector.numpy().tobytes())


_HINTS = {
    "hang": "the others waited until the timeout: who has a shorter log, and whom does rank 0 name?",
    "desynchronised": "no loss looks odd, nobody waits long: look at the weights. Whose are alone?",
    "NaN": "in the first step with a NaN, one rank has it, the others not yet: which?",
    "straggler": "every step is long, and one rank never waits: who?",
}


def second_opinion(diagnosis):
    """Raise AssertionError, with what to look at, for the first wrong entry of name → (illness, rank)."""
    assert isinstance(diagnosis, dict), 'a dict is expected, such as {"A": ("hang", 0), …}.'
    for name in NAMES:
        answer = diagnosis.get(name)
        assert answer is not None, f"patient {name} is missing."
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            f'{name}: give a pair, such as ("hang", 0).'
        )
        assert answer[0] in ILLNESSES, f"{name}: the illnesses are {', '.join(ILLNESSES)}."
        illness, rank = _truth(name)
        assert answer[0] == illness, f"{name} has no {answer[0]}: {_HINTS[illness]}"
        assert answer[1] == rank, f"{name}: the right illness, but not rank {answer[1]}: {_HINTS[illness]}"
