"""How far the planner is from published runs: an error for each, and what it comes to by source."""

import math
import statistics
from contextlib import contextmanager

from fidle_utils.measure.table import Table
from fidle_utils.planner import calibration
from fidle_utils.planner.memory import model_state_bytes
from fidle_utils.planner.published import runs
from fidle_utils.reference import table

__all__ = ["compare", "leave_one_out", "model_states", "rank_correlation", "summary"]


def compare(kept=None):
    """Return the Table of runs: source, run, calibrates, printed and planned seconds and GiB, errors in %.

    `kept`: a test of a Run; left out, all of them. An error is planned / printed − 1.
    """
    rows = []
    for run in runs():
        if kept is not None and not kept(run):
            continue
        planned = run.plan()
        gib = planned.memory_bytes / 2**30
        rows.append(
            {
                "source": run.source,
                "run": run.name,
                "calibrates": run.calibrates,
                "seconds": run.seconds,
                "planned seconds": planned.seconds_per_step,
                "time error %": _percent(planned.seconds_per_step, run.seconds),
                "GiB": run.gib,
                "planned GiB": gib,
                "memory error %": _percent(gib, run.gib),
                "flag": run.flag,
            }
        )
    return Table(rows)


def summary(errors=None):
    """Return the Table of errors by source, on rows that calibrate nothing, and over all of them last.

    For time and memory: rows, median of the absolute error, its share within 30 %, the sign of the whole
    (median error), and the rank correlation of planned and printed seconds within the source (Spearman).
    """
    errors = compare() if errors is None else errors
    errors = errors[~errors["calibrates"]]
    groups = [(source, errors[errors["source"] == source]) for source in dict.fromkeys(errors["source"])]
    return Table([_sums(*group) for group in [*groups, ("all", errors)]]).set_index("source")


def _sums(source, rows):
    timed, weighed = rows.dropna(subset=["seconds"]), rows.dropna(subset=["GiB"])
    time, memory = list(timed["time error %"]), list(weighed["memory error %"])
    return {
        "source": source,
        "runs": len(time),
        "time, median %": _median_of_absolute(time),
        "within 30 %": round(100 * sum(abs(e) <= 30 for e in time) / len(time)) if time else None,
        "time, sign %": round(statistics.median(time), 1) if time else None,
        "rank": None if source == "all" else rank_correlation(timed["seconds"], timed["planned seconds"]),
        "memories": len(memory),
        "memory, median %": _median_of_absolute(memory),
        "memory, sign %": round(statistics.median(memory), 1) if memory else None,
    }


def model_states():
    """Return the Table of ZeRO's Table 1, 54 cells, beside the planner's model states, in decimal GB."""
    rows = []
    for row in table("zero_table1"):
        states = model_state_bytes(row["parameters_billion"] * 1e9, row["zero_stage"], row["n_ranks"])
        planned = sum(states) / 1e9
        rows.append(row | {"planned_gb": planned, "error_percent": _percent(planned, row["memory_gb"])})
    return Table(rows)


def leave_one_out():
    """Return the Table of errors of each source, its GPUs' speed fitted without it.

    The achieved part of the matmul ceiling of each generation of GPU is fitted again on the rows of all
    *other* sources, so that their median error is 0; then the source that was left out is planned with it.
    Runs on GB200, and those with a ring of their own, are left out: one source knows them. Numbers that are
    facts of one machine or software stay: Omni-Path's fraction and unaligned sizes, of BigScience.
    """
    rows = []
    for source in dict.fromkeys(run.source for run in runs()):
        with _fitted_without(source):
            errors = compare(lambda run, source=source: run.source == source and _general(run))
        if len(errors):
            rows.append(
                {
                    "source": source,
                    "runs": len(errors),
                    "time, median %": _median_of_absolute(errors["time error %"]),
                    "within 30 %": round(
                        100 * sum(abs(e) <= 30 for e in errors["time error %"]) / len(errors)
                    ),
                    "time, sign %": round(statistics.median(errors["time error %"]), 1),
                }
            )
    return Table(rows).set_index("source")


def _general(run):
    """Whether a run uses no number that only its own source knows."""
    known = run.machine.ring_gb_per_second is None and run.machine.gpu.generation != "Blackwell"
    return known and bool(run.seconds)


@contextmanager
def _fitted_without(source):
    before = dict(calibration.GEMM_FRACTION)
    try:
        for generation in before:
            others = [
                run
                for run in runs()
                if run.source != source and run.machine.gpu.generation == generation and _general(run)
            ]
            if others:
                calibration.GEMM_FRACTION[generation] = _fit(generation, others)
        yield
    finally:
        calibration.GEMM_FRACTION.update(before)


def _fit(generation, some):
    """Return the fraction at which the median error of `some` runs is 0, by bisection."""
    low, high = 0.3, 1.2
    for _ in range(9):
        calibration.GEMM_FRACTION[generation] = middle = (low + high) / 2
        errors = [run.plan().seconds_per_step / run.seconds - 1 for run in some]
        # Steps too long: products must go faster.
        low, high = (middle, high) if statistics.median(errors) > 0 else (low, middle)
    return (low + high) / 2


def rank_correlation(a, b):
    """Return Spearman's ρ of two lists: Pearson's of their ranks, ties share one; None below 3."""
    a, b = _ranks(list(a)), _ranks(list(b))
    if len(a) < 3:
        return None
    mean = (len(a) - 1) / 2
    covariance = math.fsum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = [math.sqrt(math.fsum((x - mean) ** 2 for x in values)) for values in (a, b)]
    return round(covariance / (spread[0] * spread[1]), 3) if min(spread) else None


def _ranks(values):
    order = sorted(values)
    first = {value: order.index(value) for value in set(values)}
    count = {value: order.count(value) for value in set(values)}
    return [first[value] + (count[value] - 1) / 2 for value in values]


def _percent(planned, printed):
    return None if not printed else 100 * (planned / printed - 1)


def _median_of_absolute(errors):
    errors = [abs(error) for error in errors]
    return round(statistics.median(errors), 1) if errors else None
