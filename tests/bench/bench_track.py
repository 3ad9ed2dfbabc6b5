"""What `track()` costs a loop of short steps. `make bench` prints it; nothing is asserted.

Both loops run in turns on every rank of one cell, so that what else the machine does hits both.
"""

import os
import statistics

from fidle_utils.ranks import Ranks

STEP_SECONDS, STEPS, TURNS = 0.005, 60, 20

CELL = f"""
import time
from fidle_utils.measure import track

x = torch.randn(256, 256)

def matmuls(n):
    # The same work each time, and processor time around it: what track() takes must show as more of it.
    for _ in range(n):
        torch.mm(x, x)

def seconds(n):
    start = time.thread_time()
    matmuls(n)
    return time.thread_time() - start

seconds(100)
PRODUCTS = max(1, round({STEP_SECONDS} / (seconds(200) / 200)))

def work():
    matmuls(PRODUCTS)

plain, tracked = [], []
for turn in range({TURNS}):
    start = time.thread_time()
    for step in range({STEPS}):
        work()
    plain.append(time.thread_time() - start)
    start = time.thread_time()
    for step in (loop := track(range({STEPS}))):
        work()
        loop.log(loss=0.5)
    tracked.append(time.thread_time() - start)
"""


def test_the_cost_of_track():
    for n in (1, 4):
        group = Ranks()
        try:
            group.start(n, device="cpu")
            group.cell(CELL)
            plain, tracked = sum(group["plain"], []), sum(group["tracked"], [])
            # Of neighbours in time: the machine's speed drifts by more than track() costs.
            ratio = statistics.median(t / p for p, t in zip(plain, tracked, strict=True))
            cores = os.cpu_count()
            print(
                f"\nmeasured here, {n} ranks on {cores} cores: steps of {1e3 * STEP_SECONDS:g} ms take "
                f"{ratio:.4f} times as long with track() (wanted: ≤ 1.01)"
            )
        finally:
            group.stop()
