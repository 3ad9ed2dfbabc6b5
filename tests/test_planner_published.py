"""The planner against published runs that it was not calibrated on: it fails if accuracy falls."""

import pytest

from fidle_utils.planner import MACHINES, SOFTWARE, Layout, Transformer, calibration, validation
from fidle_utils.planner.compute import layer_seconds
from fidle_utils.planner.network import all_reduce
from fidle_utils.planner.published import out_of_memory, runs
from fidle_utils.reference import table


@pytest.fixture(scope="module")
def errors():
    return validation.compare()


@pytest.fixture(scope="module")
def kept(errors):
    return errors[~errors["calibrates"]]


def test_most_rows_validate_and_few_calibrate(errors, kept):
    assert len(kept) >= 240 and len(errors) - len(kept) <= 44
    assert {"PTD-P 2021", "Korthikanti 2022", "Megatron-core 2024", "Llama 3 2024", "BigScience 2022"} <= set(
        kept["source"]
    )


def test_no_run_that_validates_repeats_one_that_calibrates():
    """Same sizes, layout, machine and software: it would validate what it fitted."""
    fitted = {run.gist for run in runs() if run.calibrates}
    assert not [run.name for run in runs() if not run.calibrates and run.gist in fitted]


def test_step_time(kept):
    time = kept["time error %"].abs()
    assert time.median() <= 6  # asked: 15
    assert (time <= 30).mean() >= 0.99  # asked: 0.90
    assert (time <= 15).mean() >= 0.93


def test_peak_memory(kept):
    memory = kept["memory error %"].dropna().abs()
    assert len(memory) >= 150
    assert memory.median() <= 5  # asked: 12
    assert (memory <= 20).mean() >= 0.98


def test_each_source_is_ranked_and_none_is_far(errors):
    sources = validation.summary(errors).drop(index="all")
    assert (sources["rank"] >= 0.9).all()
    assert (sources["time, median %"] <= 13).all()
    assert (sources["memory, median %"].dropna() <= 6).all()
    # No source is all on one side by more than this: a sign that a cause is missing.
    assert (sources["time, sign %"].abs() <= 12).all()


def test_a_source_that_was_never_seen_is_planned_as_well():
    unseen = validation.leave_one_out()
    assert (unseen["time, median %"] <= 15).all() and (unseen["within 30 %"] >= 90).all()


def test_runs_out_of_memory_do_not_fit_or_nearly():
    """5 of the 7; the two others (182B TP 4 PP 6 and 206B) failed below what the planner says is there."""
    plans = [run.plan() for run in out_of_memory()]
    assert len(plans) == 7
    assert sum(not plan.fits for plan in plans) >= 5


def test_runs_that_ran_fit():
    """Of the runs on 80 GB whose memory was printed, the planner refuses few."""
    weighed = [run for run in runs() if run.gib and run.machine.gpu.memory_gb == 80]
    refused = [run.name for run in weighed if not run.plan().fits]
    assert len(refused) <= 0.03 * len(weighed), refused


def test_rank_correlation_is_spearman_s():
    scipy = pytest.importorskip("scipy.stats")
    a, b = [1, 2, 2, 4, 9, 3], [1, 3, 2, 2, 8, 8]
    assert validation.rank_correlation(a, b) == pytest.approx(scipy.spearmanr(a, b).statistic, abs=1e-3)
    assert validation.rank_correlation([1, 2], [1, 2]) is None


def test_every_guess_about_a_row_is_written_down():
    assert all(run.assumed for run in runs() if run.source.startswith(("Megatron-core", "Llama", "Zero")))
    assert sum(run.calibrates for run in runs()) == 43


@pytest.mark.parametrize("generation", ["Hopper", "Blackwell"])
def test_what_is_fitted_is_what_its_rows_give(generation):
    """Nobody moved the number to please the rows that validate."""
    before = dict(calibration.GEMM_FRACTION)
    rows = [
        run for run in runs() if run.calibrates and run.machine.gpu.generation == generation and not run.flag
    ]
    try:
        fitted = validation._fit(generation, rows)
    finally:
        calibration.GEMM_FRACTION.update(before)
    assert before[generation] == pytest.approx(fitted, rel=0.05)


def test_layer_times_that_ampere_is_fitted_on():
    """Korthikanti Table 4: a layer of 22B on 8 A100, forward and backward, within 10 %, on average 6 %."""
    model = Transformer("GPT 22B", 48, 6144, 64, 51200, 2048)
    machine, software = MACHINES["DGX A100"], SOFTWARE["Megatron-LM 2022"]
    errors = []
    for row in table("korthikanti_table4_layer_times"):
        name = row["experiment"].lower()
        kind = "full" if "full" in name else "selective" if "selective" in name else "none"
        sharded = "sequence parallelism" in name
        layout = Layout(
            tensor=8, micro_batch=4, sequence_parallel=sharded, checkpointing=kind, precision="fp16"
        )
        layer = layer_seconds(model, machine.gpu, layout, software)
        once = all_reduce(machine, 2 * 4 * 2048 * 6144, 8)
        forward = layer.forward + 2 * once
        # Backward hides its all-reduces, but for their contention; what is computed again does not.
        backward = layer.backward_input + layer.backward_weight + layer.again
        backward += 2 * once * (calibration.CONTENTION + (kind == "full"))
        errors += [1000 * forward / row["forward_ms"] - 1, 1000 * backward / row["backward_ms"] - 1]
    assert max(map(abs, errors)) < 0.10 and sum(map(abs, errors)) / len(errors) < 0.06
