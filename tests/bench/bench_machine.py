"""What the report of this machine costs, and the usual operations under its roofline. `make bench` prints it.

Nothing is asserted: percents above 100 or far below the usual say that the machine was not quiet.
"""

import time

import torch
from torch.nn import functional as F

from fidle_utils.measure import work
from fidle_utils.measure.machine import device_report
from fidle_utils.measure.roofline import operation, roofline
from fidle_utils.measure.speed import default_device


def seconds_of(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def test_what_a_report_and_a_roofline_cost():
    quick, _ = seconds_of(device_report)
    full, report = seconds_of(lambda: device_report(full=True))
    drawn, roof = seconds_of(roofline)
    print(f"\n\n{report}\n\nmeasured here, seconds\n")
    print(f"device_report()           {quick:6.2f}   wanted: about 1")
    print(f"device_report(full=True)  {full:6.2f}   wanted: at most 10")
    print(f"roofline()                {drawn:6.2f}   wanted: at most 10")
    print(f"\n{roof}\n\n{roof.table(operations()).to_string(index=False, float_format='{:.4g}'.format)}")


def operations():
    device = default_device()
    n, count = (8192, 10**8) if device.type == "cuda" else (4096, 10**7)
    side = n if device.type == "cuda" else 1024
    x = torch.randn(n, n, device=device)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    heads = [torch.randn(4, 8, 512, 64, device=device) for _ in range(3)]
    parameter = torch.nn.Parameter(torch.randn(count, device=device))
    parameter.grad = torch.randn_like(parameter)
    step = work.adam_step(count, weight_decay=True)
    adam = torch.optim.AdamW([parameter], fused=True)
    with torch.no_grad():
        yield operation(torch.mm, a, b, name="matmul")
        yield operation(torch.mm, a.bfloat16(), b.bfloat16(), name="matmul")
        yield operation(torch.softmax, x, -1, name="softmax")
        yield operation(torch.nn.LayerNorm(n, device=device), x, name="layer norm")
        yield operation(torch.add, x, x.clone(), name="add")
        yield operation(torch.mv, x, x[0].clone(), name="matrix × vector")
        yield operation(F.scaled_dot_product_attention, *heads, name="attention")
    given = {"flops": step.flops, "n_bytes": step.n_bytes, "device": device}
    yield operation(adam.step, name="AdamW, fused", **given)
