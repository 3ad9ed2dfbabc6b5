"""Figures of the deck 01: the machine, its roads, its hours; the roofline, the clock, bits, data."""

import matplotlib.pyplot as plt

from fidle_utils import plots
from fidle_utils.measure import work
from fidle_utils.measure.roofline import Roofline
from fidle_utils.plots import style
from fidle_utils.reference import table

# Peak of the whole machine in double precision, PFlop/s, as the press reported it: lesson 01, "The machine".
PEAKS = {
    2019: (13.9, "1528 nodes without GPU,\n261 with four V100"),
    2020: (28, "more V100:\n2696 GPUs in all"),
    2022: (36.85, "nodes with\neight A100"),
    2024: (125.9, "364 nodes with\nfour H100"),
}
ALL_REDUCE_GBIT = 15, 42  # BigScience, experiments/README.md: four nodes of A100


def _machine(name):
    """The rows of a node's links and of its GPU."""
    (links,) = (row for row in table("jeanzay_links") if row["gpu"].startswith(name))
    return links, table("gpu_specs", gpu=links["gpu"])[0]


# ---------------------------------------------------------------------------------------- the machine


@style.course_style()
def jean_zay_grows():
    """The peak of Jean Zay by year, and what came."""
    ax = plt.subplots(figsize=(10.5, 4.1))[1]
    peaks = [peak for peak, _ in PEAKS.values()]
    bars = ax.bar(range(len(PEAKS)), peaks, 0.55)
    ax.bar_label(bars, [f"{peak:g}" for peak in peaks], padding=4, weight="bold")
    ax.set_xticks(range(len(PEAKS)), [f"{year}\n{what}" for year, (_, what) in PEAKS.items()])
    ax.set(ylabel="PFlop/s", ylim=(0, 145))
    ax.grid(axis="x", visible=False)
    style.source_note(ax, "published", "double precision · as reported by the press")
    return ax


def inside_a_node():
    """A node with four H100."""
    ax = plots.plot_node(*_machine("H100"))
    ax.figure.set_size_inches(9.6, 4.9)
    ax.set_title("", loc="left")
    return ax


def seven_billion():
    """How long 14 GB take over the links of Jean Zay."""
    (h, h100), (a, a100) = _machine("H100"), _machine("A100")
    speeds = {
        "memory of an H100": h100["memory_gb_per_second"],
        "NVLink 4, all links of an H100": h100["gpu_link_gb_per_second"],
        "NVLink 4, one pair of H100": h["pair_gb_per_second"],
        "PCIe 5.0 (H100 node)": h100["pcie_gb_per_second"],
        "one InfiniBand NDR400 link": h["network_gb_per_second"],
        "PCIe 4.0 (A100 node)": a100["pcie_gb_per_second"],
        "one Omni-Path 100 link": a["network_gb_per_second"],
    }
    rows = [{"link": name, "kind": "computed", "seconds": 14 / speed} for name, speed in speeds.items()]
    low, high = ALL_REDUCE_GBIT
    name = "an all_reduce on 4 nodes of A100"
    rows.append({"link": name, "kind": "published", "seconds": (14 * 8 / high, 14 * 8 / low)})
    ax = plots.plot_transfer_times(rows, 14e9)
    ax.set_xlim(1e-3, 300)
    ax.figure.set_size_inches(10.5, 4.4)
    ax.set_title("", loc="left")
    return ax


@style.course_style()
def charged_hours():
    """A job on two nodes of four GPUs that uses half of them for 3 of the 20 hours it asked for."""
    ax = plt.subplots(figsize=(10.5, 4.0))[1]
    for gpu in range(8):
        used, y = gpu % 4 < 2, gpu + 0.5 * (gpu >= 4)
        look = {"color": style.RANK_COLORS[0]} if used else _reserved()
        ax.barh(y, 3, 0.8, **look)
        ax.barh(y, 17, 0.8, 3, facecolor="none", edgecolor="#bbbbbb", linestyle=":")
    ax.barh(-9, 1, color=style.RANK_COLORS[0], label="used: 12 GPU hours")
    ax.barh(-9, 1, **_reserved(), label="reserved and idle: 12 more")
    ax.barh(-9, 1, facecolor="none", edgecolor="#bbbbbb", linestyle=":", label="asked for, not charged")
    ax.legend(loc="center", bbox_to_anchor=(0.58, 0.5), frameon=True, facecolor="white", framealpha=1)
    ax.set_yticks([1.5, 6.0], ["node 0:\nfour GPUs", "node 1:\nfour GPUs"])
    ax.set(xlabel="hours", xlim=(0, 20.3), ylim=(8.2, -0.6), xticks=[0, 3, 10, 20])
    ax.grid(False)
    return ax


def _reserved():
    return {"facecolor": "#fbe3b3", "edgecolor": style.RANK_COLORS[1], "hatch": "///"}


# ---------------------------------------------------------------------------------------------- one GPU


def _roof():
    """The published roof of an H100 in bf16."""
    gpu = _machine("H100")[1]
    peak, rate = 1e12 * gpu["bf16_tflops"], 1e9 * gpu["memory_gb_per_second"]
    return Roofline(
        "H100 SXM, bf16, NVIDIA data sheet", {"bf16": peak}, {"memory": rate}, device="cuda", kind="published"
    )


@style.course_style()
def roof_of_an_h100():
    """The roofline of an H100, its ridge, and the two sides of it."""
    roof = _roof()
    ax = _in_ink(plots.plot_roofline(roof, title=""))
    ridge = roof.ridge("bf16")
    left, right = ax.get_xlim()
    for start, end, color in ((left, ridge, 1), (ridge, right, 0)):
        ax.axvspan(start, end, color=style.RANK_COLORS[color], alpha=0.13, zorder=0, linewidth=0)
    look = {"transform": ax.get_xaxis_transform(), "va": "center", "weight": "bold"}
    ax.text(ridge / 1.3, 0.1, "memory bound", ha="right", **look)
    ax.text(ridge * 1.2, 0.1, "compute bound", ha="left", **look)
    ax.figure.set_size_inches(10.5, 4.1)
    return ax


# Operation → its work, where its name stands beside its point, and which side of the name is there.
OPERATIONS = {
    "Adam in fp32": (work.adam_step(1 << 22), (14, -4), "left"),
    "matrix × vector": (work.matmul(4096, 1, 4096, 2), (14, -4), "left"),
    "layer norm": (work.layer_norm(8192, 1024, 2), (-14, 24), "right"),
    "attention, 512 tokens": (work.attention(4, 8, 512, 64), (-14, 24), "right"),
    "attention,\n2048 tokens": (work.attention(4, 8, 2048, 64), (20, -34), "right"),
    "matmul, n = 8192": (work.matmul(8192, 8192, 8192, 2), (20, -92), "right"),
}


@style.course_style()
def operations_on_the_roof():
    """Where a transformer's operations lie under an H100's roof, if they reach it."""
    roof = _roof()
    ax = _in_ink(plots.plot_roofline(roof, title=""))
    for words in [words for words in ax.texts if words.get_text().startswith("ridge")]:
        words.remove()
    (ceiling,) = (words for words in ax.texts if words.get_text().startswith("bf16"))
    ceiling.set_position((-4, 14))  # above the points that lie on it
    for name, (one, place, side) in OPERATIONS.items():
        y, bound = roof.attainable(one.intensity, "bf16"), one.intensity < roof.ridge("bf16")
        color = style.RANK_COLORS[5 if bound else 0]
        ax.plot(one.intensity, y, "os"[not bound], color=color, markersize=13, zorder=5)
        line = {"arrowstyle": "-", "color": style.GREY, "linewidth": 1, "relpos": (0.9, 1)}
        text = f"{name}: {one.intensity:,.3g}" if one.intensity < 1000 else f"{name}: {one.intensity:,.0f}"
        look = {"textcoords": "offset points", "va": "top", "ha": side}
        ax.annotate(text, (one.intensity, y), place, arrowprops=None if bound else line, **look)
    for text, color, marker in (("memory bound", 5, "o"), ("compute bound", 0, "s")):
        look = {"color": style.RANK_COLORS[color], "marker": marker, "linestyle": "", "markersize": 11}
        ax.plot([], [], label=text, **look)
    ax.legend(loc="lower right")
    ax.figure.set_size_inches(10.5, 4.4)
    return ax


def _in_ink(ax):
    """Write the names of ceilings and ridges in black: the colour of a format is pale on white."""
    for words in ax.texts[1:]:
        words.set_color(style.INK)
    return ax


def the_clock_that_lies():
    """Host and device with one wait at the end, and with a wait after each order; a matmul is one unit."""
    runs = {
        "the host waits once, at the end": _orders(False),
        "the host asks for the loss after each order": _orders(True),
    }
    axes = plots.plot_orders(runs, "emulated")
    for words in [words for words in axes[-1].texts if words.get_text().startswith("emulated")]:
        words.remove()
    style.source_note(axes[-1], "computed", "the host's own work takes half as long as a matmul")
    axes[-1].set_xlabel("time of one matmul · dotted: the last order is given · solid: it is carried out")
    axes[0].figure.set_size_inches(10.5, 4.3)
    return axes[0].figure


def _orders(waits, n=6, host_work=0.5):
    """(start, end) of each order on the host and on the device."""
    host, device, now, free = [], [], 0.0, 0.0
    for _ in range(n):
        host.append((now, now + host_work))
        start = max(now + host_work, free)
        free = start + 1
        device.append((start, free))
        now = free if waits else now + host_work
    return host, device


def formats_of_numbers():
    """The ranges of the formats, and the number after 1."""
    import torch

    names = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp8 e5m2": torch.float8_e5m2,
        "fp8 e4m3": torch.float8_e4m3fn,
    }
    ax = plots.plot_number_formats({name: torch.finfo(dtype) for name, dtype in names.items()})
    for words in ax.texts[:-1]:
        words.set_color(
            "white" if words.get_color() == "white" and words.get_position()[1] == 0 else style.INK
        )
    ax.set_title("", loc="left")
    ax.figure.set_size_inches(10.5, 4.1)
    return ax


def workers_and_waiting():
    """The share of time without data, if reading a batch takes four times as long as computing with it."""
    compute, read = 1.0, 4.0
    waits = {0: read / (read + compute)}
    waits |= {n: 1 - compute / max(compute, read / n) for n in (1, 2, 3, 4, 8)}
    ax = plots.plot_workers(waits)
    for words in [words for words in ax.texts if words.get_text().startswith("measured here")]:
        words.remove()
    style.source_note(ax, "computed", "a batch takes four times as long to read as to compute with")
    ax.set_ylabel("waiting, % of the time")
    ax.set_title("", loc="left")
    ax.figure.set_size_inches(10.5, 4.2)
    return ax
