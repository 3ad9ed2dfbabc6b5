"""The planner against closed forms: published formulas, exact parameter counts, simulated pipelines."""

import json
import subprocess
import sys

import pytest

from fidle_utils import schedules
from fidle_utils.planner import (
    GPUS,
    MACHINES,
    MODELS,
    SOFTWARE,
    Layout,
    Machine,
    PlanError,
    Transformer,
    calibration,
    compute,
    model_state_bytes,
    network,
    plan,
    search,
)
from fidle_utils.planner import memory as memory_module
from fidle_utils.planner.compute import matmul_seconds
from fidle_utils.planner.layout import layers_by_stage
from fidle_utils.planner.step import bubble_seconds
from fidle_utils.reference import table

GPT = Transformer("GPT", 96, 12288, 96, 51200, 2048, learned_positions=True)
MEGATRON = SOFTWARE["Megatron-LM 2021"]
BLOOM = Layout(
    data=8, tensor=4, pipeline=12, zero=1, micro_batch=2, global_batch=2048, checkpointing="full"
)  # bigscience train/tr11-176B-ml
BLOOM_SOFTWARE = "Megatron-DeepSpeed 2022, bf16"
DGX = MACHINES["DGX A100"]


def test_it_does_not_import_torch():
    code = "import sys, json, fidle_utils.planner.validation; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    "name, billions, tolerance",
    [
        ("BLOOM 176B", 176.247, 5e-6),  # bigscience train/tr11-176B-ml
        ("Qwen2.5 14B", 14.77, 5e-5),  # idriscnrs/Democratizing-LLM-FT logs
        ("Qwen2.5 32B", 32.7639, 5e-6),
        ("Qwen2.5 72B", 72.7062, 5e-6),
        ("Llama 3 8B", 8.03, 1e-3),
        ("Llama 3 70B", 70.55, 1e-3),
        ("Llama 3 405B", 405.9, 1e-3),
    ],
)
def test_parameters_are_those_printed(name, billions, tolerance):
    assert MODELS[name].parameters / 1e9 == pytest.approx(billions, rel=tolerance)


def test_parameters_and_flops_are_megatron_s_formulas():
    layers, h, v, s = GPT.layers, GPT.hidden, GPT.vocab, GPT.sequence_length
    formula = 12 * layers * h**2 * (1 + 13 / (12 * h) + (v + s) / (12 * layers * h))
    assert GPT.parameters == pytest.approx(formula, rel=1e-6)  # it leaves out the last norm
    model = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * h * layers))
    assert GPT.flops_per_token() == pytest.approx(model, rel=1e-12)
    assert GPT.flops_per_token() - GPT.flops_per_token(causal=True) == 6 * layers * h * s


def test_every_size_of_ptdp_is_the_size_printed():
    rows = [row for row in table("papers_throughput") if "2104.04473 Table 1" in row["source"]]
    assert len(rows) == 10
    for row in rows:
        sizes = (row[name] for name in ("layers", "hidden", "heads", "vocab", "sequence_length"))
        model = Transformer("GPT", *sizes, learned_positions=True)
        assert model.parameters / 1e9 == pytest.approx(row["parameters_billion"], abs=0.06)


def test_hardware_flops_are_those_of_full_and_selective_recomputation():
    """96·B·s·l·h²·(1 + s/6h + V/16lh): arXiv:2104.04473, equation 3."""
    layers, h, v, s = GPT.layers, GPT.hidden, GPT.vocab, GPT.sequence_length
    layout = Layout(tensor=8, pipeline=8, global_batch=64, precision="fp16")
    full = plan(GPT, DGX, layout.with_(checkpointing="full"), software=MEGATRON)
    flops = 96 * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    assert full.hardware_tflops == pytest.approx(1e-12 * flops * full.tokens_per_second_per_gpu, rel=1e-9)
    # The forward half of attention, 4·B·s²·h a layer. (The paper's equation 8 adds 12, three times as many.)
    selective = plan(GPT, DGX, layout.with_(checkpointing="selective"), software=MEGATRON)
    flops = 72 * layers * h**2 * (1 + 2 * s / (9 * h) + v / (12 * h * layers))
    expected = 1e-12 * flops * selective.tokens_per_second_per_gpu
    assert selective.hardware_tflops == pytest.approx(expected, rel=1e-9)
    none = plan(GPT, DGX, layout, software=MEGATRON)
    assert none.hfu == none.mfu and full.hfu / full.mfu == pytest.approx(4 / 3, rel=0.01)


# ------------------------------------------------------------------------------------------------ memory


def test_model_states_are_zero_s_table_1():
    """54 cells, within 1.2 % or 1 GB (arXiv:1910.02054, Table 1)."""
    rows = table("zero_table1")
    assert len(rows) == 54
    for row in rows:
        states = model_state_bytes(row["parameters_billion"] * 1e9, row["zero_stage"], row["n_ranks"])
        assert sum(states) / 1e9 == pytest.approx(row["memory_gb"], rel=0.012, abs=1)
        if row["memory_gb"] >= 1:  # the others are printed with two digits, 0.47 and 0.12
            assert sum(states) / 1e9 == pytest.approx(row["memory_gb"], rel=0.012)


@pytest.mark.parametrize(
    "sequence_parallel, checkpointing, formula",
    [  # arXiv:2205.05198, Table 2, bytes of one layer over s·b·h
        (False, "none", lambda a, s, h, t: 10 + 24 / t + 5 * a * s / (h * t)),
        (True, "none", lambda a, s, h, t: 34 / t + 5 * a * s / (h * t)),
        (False, "selective", lambda a, s, h, t: 10 + 24 / t),
        (True, "selective", lambda a, s, h, t: 34 / t),
        (False, "full", lambda a, s, h, t: 2),
    ],
)
@pytest.mark.parametrize("tensor", [1, 8])
def test_activations_of_a_layer_are_korthikanti_s(tensor, sequence_parallel, checkpointing, formula):
    layout = Layout(
        tensor=tensor, micro_batch=4, sequence_parallel=sequence_parallel, checkpointing=checkpointing
    )
    counted = memory_module.activation_bytes(GPT, layout, MEGATRON)
    tokens = 4 * GPT.sequence_length
    expected = tokens * GPT.hidden * formula(GPT.heads, GPT.sequence_length, GPT.hidden, tensor)
    assert counted == pytest.approx(expected, rel=1e-12)


def test_flash_attention_keeps_what_selective_checkpointing_keeps_without_dropout():
    layout = Layout(tensor=8, sequence_parallel=True)
    flash = memory_module.activation_bytes(GPT, layout, SOFTWARE["today"])
    no_dropout = memory_module.activation_bytes(
        GPT, layout.with_(checkpointing="selective"), MEGATRON.with_(dropout=False)
    )
    assert flash == no_dropout


@pytest.mark.parametrize(
    "name, p, m",
    [
        (name, p, m)
        for name in ("GPipe", "1F1B", "interleaved", "ZB-H1", "ZB-H2", "ZB-V")
        for p, m in ((4, 16), (8, 32), (4, 3), (1, 4))
        if name != "interleaved" or (p > 1 and m % p == 0)  # no such schedule
    ],
)
def test_micro_batches_in_flight_are_those_of_the_simulated_schedule(name, p, m):
    virtual = 2 if name == "interleaved" else 1
    made = schedules.interleaved(p, m, 2) if name == "interleaved" else schedules.SCHEDULES[name](p, m)
    layout = Layout(pipeline=p, schedule=name, virtual_stages=virtual, global_batch=m)
    held = [memory_module.in_flight(layout, stage) for stage in range(p)]
    # B frees an activation here; the planner counts the same. ZB-V of few micro-batches holds less than p.
    simulated = made.peak_activations()
    assert held[0] == pytest.approx(simulated[0]) or (name == "ZB-V" and m < 2 * p - 1)
    assert held[0] >= simulated[0]
    if name in ("GPipe", "1F1B", "interleaved"):
        assert held == pytest.approx(simulated)


def test_memory_shrinks_with_each_stage_of_zero_and_with_checkpointing():
    sizes = [
        plan("Llama 3 8B", "Jean Zay H100", Layout(data=16, zero=zero)).memory_bytes for zero in range(4)
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    kept, freed = (
        plan("Llama 3 8B", "Jean Zay H100", Layout(data=16, zero=3, reshard=reshard)).memory_bytes
        for reshard in (False, True)
    )
    assert freed < kept
    sizes = [
        plan(GPT, DGX, Layout(tensor=8, checkpointing=kind, precision="fp16"), software=MEGATRON).memory_bytes
        for kind in ("none", "selective", "full")
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


# -------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("p, m", [(4, 16), (8, 32)])
@pytest.mark.parametrize("name", ["GPipe", "1F1B", "interleaved", "ZB-H1", "ZB-H2", "ZB-V"])
def test_the_bubble_is_that_of_the_simulated_schedule(name, p, m):
    """Equal stages, F = B = W: the planner's closed form against a clock, from first start to last end."""

    class Layer:
        backward_weight = 1.0

    virtual = 2 if name == "interleaved" else 1
    made = (
        schedules.interleaved(p, m, 2) if name == "interleaved" else schedules.SCHEDULES[name](p, m)
    ).simulate()
    layout = Layout(pipeline=p, schedule=name, virtual_stages=virtual, global_batch=m)
    bubble = bubble_seconds(layout, [3.0] * p, 0, Layer, [1] * p)
    # Zero-bubble steps follow each other without a barrier: their cost is that of the longest rank.
    simulated = made.longest_rank if name.startswith("ZB") else made.total
    assert bubble == pytest.approx(simulated - max(made.busy))


def test_the_bubble_of_1f1b_is_p_minus_1_over_m():
    base = Layout(pipeline=4, tensor=8, global_batch=32, precision="fp16")
    made = plan(Transformer("GPT", 48, 8192, 64, 1024, 2048), DGX, base, software=MEGATRON)
    ideal = made.seconds_per_step - made.time["bubble"] - made.time["optimizer"]
    assert made.time["bubble"] / ideal == pytest.approx(3 / 32, rel=0.02)  # a small head
    twice = plan(
        made.model,
        DGX,
        base.with_(schedule="interleaved", virtual_stages=2),
        software=MEGATRON,
    )
    assert twice.time["bubble"] / made.time["bubble"] == pytest.approx(0.5, rel=0.02)


def test_volumes_of_zero_are_2_and_3_times_the_parameters():
    """2Ψ, 2Ψ, 2Ψ, 3Ψ of 16 bits (arXiv:1910.02054, Section 7), where the network is all that counts."""
    slow = Machine("slow", GPUS["A100-SXM4-80GB"], 1, 100, 1e-3, network_fraction=1)
    software = SOFTWARE["today"].with_(overlap_data=0, reduce_bytes=2)
    model, n = MODELS["Llama 3 8B"], 4
    for zero, volume in ((0, 2), (1, 2), (2, 2), (3, 3)):
        made = plan(model, slow, Layout(data=n, zero=zero), software=software)
        expected = volume * 2 * model.parameters * (n - 1) / n / 1e6
        assert made.time["data communication"] == pytest.approx(expected, rel=1e-3)


def test_a_ring_enters_a_node_once_and_groups_share_its_links():
    volume = 1e9 * 15 / 16  # of 16 ranks
    one = network.gather(DGX, 1e9, 16)
    assert one == pytest.approx(volume / (200e9 * 0.8), rel=0.02)
    eight = network.gather(DGX, 1e9, 16, stride=8)
    assert eight == pytest.approx(8 * volume / (200e9 * 0.8), rel=0.02)
    assert network.gather(DGX, 1e9, 8) == pytest.approx(7 / 8 * 1e9 / 232e9, rel=0.02)
    assert network.all_reduce(DGX, 1e9, 8) == 2 * network.gather(DGX, 1e9, 8)
    assert network.gather(DGX, 1e9, 1) == 0


@pytest.mark.parametrize(
    "system, machine", [("8×A100, NVLink 3", "DGX A100"), ("8×H200, NVLink 4, NVLS", "DGX H200")]
)
def test_collectives_inside_a_node_are_near_measured_ones(system, machine):
    """All-reduces of 16 MiB and more, as tensor parallelism sends them; measured by nccl-tests."""
    rows = [row for row in table("nccl_allreduce_busbw", system=system) if row["n_bytes"] >= 2**24]
    for row in rows:
        measured = 2 * 7 / 8 * row["n_bytes"] / (1e9 * row["bus_gb_per_second"])
        assert network.all_reduce(MACHINES[machine], row["n_bytes"], 8) == pytest.approx(measured, rel=0.45)


def test_products_are_slower_where_they_fill_no_wave_and_where_sizes_do_not_align():
    gpu = DGX.gpu
    whole = matmul_seconds(gpu, "bf16", 128 * 108, 256, 8192)
    one_more = matmul_seconds(gpu, "bf16", 128 * 109, 256, 8192)
    assert one_more > 1.5 * whole  # a second wave, of one tile
    assert matmul_seconds(gpu, "bf16", 4096, 4095, 4096) > 5 * matmul_seconds(gpu, "bf16", 4096, 4096, 4096)
    tflops = 2 * 16384**3 / matmul_seconds(gpu, "bf16", 16384, 16384, 16384) / 1e12
    assert 0.85 * 271.2 < tflops < 271.2  # never faster than the ceiling that was measured


def test_flash_attention_counts_half_of_the_pairs_and_five_products_backward():
    """Forward 2 products of s × s × d a head, backward 5; causal: half (arXiv:2307.08691, Section 4.1)."""
    model, gpu, layout = MODELS["Llama 3 8B"], MACHINES["DGX H100"].gpu, Layout()
    n = model.sequence_length
    forward, backward = compute._attention(model, gpu, layout, SOFTWARE["today"], n)
    rate = 794.5e12 * calibration.FLASH_FRACTION["Hopper"]
    assert forward == pytest.approx(4 * n * n * model.hidden / 2 / rate)
    assert backward == pytest.approx(5 / 2 * forward)
    newer, _ = compute._attention(model, gpu, layout, SOFTWARE["Megatron-core"], n)
    assert newer < forward


def test_the_parts_add_up_and_nothing_is_negative():
    made = plan("BLOOM 176B", "Jean Zay A100", BLOOM, 384, BLOOM_SOFTWARE)
    assert made.seconds_per_step == sum(made.time.values()) and min(made.time.values()) >= 0
    assert made.memory_bytes == sum(made.memory.values()) and min(made.memory.values()) >= 0
    assert made.time_table().loc["in all", "seconds"] == pytest.approx(made.seconds_per_step, abs=1e-3)
    assert made.memory_table().loc["in all", "GiB"] == pytest.approx(made.memory_bytes / 2**30, abs=0.06)
    assert "fits" in repr(made) and "MFU" in repr(made) and "tensor 4" in repr(made)


def test_more_of_a_good_thing_is_faster():
    def step(machine, **more):
        return plan("BLOOM 176B", machine, BLOOM, software=BLOOM_SOFTWARE, **more).seconds_per_step

    machine = MACHINES["Jean Zay A100"]
    assert step(machine.with_(node_gb_per_second=200)) < step(machine)
    assert step(machine.with_(gpu_bus_gb_per_second=464)) < step(machine)
    assert step(machine.with_(ring_gb_per_second=1)) > step(machine)


# ------------------------------------------------------------------------------------------ what follows


def test_bloom_s_hours_energy_and_carbon():
    """366 billion tokens took 1 082 990 GPU hours, 433 196 kWh at the TDP and 24.7 t (arXiv:2211.02001)."""
    made = plan("BLOOM 176B", "Jean Zay A100", BLOOM, software=BLOOM_SOFTWARE)
    training = made.training(366e9)
    assert training.gpu_hours == pytest.approx(1_082_990, rel=0.15)  # with its stops, ramp and bad nodes
    assert training.gpu_kwh == pytest.approx(training.gpu_hours * 0.4)
    assert training.kwh == pytest.approx(1.2 * training.gpu_kwh)
    assert training.kg_co2e == pytest.approx(training.kwh * 0.057)
    assert "PUE 1.2" in repr(training) and "57 g" in repr(training)
    assert made.training(366e9, load=0.5).gpu_kwh == pytest.approx(training.gpu_kwh / 2)
    unknown = plan("Llama 3 8B", "DGX H100", Layout(data=8, zero=3)).training(1e9)
    assert unknown.kwh is None and unknown.kg_co2e is None and "not known" in repr(unknown)


def test_layers_of_a_stage_are_those_of_bloom_and_of_llama_3():
    assert layers_by_stage(MODELS["BLOOM 176B"], BLOOM) == [5, *[6] * 10, 5]
    llama = Layout(data=64, tensor=8, pipeline=16)
    assert layers_by_stage(MODELS["Llama 3 405B"], llama) == [7, *[8] * 14, 7]
    assert layers_by_stage(GPT, Layout(pipeline=8)) == [12] * 8
    assert layers_by_stage(GPT, Layout(pipeline=10, uneven=True)) == [10] * 6 + [9] * 4


# ---------------------------------------------------------------------------------------------- search


def test_bloom_s_layout_is_among_the_ten_best():
    """What Megatron-DeepSpeed could do in 2022: no sequence parallelism, no flash attention, plain 1F1B."""
    found = search(
        "BLOOM 176B", "Jean Zay A100", 384, 2048, BLOOM_SOFTWARE, schedule="1F1B", sequence_parallel=False
    )
    assert len(found) == 10 and all(one.fits for one in found)
    assert [one.seconds_per_step for one in found] == sorted(one.seconds_per_step for one in found)
    degrees = [(one.layout.tensor, one.layout.pipeline, one.layout.data) for one in found]
    assert (4, 12, 8) in degrees
    today = search("BLOOM 176B", "Jean Zay A100", 384, 2048, by_degrees=True)
    assert (4, 12, 8) in [(one.layout.tensor, one.layout.pipeline, one.layout.data) for one in today]


def test_a_search_finds_no_less_than_what_a_person_may_choose():
    best = search("Llama 3 8B", "Jean Zay H100", 4, 64)[0]
    mine = plan("Llama 3 8B", "Jean Zay H100", Layout(data=4, zero=3, global_batch=64, checkpointing="full"))
    assert best.fits and best.seconds_per_step <= mine.seconds_per_step
    narrowed = search("Llama 3 8B", "Jean Zay H100", 4, 64, tensor=1, zero=3, checkpointing=("none", "full"))
    assert {(one.layout.tensor, one.layout.zero) for one in narrowed} == {(1, 3)}
    assert "tokens/s/GPU" in repr(narrowed)


def test_a_search_over_1024_gpus_tries_thousands_of_layouts():
    found = search("Llama 3 405B", "DGX H100", 1024, 1024, best=None)
    assert len(found) > 50 and all(one.layout.n_gpus == 1024 for one in found)


# ---------------------------------------------------------------------------------------- absurd inputs

ABSURD = {
    "0 GPUs": (
        lambda: plan("Llama 3 8B", "Jean Zay H100", Layout(), n_gpus=0),
        "0 GPUs: take a whole number",
    ),
    "minus one": (lambda: search("Llama 3 8B", "Jean Zay H100", -1, 8), "-1 GPUs"),
    "half a GPU": (lambda: Layout(data=0.5), "0.5 data"),
    "0 data": (lambda: Layout(data=0), "0 data"),
    "heads": (
        lambda: plan("Qwen2.5 14B", DGX, Layout(tensor=64)),
        "tensor=64 for 40 heads: a rank would have no head",
    ),
    "columns": (lambda: plan("Qwen2.5 14B", DGX, Layout(tensor=3)), "40 heads do not divide over tensor=3"),
    "product": (
        lambda: plan("Llama 3 8B", "Jean Zay H100", Layout(data=2, tensor=4), n_gpus=16),
        "is 8 GPUs, not 16: change one degree",
    ),
    "stages": (
        lambda: plan("Llama 3 8B", "Jean Zay H100", Layout(pipeline=5)),
        "do not divide over 5 stages: take a divisor",
    ),
    "too many stages": (lambda: plan("Llama 3 8B", DGX, Layout(pipeline=64)), "64 stages for 32 layers"),
    "too many GPUs": (
        lambda: plan("Llama 3 8B", "Jean Zay A100", Layout(data=512)),
        "512 GPUs, and Jean Zay A100 has 416",
    ),
    "batch": (lambda: Layout(data=3, global_batch=64), "is not a multiple of 3 data ranks"),
    "schedule": (lambda: Layout(schedule="best"), "schedule='best': it is one of GPipe"),
    "virtual": (lambda: Layout(virtual_stages=2), "2 virtual stages with 1F1B"),
    "groups": (
        lambda: plan(
            "Llama 3 8B", DGX, Layout(pipeline=4, schedule="interleaved", virtual_stages=2, global_batch=6)
        ),
        "interleaved goes by groups of 4",
    ),
    "bf16 on V100": (lambda: plan("Llama 3 8B", "Jean Zay V100", Layout()), "has no bf16: take one of"),
    "sequence": (lambda: plan("Llama 3 8B", DGX, Layout(context=3)), "does not divide over context=3"),
    "a name": (lambda: plan("Llama 9", DGX, Layout()), "no 'Llama 9': there are"),
    "kv heads": (lambda: Transformer("x", 2, 64, 8, 100, 16, kv_heads=3), "8 heads do not share 3 kv heads"),
    "head size": (lambda: Transformer("x", 2, 65, 8, 100, 16), "65 is not a multiple of 8 heads"),
    "no layers": (lambda: Transformer("x", 0, 64, 8, 100, 16), "0 layers"),
    "no tokens": (lambda: plan("Llama 3 8B", DGX, Layout()).training(0), "0 tokens"),
    "bandwidth": (lambda: DGX.with_(node_gb_per_second=0), "a bandwidth is more than 0"),
    "nowhere": (
        lambda: search("Llama 3 405B", "Jean Zay H100", 8, 8),
        "fits in no layout: the smallest needs .* GiB a GPU",
    ),
    "odd GPUs": (lambda: search("Llama 3 8B", "Jean Zay H100", 7, 8), "fits in no layout|no layout of"),
}


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_input_gets_one_clear_sentence(what):
    ask, says = ABSURD[what]
    with pytest.raises(PlanError, match=says) as caught:
        ask()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_plan_that_does_not_fit_says_so_and_is_returned():
    made = plan("Llama 3 405B", "Jean Zay H100", Layout(tensor=4, data=2, zero=3))
    assert not made.fits and "DOES NOT FIT" in repr(made) and made.seconds_per_step > 0
