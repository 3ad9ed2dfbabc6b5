"""The formulas of the papers against the tables that the papers print, and against sums done by hand."""

import math
import subprocess
import sys

import pytest

from fidle_utils.memory_formulas import (
    PRECISIONS,
    activation_bytes,
    activation_terms,
    largest_model,
    model_state_bytes,
    step_bytes_sent,
)
from fidle_utils.reference import table

STAGE = {"P_os": 1, "P_os+g": 2, "P_os+g+p": 3}


def total(*args):
    return sum(model_state_bytes(*args).values())


@pytest.mark.parametrize("row", table("zero_table1"), ids=lambda row: f"{row['stage']}-{row['n_ranks']}")
def test_every_cell_of_zeros_table_1(row):
    """Within 1.2 %, or 1 GB where the paper cut the digits off."""
    computed = total(row["parameters_billion"] * 1e9, row["zero_stage"], row["n_ranks"]) / 1e9
    assert row["zero_stage"] == STAGE[row["stage"]]
    assert math.isclose(computed, row["memory_gb"], rel_tol=0.012) or abs(computed - row["memory_gb"]) < 1


def test_zeros_figure_1():
    """7.5 billion parameters on 64 ranks: 120, 31.4, 16.6 and 1.9 GB."""
    assert [round(total(7.5e9, stage, 64) / 1e9, 1) for stage in range(4)] == [120, 31.4, 16.6, 1.9]


@pytest.mark.parametrize("row", table("zero_table2"), ids=lambda row: str(row["n_gpus"]))
def test_zeros_table_2_in_theory(row):
    """A V100 of 32 GB; the paper cuts digits off, and prints 1 and 2 trillion as such."""
    n_ranks = row["n_gpus"] // row["model_parallel"]
    for stage, name in enumerate(("baseline", "os", "os_g", "os_g_p")):
        printed = row[f"theory_{name}_billion"]
        computed = largest_model(32e9, stage, n_ranks, model_parallel=row["model_parallel"]) / 1e9
        assert math.isclose(computed, printed, rel_tol=0.025)


def test_a_step_sends_two_two_two_and_three_times_the_parameters():
    for n in (2, 4, 64):
        sent = [step_bytes_sent(1000, stage, n) / (2 * 1000 * (n - 1) / n) for stage in range(4)]
        assert sent == pytest.approx([2, 2, 2, 3])
    assert step_bytes_sent(1000, 3, 1) == 0
    fp32_gradients = PRECISIONS["AdamW, fp32"]._replace(parameter=2)  # bf16 gathers, fp32 reductions
    assert step_bytes_sent(1000, 3, 4, fp32_gradients) == 0.75 * 1000 * (2 + 2 + 4)


def test_the_terms_of_a_layer_add_up_to_equation_1():
    s, b, h, a = 128, 3, 96, 6
    terms = activation_terms(s, b, h, a)
    assert sum(terms.values()) == s * b * h * (34 + 5 * a * s / h) == activation_bytes(s, b, h, a)
    norms = sum(size for name, size in terms.items() if "norm" in name)
    mlp = sum(size for name, size in terms.items() if name.startswith("MLP") and "norm" not in name)
    assert norms == 4 * s * b * h and mlp == 19 * s * b * h
    assert sum(terms.values()) - norms - mlp == 11 * s * b * h + 5 * a * s**2 * b


def test_table_2_of_korthikanti():
    s, b, h, a, t = 2048, 1, 12288, 96, 8
    sbh, ratio = s * b * h, 5 * a * s / h
    layer = lambda *args: activation_bytes(s, b, h, a, *args) / sbh  # noqa: E731
    assert layer("none", t) == pytest.approx(10 + 24 / t + ratio / t)
    assert layer("none", t, True) == pytest.approx(34 / t + ratio / t)
    assert layer("selective", t) == pytest.approx(10 + 24 / t)
    assert layer("selective", t, True) == pytest.approx(34 / t)
    assert layer("full") == 2
    # Section 5: for GPT-3 (a = 96, s = 2048, h = 12288) 5as/h is 80.
    assert ratio == 80


def test_what_makes_no_sense_is_refused():
    for wrong in (lambda: model_state_bytes(1, 4), lambda: step_bytes_sent(1, 0, 0)):
        with pytest.raises(ValueError, match="stage=4|n_ranks=0"):
            wrong()
    with pytest.raises(ValueError, match="recompute"):
        activation_bytes(1, 1, 1, 1, "some")


def test_the_formulas_need_no_torch():
    code = "import sys, fidle_utils.memory_formulas; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
