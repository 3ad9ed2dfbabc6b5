"""What lesson 02 claims, from its own cells: gradients that fp16 loses, graphs captured, bytes saved."""

import math
import time
from pathlib import Path

import jupytext
import matplotlib
import pytest
import torch

from fidle_utils.data import digits
from fidle_utils.measure import work
from fidle_utils.models import MLP
from fidle_utils.slow_data import SlowDigits

matplotlib.use("agg")

LESSON = Path(__file__).parent.parent / "notebooks" / "py" / "02_compute_on_a_gpu.py"
CELLS = [cell.source for cell in jupytext.read(LESSON).cells if cell.cell_type == "code"]
IMPORTS = CELLS[0]


def run(*beginnings, names=None):
    """Run the last cell that holds each of these texts (solutions follow stubs); return its names."""
    names = {} if names is None else names
    for beginning in beginnings:
        found = [cell for cell in CELLS if beginning in cell]
        assert found, f"no cell of the lesson holds {beginning!r}"
        exec(found[-1], names)
    return names


@pytest.fixture(scope="module")
def lesson():
    names = {"x_train": digits().x_train, "y_train": digits().y_train, "MLP": MLP}
    exec(IMPORTS, names)
    names["device"], names["guess"] = torch.device("cpu"), None
    return names


def test_the_solution_of_exercise_1_is_the_closed_form_of_the_library():
    intensities = run("def intensities")["intensities"]
    for n, size in ((64, 4), (2048, 2)):
        answer = intensities(n, size)
        assert math.isclose(answer["matmul"], work.matmul(n, n, n, size).intensity)
        assert math.isclose(answer["softmax"], work.softmax(n, n, size).intensity)
        assert math.isclose(answer["adam"], work.adam_step(n * n, size).intensity)


def test_fp16_loses_gradients_without_a_scale_and_overflows_with_too_large_a_one(lesson):
    run("class RoundGradient", "parts = 2**16", "truth = gradient(", names=lesson)
    lost, overflown = (
        dict(zip(lesson["scales"], lesson[name], strict=True)) for name in ("lost", "overflown")
    )
    assert lost[1] > 0.9 and overflown[1] == 0
    assert all(lost[2.0**k] < 0.005 and overflown[2.0**k] == 0 for k in (12, 16, 20, 24, 28, 32))
    assert overflown[2.0**44] == 1


def test_training_fails_in_fp16_and_is_fixed_by_the_scale_as_by_the_library(lesson):
    run("class RoundGradient", "parts = 2**16", "def scaled_step", "truth = gradient(", names=lesson)
    run("def train(fp16", "library = torch.amp", names=lesson)  # compares with GradScaler
    fp32, fp16, scaled = (sum(lesson[name][-10:]) / 10 for name in ("fp32", "fp16", "scaled"))
    assert fp32 < 1 and abs(scaled - fp32) < 0.3 and fp16 > 2


def test_bf16_does_not_notice_small_steps_and_tf32_keeps_ten_bits(lesson):
    x = torch.ones((), dtype=torch.bfloat16)
    assert (x + 0.001).item() == 1
    run("formats = {", "def to_tf32", names=lesson)
    step = torch.tensor(1 + 2**-10)
    assert lesson["to_tf32"](step) == step and lesson["to_tf32"](torch.tensor(1 + 2**-12)) == 1


def test_the_emulated_device_takes_orders_and_works_later(lesson):
    lesson["n"], lesson["randn"] = 8, torch.randn
    run("queue = ThreadPoolExecutor", names=lesson)
    done = []
    start = time.perf_counter()
    for i in range(3):
        lesson["order"](lambda i=i: (time.sleep(0.1), done.append(i)))
    assert not done and time.perf_counter() - start < 0.1
    lesson["wait"]()
    assert done == [0, 1, 2]
    lesson["queue"].shutdown()


def test_a_graph_is_captured_whole_broken_and_again(lesson):
    run("def activation", "graphs = []", names=lesson)
    assert [len(graph) for graph in lesson["graphs"]] == [4]
    run("def careful", names=lesson)
    assert len(lesson["graphs"]) == 2
    run("def simple", names=lesson)
    assert len(lesson["graphs"]) == 2  # one for the first length, one for all others


def test_micro_batches_add_up_to_the_gradient_of_the_batch(lesson):
    run("def accumulate", names=lesson)
    torch.manual_seed(0)
    model, (x, y) = MLP(), (lesson["x_train"][:64], lesson["y_train"][:64])
    whole = lesson["accumulate"](model, x, y, 1)
    torch.testing.assert_close(lesson["accumulate"](model, x, y, 4), whole, atol=1e-6, rtol=0)


def test_a_slow_image_is_the_digit_itself_and_takes_its_time():
    data, (x, y, *_) = SlowDigits(milliseconds=20), digits()
    start = time.perf_counter()
    image, label = data[3]
    assert time.perf_counter() - start >= 0.02
    assert torch.equal(image, x[3]) and label == y[3] and len(data) == len(x)
