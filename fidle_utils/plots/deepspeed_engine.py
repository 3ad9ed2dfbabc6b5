"""Figures of lesson 09: what a DeepSpeed engine keeps and sends, its estimates, and one-bit gradients."""

import matplotlib.pyplot as plt

from fidle_utils.plots.style import GREY, INK, RANK_COLORS, course_style, in_style, points, source_note

_PARTS = ("parameters", "gradients", "master weights", "optimizer states")
_COLORS = dict(zip(_PARTS, RANK_COLORS, strict=False))
_LOOKS = {
    "exact": {"color": "#bbbbbb", "linewidth": 6, "label": "32 bits"},
    "feedback": {"color": RANK_COLORS[0], "linewidth": 2, "label": "1 bit, with feedback"},
    "no feedback": {"color": RANK_COLORS[3], "linewidth": 2, "label": "1 bit, no feedback"},
}


@course_style()
def plot_held_bytes(held, n_parameters, formulas):
    """Draw bytes kept for each parameter, a stacked bar a configuration, and dots where a formula says.

    `held`: name → dict of bytes by part (`measure.engine_memory.held_bytes`); buckets are left out.
    `formulas`: name → bytes for each parameter (Rajbhandari et al., 2020, section 3); may have fewer names.
    """
    ax = plt.subplots(figsize=(8.5, 0.62 * len(held) + 1.9))[1]
    names = list(held)
    left = [0.0] * len(names)
    for part in _PARTS:
        widths = [held[name].get(part, 0) / n_parameters for name in names]
        ax.barh(names, widths, 0.6, left, color=_COLORS[part], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, (name, total) in enumerate(zip(names, left, strict=True)):
        beside = max(total, formulas.get(name, 0)) + 0.35
        ax.text(beside, y, f"{total:.2f}", va="center", fontsize=points(10))
    known = [(formulas[name], y) for y, name in enumerate(names) if name in formulas]
    ax.plot(*zip(*known, strict=True), "o", color=INK, markeredgecolor="white", label="formula", zorder=3)
    ax.invert_yaxis()
    ax.set(xlabel="bytes for each parameter", xlim=(0, 1.15 * max(left)))
    ax.set(title="What one rank keeps")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right", fontsize=points(9))
    source_note(ax, "measured here")
    return ax


@course_style()
def plot_sent_bytes(sent, calls, published):
    """Draw what a rank sends in a step, in units of Ψ, a bar a configuration; dots where the paper says.

    `sent`: name → multiple of Ψ·(n−1)/n; `calls`: name → collectives; `published`: name → multiple of Ψ.
    """
    ax = plt.subplots(figsize=(8.5, 0.55 * len(sent) + 1.9))[1]
    names = list(sent)
    colors = [RANK_COLORS[0] if name in published else RANK_COLORS[1] for name in names]
    ax.barh(names, list(sent.values()), 0.6, color=colors)
    for y, name in enumerate(names):
        text = f"{sent[name]:.2f} Ψ in {calls[name]} call{'s' if calls[name] > 1 else ''}"
        ax.text(max(sent[name], published.get(name, 0)) + 0.1, y, text, va="center", fontsize=points(10))
    known = [(published[name], y) for y, name in enumerate(names) if name in published]
    dots = ax.plot(*zip(*known, strict=True), "o", color=INK, markeredgecolor="white", zorder=3)
    ax.legend(dots, ["ZeRO's paper"], loc="lower right", bbox_to_anchor=(1, 0.99), fontsize=points(9))
    ax.invert_yaxis()
    ax.set(
        xlabel="bytes sent by a rank / Ψ·(n−1)/n", xlim=(0, 1.5 * max([*sent.values(), *published.values()]))
    )
    ax.set(title="What one step sends")
    ax.grid(axis="y", visible=False)
    source_note(ax, "measured here", "Ψ: the bytes of all gradients")
    return ax


@in_style
def plot_estimates(estimates, title="", memories=(32, 80), ax=None):
    """Draw memory for each GPU against GPUs; `estimates`: name → function of n_gpus that returns bytes.

    `memories` are lines across, in GB (10⁹ bytes): what some GPUs have.
    """
    n_gpus = [2**k for k in range(11)]
    for name, estimate in estimates.items():
        ax.plot(n_gpus, [estimate(n) / 1e9 for n in n_gpus], "o-", label=name)
    for memory in memories:
        ax.axhline(memory, color=GREY, linestyle=":")
        ax.text(n_gpus[-1], memory * 1.06, f"{memory} GB", ha="right", fontsize=points(9), color=GREY)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(n_gpus, n_gpus)
    ax.set(xlabel="GPUs", ylabel="GB on each GPU", title=title)
    ax.legend()
    source_note(ax, "computed", "DeepSpeed's estimate: model states, without activations")


@course_style()
def plot_error_feedback(known, losses, warmup):
    """Draw two descents with exact, one-bit and one-bit-with-feedback messages.

    `known`: how → distances to a known minimum; `losses`: how → losses. How: "exact", "feedback",
    "no feedback". `warmup`: the step of `losses` at which compression begins.
    """
    axes = plt.subplots(1, 2, figsize=(10, 3.8))[1]
    for ax, curves in zip(axes, (known, losses), strict=True):
        for how, values in curves.items():
            ax.plot(range(1, len(values) + 1), values, **_LOOKS[how])
    axes[0].set(yscale="log", xlabel="step", ylabel="distance to the minimum")
    axes[0].set_title("A problem with a known answer")
    axes[1].axvline(warmup, color=GREY, linestyle=":")
    place = {"xy": (warmup, 0.97), "xycoords": ("data", "axes fraction"), "va": "top", "color": GREY}
    axes[1].annotate(" compressed\n from here", fontsize=points(9), **place)
    axes[1].set(yscale="log", xlabel="step", ylabel="loss on the digits", title="1-bit Adam")
    axes[0].legend(fontsize=points(9))
    source_note(axes[0], "measured here", "")
    return axes
