"""What counting costs, and the formulas beside what the loopback carried. Printed, not asserted."""

import os
import statistics
import time
from pathlib import Path

import pytest

from fidle_utils.ranks import Ranks

RANKS, REPEATS = 4, 5
STEP = """
import time
from torch import nn
from fidle_utils.measure.communication import count_communication
torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(4)]
model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
optimizer = torch.optim.AdamW(model.parameters())
batch = torch.randn(256, 256)

def steps(n=50):
    for _ in range(n):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

def seconds_per_step(counting):
    dist.barrier()
    start = time.perf_counter()
    if counting:
        with count_communication():
            steps()
    else:
        steps()
    dist.barrier()
    return (time.perf_counter() - start) / 50

steps()
"""
CALLS = {  # on a tensor of 2**20 numbers, S = 4 MiB
    "all_reduce": "dist.all_reduce(x)",
    "all_gather": "dist.all_gather_into_tensor(x, share)",
    "reduce_scatter": "dist.reduce_scatter_tensor(share, x)",
    "all_to_all": "dist.all_to_all_single(y, x)",
    "broadcast": "dist.broadcast(x, src=0)",
    "reduce": "dist.reduce(x, dst=0)",
    "send": "w = dist.isend(x, (rank + 1) % world_size); dist.recv(y, (rank - 1) % world_size); w.wait()",
}


@pytest.fixture(scope="module")
def group():
    ranks = Ranks()
    ranks.start(RANKS, device="cpu")
    yield ranks
    ranks.stop()


def test_the_cost_of_counting(group):
    group.cell(STEP)
    group.cell(
        f"plain, counting = [], []\nfor _ in range({REPEATS}):\n"
        "    plain.append(seconds_per_step(False))\n    counting.append(seconds_per_step(True))\n"
    )
    plain, counting = statistics.median(group["plain"][0]), statistics.median(group["counting"][0])
    print(f"\n\nmeasured here, {RANKS} ranks on {os.cpu_count()} cores, medians of {REPEATS}")
    print(
        f"a step of DDP: {1e3 * plain:.2f} ms, counted {1e3 * counting:.2f} ms ({counting / plain:.2f} times)"
    )


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="/proc/net/dev is Linux's")
def test_the_formulas_beside_the_loopback(group):
    group.cell(
        "from fidle_utils.measure.communication import count_communication\n"
        "import warnings\nwarnings.filterwarnings('ignore', '.*is deprecated')\n"
        "x, y, share = torch.ones(2**20), torch.ones(2**20), torch.ones(2**18)"
    )
    print("\n\nS = 4 MiB, all ranks together, in S: the least of five readings (everyone's bytes count)")
    for collective, code in CALLS.items():
        readings = []
        for _ in range(REPEATS):
            before = loopback_bytes()
            group.cell(f"for _ in range(5):\n    {code}")
            time.sleep(0.05)
            readings.append((loopback_bytes() - before) / 5)
        group.cell(f"with count_communication() as counted:\n    {code}")
        computed, size = sum(group["counted"]).bytes_sent(), 4 * 2**20
        print(f"{collective:<15} formula {computed / size:6.3f}   loopback {min(readings) / size:6.3f}")


def loopback_bytes():
    """Bytes that this machine has sent to itself, of all its processes."""
    return int(Path("/proc/net/dev").read_text().split("lo:")[1].split()[8])
