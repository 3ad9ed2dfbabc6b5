"""What a memory ledger costs: a training step with it and without. Printed, not asserted."""

import statistics
import time

import torch
from torch.nn import functional as F

from fidle_utils.measure.memory import memory_ledger
from fidle_utils.models import GPT, MLP

REPEATS = 20


def test_a_step_with_the_ledger_and_without():
    x, y = torch.randn(256, 64), torch.zeros(256, dtype=torch.long)
    ids = torch.randint(200, (8, 64))
    steps = {
        "MLP, 6 layers of 512": (MLP(512, 6), x, y),
        "GPT, 4 blocks of 128": (GPT(200, n_layers=4, width=128), ids, ids.flatten()),
    }
    print("\n\nmeasured here, milliseconds a step, medians")
    for name, (model, x, y) in steps.items():
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            _step(model, optimizer, x, y)
        plain, counted = [], []
        for _ in range(REPEATS):  # in turn: both see the same noise
            plain.append(_step(model, optimizer, x, y))
            start = time.perf_counter()
            with memory_ledger(model, optimizer) as ledger:
                _step(model, optimizer, x, y)
            counted.append(time.perf_counter() - start)
        a, b = 1e3 * statistics.median(plain), 1e3 * statistics.median(counted)
        events = len(ledger.events)
        print(f"{name}: {a:.2f} without, {b:.2f} with the ledger ({b - a:+.2f}, {events} events)")


def _step(model, optimizer, x, y):
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(model(x).flatten(0, -2), y).backward()
    optimizer.step()
    return time.perf_counter() - start
