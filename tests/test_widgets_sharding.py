"""The memory calculator without a browser: its numbers are the formulas', its controls move the figure."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from test_widgets import inside

from fidle_utils import plots
from fidle_utils.memory_formulas import PRECISIONS, step_bytes_sent
from fidle_utils.reference import table
from fidle_utils.widgets import memory_calculator


def totals(live):
    return [row["total"] / 1e9 for row in live.verdict()]


def heights(ax):
    """The top of each stacked bar."""
    return [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]


def test_it_says_the_numbers_of_zeros_figure_1_and_what_fits():
    live = memory_calculator(7.5, 64, gpu="V100-SXM2-32GB")
    assert totals(live) == pytest.approx([120, 31.4, 16.6, 1.875], rel=5e-3)
    assert [row["fits"] for row in live.verdict()] == [False, False, True, True]
    assert [row["fits"] for row in memory_calculator(7.5, 64, reserve=0).verdict()] == [
        False,
        True,
        True,
        True,
    ]
    assert "stage 2: 16.6 GB, fits" in live.text() and "stage 1: 31.4 GB, does not fit" in live.text()
    assert live.verdict()[3]["bytes_sent"] == step_bytes_sent(7.5e9, 3, 64)


def test_a_slider_moves_the_bars_and_the_words():
    live = memory_calculator(7.5, 64)
    assert live.widget is live.widget
    first, (held, sent) = live.image.value, live.axes
    assert heights(held) == pytest.approx(totals(live))
    live.controls["n_ranks"].value = 4
    assert totals(live)[1:] == pytest.approx([52.5, 41.25, 30])
    assert heights(held) == pytest.approx(totals(live)) and live.image.value != first
    live.controls["billions"].value = 1000
    live.controls["precision"].value = "AdamW, bf16 only"
    assert totals(live)[0] == pytest.approx(8000) and "1000 billion" in live.says.value
    live.controls["gpu"].value = "A100-SXM4-80GB"
    live.controls["reserve"].value = 0.5
    assert live.verdict()[3]["fits"] is False and "80 GB, 50% kept free" in live.says.value
    assert [bar.get_height() for bar in sent.containers[0]] == pytest.approx(
        [row["bytes_sent"] / 1e9 for row in live.verdict()]
    )
    assert plt.get_fignums() == []


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_is_cut_off(precision, large):
    for billions, n_ranks, gpu in ((0.1, 1, "V100-SXM2-32GB"), (1000, 4096, "H200-SXM-141GB")):
        with plots.presentation(large):
            live = memory_calculator(billions, n_ranks, precision, gpu)
            inside(live.static(), live.axes)


def test_every_gpu_it_offers_has_a_published_memory_and_what_does_not_exist_is_refused():
    published = {row["gpu"]: row["memory_gb"] for row in table("gpu_specs")}
    assert (
        memory_calculator().memories.items() <= published.items() and len(memory_calculator().memories) >= 5
    )
    for wrong in (dict(gpu="abacus"), dict(precision="fp3")):
        with pytest.raises(LookupError):
            memory_calculator(**wrong)
