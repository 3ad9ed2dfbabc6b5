"""Figures of the deck 11: plans against published runs, two networks."""

import matplotlib.pyplot as plt

from fidle_utils import plots
from fidle_utils.planner import Layout, plan, validation
from fidle_utils.plots import style
from fidle_utils.reference import table


def planned_and_published():
    """Planned against published seconds of a step; BLOOM's own is named."""
    errors = validation.compare()
    ax = plots.plot_validation(errors)
    (final,) = (row for row in table("jeanzay_bigscience_a100") if row["model"] == "BLOOM-176B")
    seconds = final["seconds_per_iteration"]
    with style.course_style():
        line = {"arrowstyle": "->", "color": style.INK, "linewidth": 1.5}
        look = {"ha": "center", "weight": "bold", "arrowprops": line}
        ax.annotate("BLOOM", (seconds, _bloom().seconds_per_step), (230, 12), **look)
    ax.figure.set_size_inches(10.5, 4.6)
    ax.set_title("", loc="left")
    return ax


def _bloom():
    """The plan of BLOOM as it was trained."""
    used = Layout(
        tensor=4, pipeline=12, data=8, zero=1, micro_batch=2, global_batch=2048, checkpointing="full"
    )
    return plan("BLOOM 176B", "Jean Zay A100", used, 384, "Megatron-DeepSpeed 2022, bf16")


@style.course_style()
def two_networks():
    """Seconds of a step of Qwen2.5 32B on 64 GPUs, by strategy and network, as IDRIS logged them."""
    seconds = {
        (row["gpu"][:4], row["tp"] > 1): row["seconds_per_iteration"]
        for row in table("jeanzay_idris_sft_2025", n_gpus=64)
        if row["model"].startswith("Qwen2.5-32B") and "NeMo" in row["notes"] and "Jean Zay" in row["gpu"]
    }
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9))
    networks = {"A100": "A100, Omni-Path", "H100": "H100, InfiniBand"}
    for ax, (gpu, title) in zip(axes, networks.items(), strict=True):
        values = [seconds[gpu, tensor] for tensor in (False, True)]
        bars = ax.bar((0, 1), values, 0.6, color=style.RANK_COLORS[:2])
        ax.bar_label(bars, [f"{value:.3g} s" for value in values], padding=4, weight="bold")
        ax.set_xticks((0, 1), ["FSDP\non 64 GPUs", "tensor in the node,\nFSDP across"])
        ax.set(title=title, ylabel="seconds a step", ylim=(0, 1.18 * max(values)))
        ax.grid(axis="x", visible=False)
    style.source_note(axes[0], "published", "IDRIS, logs of 2025")
    return figure
