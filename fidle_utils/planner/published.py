"""Published runs as plans: model, machine, layout and software of each row of the reference tables.

A `Run` carries what was printed, in one convention: seconds of a step and GiB of the GPU. TFLOP/s are
turned into seconds with the formula of their own source, hardware or model FLOPs. What a table leaves out
is filled in by a rule, named in `assumed`. Rows left out: no layout printed, degrees that do not multiply
to the GPUs, runs that ran out of memory (`out_of_memory()`).

`calibrates` marks the rows that calibration.py was fitted on, whole tables or whole sizes of model, so that
no near-duplicate of a fitted row counts as validation.
"""

import re
from dataclasses import replace
from functools import lru_cache

from fidle_utils.planner.errors import PlanError
from fidle_utils.planner.layout import Layout
from fidle_utils.planner.machine import MACHINES
from fidle_utils.planner.model import MODELS, Transformer
from fidle_utils.planner.plan import plan
from fidle_utils.planner.run import Run
from fidle_utils.planner.software import SOFTWARE
from fidle_utils.reference import table

__all__ = ["Run", "out_of_memory", "runs"]

BLOOM_VOCABULARY = 250880


@lru_cache
def runs():
    """Return every Run that has a layout, in the order of the tables."""
    makers = {
        "papers_throughput": _paper,
        "megatron_2020_tensor_parallel": _megatron_2020,
        "zero_bubble": _zero_bubble,
        "jeanzay_bigscience_a100": _bigscience,
        "jeanzay_idris_sft_2025": _idris,
    }
    made = [make(row) for name, make in makers.items() for row in table(name)]
    made = [run for run in made if run is not None and (run.seconds or run.gib)]
    # A later table of BigScience repeats a run, on another day: what calibrates once never validates.
    fitted = {run.gist for run in made if run.calibrates}
    return tuple(replace(run, calibrates=run.gist in fitted) for run in made)


def out_of_memory():
    """Return the Runs of BigScience that ran out of memory: their plans should not fit."""
    rows = [row for row in table("jeanzay_bigscience_a100") if row["seconds_per_iteration"] is None]
    return tuple(_bigscience(row) for row in rows)


def _gpt(row, vocab=None, heads=None, **more):
    vocab, s = row.get("vocab") or vocab, row.get("sequence_length") or 1024
    heads = row["heads"] or heads
    return Transformer(
        "GPT", row["layers"], row["hidden"], heads, vocab, s, **{"learned_positions": True} | more
    )


def _interleaving(row):
    v = row.get("virtual_pp") or 1
    return {"schedule": "interleaved", "virtual_stages": v} if v > 1 else {}


def _most_interleaved(model, pipeline):
    """As many virtual stages as layers allow; the rule where a source says "interleaved" and no more."""
    for extra in (0, 2):
        if pipeline > 1 and (model.layers + extra) % pipeline == 0:
            return {"schedule": "interleaved", "virtual_stages": (model.layers + extra) // pipeline}
    return {}


def _paper(row):
    for start, make in (
        ("Narayanan", _ptdp),
        ("Korthikanti", _korthikanti),
        ("NVIDIA", _core),
        ("Llama 3", _llama3),
    ):
        if row["source"].startswith(start):
            return make(row)
    return None  # no layout printed: PaLM's survey, LLaMA, OPT, MegaScale


def _layout(row, **more):
    degrees = {"data": row["dp"], "tensor": row["tp"], "pipeline": row["pp"]}
    return Layout(**degrees | {"micro_batch": row["micro_batch"], "global_batch": row["global_batch"]} | more)


def _ptdp(row):
    """TFLOP/s of hardware: F = 96·B·s·l·h²·(1 + s/6h + V/16lh) (arXiv:2104.04473, equation 3)."""
    model = _gpt(row)
    s, layers, h = model.sequence_length, model.layers, model.hidden
    flops = 96 * row["global_batch"] * s * layers * h**2 * (1 + s / (6 * h) + model.vocab / (16 * layers * h))
    sharded = row["zero_stage"] == 3
    layout = _layout(
        row, zero=row["zero_stage"], checkpointing="full", precision="fp16", **_interleaving(row)
    )
    return Run(
        "PTD-P 2021",
        f"{row['model']}, {row['n_gpus']} GPUs" + (", ZeRO-3" if sharded else ""),
        model,
        MACHINES["DGX A100 (ZeRO-3 of 2021)" if sharded else "DGX A100"],
        layout,
        SOFTWARE["DeepSpeed ZeRO-3 2021" if sharded else "Megatron-LM 2021"],
        flops / row["n_gpus"] / row["tflops_per_gpu"] / 1e12,
        None,
        calibrates=sharded and row["parameters_billion"] < 200,
    )


def _korthikanti(row):
    selective = row["recompute"] == "selective"
    layout = _layout(
        row,
        checkpointing=row["recompute"],
        sequence_parallel=selective,
        precision="fp16",
        **_interleaving(row),
    )
    name = f"{row['model']}, {row['n_gpus']} GPUs"
    software, seconds = SOFTWARE["Megatron-LM 2022"], row["seconds_per_iteration"]
    return Run("Korthikanti 2022", name, _gpt(row), MACHINES["DGX A100"], layout, software, seconds, None)


def _core(row):
    """TFLOP/s of the model: 72·B·L·s·h²·(1 + s/6h + V/12hL)."""
    model = _gpt(row, tied=False, learned_positions=False)
    machine, software = MACHINES["DGX H100"], SOFTWARE["Megatron-core"]
    row = row | {"micro_batch": 1}
    layout = _layout(
        row, zero=1, sequence_parallel=row["tp"] > 1, uneven=True, **_most_interleaved(model, row["pp"])
    )
    tokens = row["global_batch"] * model.sequence_length
    return Run(
        "Megatron-core 2024",
        f"{row['model']}, {row['n_gpus']} GPUs",
        model,
        machine,
        _fastest_micro_batch(model, machine, layout, software),
        software,
        model.flops_per_token() * tokens / row["n_gpus"] / row["tflops_per_gpu"] / 1e12,
        None,
        assumed="micro-batch: the fastest of 1, 2, 4 that fits; as many virtual stages as layers allow",
    )


def _fastest_micro_batch(model, machine, layout, software):
    plans = []
    for micro_batch in (1, 2, 4):
        try:
            plans.append(plan(model, machine, layout.with_(micro_batch=micro_batch), software=software))
        except PlanError:
            continue
    fitting = [one for one in plans if one.fits] or plans
    return min(fitting, key=lambda one: one.seconds_per_step).layout


def _llama3(row):
    """TFLOP/s of the model, attention counted once for each pair of tokens that a causal mask leaves."""
    model = MODELS["Llama 3 405B"].at(row["sequence_length"])
    row = row | {"micro_batch": 1}
    more = {"zero": 2, "sequence_parallel": True, "context": row["cp"]} | _most_interleaved(model, row["pp"])
    tokens = row["global_batch"] * model.sequence_length
    return Run(
        "Llama 3 2024",
        f"405B, {row['n_gpus']} GPUs, {row['sequence_length']} tokens",
        model,
        MACHINES["DGX H100"],
        _layout(row, **more),
        SOFTWARE["Megatron-core"],
        model.flops_per_token(causal=True) * tokens / row["n_gpus"] / row["tflops_per_gpu"] / 1e12,
        None,
        assumed="micro-batch 1, interleaved as far as layers allow, no checkpointing, 8 × 400 Gb/s a node",
        flag="DP printed 4 in two versions of the paper" if "DP printed" in (row["notes"] or "") else "",
    )


def _megatron_2020(row):
    volta = "V100" in row["gpu"]
    micro_batch = row["global_batch"] // row["dp"]
    layout = _layout(row | {"pp": 1, "micro_batch": micro_batch}, checkpointing="full", precision="fp16")
    return Run(
        f"Megatron-LM 2020, {'V100' if volta else 'A100'}",
        f"{row['parameters_billion']}B, {row['n_gpus']} GPUs",
        _gpt(row, 51200),
        MACHINES["DGX V100" if volta else "DGX A100"],
        layout,
        SOFTWARE["Megatron-LM 2021"],
        row["milliseconds_per_iteration"] / 1000,
        None,
        assumed="vocabulary 51200, sequences of 1024, full checkpointing",
    )


_ZERO_BUBBLE = {"1F1B": "1F1B", "1F1B-I": "interleaved", "ZB-1p": "ZB-H1", "ZB-2p": "ZB-H2"}


def _zero_bubble(row):
    """Samples a second a GPU, and GB of PyTorch's allocator taken as decimal."""
    if row["samples_per_second_per_gpu"] is None:
        return None  # a schedule that was only simulated
    model, schedule = _gpt(row, 51200), _ZERO_BUBBLE[row["schedule"]]
    batch = row["micro_batch"] * row["n_micro_batches"]
    row = row | {"dp": 1, "tp": 1, "global_batch": batch}
    pipeline = _most_interleaved(model, row["pp"]) if schedule == "interleaved" else {"schedule": schedule}
    return Run(
        "Zero bubble 2024",
        f"{row['parameters_billion']}B, {row['n_micro_batches']} micro-batches, {row['schedule']}",
        model,
        MACHINES["DGX A100"],
        _layout(row, precision="fp16", **pipeline),
        SOFTWARE["Megatron-LM 2021"],
        batch / row["samples_per_second_per_gpu"] / row["pp"],
        row["memory_gb"] * 1e9 / 2**30,
        assumed="vocabulary 51200, no checkpointing; the interleaved one has one layer a virtual stage",
    )


def _bigscience(row):
    if "dp·tp·pp" in (row["notes"] or ""):
        return None  # the degrees printed do not multiply to the GPUs printed
    line = re.search(r"line (\d+)", row["source"])
    assumed = [] if row["vocab"] else ["BLOOM's vocabulary"]
    if row["heads"] is None:
        assumed.append("96 heads, as the other rows of this width" if row["hidden"] == 14400 else "64 heads")
    if row["layers"] is None:
        # The old formula of their TFLOP/s, 8 · 12·l·h² a token, gives the layers back.
        flops = 1e12 * row["tflops_per_gpu"] * row["n_gpus"] * row["seconds_per_iteration"]
        row = row | {"layers": round(flops / (8 * row["global_batch"] * 2048 * 12 * row["hidden"] ** 2))}
        assumed.append("layers from its TFLOP/s")
    heads = row["heads"] or (96 if row["hidden"] == 14400 else 64)
    precision = "bf16" if "bf16" in row["precision"] else "fp16"
    degrees = (
        f"TP {row['tp']} PP {row['pp']} DP {row['dp']} MBS {row['micro_batch']} GBS {row['global_batch']}"
    )
    shape = f"{row['parameters_billion']}B h {row['hidden']} a {heads}"
    warm_up, contenders = "Batchsize Warmup" in row["source"], line and 607 <= int(line[1]) <= 610
    return Run(
        "BigScience 2022",
        f"{'line ' + line[1] if line else 'final'}: {shape} {degrees}",
        _gpt(row, BLOOM_VOCABULARY, heads, learned_positions=False),
        MACHINES["Jean Zay A100"],
        _layout(row, zero=row["zero_stage"], checkpointing="full", precision=precision, uneven=True),
        SOFTWARE[f"Megatron-DeepSpeed 2022, {precision}"],
        row["seconds_per_iteration"],
        row["memory_gib"],
        calibrates=bool(row["n_gpus"] == 8 or warm_up or contenders),
        assumed="; ".join(assumed),
    )


def _idris(row):
    notes, size = row["notes"], int(row["parameters_billion"])
    nemo, compiled = "NeMo" in notes, "compile=True" in notes or "Liger kernels True" in notes
    kind = {"A": "Jean Zay A100 (2025 logs)", "H": "Jean Zay H100", "G": "DALIA GB200"}[row["gpu"][0]]
    omni_path = row["gpu"][0] == "A" and row["n_gpus"] > 8
    ratio = re.search(r"sAC ratio (\d)(?:/(\d))?", notes)
    part = int(ratio[1]) / int(ratio[2] or 1) if ratio else 1.0
    layout = _layout(
        row,
        zero=3,
        # NeMo without tensor parallelism: memory grows by 2 bytes a parameter, the whole of it.
        reshard=not (nemo and row["tp"] == 1),
        checkpointing="full" if part else "none",
        checkpointed=part or 1.0,
    )
    software = SOFTWARE["FSDP2, compiled" if compiled else "FSDP2, eager"]
    # On Omni-Path the step is communication and computation one after the other, at all three sizes.
    software = software.with_(fused_loss="Liger kernels True" in notes, overlap_data=0 if omni_path else 1)
    what = f"NeMo TP {row['tp']}" if nemo else f"FSDP2 {'compiled' if compiled else 'eager'}"
    return Run(
        "IDRIS 2025",
        f"{size}B {row['gpu'].split()[0].split('-')[0]} × {row['n_gpus']}, {what}, {part:g} checkpointed",
        MODELS[f"Qwen2.5 {size}B"],
        MACHINES["Jean Zay A100 (2025 logs, NeMo)" if nemo and omni_path else kind],
        layout,
        software,
        row["seconds_per_iteration"],
        row["memory_gib"],
        # Blackwell is known from these rows only, and they scatter: all of them calibrate, none validates.
        calibrates=size == 14 or row["gpu"].startswith("GB200"),
        flag="its own clocks disagree" if "stall outliers" in notes else "",
    )
