import dataclasses
import importlib
import math
import warnings

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
import torch
from torch.nn import functional as F

from fidle_utils import plots
from fidle_utils.measure import speed, work
from fidle_utils.measure.machine import DeviceReport
from fidle_utils.measure.roofline import Operation, Roofline, operation, published
from fidle_utils.plots.style import presentation

module = importlib.import_module("fidle_utils.measure.roofline")  # the package may hold such a function

# 100 GFLOP/s over 20 GB/s: ridge at 5 FLOP/byte; the cache of 1 MB is ten times as fast.
ROOF = Roofline(
    "constructed", {"fp32": 1e11, "bf16": 4e11}, {"memory": 2e10, "L3": 2e11}, {"L3": 1e6}, kind="simulated"
)


def an_operation(flops, n_bytes, seconds=1.0, dtype="fp32", name="constructed", device="cpu"):
    return Operation(name, flops, n_bytes, 1.5 * seconds, seconds, dtype, device)


def test_the_ridge_is_peak_over_bandwidth():
    assert ROOF.ridge() == 5 and ROOF.ridge("bf16") == 20 and ROOF.ridge("fp32", "L3") == 0.5


@pytest.mark.parametrize("intensity", [0.01, 1, 4.99, 5, 5.01, 1000])
def test_attainable_is_the_lower_of_the_two_ceilings(intensity):
    assert ROOF.attainable(intensity) == min(1e11, intensity * 2e10)
    assert ROOF.attainable(intensity, "bf16", "L3") == min(4e11, intensity * 2e11)


def test_a_dtype_without_a_ceiling_is_refused():
    with pytest.raises(KeyError, match="fp32, bf16"):
        ROOF.ridge("fp64")


def test_an_operation_is_judged_under_the_roof_that_bounds_it():
    memory = ROOF.judge(an_operation(1e9, 1e9, 0.1))  # 1 FLOP/byte: at most 20 GFLOP/s, and 10 were reached
    assert (memory["bound"], memory["level"], memory["attainable"], memory["percent"]) == (
        "memory",
        "memory",
        2e10,
        50,
    )
    compute = ROOF.judge(an_operation(1e10, 1e9, 0.2, "fp32"))
    assert (compute["bound"], compute["attainable"], compute["percent"]) == ("compute", 1e11, 50)
    assert ROOF.judge(an_operation(1e10, 1e9, 0.2, "bf16"))["bound"] == "memory"


def test_what_fits_in_a_cache_is_compared_with_that_cache():
    small = an_operation(1e5, 1e6, 1e-5)
    assert ROOF.judge(small)["level"] == "L3" and ROOF.judge(small)["percent"] == pytest.approx(50)
    assert ROOF.judge(dataclasses.replace(small, device="cuda"))["level"] == "memory"  # its cache was emptied
    assert ROOF.level(1_000_001) == "memory"
    two = dataclasses.replace(ROOF, capacity={"L3": 1e6, "L2": 1e4})
    assert two.level(1e4) == "L2" and two.level(1e5) == "L3"


def test_the_table_and_the_data_of_a_roofline():
    table = ROOF.table([an_operation(1e9, 1e9), an_operation(1e10, 1e9)])
    assert list(table.bound) == ["memory", "compute"]
    assert Roofline(**ROOF.to_dict()) == ROOF
    assert "ridge at 5 FLOP/byte" in repr(ROOF) and "20.0 GB/s" in repr(ROOF) and "simulated" in repr(ROOF)


def test_a_roofline_keeps_the_best_of_what_was_measured(monkeypatch):
    rows = [("memory", "copy", 3e10), ("memory", "read", 4e10), ("matmul", "fp32", 1e11)]
    rates = [dict(zip(("quantity", "name", "best"), row, strict=True)) for row in rows]
    monkeypatch.setattr(speed, "measure_speed", lambda device, seconds: rates)
    monkeypatch.setattr(module, "_cache_sizes", lambda: [("L3", 4000), ("L2", 1000)])
    # L3 is no faster than the memory by a fifth, L2 is: a ceiling is drawn only where a cache shows.
    measured = {2000: 4.5e10, 1000: 4.4e10, 500: 9e10, 250: 7e10}
    monkeypatch.setattr(speed, "memory_speed", lambda device, seconds, n_bytes: [{"best": measured[n_bytes]}])
    roof = module.roofline("cpu")
    assert roof.compute == {"fp32": 1e11} and roof.memory == {"memory": 4e10, "L2": 9e10}
    assert roof.capacity == {"L2": 1000} and roof.kind == "measured here"
    assert module.roofline("cuda:0").memory == {"memory": 4e10} and module.roofline("cuda:0").device == "cuda"


def test_caches_are_shared_by_the_threads_of_this_process(monkeypatch):
    caches = [("L1", 1, 32, 8), ("L2", 2, 1000, 8), ("L3", 3, 16000, 2), ("L4", 4, 10**6, None)]
    keys = ("name", "level", "n_bytes", "count")
    found = [dict(zip(keys, cache, strict=True)) for cache in caches]
    monkeypatch.setattr(module.processor, "caches", lambda cores: found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert module._cache_sizes() == [("L3", 32000), ("L2", 4000)]


# ------------------------------------------------------------------------------------------ operations

HEADS = torch.randn(2, 3, 16, 8)
ROWS = torch.randn(6, 10)
COUNTED = {
    "matmul": (torch.mm, [torch.randn(4, 6), torch.randn(6, 5)], work.matmul(4, 5, 6)),
    "matrix × vector": (torch.mv, [ROWS, torch.randn(10)], work.matmul(6, 1, 10)),
    "softmax": (torch.softmax, [ROWS, -1], work.softmax(6, 10)),
    "log softmax": (F.log_softmax, [ROWS, -1], work.softmax(6, 10)),
    "layer norm": (torch.nn.LayerNorm(10), [ROWS], work.layer_norm(6, 10)),
    "add": (torch.add, [ROWS, torch.randn(6, 10)], work.elementwise(60, n_inputs=2)),
    "add a row": (torch.add, [ROWS, torch.randn(10)], work.Work(60, 4 * (60 + 10 + 60))),
    "in place": (torch.relu_, [torch.randn(6, 10)], work.elementwise(60)),
    "sum": (torch.sum, [ROWS], work.Work(60, 4 * 61)),
    "attention": (
        F.scaled_dot_product_attention,
        [HEADS, HEADS + 1, HEADS + 2],
        work.attention(2, 3, 16, 8, bytes_per_number=4),
    ),
    "squared": (torch.mul, [ROWS, ROWS], work.Work(60, 4 * 120)),  # one tensor, read once
    "of lists": (lambda pair: [pair[0] + pair[1]], [[ROWS, ROWS + 1]], work.elementwise(60, n_inputs=2)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_and_bytes_are_those_of_the_closed_form(name):
    function, args, expected = COUNTED[name]
    with torch.no_grad():
        measured = operation(function, *args, seconds=0.001)
    assert (measured.flops, measured.n_bytes) == (expected.flops, expected.n_bytes)
    assert measured.intensity == pytest.approx(expected.intensity)
    assert 0 < measured.best_seconds <= measured.seconds and math.isfinite(measured.flops_per_second)
    assert measured.flops_per_second == measured.flops / measured.best_seconds


def test_the_backward_of_attention_counts_five_matmuls():
    q, k, v = (HEADS.clone().requires_grad_() for _ in range(3))

    def forward_and_backward(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v)
        return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    measured = operation(forward_and_backward, q, k, v, seconds=0.001)
    assert measured.flops == (2 + 5) / 2 * work.attention(2, 3, 16, 8).flops


def test_a_repeated_number_is_read_once():
    measured = operation(torch.mul, torch.randn(1, 10).expand(6, 10), ROWS, seconds=0.001)
    assert measured.n_bytes == 4 * (10 + 60 + 60)


def test_what_is_given_is_kept_and_dtypes_are_named():
    step = work.adam_step(100)
    parameter = torch.nn.Parameter(torch.randn(100))
    parameter.grad = torch.randn(100)
    adam = torch.optim.Adam([parameter], fused=True)
    measured = operation(adam.step, name="Adam", flops=step.flops, n_bytes=step.n_bytes, seconds=0.001)
    assert (measured.name, measured.flops, measured.n_bytes) == ("Adam", step.flops, step.n_bytes)
    a = torch.randn(8, 8, dtype=torch.bfloat16)
    assert operation(torch.mm, a, a, seconds=0.001).dtype == "bf16"
    assert operation(torch.mm, a, a, seconds=0.001, dtype="fp32").dtype == "fp32"
    assert operation(torch.mm, a, a, seconds=0.001).name == "mm"


def test_tf32_is_the_ceiling_of_fp32_where_it_is_switched_on():
    with speed.fp32_matmul("tf32"):
        assert module._dtype_name([ROWS], "cuda:0") == "tf32" and module._dtype_name([ROWS], "cpu") == "fp32"
    with speed.fp32_matmul("ieee"):
        assert module._dtype_name([ROWS], "cuda:0") == "fp32"


def test_what_cannot_be_counted_must_be_given():
    with pytest.raises(ValueError, match="flops="):
        operation(torch.clone, ROWS)
    with pytest.raises(ValueError, match="n_bytes="):
        operation(lambda: ROWS @ ROWS.T)
    assert operation(torch.clone, ROWS, flops=60, seconds=0.001).intensity == 60 / 480


# ---------------------------------------------------------------------------------------------- figure


def test_published_peaks_say_that_they_are_published():
    (a100,) = published("A100-SXM4-80GB")
    assert (a100["flops_per_second"], a100["bytes_per_second"]) == (312e12, 2039e9)
    assert a100["label"].startswith("published · ") and a100["name"] == "A100-SXM4-80GB, bf16"
    with pytest.raises(LookupError, match="gpu_specs"):
        published("A1000")
    with pytest.raises(LookupError, match="bf16"):
        published("T4")  # it has none


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


NAMES = ["matmul", "softmax", "layer norm", "a fused step of AdamW", "relu", "matrix × vector"]
SPOTS = [(170, 9e10), (0.6, 1e10), (0.875, 9e9), (0.5, 9.5e9), (0.4, 7e9), (0.5, 8e9)]
OPERATIONS = [
    an_operation(intensity * 1e9, 1e9, intensity * 1e9 / rate, name=name)
    for name, (intensity, rate) in zip(NAMES, SPOTS, strict=True)
]


def line(ax, label):
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found.get_xdata(), found.get_ydata()


def test_the_figure_draws_ceilings_ridges_and_operations():
    ax = plots.plot_roofline(ROOF, OPERATIONS)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    for level, rate in ROOF.memory.items():
        xs, ys = line(ax, f"_{level}")
        assert list(ys) == pytest.approx([x * rate for x in xs]) and ys[-1] == 4e11
    for dtype, rate in ROOF.compute.items():
        xs, ys = line(ax, f"_{dtype}")
        assert list(ys) == [rate, rate] and xs[0] == rate / 2e11
    diamonds = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "D"}
    assert diamonds == {(5, 1e11), (20, 4e11)}
    for one in OPERATIONS:
        xs, ys = line(ax, f"_{one.name}")
        assert (xs[0], ys[0]) == pytest.approx((one.intensity, one.flops_per_second))
    written = {text.get_text() for text in ax.texts}
    assert {
        "fp32 100 GFLOP/s",
        "memory 20 GB/s",
        "ridge 5",
        "matmul 90 %",
        "simulated · constructed",
    } <= written
    assert "FLOP/byte" in ax.get_xlabel() and ax.get_ylabel() == "FLOP/s"
    _, mine = plt.subplots()
    assert plots.plot_roofline(ROOF, ax=mine) is mine


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("others", [(), published("A100-SXM4-80GB", "H100-SXM5-80GB")])
def test_labels_hide_neither_one_another_nor_a_point_and_are_not_cut_off(large, others):
    with presentation(large):
        ax = plots.plot_roofline(ROOF, OPERATIONS, others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    labels = [text for text in ax.texts if "%" in text.get_text() or text.get_text().startswith("ridge")]
    boxes = [text.get_window_extent() for text in labels]
    assert len(boxes) == len(OPERATIONS) + 2
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i]), labels[i].get_text()
        assert not box.count_overlaps([ax.get_legend().get_window_extent()] if others else [])
    for text in (*ax.texts, ax._left_title):
        box, frame = text.get_window_extent(), ax.figure.bbox.padded(2)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    points = [ax.transData.transform((one.intensity, one.flops_per_second)) for one in OPERATIONS]
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_other_machines_are_named_with_their_numbers_and_their_kind():
    other = dict(
        name="H100", flops_per_second=989e12, bytes_per_second=3.35e12, label="published · data sheet"
    )
    ax = plots.plot_roofline(ROOF, others=[other])
    (text,) = [text.get_text() for text in ax.get_legend().get_texts()]
    assert text == "H100: 989 TFLOP/s, 3.35 TB/s\npublished · data sheet"
    xs, ys = line(ax, text)
    assert xs[1] == pytest.approx(989 / 3.35) and ys[1] == ys[2] == 989e12
    assert ys[0] == pytest.approx(xs[0] * 3.35e12)


def test_the_memory_sweep_is_drawn_with_the_caches():
    rates = [{"n_bytes": 1 << n, "best": 1e9 * n, "median": 5e8 * n} for n in range(16, 24)]
    caches = [
        {"name": "L2", "level": 2, "n_bytes": 1 << 18, "count": 2},
        {"name": "L3", "level": 3, "n_bytes": 1 << 30, "count": 1},
    ]
    ax = plots.plot_memory_sweep(rates, caches)
    assert list(ax.lines[0].get_ydata()) == list(range(16, 24)) and ax.lines[1].get_label() == "median"
    assert ax.lines[2].get_xdata()[0] == 1 << 19 and len(ax.lines) == 3  # the L3 lies outside
    ax.figure.canvas.draw()
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert "64 KiB" in ticks and "1 MiB" in ticks


def test_a_busy_machine_is_named_under_the_figure():
    def shown(roof):
        return " ".join(text.get_text() for text in plots.plot_roofline(roof).texts)

    assert "other programs used" not in shown(ROOF)
    assert "used 40% of its cores" in shown(dataclasses.replace(ROOF, others_share=0.4)).replace("\n", " ")


def test_a_full_report_is_drawn_with_its_matmul_and_its_copies():
    gpus = [{"name": "GPU", "memory_bytes": int(8e10)}] * 2
    rates = [("matmul", "bf16", 7e14, "cuda"), ("matmul", "fp32", 1e11, "cpu")]
    rates += [
        ("transfer", "host→device, pinned", 5e10, "cuda"),
        ("transfer", "host→device, pageable", 9e9, "cuda"),
    ]
    keys = ("quantity", "name", "best", "device")
    speeds = [dict(zip(keys, rate, strict=True)) for rate in rates]
    caches = [{"name": "L3", "level": 3, "n_bytes": 32 << 20, "count": 1}]
    report = DeviceReport("A processor", 4, 2, None, 10**10, 10**10, gpus, speeds=speeds, caches=caches)
    shown = [text.get_text() for text in plots.plot_machine(report, 2).texts]
    assert "matmul, one GPU: bf16 700 TFLOP/s" in shown and "host→device, pinned: 50 GB/s" in shown
    shown = [
        text.get_text() for text in plots.plot_machine(report, 4).texts
    ]  # four ranks, two GPUs: on cores
    assert "matmul, all cores together: fp32 0.1 TFLOP/s" in shown and "1 × 32 MiB L3" in shown
