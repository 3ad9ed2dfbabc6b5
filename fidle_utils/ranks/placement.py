"""Which device and backend the ranks get, and why."""

import os
from dataclasses import dataclass, field

USUAL = 4  # ranks, where there are no GPUs to count


@dataclass(frozen=True)
class Placement:
    """How many ranks, on which devices, through which backend. `asked`: the options as they were given."""

    world_size: int
    devices: tuple
    backend: str
    threads: int
    why: str
    asked: dict = field(compare=False, repr=False)

    def __str__(self):
        kind = self.devices[0].partition(":")[0]
        each = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{kind}, {self.backend} ({self.why}) · {each} each"

    @property
    def notes(self):
        """Warnings worth a line."""
        cores = cores_here()
        if self.world_size > cores and self.world_size > USUAL:
            return [f"{self.world_size} ranks share {cores} cores: fine for learning, slow."]
        return []


def place(n=None, device=None, backend=None, threads=None):
    """The Placement for `n` ranks. Raises ValueError, with what to do, if it cannot be had."""
    import torch

    asked = dict(n=n, device=device, backend=backend, threads=threads)
    gpus = torch.cuda.device_count()
    if n is None:
        n = gpus if gpus > 1 else USUAL
    if n < 1:
        raise ValueError(f"{n} ranks were asked for: one is the least")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f'device is "cpu" or "cuda", not {device!r}')
    if device is None:
        on_gpu = gpus >= n and backend != "gloo"
        why = (
            "a GPU each"
            if on_gpu
            else "no GPU here"
            if not gpus
            else f"{gpus} GPU for {n} ranks, NCCL needs one each"
        )
        why = "as you asked" if gpus and backend == "gloo" else why
    else:
        on_gpu, why = device == "cuda", "as you asked"
    if on_gpu and not gpus:
        raise ValueError("no GPU is visible here: leave out --device cuda and the ranks use the CPU")
    backend = backend or ("nccl" if on_gpu else "gloo")
    if on_gpu and n > gpus and backend == "nccl":
        raise ValueError(
            f"no GPU for rank {gpus} ({gpus} visible): ask for {gpus}, or share: --device cuda --backend gloo"
        )
    if backend == "nccl" and not on_gpu:
        raise ValueError("NCCL needs a GPU for each rank: leave out --backend nccl and the ranks use gloo")
    devices = tuple(f"cuda:{rank % gpus}" if on_gpu else "cpu" for rank in range(n))
    return Placement(n, devices, backend, threads or 1, why, asked)


def cores_here():
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
