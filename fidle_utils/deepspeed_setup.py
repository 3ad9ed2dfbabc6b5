"""DeepSpeed made ready in a rank: no compiler on a CPU, seconds saved, and only what teaches is printed."""

import importlib.util
import os
import sys
import warnings
from contextlib import contextmanager

__all__ = ["import_deepspeed"]

# PyTorch 2.13 says so each time that DeepSpeed 0.19 shards or gathers: nothing a reader can mend.
_NOISE = r".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated"


def import_deepspeed(device):
    """Import DeepSpeed for ranks on `device` (a torch.device), on the process group they have; return it.

    A rank on a CPU talks through gloo, as in every other lesson: DeepSpeed would compile a shared-memory
    all_reduce of its own, which takes 90 s and needs ninja and a C++ compiler. To forbid it, an internal name
    of DeepSpeed is set; requirements.lock pins the version.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ModuleNotFoundError(_missing())
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with _nothing_compiled():
        # The first ZeRO optimizer imports this module, whose decorators would load all of torch.compile's
        # Inductor: ten seconds for a CPU. Lessons use AdamW; Muon would run uncompiled.
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    warnings.filterwarnings("ignore", message=_NOISE, category=FutureWarning)
    deepspeed.init_distributed()  # takes the process group that is there
    return deepspeed


@contextmanager
def _nothing_compiled():
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _missing():
    if sys.platform == "linux":
        return "DeepSpeed is not installed: run `make lab` again, or `pip install -r requirements.lock`."
    return (
        "This course installs DeepSpeed on Linux only, and lesson 09 needs it. On Windows, use WSL; "
        "on macOS, a Linux container or a node of a cluster. No other lesson needs it."
    )
