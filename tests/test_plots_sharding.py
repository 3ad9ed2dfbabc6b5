"""The figures of lesson 08, read back: bars are the bytes, lines the formulas, nothing is cut off."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from figure_helpers import said_by
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fidle_utils import plots
from fidle_utils.memory_formulas import activation_terms, model_state_bytes, step_bytes_sent
from fidle_utils.reference import table

PSI = 216_586
HELD = {stage: model_state_bytes(PSI, stage, 4) for stage in range(4)}
SENT = {stage: step_bytes_sent(PSI, stage, 4) for stage in range(4)}
TOTAL = {stage: sum(parts.values()) for stage, parts in HELD.items()}
TERMS = activation_terms(128, 4, 128, 8)
OWNERS = {
    "rows: of each parameter": {number: number // 10 for number in range(30)}
    | dict.fromkeys(range(30, 36), 3),
    "flat: all numbers": {number: number // 9 for number in range(36)},
}
DEVICES = {"A100, PCIe 31 GB/s": ([0.1, 1, 10], 0.9), "H100, PCIe 63 GB/s": ([0.03, 0.3, 3], 0.45)}
FIGURES = {
    "who": (lambda: plots.plot_who_holds_what(4), "5.5 bytes"),
    "who, 8 ranks": (lambda: plots.plot_who_holds_what(8), "computed"),
    "table": (lambda: plots.plot_zero_table(table("zero_table1"), device_gb=32), "stage 3, published"),
    "stages": (lambda: plots.plot_stages(HELD, SENT, TOTAL, SENT), "measured here"),
    "gathered": (lambda: plots.plot_gathered({"by hand": [10, 20, 0, 20, 0]}, whole=40), "all of them"),
    "shards": (lambda: plots.plot_shards(OWNERS, rows=6, columns=5), "rank 3"),
    "terms": (
        lambda: plots.plot_activation_terms(TERMS, list(TERMS.values()), 128 * 4 * 128),
        "softmax: output",
    ),
    "offload": (lambda: plots.plot_offload([100, 1000, 10000], DEVICES), "computed"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name, large):
    draw, expected = FIGURES[name]
    assert expected in said_by(draw, large)


def test_what_a_rank_holds_is_as_wide_as_its_bytes_and_all_ranks_together_hold_all():
    ax = plots.plot_who_holds_what(4)
    solid = [p for p in ax.patches if isinstance(p, Rectangle) and to_hex(p.get_facecolor()) != "#eeeeee"]
    texts = [text.get_text() for text in ax.texts]
    assert [text for text in texts if "bytes" in text] == ["16 bytes", "7 bytes", "5.5 bytes", "4 bytes"]
    for stage, width in enumerate((64, 28, 22, 16)):  # of all four ranks
        rows = [p for p in solid if 0 <= p.get_y() - 5.6 * stage < 4]
        assert sum(p.get_width() for p in rows) == pytest.approx(width)


def test_the_dots_of_zeros_table_lie_on_its_lines():
    axes = plots.plot_zero_table(table("zero_table1"))
    assert len(axes) == 3
    dots = 0
    for ax in axes:
        lines = {line.get_label(): line for line in ax.lines}
        for stage in (1, 2, 3):
            computed = dict(zip(*lines[f"stage {stage}, computed"].get_data(), strict=True))
            for n, gb in zip(*lines[f"stage {stage}, published"].get_data(), strict=True):
                dots += 1
                assert abs(computed[n] - gb) <= max(0.012 * gb, 1)
    assert dots == 54


def test_bars_of_the_stages_are_the_bytes_and_marks_the_formulas():
    held, sent = plots.plot_stages(HELD, SENT, TOTAL, SENT)
    tops = [bar.get_y() + bar.get_height() for bar in held.containers[-1]]
    assert tops == pytest.approx([TOTAL[stage] / 1e6 for stage in range(4)])
    assert [bar.get_height() for bar in sent.containers[0]] == pytest.approx(
        [SENT[s] / 1e3 for s in range(4)]
    )
    (marks,) = held.collections
    assert [segment[0][1] for segment in marks.get_segments()] == pytest.approx(tops)


def test_a_number_has_the_colour_and_the_digit_of_its_rank():
    ax = plots.plot_shards(OWNERS, rows=6, columns=5)[1]
    boxes = [p for p in ax.patches if isinstance(p, Rectangle)]
    digits = [int(text.get_text()) for text in ax.texts if text.get_text().isdigit()]
    assert digits == [number // 9 for number in range(36)]
    assert [to_hex(box.get_facecolor()) for box in boxes] == [
        plots.rank_color(digit).lower() for digit in digits
    ]


def test_gathers_start_from_nothing_and_terms_are_in_units_of_sbh():
    ax = plots.plot_gathered({"by hand": [10, 20, 0]}, whole=40)
    assert list(ax.lines[0].get_ydata()) == [0, 10, 20, 0]
    ax = plots.plot_activation_terms(TERMS, list(TERMS.values()), 128 * 4 * 128)
    assert sum(bar.get_width() for bar in ax.containers[0]) == pytest.approx(74)
    ax = plots.plot_offload([100, 1000, 10000], DEVICES)
    assert [line.get_ydata()[0] for line in ax.lines] == [0.1, 0.9, 0.03, 0.45]
