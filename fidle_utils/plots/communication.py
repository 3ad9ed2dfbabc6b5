"""Figures of communication: what each rank sends, by collective and by group."""

from collections import Counter

from fidle_utils.plots.style import RANK_COLORS, byte_unit, in_style, source_note


@in_style
def plot_communication(counted, what="bytes_sent", title=None, ax=None):
    """Draw what each rank communicates, a bar for each rank, stacked by collective and group.

    `counted`: a `Communication` for each rank, rank 0 first: `ranks["counted"]`; or one alone. `what` is
    "bytes_sent", "n_bytes" or "calls". The bytes sent are computed, by the formulas of
    `fidle_utils.measure.collectives`; calls and bytes of the tensors are counted.
    """
    if what not in _WORDS:
        raise ValueError(f"what={what!r}: choose one of {', '.join(_WORDS)}.")
    tables = [one.rows() for one in (counted if isinstance(counted, (list, tuple)) else [counted])]
    kinds = dict.fromkeys(_kind(row) for rows in tables for row in rows if row[what])
    totals = [sum(row[what] for row in rows) for rows in tables]
    unit, factor = ("calls", 1) if what == "calls" else byte_unit(max(totals, default=0))
    bottom = [0.0] * len(tables)
    for kind, look in zip(kinds, _looks(kinds), strict=True):
        heights = [sum(row[what] for row in rows if _kind(row) == kind) / factor for rows in tables]
        ax.bar(range(len(tables)), heights, 0.6, bottom, label=_label(*kind), edgecolor="white", **look)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for rank, total in enumerate(totals):
        text = f"{total:,}" if what == "calls" else f"{total / factor:.3g}"
        ax.annotate(text, (rank, total / factor), (0, 4), textcoords="offset points", ha="center")
    verb, default_title, source = _WORDS[what]
    ax.set_xticks(range(len(tables)), [f"rank {rank}" for rank in range(len(tables))])
    ax.set_xlim(-0.6 if len(tables) > 1 else -1.5, max(len(tables), 2) - 0.4)
    ax.set(ylabel=f"{unit} {verb}".strip(), title=title or default_title)
    ax.set_ylim(0, 1.15 * max(totals, default=0) / factor or 1)
    ax.yaxis.get_major_locator().set_params(integer=unit in ("calls", "bytes"))
    ax.grid(axis="x", visible=False)
    if kinds:
        handles, labels = ax.get_legend_handles_labels()  # the order of the stack, from the top
        ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    source_note(ax, *source)


_WORDS = {  # what: the verb of the axis, the title, the source of the numbers
    "bytes_sent": (
        "sent",
        "What each rank sends",
        ("computed", "calls counted here; bytes sent by ring and pairwise algorithms"),
    ),
    "n_bytes": ("of tensors", "Bytes of the tensors communicated", ("measured here",)),
    "calls": ("", "Calls that communicate", ("measured here",)),
}


_COLORS = dict(
    zip(
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send", "recv"),
        RANK_COLORS,
        strict=False,
    )
)
_HATCHES = ("", "//", "..", "xx", "\\\\")


def _looks(kinds):
    """The same colour for a collective in every figure; hatches tell its groups apart."""
    used = Counter()
    for collective, _ in kinds:
        color = _COLORS.get(collective, RANK_COLORS[-1])
        yield {"facecolor": color, "hatch": _HATCHES[used[color] % len(_HATCHES)]}
        used[color] += 1


def _kind(row):
    return row["collective"], row["group"]


def _label(collective, group):
    group = group if isinstance(group, str) else "ranks " + ", ".join(map(str, group))
    return collective if group == "world" else f"{collective} · {group}"
