"""What `track()` costs a loop of short steps. `make bench` prints it; nothing is asserted.

Both loops run in turns on every rank of one cell, so that what else the machine does hits both.
"""

import os
import statistics

from fidle_utils.ranks import Ranks

STEP_SECONDS, STEPS, TURNS = 0.005, 100, 8

CELL = f"""
import time
from fidle_utils.measure import track

def work():
    # Processor time, not the clock: what track() takes from the processor must show as a longer loop.
    end = time.thread_time() + {STEP_SECONDS}
    while time.thread_time() < end:
        pass

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
            ratio = statistics.median(tracked) / statistics.median(plain)
            cores = os.cpu_count()
            print(
                f"\nmeasured here, {n} ranks on {cores} cores: steps of {1e3 * STEP_SECONDS:g} ms take "
                f"{ratio:.4f} times as long with track() (wanted: ≤ 1.01)"
            )
        finally:
            group.stop()
