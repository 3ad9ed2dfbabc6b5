"""The published tables: whole, sourced, and equal to the closed forms that their sources print."""

import tomllib
from pathlib import Path

import pytest

from fidle_utils.reference import names, table

ROOT = Path(__file__).parent.parent
MARKS = {"read", "read in an image", "quoted"}


def test_a_table_is_a_list_of_dicts_with_numbers_and_none():
    a100, h100 = table("gpu_specs", gpu="A100-SXM4-80GB")[0], table("gpu_specs", gpu="H100-SXM5-80GB")[0]
    assert (a100["bf16_tflops"], a100["memory_gb_per_second"], a100["fp8_tflops"]) == (312, 2039, None)
    assert (h100["bf16_tflops"], h100["tf32_tflops"]) == (989, 494.5)
    table("gpu_specs")[0]["gpu"] = "changed"
    assert table("gpu_specs")[0]["gpu"] == "V100-SXM2-16GB"


def test_an_unknown_name_names_what_there_is():
    with pytest.raises(LookupError, match="no published table 'gpus': there are .*gpu_specs"):
        table("gpus")
    with pytest.raises(LookupError, match="no column 'price' in gpu_specs: there are gpu"):
        table("gpu_specs", price=1)


@pytest.mark.parametrize("name", names())
def test_every_row_has_a_source_and_every_column_one_kind_of_value(name):
    rows = table(name)
    for row in rows:
        marks = {value for column, value in row.items() if column.startswith("confidence")}
        assert row["source"] and marks <= MARKS | {None} and marks != {None}, row
        assert None not in row and "MEM" not in str(row), row
    for column in rows[0]:
        kinds = {isinstance(row[column], str) for row in rows if row[column] is not None}
        assert len(kinds) == 1, f"{column} mixes texts and numbers, or is empty"
    assert f"`{name}`" in (ROOT / "fidle_utils/reference/README.md").read_text()


def test_the_tables_ship_with_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "fidle_utils"
    shipped = {path for pattern in patterns["fidle_utils"] for path in package.glob(pattern)}
    assert {package / f"reference/{name}.csv" for name in names()} | {package / "fidle.mplstyle"} <= shipped


def test_zero_memory_is_16_bytes_a_parameter_divided_by_stage():
    forms = {1: lambda n: 4 + 12 / n, 2: lambda n: 2 + 14 / n, 3: lambda n: 16 / n}
    rows = table("zero_table1")
    assert len(rows) == 54
    for row in rows:
        expected = row["parameters_billion"] * forms[row["zero_stage"]](row["n_ranks"])
        assert row["memory_gb"] == pytest.approx(expected, rel=0.012, abs=0.005), row
        assert row["bold"] == "no" or row["memory_gb"] <= 32


def test_bus_bandwidth_follows_from_time_and_bytes():
    sweeps = [row for row in table("nccl_allreduce_busbw") if row["time_us"]]
    assert len(sweeps) >= 20
    for row in sweeps:
        n, algorithm = row["n_gpus"], row["n_bytes"] / row["time_us"] / 1e3
        assert row["algorithm_gb_per_second"] == pytest.approx(algorithm, rel=0.01), row
        assert row["bus_gb_per_second"] == pytest.approx(2 * (n - 1) / n * algorithm, rel=0.01), row


def test_megatron_sizes_follow_from_their_shape():
    """12lh²(1 + 13/12h + (V + s)/12lh): arXiv:2104.04473, equation 2."""
    rows = [row for row in table("papers_throughput") if "2104.04473 Table 1" in row["source"]]
    assert len(rows) == 10
    for row in rows:
        layers, h = row["layers"], row["hidden"]
        extra = 13 / (12 * h) + (row["vocab"] + row["sequence_length"]) / (12 * layers * h)
        assert 12e-9 * layers * h**2 * (1 + extra) == pytest.approx(row["parameters_billion"], abs=0.051)
        assert row["tflops_per_gpu"] / 312 == pytest.approx(row["hfu_percent"] / 100, abs=0.006)


@pytest.mark.parametrize("name", ["papers_throughput", "jeanzay_bigscience_a100", "jeanzay_idris_sft_2025"])
def test_parallel_groups_multiply_to_the_gpus(name):
    for row in table(name):
        if row["tp"] and "dp·tp·pp" not in (row["notes"] or ""):
            size = row["dp"] * row["tp"] * row["pp"] * (row.get("cp") or 1)
            assert size == row["n_gpus"], row


def test_bloom_s_flops_are_8_a_parameter_and_token():
    final = table("jeanzay_bigscience_a100", model="BLOOM-176B")[0]
    tokens = final["global_batch"] * final["sequence_length"]
    flops = 8e9 * final["parameters_billion"] * tokens / final["seconds_per_iteration"] / final["n_gpus"]
    assert final["flops_counted"] == "hardware"
    assert flops / 1e12 == pytest.approx(final["tflops_per_gpu"], rel=0.03)


def test_chinchilla_counts_6_flops_a_parameter_and_token():
    for row in table("chinchilla_table3"):
        # 1.5T tokens is rounded in the paper, on the row of 67B.
        tolerance = 0.05 if row["parameters"] == 67e9 else 0.011
        assert row["flops"] == pytest.approx(6 * row["parameters"] * row["tokens"], rel=tolerance)


def test_no_pipeline_beats_the_ideal_bubble_of_its_schedule():
    for row in table("zero_bubble", schedule="1F1B"):
        ideal = (row["pp"] - 1) / (row["n_micro_batches"] + row["pp"] - 1)
        assert ideal < row["bubble_rate"] < 1.3 * ideal, row


def test_layer_times_add_up():
    rows = table("korthikanti_table4_layer_times")
    for row in rows:
        assert row["forward_ms"] + row["backward_ms"] == pytest.approx(row["both_ms"], abs=0.051)
        if row["overhead_percent"]:
            overhead = 100 * (row["both_ms"] / rows[0]["both_ms"] - 1)
            assert overhead == pytest.approx(row["overhead_percent"], abs=0.6)


def test_dense_peaks_and_nodes_are_consistent():
    for row in table("gpu_specs"):
        assert not row["fp8_tflops"] or row["fp8_tflops"] == pytest.approx(2 * row["bf16_tflops"], rel=0.001)
    peak = {row["gpu"]: row["bf16_tflops"] for row in table("gpu_specs")}
    for row in table("matmul_ceilings", dtype="bf16"):
        assert row["gpu"] not in peak or 0.5 < row["tflops"] / peak[row["gpu"]] < 0.9
    for row in table("jeanzay_nodes"):
        assert row["cpus_per_task"] * row["gpus_per_node"] == row["cores"] and row["gpu"] in peak
    assert (
        sum(row["nodes"] * row["gpus_per_node"] for row in table("jeanzay_nodes", node="H100 quad")) == 1456
    )
