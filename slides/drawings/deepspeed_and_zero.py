"""Figures of the deck 08: memory of a step, ZeRO and FSDP2, and what DeepSpeed was measured to do."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from fidle_utils import plots
from fidle_utils.memory_formulas import activation_bytes, step_bytes_sent
from fidle_utils.plots import style
from fidle_utils.reference import table

from ._recorded import load_record, note_record

# ----------------------------------------------------------------------------------------------- ZeRO


@style.course_style()
def sixteen_bytes():
    """The bytes of one parameter in mixed precision, as GB of a model of 7.5 billion, beside two GPUs."""
    ax = plt.subplots(figsize=(10.5, 3.8))[1]
    parts = {
        "weights\nbf16": (2, 0),
        "gradients\nbf16": (2, 1),
        "master weights\nfp32": (4, 2),
        "Adam's m\nfp32": (4, 2),
        "Adam's v\nfp32": (4, 2),
    }
    left = 0
    for name, (n_bytes, color) in parts.items():
        gb = 7.5 * n_bytes
        ax.barh(0, gb, 0.6, left, color=plots.rank_color(color), edgecolor="white", linewidth=2)
        ax.text(
            left + gb / 2, 0, n_bytes, ha="center", va="center", color="white", weight="bold", fontsize=20
        )
        ax.text(left + gb / 2, -0.38, name, ha="center", va="bottom", fontsize=12.5)
        left += gb
    memory = {row["gpu"]: row["memory_gb"] for row in table("gpu_specs")}
    for gpu in ("V100-SXM2-32GB", "H100-SXM5-80GB"):
        ax.axvline(memory[gpu], ymax=0.64, color=style.INK, linestyle="--")
        ax.text(memory[gpu] + 0.8, 0.66, f"{gpu[:4]}: {memory[gpu]:g} GB", va="center")
    ax.set(xlim=(0, 124), ylim=(0.8, -0.7), yticks=[])
    ax.set_xlabel("GB of model states for 7.5 billion parameters; in the bar: bytes a parameter")
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    plots.source_note(ax, "computed", "2 + 2 + 12 bytes, ZeRO, section 3.1")
    return ax


def three_stages():
    """What each rank holds and sends at each stage of ZeRO."""
    ax = plots.plot_who_holds_what(n_ranks=4, title="")
    for stage, words in enumerate([text for text in ax.texts if text.get_text().endswith(" bytes")]):
        sent = step_bytes_sent(1, stage, n_ranks=10**9) / 2
        words.set_text(f"{words.get_text()}\nsends {sent:.0f}Ψ")
    ax.tick_params(axis="y", labelsize=11)
    ax.figure.set_size_inches(10.5, 4.7)
    ax.legend_.set_loc("lower left")
    return ax


def zero_table():
    """Table 1 of ZeRO with its formulas."""
    axes = plots.plot_zero_table(table("zero_table1"), device_gb=32)
    axes[0].figure.set_size_inches(10.5, 4.1)
    return axes[0].figure


@style.course_style()
def fsdp_order():
    """Which collective FSDP2 calls when, around four blocks, and the full weights that a rank holds."""
    events, held = _fsdp_step()
    axes = plt.subplots(2, 1, figsize=(10.5, 4.4), sharex=True, height_ratios=[3, 1.5])[1]
    lanes = ("all_gather", "compute", "reduce_scatter")
    for lane, name, start, end in events:
        color = plots.rank_color({"all_gather": 0, "reduce_scatter": 2}.get(lane, 5 if name[0] == "B" else 4))
        box = (start, lanes.index(lane) - 0.36)
        ax = axes[0]
        ax.add_patch(Rectangle(box, end - start, 0.72, facecolor=color, edgecolor="white", linewidth=1.5))
        ink = style.INK if color == plots.rank_color(4) else "white"
        look = {"ha": "center", "va": "center", "color": ink, "fontsize": 11, "weight": "bold"}
        ax.text((start + end) / 2, lanes.index(lane), name, **look)
    axes[0].set(ylim=(2.5, -0.5))
    axes[0].set_yticks(range(3), lanes)
    axes[0].grid(False)
    axes[1].fill_between(*zip(*held, strict=True), step="post", color=plots.rank_color(0), alpha=0.35)
    axes[1].axhline(5, color=style.GREY, linestyle="--")
    axes[1].text(0.1, 4.75, "all five", color=style.GREY, va="top", fontsize=11)
    axes[1].set(ylim=(0, 5.6), yticks=(0, 2, 4), ylabel="groups held\nin full", xlabel="time")
    axes[1].set_xlim(0, max(event[3] for event in events) + 0.2)
    axes[1].set_xticks([])
    calls = {lane: sum(event[0] == lane for event in events) for lane in lanes}
    said = f"{calls['all_gather']} all_gather, {calls['reduce_scatter']} reduce_scatter"
    plots.source_note(
        axes[1], "simulated", f"{said} · R: embeddings, last norm and head · lengths are invented"
    )
    return axes[0].figure


def _fsdp_step(n_blocks=4, gather=1.0, forward=1.6, backward=2.8, reduce=1.0):
    """Simulate a step: events (lane, name, start, end), and (time, groups of full weights held).

    The next group is gathered while this one computes. The outermost group R stays between the passes.
    """
    events, changes, network, clock = [], [], 0.0, 0.0

    def fetch(name, asked):
        nonlocal network
        start = max(network, asked)
        network = start + gather
        events.append(("all_gather", name, start, network))
        changes.append((start, 1))
        return network

    def work(name, ready, length):
        nonlocal clock
        start = max(clock, ready)
        clock = start + length
        events.append(("compute", name, start, clock))
        return start

    sending = 0.0

    def send(name):
        nonlocal sending
        sending = max(sending, clock) + reduce
        events.append(("reduce_scatter", name, sending - reduce, sending))
        changes.append((clock, -1))

    ready = {"R": fetch("R", 0), "0": fetch("0", 0)}
    names = [str(i) for i in range(n_blocks)]
    for name, following in zip(names, [*names[1:], None], strict=True):
        start = work(f"F{name}", max(ready["R"], ready[name]), forward)
        if following:
            ready[following] = fetch(following, start)
        changes.append((clock, -1))
    start = work("R", clock, forward)  # last norm, head and loss, forward and backward
    ready = {names[-1]: fetch(names[-1], start)}
    for name, following in zip(names[::-1], [*names[-2::-1], None], strict=True):
        start = work(f"B{name}", ready[name], backward)
        if following:
            ready[following] = fetch(following, start)
        send(name)
    send("R")
    times = sorted({time for time, _ in changes})
    held = [(time, sum(change for at, change in changes if at <= time)) for time in times]
    return events, held


def who_splits_what():
    """A layer cut by FSDP2, by ZeRO-3 and by FSDP1 over four ranks: the rank that holds each number."""
    rows, columns, n = 6, 5, 4
    weight, bias = np.arange(rows * columns), rows * columns + np.arange(rows)

    def pieces(numbers, size):
        return {int(number): i // size for i, number in enumerate(numbers)}

    def flat(numbers):
        return pieces(numbers, -(-len(numbers) // n))

    each = -(-rows // n)  # rows of a rank: the last ones may get none
    owners = {
        "FSDP2: rows of each parameter": pieces(weight, each * columns) | pieces(bias, each),
        "ZeRO-3: each parameter, flattened": flat(weight) | flat(bias),
        "FSDP1: the whole layer, flattened": flat(np.concatenate([weight, bias])),
    }
    axes = plots.plot_shards(owners, rows, columns)
    (note,) = (text for text in axes[0].texts if text.get_text().startswith("measured here"))
    note.remove()
    plots.source_note(axes[0], "computed", "a layer of 6 × 5 weights and 6 biases on four ranks")
    axes[0].figure.set_size_inches(10.5, 4.4)
    return axes[0].figure


@style.course_style()
def recompute():
    """What a layer of GPT-3 keeps, and what a layer of a 22-billion model takes, by kind of recomputation."""
    axes = plt.subplots(1, 2, figsize=(10.5, 3.9), sharey=True)[1]
    kinds = {"none": "Baseline no recompute", "selective": "Selective recompute"}
    kinds["full"] = "Baseline with full recompute"
    s, h, a = 2048, 12288, 96
    times = {row["experiment"]: row for row in table("korthikanti_table4_layer_times")}
    kept = [activation_bytes(s, 1, h, a, kind) / (s * h) for kind in kinds]
    both = [times[name]["both_ms"] for name in kinds.values()]
    extra = [times[name]["overhead_percent"] for name in kinds.values()]
    names = ["none", "selective:\nthe scores", "full:\nthe layer"]
    look = {"color": [plots.rank_color(i) for i in (0, 2, 1)]}
    axes[0].bar_label(axes[0].barh(names, kept, 0.6, **look), [f"{value:.0f}" for value in kept], padding=4)
    label = [f"{ms:g}" + f" (+{more} %)" * bool(more) for ms, more in zip(both, extra, strict=True)]
    axes[1].bar_label(axes[1].barh(names, both, 0.6, **look), label, padding=4)
    axes[0].set(
        xlabel="bytes kept, in s·b·h", title="A layer of GPT-3", ylabel="computed again", xlim=(0, 135)
    )
    axes[1].set(xlabel="ms, forward and backward", title="A layer of a 22B model", xlim=(0, 38))
    axes[0].invert_yaxis()
    for ax in axes:
        ax.grid(axis="y", visible=False)
    plots.source_note(axes[0], "computed", "s·b·h (34 + 5as/h)")
    plots.source_note(axes[1], "published", "8 A100, Korthikanti, Table 4")
    return axes[0].figure


# ------------------------------------------------------------------------------------------- DeepSpeed


@style.course_style()
def default_clipping():
    """How far DeepSpeed's losses are from one process, with its default and without clipping; recorded."""
    record = load_record("09")
    values = record["values"]
    ax = plt.subplots(figsize=(10.5, 4.1))[1]
    looks = {"by default": (5, "o", "as it comes"), "without clipping": (0, "s", "gradient_clipping: 0.0")}
    for name, (color, marker, label) in looks.items():
        far = [abs(a - b) for a, b in zip(values["alone"], values[name], strict=True)]
        far = [max(value, 1e-8) for value in far]  # 0 has no logarithm
        ax.plot(
            range(1, len(far) + 1), far, marker, linestyle="-", color=plots.rank_color(color), label=label
        )
    ax.set(yscale="log", xlabel="step", ylabel="|loss − loss of one process|", ylim=(5e-9, 1))
    ax.set_xticks(range(1, 6))
    ax.legend(loc="center right")
    note_record(ax, record, f"DeepSpeed {record['versions']['deepspeed']}, stage 0 · 0 is drawn as 1e-8")
    return ax


def held_bytes():
    """Bytes that a rank keeps for each parameter at each stage, recorded from lesson 09."""
    record = load_record("09")
    values = record["values"]
    ax = plots.plot_held_bytes(values["held"], values["n_parameters"], values["formulas"])
    return _finish(ax, record, "4 ranks, bf16, just before the step")


def sent_bytes():
    """What a rank sends in a step at each stage, recorded from lesson 09."""
    record = load_record("09")
    values = record["values"]
    ax = plots.plot_sent_bytes(values["sent"], values["calls"], values["published"])
    return _finish(ax, record, "4 ranks · Ψ: bytes of all gradients")


def _finish(ax, record, text):
    note_record(ax, record, text)
    ax.set_title("", loc="left")
    ax.set_ylabel("")
    ax.figure.set_size_inches(10.5, 4.4)
    return ax


def error_feedback():
    """One bit with and without error feedback, recorded from lesson 09."""
    record = load_record("09")
    axes = plots.plot_error_feedback(record["values"]["known"], record["values"]["trained"], warmup=50)
    note_record(axes[0], record, "4 ranks")
    axes[0].figure.set_size_inches(10.5, 4.1)
    return axes[0].figure
