"""The figures of lesson 09, read back."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_helpers import whole

from fidle_utils import plots

HELD = {
    "stage 0": {
        "parameters": 200,
        "gradients": 200,
        "master weights": 400,
        "optimizer states": 800,
        "buckets": 9,
    },
    "stage 3, nothing kept whole": {
        "parameters": 50,
        "gradients": 50,
        "master weights": 100,
        "optimizer states": 200,
    },
}
SENT = {"stage 0": 2.0, "stage 2, no multi-rank all_reduce": 2.0, "stage 3": 2.0}
CURVE = {"exact": [1, 0.1, 0.01], "feedback": [1, 0.2, 0.02], "no feedback": [1, 0.9, 0.9]}
FIGURES = {
    "held": (lambda: plots.plot_held_bytes(HELD, 100, {"stage 0": 16}), "16.00"),
    "sent": (lambda: plots.plot_sent_bytes(SENT, dict.fromkeys(SENT, 1), {"stage 3": 3}), "2.00 Ψ in 1 call"),
    "estimates": (lambda: plots.plot_estimates({"stage 2": lambda n: 2e9 + 18e9 / n}, "1B"), "80 GB"),
    "feedback": (lambda: plots.plot_error_feedback(CURVE, CURVE, warmup=2), "1 bit, with feedback"),
    "equal": (lambda: plots.plot_equal_losses([2, 1], [2, 1], 1e-5, ("a", "b")), "equal to the last bit"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name, large):
    draw, expected = FIGURES[name]
    with plots.presentation(large):
        ax = np.ravel(draw())[0]
    assert expected in whole(ax.figure)


def test_bars_end_at_the_sum_of_the_parts_without_buckets_and_the_dot_at_the_formula():
    ax = plots.plot_held_bytes(HELD, 100, {"stage 0": 15})
    ends = [
        max(bar.get_x() + bar.get_width() for bar in ax.patches if round(bar.get_y() + 0.3) == y)
        for y in (0, 1)
    ]
    assert ends == pytest.approx([16, 4])
    assert ax.lines[0].get_xdata().tolist() == [15]


def test_the_text_of_a_bar_stands_beyond_the_dot():
    ax = plots.plot_sent_bytes(SENT, dict.fromkeys(SENT, 4), {"stage 3": 3})
    (text,) = [text for text in ax.texts if text.get_position()[1] == 2]
    assert text.get_position()[0] > 3 and text.get_text() == "2.00 Ψ in 4 calls"


def test_estimates_are_drawn_in_decimal_gigabytes():
    ax = plots.plot_estimates({"stage 2": lambda n: 2e9 + 18e9 / n}, "1B")
    assert ax.lines[0].get_ydata()[0] == pytest.approx(20)
