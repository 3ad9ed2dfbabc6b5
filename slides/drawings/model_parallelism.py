"""Figures of the deck 05: two cuts of a model, what is said between the parts, what a link costs."""

import matplotlib.pyplot as plt

from fidle_utils import plots
from fidle_utils.plots import style
from fidle_utils.reference import table

from ._recorded import load_record, note_record
from .data_parallelism import _timeline, _title


def naive_cut():
    """A step of eight layers on four ranks, two layers each, one rank after the other."""
    ax = _timeline("05", "naive")
    busy = load_record("05")["values"]["busy"]
    _title(ax, f"a rank computes {sum(busy) / len(busy):.0%} of the time")
    ax.figure.set_size_inches(10.5, 4.2)
    return ax


def matrix_split():
    """A product cut by columns, and by rows."""
    ax = plots.plot_matrix_split(n_ranks=4)
    ax.set_title("", loc="left")
    ax.figure.set_size_inches(9.8, 4.7)
    return ax


def f_and_g():
    """The MLP between f and g, forward and backward."""
    return _block(("f", "nothing", "all_reduce"), ("g", "all_reduce", "nothing"), split=False)


def sequence_parallel():
    """The same block between a gather and a scatter, cut along the sequence outside."""
    enter, leave = ("gather", "all_gather", "reduce_scatter"), ("scatter", "reduce_scatter", "all_gather")
    return _block(enter, leave, split=True)


def _block(enter, leave, split):
    ax = plots.plot_parallel_block(enter=enter, leave=leave, split=split)
    ax.set_title("", loc="left")
    ax.figure.set_size_inches(9.5, 3.9)
    return ax


@style.course_style()
def counted_step():
    """The all_reduces of a GPT of two blocks, one step, as counted: forward above, backward below."""
    record = load_record("05")
    size = record["values"]["S"]
    forward, backward = (sizes[str(size)] for sizes in record["values"]["gpt"])
    parts = ["embedding", "attention", "MLP", "attention", "MLP", "head, loss"]
    with_g, with_f = (0, 1, 2, 3, 4), (1, 2, 3, 4, 5)
    if (forward, backward) != (len(with_g), len(with_f)):
        raise ValueError(f"the record counts {forward} and {backward}: draw what it says.")
    ax = plt.subplots(figsize=(10.5, 3.4))[1]
    words = {"ha": "center", "va": "center", "fontsize": style.points(11)}
    for i, part in enumerate(parts):
        ax.barh(0, 0.9, 0.7, i, color=style.PALE, edgecolor=style.GREY)
        ax.text(i + 0.45, 0, part, **words)
        for y, name, places, color in ((0.85, "g", with_g, 0), (-0.85, "f", with_f, 1)):
            if i in places:
                x = i + 0.9 if y > 0 else i
                ax.plot(x, y, "o", markersize=24, color=style.RANK_COLORS[color])
                ax.text(x, y - 0.02, name, color="white" if not color else style.INK, weight="bold", **words)
                ax.plot([x, x], [0.4 * y, 0.75 * y], color=style.RANK_COLORS[color])
    ax.text(-0.25, 0.85, f"forward →\n{forward} all_reduce", **{**words, "ha": "right"})
    ax.text(-0.25, -0.85, f"← backward\n{backward} all_reduce", **{**words, "ha": "right"})
    ax.set(xlim=(-1.75, 6.2), ylim=(-1.3, 1.3), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)
    text = f"each of b · s · h · 4 = {size:,} bytes; and three of one number a token, for the loss"
    note_record(ax, record, text)
    return ax


@style.course_style()
def heads_and_vocabulary():
    """Eight heads on four ranks; and the bytes of a loss with and without all the logits."""
    left, right = plt.subplots(1, 2, figsize=(10.5, 3.7), width_ratios=[1, 1.1])[1]
    words = {"ha": "center", "va": "center", "fontsize": style.points(11)}
    for row in range(4):
        for head in range(8):
            color = style.rank_color(head // 2)
            left.barh(row, 0.92, 0.8, head, color=color, alpha=0.55)
            left.text(head + 0.46, row, head, **words)
    left.barh(4.2, 7.92, 0.7, 0, color="#d9d9d9")
    left.text(3.96, 4.2, "output: rows, then g", **words)
    left.set_yticks(range(4), ["q", "k", "v", "softmax"])
    left.set(xticks=[], ylim=(4.7, -0.6), title="eight heads, two on each rank")
    tokens, words_known = 8 * 2048, 250_880
    bars = {"all logits": 4 * tokens * words_known, "max, sum,\ntarget's logit": 4 * tokens * 3}
    drawn = right.barh(list(bars), bars.values(), 0.5, color=[style.RANK_COLORS[1], style.RANK_COLORS[0]])
    right.bar_label(
        drawn, [f"{n / 1e9:.1f} GB" if n > 1e9 else f"{n / 1e6:.1f} MB" for n in bars.values()], padding=4
    )
    right.set(xscale="log", xlim=(1e4, 3e12), xlabel="bytes", title="a loss over 250 880 words")
    right.grid(axis="y", visible=False)
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    left.grid(False)
    style.source_note(right, "computed", "8 texts of 2048 tokens, float32")
    return left.figure


def layer_times():
    """One layer as wide as GPT-3's on eight H100, over five links."""
    (h100,) = table("matmul_ceilings", gpu="H100-SXM5-80GB", dtype="bf16")
    links = {"NVLink 4, in a node": 450, "4 × InfiniBand NDR": 200, "PCIe 5": 63}
    links |= {"1 × InfiniBand NDR": 50, "1 × Omni-Path": 12.5}
    b, s, h, n = 1, 2048, 12288, 8
    computing = 72 * b * s * h**2 * (1 + s / (6 * h)) / n / (1e12 * h100["tflops"])
    sent = 4 * 2 * (n - 1) / n * 2 * b * s * h
    rows = [
        {"link": f"{link} · {gb:g} GB/s", "compute_ms": 1e3 * computing, "communication_ms": 1e-6 * sent / gb}
        for link, gb in links.items()
    ]
    source = (
        f"{h100['tflops']:.0f} TFLOP/s (published) · bytes over nominal bandwidth: no latency, no overlap"
    )
    ax = plots.plot_layer_times(rows, "", source)
    ax.figure.set_size_inches(10.5, 4.3)
    return ax
