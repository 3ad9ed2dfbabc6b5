"""The steps of a collective: what each rank holds, who sends what to whom, and the bytes on each link."""

import math
from collections import Counter

import matplotlib.pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.ticker import EngFormatter

from fidle_utils.plots.style import GREY, INK, PALE, course_style, points, rank_color, source_note

__all__ = ["plot_step", "plot_steps"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = 0.78  # of the square that shows what a rank holds; neighbours are at least 1.2 apart
MOST_PANELS = 16
_LINKS = 24  # more bars than that cannot be read


@course_style()
def plot_steps(steps):
    """Draw all `Steps` of a collective side by side, the start first; returns the Axes, a flat list.

    In the square of a rank a column is a chunk, and a filled row says whose values are in it: a column with
    all colours is a complete sum. Framed is what arrived in this step. Of more than 15 steps the last ones
    are left out, and the title says so.
    """
    panels = list(range(len(steps) + 1))[:MOST_PANELS]
    rows, columns, key = _grid(steps, len(panels))
    width, height = _extent(steps)
    head, foot, title = points(0.38), points(0.36), points(0.32)  # inches
    row = min(9.5 / columns / width, 1.45) * height + title
    figure, axes = plt.subplots(
        rows, columns, figsize=(9.8, head + rows * row + foot), squeeze=False, layout="none"
    )
    total = figure.get_figheight()
    figure.subplots_adjust(0.01, foot / total, 0.99, 1 - (head + title) / total, 0.04, title / (row - title))
    slots = [ax for i, ax in enumerate(axes.flat) if i != key]
    for ax in axes.flat:
        ax.set_axis_off()
    for k, ax in zip(panels, slots, strict=False):
        draw_step(ax, steps, k)
    _draw_key(axes.flat[key], steps)
    shown = "" if len(panels) > len(steps) else f" (the first {panels[-1]} are shown)"
    text = f"{steps.title}: {steps.n_ranks} ranks, {len(steps)} steps{shown}, {steps.n_messages} messages, "
    text += f"{bytes_text(steps.n_bytes)} in all"
    figure.suptitle(text, x=0.01, y=1 - 0.1 / total, ha="left", fontsize=points(13), fontweight="bold")
    strip = figure.add_axes((0.01, foot / total, 0.98, 0.001))
    strip.set_xticks([])
    strip.set_axis_off()
    source_note(
        strip, steps.kind, "squares: what each rank holds after the step · framed: what arrived in it"
    )
    return [*slots[: len(panels)], axes.flat[key]]


def _grid(steps, n):
    """Rows, columns, and the number of the panel that explains: two phases stand one above the other."""
    if steps.layout == "line" and steps.n_ranks > 4:
        return -(-(n + 1) // 2), 2, n
    verbs = [step[0].verb for step in steps.messages]
    half = len(verbs) // 2
    if 0 < half <= 3 and verbs == ["add"] * half + ["copy"] * half:
        return 2, half + 1, half + 1
    columns = min(n + 1, 4)
    return -(-(n + 1) // columns), columns, n


@course_style()
def plot_step(steps, k, axes=None):
    """Draw what the ranks hold after step `k` and, beside it, the bytes so far on each link; returnstwo Axes.

    `k` = 0 is the start. `axes`, of an earlier call with the same `steps`, are brought up to date.
    """
    if axes is None:
        ratio = 2.2 if steps.layout == "line" else 1.6
        axes = plt.subplots(1, 2, figsize=(9.8, 4.6), width_ratios=[ratio, 1])[1]
        axes[0].set_axis_off()
        _draw_links(axes[1], steps)
    for artist in (*axes[0].lines, *axes[0].collections, *axes[0].texts):
        artist.remove()  # clear() takes far longer: it makes the axes anew
    draw_step(axes[0], steps, k, large=True)
    _fill_links(axes[1], steps, k)
    return axes


def step_title(steps, k, large=True):
    """Return "step 2 of 6: add what arrives", where not `large` "step 2: add", and "start" for 0."""
    if not k:
        return "start"
    verbs = {message.verb for message in steps.messages[k - 1]}
    verb = "" if len(verbs) > 1 or "send" in verbs else f": {verbs.pop()}"
    return f"step {k} of {len(steps)}{verb}{' what arrives' if verb else ''}" if large else f"step {k}{verb}"


def bytes_text(n_bytes):
    """Return bytes with three digits and a prefix: 1.05 MB."""
    return EngFormatter("B")(float(f"{n_bytes:.3g}"))


def _note(steps):
    return "" if steps.kind == "measured here" else None  # the machine plays no part in who sent what


# ------------------------------------------------------------------------------------------- one state


def draw_step(ax, steps, k, large=False):
    """Draw on `ax` the ranks after step `k`, and the messages of that step."""
    places, size = _positions(steps), points(11 if large else 9)
    (width, height), xs, ys = _extent(steps), *zip(*places, strict=True)
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    ax.set(xlim=(middle_x - width / 2, middle_x + width / 2), aspect="equal")
    ax.set_ylim(middle_y - height / 2, middle_y + height / 2)
    if steps.layout != "line":
        for a, b in {tuple(sorted(link)) for link in steps.link_bytes()}:
            ax.plot(*zip(places[a], places[b], strict=True), color="#e0e0e0", linewidth=1, zorder=0)
    messages = steps.messages[k - 1] if k else []
    arrived = Counter((m.destination, chunk) for m in messages for chunk in m.chunks)
    named = "rank {}" if steps.n_ranks <= 4 or large and steps.layout != "tree" else "{}"
    for rank, place in enumerate(places):
        _draw_held(ax, steps.states[k][rank], len(places), place, [c for r, c in arrived if r == rank], size)
        x, y, ha, va = _name_place(steps, place, middle_y)
        look = {"color": rank_color(rank), "fontweight": "bold", "fontsize": size, "ha": ha, "va": va}
        ax.text(x, y, named.format(rank), **look)
    both = {(m.source, m.destination) for m in messages}
    for message in messages:
        two_way = (message.destination, message.source) in both
        at = _draw_message(ax, message, places, two_way, size, steps.layout == "line")
        if steps.n_chunks > 1 and (large or steps.n_ranks <= 4 or len(message.chunks) == 1):
            look = {"color": rank_color(message.source), "fontsize": size, "fontweight": "bold"}
            ax.text(*at, _letters(message.chunks), ha="center", va="center", zorder=5, **look)
    ax.set_title(step_title(steps, k, large), fontsize=points(13 if large else 11), y=1, pad=4)


def _positions(steps):
    """Where the ranks stand: on a circle clockwise from the upper left, on levels of a tree, in a line."""
    n = steps.n_ranks
    if steps.layout == "line":
        return [(1.2 * rank, 0) for rank in range(n)]
    if steps.layout == "tree":
        places = {}
        _grow(places, n, 0, 0, 0)
        return [places[rank] for rank in range(n)]
    radius = (0.72 if n <= 4 else 0.8) / math.sin(math.pi / n) if n > 1 else 0
    angles = [math.pi / 2 + math.pi / n - 2 * math.pi * rank / n for rank in range(n)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _grow(places, n, rank, left, level):
    """Place a rank of a binomial tree over its children; returns the right edge of what hangs on it."""
    lowest = rank & -rank or n
    children = [
        rank + (1 << bit) for bit in range(n.bit_length()) if 1 << bit < lowest and rank + (1 << bit) < n
    ]
    right = left
    for child in children:
        right = _grow(places, n, child, right, level + 1)
    right = max(right, left + (1.3 if n > 4 else 1.85))
    places[rank] = (left + right) / 2, -1.35 * level
    return right


def _extent(steps):
    """Width and height of what a panel shows, with a margin for the names."""
    xs, ys = zip(*_positions(steps), strict=True)
    arcs = 0.24 * steps.n_ranks + 0.7 if steps.layout == "line" else 0
    side = 0.45 if steps.layout == "tree" else 0
    return max(xs) - min(xs) + SIDE + 0.3 + 2 * side, max(ys) - min(ys) + SIDE + 0.55 + arcs


def _name_place(steps, place, middle_y):
    """Where the name of a rank does not meet an arrow: x, y, ha, va."""
    x, y = place
    if steps.layout == "tree":
        return x - SIDE / 2 - 0.06, y, "right", "center"
    if steps.layout == "circle" and y >= middle_y - 1e-9:
        return x, y + SIDE / 2 + 0.04, "center", "bottom"
    return x, y - SIDE / 2 - 0.04, "center", "top"


def _draw_held(ax, held, n_ranks, place, arrived, size):
    """The square of one rank: a column for each chunk, a row for each rank."""
    wide, high = SIDE / len(held), SIDE / n_ranks
    left, top = place[0] - SIDE / 2, place[1] + SIDE / 2
    cells, colors = [], []
    for chunk, contributors in enumerate(held):
        for rank in range(n_ranks):
            cells.append(_box(left + chunk * wide, top - (rank + 1) * high, wide, high))
            colors.append(rank_color(rank) if contributors[rank] else PALE)
            if contributors[rank] > 1:  # counted twice: the sum is wrong
                at = left + (chunk + 0.5) * wide, top - (rank + 0.5) * high
                ax.text(*at, f"×{contributors[rank]}", ha="center", va="center", fontsize=0.8 * size)
    ax.add_collection(PolyCollection(cells, facecolors=colors, edgecolors="white", linewidths=0.8, zorder=2))
    starts = [chunk for chunk in sorted(arrived) if chunk - 1 not in arrived]
    ends = [chunk + 1 for chunk in sorted(arrived) if chunk + 1 not in arrived]
    frames = [
        _box(left + a * wide, top - SIDE, (b - a) * wide, SIDE) for a, b in zip(starts, ends, strict=True)
    ]
    ax.add_collection(PolyCollection(frames, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3))


def _box(x, y, width, height):
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _draw_message(ax, message, places, two_way, size, arc):
    """Draw an arrow between the squares of two ranks; returns where to write what it carries."""
    (x0, y0), (x1, y1) = places[message.source], places[message.destination]
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    bend = {}
    if arc:  # to the right above the line, to the left below it, where the names are
        edge = SIDE / 2 + 0.06 if dx > 0 else -SIDE / 2 - 0.3
        start, end, bend = (x0 + 0.1 * dx, edge), (x1 - 0.1 * dx, edge), {"connectionstyle": "arc3,rad=-0.4"}
        at = (x0 + x1) / 2, edge + dx * (0.2 * length + 0.17)
    else:
        cut = (SIDE / 2 + 0.06) / max(abs(dx), abs(dy))  # where the line leaves the square
        aside, part = (0.11, 0.36) if two_way else (0, 0.5)
        start = x0 + cut * dx - aside * dy, y0 + cut * dy + aside * dx
        end = x1 - cut * dx - aside * dy, y1 - cut * dy + aside * dx
        beside = aside + 0.14 if two_way else -0.16  # a ring turns clockwise: inside of it
        at = x0 + part * (x1 - x0) - beside * dy, y0 + part * (y1 - y0) + beside * dx
    look = {"arrowstyle": "-|>,head_width=0.3,head_length=0.55", "color": rank_color(message.source)}
    look |= {"linewidth": 2.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": size, **bend}
    ax.annotate("", end, start, arrowprops=look, zorder=4)
    return at


def _letters(chunks):
    if len(chunks) > 3:
        return f"{_letters(chunks[:1])}–{_letters(chunks[-1:])}"
    return "".join(LETTERS[c] if c < len(LETTERS) else f" {c}" for c in chunks)


# -------------------------------------------------------------------------------------- around the states


def _draw_key(ax, steps):
    """Explain the squares on one of rank 0 in which the first chunk is complete."""
    n, chunks, size = steps.n_ranks, steps.n_chunks, points(9)
    whole = Counter(range(n))
    ax.set(xlim=(-1.3, 0.9), ylim=(-0.95, 0.75), aspect="equal")
    left = 0.2 - SIDE / 2
    _draw_held(ax, [whole, *[Counter([0])] * (chunks - 1)], n, (0.2, 0), [], size)
    for rank in range(n) if n <= 8 else (0, n - 1):
        y = SIDE / 2 - (rank + 0.5) * SIDE / n
        look = {"color": rank_color(rank), "fontsize": size if n <= 4 else 0.75 * size}
        ax.text(left - 0.05, y, f"from rank {rank}", ha="right", va="center_baseline", **look)
    for chunk in range(chunks) if 1 < chunks <= 8 else ():
        x = left + (chunk + 0.5) * SIDE / chunks
        ax.text(x, SIDE / 2 + 0.03, LETTERS[chunk], fontsize=size, fontweight="bold", ha="center")
    known = all(message.verb != "send" for step in steps.messages for message in step)
    text = "all colours: the whole sum" if known else "all colours: heard from all"
    if chunks > 1 and known:
        text = f"chunk a: the whole sum\n{_letters(range(1, chunks))}: rank 0's part alone"
    ax.text(-0.2, -SIDE / 2 - 0.06, text, fontsize=size, color=GREY, ha="center", va="top")


def _draw_links(ax, steps):
    """Empty bars, one for each link, as long as what it will have carried at the end."""
    final = _bars(steps, len(steps))
    links = len(steps.link_bytes()) <= _LINKS
    names = (
        [f"{a} → {b}" for a, b in steps.link_bytes()] if links else [f"rank {r}" for r in range(len(final))]
    )
    owners = [a for a, _ in steps.link_bytes()] if links else range(len(final))
    size, rows, most = points(11 if len(names) <= 12 else 8), range(len(names)), max(final, default=1)
    ax.barh(rows, final, 0.72, color=PALE, edgecolor="#cccccc", linewidth=0.8)
    ax.barh(rows, final, 0.72, color=[rank_color(rank) for rank in owners])
    for row in rows:
        ax.text(most * 1.03, row, "", va="center", fontsize=size)
    ax.set_yticks(rows, names, fontsize=size)
    ax.tick_params(length=0)
    ax.set(xlim=(0, 1.35 * most), xticks=[])
    ax.invert_yaxis()
    ax.spines["bottom"].set_visible(False)
    ax.grid(False)
    ax.set_title("bytes so far on each link" if links else "bytes sent so far", fontsize=points(13), y=1)
    source_note(ax, steps.kind, _note(steps))


def _fill_links(ax, steps, k):
    for bar, text, value in zip(ax.containers[-1], ax.texts, _bars(steps, k), strict=False):
        bar.set_width(value)
        text.set_text(bytes_text(value))


def _bars(steps, k):
    """Bytes after step `k` on each link, or from each rank where there are too many links."""
    links, now = steps.link_bytes(), steps.link_bytes(k)
    return [now.get(link, 0) for link in links] if len(links) <= _LINKS else steps.bytes_sent(k)
