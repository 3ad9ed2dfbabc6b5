"""What `%%ranks --timeline` costs: while the cell runs, after it, and how it grows with what it records."""

import os
import time

from fidle_utils.ranks import Ranks

RANKS, STEPS, REPEATS = 2, 30, 5
SETUP = """
import statistics, time
layers = [layer for _ in range(6) for layer in (torch.nn.Linear(256, 256), torch.nn.ReLU())]
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.5)
optimizer = torch.optim.AdamW(model.parameters())
x = torch.ones(128, 256)
def steps(n):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
steps(5)
"""


def test_cost():
    group, plain, recorded, cells = Ranks(), [], [], {False: [], True: []}
    try:
        group.start(RANKS, device="cpu")
        group.cell(SETUP)
        for _ in range(REPEATS):  # in turns: a busy moment hits both
            for timeline, of_step in ((False, plain), (True, recorded)):
                start = time.perf_counter()
                group.cell(f"seconds_per_step = steps({STEPS})", timeline=timeline)
                cells[timeline].append(time.perf_counter() - start)
                of_step.append(min(group["seconds_per_step"]))
        n_events = len(group.timeline.events) + len(group.timeline.operators)
        start = time.perf_counter()
        group.timeline.summary()
        seconds_of_summary = time.perf_counter() - start
    finally:
        group.stop()
    step, step_recorded = min(plain), min(recorded)
    after = min(cells[True]) - min(cells[False]) - STEPS * (step_recorded - step)
    print(
        f"\n\nmeasured here, {RANKS} ranks on {os.cpu_count()} cores, {STEPS} steps, the best of {REPEATS}\n"
    )
    print(f"a step, plain          {1e3 * step:8.2f} ms")
    print(f"a step, recorded       {1e3 * step_recorded:8.2f} ms   ratio {step_recorded / step:.2f}")
    each = f"{1e6 * after / n_events:.1f} µs for each of {n_events} events"
    print(f"after the cell         {1e3 * after:8.0f} ms   {each}")
    print(f"timeline.summary()     {1e3 * seconds_of_summary:8.0f} ms")
