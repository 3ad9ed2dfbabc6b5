"""Figures of memory: its parts on each rank, and how it rises and falls in a step."""

from fidle_utils.measure.memory import PARTS, human_size
from fidle_utils.plots.style import GREY, INK, RANK_COLORS, byte_unit, in_style, points, source_note

_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED, _MID, _BLACK = RANK_COLORS
# What belongs together has neighbouring colours: full parameters with parameters, buckets with gradients.
_COLORS = dict(zip(PARTS, (_BLUE, _SKY, _ORANGE, _RED, _GREEN, _MID, _BLACK, _PINK), strict=True))


@in_style
def plot_memory(ledgers, device_bytes=None, title="Memory of a training step", ax=None):
    """Draw the bytes of each part, a bar for each rank, and a mark at the most that all took at one time.

    `ledgers`: `ranks["ledger"]`, one ledger, or a dict, label → ledger or ledgers, to compare: of several the
    rank that takes most is drawn. Each part stands with the most it took. `device_bytes`: the memory of the
    device, drawn as a line. On CUDA a diamond stands at `torch.cuda.max_memory_allocated`.
    """
    labels, ledgers = _labelled(ledgers)
    totals, peaks = [ledger.total for ledger in ledgers], [ledger.peak for ledger in ledgers]
    allocated = {x: ledger.allocated_peak for x, ledger in enumerate(ledgers) if ledger.allocated_peak}
    highest = max(*totals, *allocated.values(), device_bytes or 0, 1)
    unit, factor = byte_unit(highest)
    bottom = [0] * len(ledgers)
    for part in PARTS:
        heights = [ledger.most(part) for ledger in ledgers]
        if any(heights):
            low = [level / factor for level in bottom]
            tall = [height / factor for height in heights]
            ax.bar(labels, tall, 0.6, low, color=_COLORS[part], label=part, edgecolor="white")
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    for x, total in enumerate(totals):
        text = f"{total / factor:.3g}"
        ax.annotate(text, (x, total / factor), (0, 4), textcoords="offset points", ha="center")
    low, high = [x - 0.36 for x in range(len(peaks))], [x + 0.36 for x in range(len(peaks))]
    look = {"colors": INK, "linestyles": (0, (2, 1)), "label": "most at one time"}
    ax.hlines([peak / factor for peak in peaks], low, high, **look)
    if allocated:
        ys = [n_bytes / factor for n_bytes in allocated.values()]
        look = {"marker": "D", "s": 60, "color": "white", "edgecolor": INK, "zorder": 4}
        ax.scatter(list(allocated), ys, label="allocated by CUDA, most", **look)
    if device_bytes:
        ax.axhline(device_bytes / factor, color=GREY, linestyle="--")
        text = f"the device: {human_size(device_bytes)}"
        place = {"textcoords": "offset points", "ha": "right", "va": "top", "color": GREY}
        ax.annotate(text, (1, device_bytes / factor), (-2, -4), ax.get_yaxis_transform(), **place)
    ax.set_xlim(-0.6 if len(labels) > 1 else -1.5, max(len(labels), 2) - 0.4)
    ax.set(ylabel=unit, ylim=(0, 1.12 * highest / factor), title=title)
    ax.grid(axis="x", visible=False)
    _legend(ax)
    _source(ax, ledgers)


@in_style
def plot_memory_over_time(ledger, title="Memory during a training step", ax=None):
    """Draw how the parts of one rank's memory rise and fall, with the moments that the ledger names."""
    curve = ledger.curve()
    unit, factor = byte_unit(max(row["total"] for row in curve))
    # A step at each event: what came or left is there, or gone, from then on.
    end = 1e3 * max(curve[-1]["seconds"], ledger.moments[-1]["seconds"])
    times = [1e3 * row["seconds"] for row in curve] + [end]
    shown = [part for part in PARTS if any(row[part] for row in curve)]
    levels = [[row[part] / factor for row in curve] + [curve[-1][part] / factor] for part in shown]
    colors = [_COLORS[part] for part in shown]
    ax.stackplot(times, levels, labels=shown, colors=colors, step="post", linewidth=0)
    place = {"transform": ax.get_xaxis_transform(), "rotation": 20, "va": "bottom", "fontsize": points(9)}
    for row in _with_room(ledger.moments, 0.04 * end / 1e3):
        ax.axvline(1e3 * row["seconds"], color=INK, linewidth=1, linestyle=":")
        ax.text(1e3 * row["seconds"], 1.01, row["moment"], **place)
    ax.set(xlabel="milliseconds", ylabel=unit, xlim=(0, end), ylim=(0, None))
    ax.set_title(title, pad=points(40))
    ax.grid(axis="x", visible=False)
    _legend(ax)
    _source(ax, [ledger])


def _with_room(moments, seconds):
    """The moments that follow the one before after `seconds` or more; the start is where the axis starts."""
    kept = []
    for row in moments[1:]:
        if not kept or row["seconds"] - kept[-1]["seconds"] >= seconds:
            kept.append(row)
    return kept


def _labelled(ledgers):
    if isinstance(ledgers, dict):
        several = [value if isinstance(value, list | tuple) else [value] for value in ledgers.values()]
        return list(ledgers), [max(some, key=lambda ledger: ledger.total) for some in several]
    ledgers = list(ledgers) if isinstance(ledgers, list | tuple) else [ledgers]
    names = [ledger.rank if ledger.rank is not None else i for i, ledger in enumerate(ledgers)]
    return [f"rank {name}" for name in names], ledgers


def _legend(ax):
    handles, labels = ax.get_legend_handles_labels()  # in the order of the stack, from the top
    ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))


def _source(ax, ledgers):
    if any(ledger.device == "meta" for ledger in ledgers):
        source_note(ax, "computed", "on the meta device: shapes without data")
    else:
        source_note(ax, "measured here")
