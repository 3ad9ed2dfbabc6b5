"""The α–β model against closed forms, numpy, hand counts, and the published curve of eight A100."""

import math
import random

import numpy as np
import pytest

from fidle_utils.measure.alpha_beta import ALGORITHMS, AlphaBeta, all_reduce_cost, fit, r_squared
from fidle_utils.reference import table

SIZES = [2**power for power in range(10, 25)]


@pytest.mark.parametrize("weights", ["1/t", None])
@pytest.mark.parametrize("messages", [1, 14, [1, 2] * 7 + [1]])
def test_exact_times_give_back_alpha_and_beta(weights, messages):
    truth, counts = AlphaBeta(3e-4, 2e-9), messages if isinstance(messages, list) else [messages] * 15
    seconds = [truth.seconds(n_bytes, m) for n_bytes, m in zip(SIZES, counts, strict=True)]
    model = fit(SIZES, seconds, messages, weights)
    assert model.alpha == pytest.approx(truth.alpha, rel=1e-9)
    assert model.beta == pytest.approx(truth.beta, rel=1e-9)


@pytest.mark.parametrize("weights", ["1/t", None])
def test_noisy_times_give_what_numpy_finds(weights):
    random.seed(0)
    seconds = [AlphaBeta(3e-4, 2e-9).seconds(s, 2) * random.uniform(0.7, 1.5) for s in SIZES]
    roots = 1 / np.sqrt(seconds) if weights else np.ones(len(SIZES))
    rows = np.column_stack([np.full(len(SIZES), 2.0), SIZES]) * roots[:, None]
    alpha, beta = np.linalg.lstsq(rows, np.array(seconds) * roots, rcond=None)[0]
    model = fit(SIZES, seconds, 2, weights)
    assert (model.alpha, model.beta) == pytest.approx((alpha, beta), rel=1e-6)


def test_one_message_each_is_the_straight_line_of_polyfit():
    seconds = [1e-4 + 3e-9 * s * (1 + 0.1 * math.sin(s)) for s in SIZES]
    model = fit(SIZES, seconds, weights=None)
    beta, alpha = np.polyfit(SIZES, seconds, 1)
    assert (model.alpha, model.beta) == pytest.approx((alpha, beta), rel=1e-6)


def test_neither_price_is_negative():
    falling = fit([1000, 2000, 3000], [3e-3, 2e-3, 1e-3])
    assert falling.beta == 0 and 1e-3 < falling.alpha < 3e-3
    steep = fit([1000, 2000, 4000], [1e-4, 1e-3, 4e-3])
    assert steep.alpha == 0 and steep.beta > 0


def test_a_fit_needs_two_sizes_and_two_directions():
    with pytest.raises(ValueError, match="two sizes"):
        fit([1024, 1024], [1e-3, 2e-3])
    with pytest.raises(ValueError, match="as many"):
        fit([1024, 2048], [1e-3])
    with pytest.raises(ValueError, match="told apart"):
        fit([1024, 2048], [1e-3, 2e-3], messages=[1, 2])
    with pytest.raises(ValueError, match="weights"):
        fit([1024, 2048], [1e-3, 2e-3], weights="t")


def test_the_prices_and_what_follows_from_them():
    model = AlphaBeta(2e-4, 1e-9)
    assert model.bandwidth == pytest.approx(1e9) and model.half_bytes == pytest.approx(2e5)
    assert model.half_bytes / model.seconds(model.half_bytes) == pytest.approx(model.bandwidth / 2)
    assert model.all_reduce(4, 1e6) == pytest.approx(6 * 2e-4 + 1.5e6 * 1e-9)
    assert repr(model) == "α = 200 µs a message · 1/β = 1 GB/s"


@pytest.mark.parametrize(
    "algorithm, of_four, of_eight",
    [  # counted by hand: messages, and bytes of a tensor of 24
        ("ring", (6, 36), (14, 42)),
        ("recursive doubling", (2, 48), (3, 72)),
        ("halving and doubling", (4, 36), (6, 42)),
    ],
)
def test_the_costs_are_those_of_the_papers(algorithm, of_four, of_eight):
    assert all_reduce_cost(4, 24, algorithm) == of_four
    assert all_reduce_cost(8, 24, algorithm) == of_eight
    assert all_reduce_cost(1, 24, algorithm) == (0, 0)


def test_costs_that_do_not_exist():
    with pytest.raises(ValueError, match="one of ring"):
        all_reduce_cost(4, 24, "star")
    for algorithm in ALGORITHMS[1:]:
        with pytest.raises(ValueError, match="2, 4, 8"):
            all_reduce_cost(6, 24, algorithm)
    assert all_reduce_cost(6, 24) == (10, 40)


def test_r_squared_of_the_truth_of_the_mean_and_of_numpy():
    measured, predicted = [1.0, 2.0, 4.0], [1.5, 2.0, 3.0]
    assert r_squared(measured, measured) == 1
    assert r_squared(measured, [7 / 3] * 3) == pytest.approx(0)
    expected = 1 - np.sum(np.subtract(measured, predicted) ** 2) / (3 * np.var(measured))
    assert r_squared(measured, predicted) == pytest.approx(expected)


def test_two_numbers_explain_the_published_curve_of_eight_a100():
    rows = table("nccl_allreduce_busbw", system="8×A100, NVLink 3")
    seconds = [1e-6 * row["time_us"] for row in rows]
    model = fit([all_reduce_cost(8, row["n_bytes"])[1] for row in rows], seconds, messages=14)
    assert r_squared(seconds, [model.all_reduce(8, row["n_bytes"]) for row in rows]) > 0.99
    assert model.bandwidth == pytest.approx(235e9, rel=0.02)  # the plateau that the table shows


def test_times_that_do_not_grow_have_no_bandwidth_to_speak_of():
    model = fit([8, 64, 512], [3e-6, 2e-6, 1e-6])
    assert model.beta == 0 and model.bandwidth == model.half_bytes == math.inf and "inf" in repr(model)
