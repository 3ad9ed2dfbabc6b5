"""DeepSpeed in ranks without a compiler: what is imported, what is written, what is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fidle_utils import deepspeed_setup

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

TRAIN = """
import json, os, sys, torch
import torch.distributed as dist
from fidle_utils.deepspeed_setup import import_deepspeed
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
group = dist.group.WORLD
deepspeed = import_deepspeed(torch.device("cpu"))
assert dist.group.WORLD is group
for stage in (1, 3):
    adam = {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}}
    config = {"train_batch_size": 2, "optimizer": adam, "zero_optimization": {"stage": stage}}
    model = torch.nn.Linear(4, 4)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()
inductor = "torch._inductor.compile_fx" in sys.modules
found = {"inductor": inductor, "disabled": "TORCHDYNAMO_DISABLE" in os.environ}
print("FOUND" + json.dumps(found))
"""


def test_two_stages_train_without_compiler_ninja_or_inductor_and_write_nothing(tmp_path):
    """With an empty home and an empty PATH, and nothing said that a beginner would have to ignore."""
    home, binaries = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    binaries.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DS_", "TORCH"))}
    kept |= {"HOME": str(home), "PATH": str(binaries), "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    command = [sys.executable, "-W", "default::FutureWarning", "-c", TRAIN]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, _, found = done.stdout.partition("FOUND")
    assert json.loads(found) == {"inductor": False, "disabled": False}
    assert "WARNING" not in said and "deprecated" not in done.stderr, said + done.stderr
    assert not [path for path in home.rglob("*.so") if path.is_file()]


def test_where_deepspeed_is_missing_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(deepspeed_setup.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(deepspeed_setup.sys, "platform", "darwin")
    with pytest.raises(ModuleNotFoundError, match="Linux only.*WSL.*container"):
        deepspeed_setup.import_deepspeed(torch.device("cpu"))
    monkeypatch.setattr(deepspeed_setup.sys, "platform", "linux")
    with pytest.raises(ModuleNotFoundError, match="make lab"):
        deepspeed_setup.import_deepspeed(torch.device("cpu"))


def test_the_version_whose_internal_names_are_used_is_pinned():
    import deepspeed

    lock = Path(__file__).parent.parent / "requirements.lock"
    assert f"deepspeed=={deepspeed.__version__}" in lock.read_text()
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
