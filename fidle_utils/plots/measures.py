"""Figures of measurements: moments, bytes, loss."""

from fidle_utils.plots.style import INK, byte_unit, in_style, rank_color, source_note


@in_style
def plot_moments(moments, title="Who spoke when", ax=None):
    """Draw when each rank did something: `moments[rank]` in seconds, on the clock that all ranks share."""
    first, n = min(moments), len(moments)
    milliseconds = [1e3 * (moment - first) for moment in moments]
    ax.hlines(range(n), 0, milliseconds, colors=[rank_color(rank) for rank in range(n)], linewidth=1)
    for rank, moment in enumerate(milliseconds):
        ax.scatter(moment, rank, s=140, color=rank_color(rank), zorder=3)
        ax.annotate(f"{moment:.1f} ms", (moment, rank), (10, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(n), [f"rank {rank}" for rank in range(n)])
    last = max(milliseconds) or 1
    ax.set(xlim=(-0.03 * last, 1.2 * last), ylim=(n - 0.5, -0.5), title=title)
    ax.set_xlabel("milliseconds after the first")
    ax.grid(axis="y", visible=False)
    source_note(ax, "measured here")


@in_style
def plot_bytes_sent(bytes_sent, tensor_bytes, title="Bytes sent by one all_reduce", ax=None):
    """Draw what each rank sent beside what a ring all_reduce must send: 2(n−1)/n of the tensor's S bytes.

    `bytes_sent[rank]` and `tensor_bytes` are in bytes. The formula: Patarasuk and Yuan, Bandwidth optimal
    all-reduce algorithms for clusters of workstations, J. Parallel Distrib. Comput. 69, 2009.
    """
    n = len(bytes_sent)
    expected = 2 * (n - 1) / n * tensor_bytes
    unit, factor = byte_unit(max(expected, *bytes_sent))
    heights, colors = [sent / factor for sent in bytes_sent], [rank_color(rank) for rank in range(n)]
    bars = ax.bar(range(n), heights, 0.6, color=colors)
    ax.bar_label(bars, fmt="{:.3g}", padding=4)
    ax.axhline(expected / factor, color=INK, linestyle="--")
    formula = rf"$2\,(n-1)/n \cdot S$ = {expected / factor:.3g} {unit}"
    ax.text(1, 1.02, formula, ha="right", va="bottom", transform=ax.transAxes)
    ax.set_xticks(range(n), [f"rank {rank}" for rank in range(n)])
    ax.set(ylabel=f"{unit} sent", title=title, ylim=(0, 1.18 * max(expected, *bytes_sent) / factor))
    ax.grid(axis="x", visible=False)
    source_note(ax, "measured here")


@in_style
def plot_loss(curves, title="Loss", ax=None):
    """Draw losses step by step: `curves` is a dict, label → list of losses. Equal curves stay visible."""
    for i, (label, losses) in enumerate(curves.items()):
        # Each curve is thinner than the one it may hide.
        width = 2 + 5 * (len(curves) - 1 - i) / max(len(curves) - 1, 1)
        ax.plot(range(1, len(losses) + 1), losses, linewidth=width, label=label, alpha=0.9)
    ax.set(xlabel="step", ylabel="loss", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    source_note(ax, "measured here")
