"""What a cell shows: the text of every rank, labelled and live, and figures in between."""

import re
import time

from IPython import get_ipython
from IPython.display import clear_output, display

from fidle_utils.ranks.locate import names

COLORS = (34, 32, 35, 36, 33, 31)  # ANSI: the front end picks tones that suit its theme
LIVE_ROWS, FINAL_ROWS = 12, 100  # a rank: while it runs, and at the end
REFRESH_SECONDS = 0.1
_BAR = re.compile("[█▏▎▍▌▋▊▉]+")
_STEPS = re.compile(r"(\r\n|\r|\n|\x1b\[A|\x1b\[K)")


class Screen:
    """The text that one rank wrote, with carriage returns obeyed, so that a progress bar stays one row."""

    def __init__(self):
        self.rows, self.row, self.fresh = [""], 0, False

    def write(self, text):
        if "\r" not in text and "\x1b[A" not in text and self.row == len(self.rows) - 1 and not self.fresh:
            first, *rest = text.split("\n")
            self.rows[-1] += first
            self.rows += rest
            self.row = len(self.rows) - 1
            return
        for part in _STEPS.split(text):
            if part in ("\n", "\r\n"):
                self.row += 1
                self.fresh = self.row < len(self.rows)  # of rows that stand there already
                if not self.fresh:
                    self.rows.append("")
            elif part == "\r":
                self.fresh = True  # what follows takes the row's place
            elif part == "\x1b[A":
                self.row, self.fresh = max(0, self.row - 1), True
            elif part and part != "\x1b[K":
                self.rows[self.row] = part if self.fresh else self.rows[self.row] + part
                self.fresh = False

    def shown(self, limit, rank, elsewhere="ranks.outputs"):
        """At most `limit` rows, with a row that says what was left out, and where it is."""
        rows = self.rows[:-1] if self.rows[-1] == "" else self.rows
        if len(rows) <= limit:
            return rows
        head, left_out = limit // 2, len(rows) - limit
        note = f"… {left_out:,} more lines: {elsewhere}[{rank}] has them all …".replace(",", " ")
        return [*rows[:head], note, *rows[head - limit :]]


class CellOutput:
    """Collects what ranks write in one cell and keeps its display up to date.

    Text is shown rank by rank, not in order of time; what all ranks share is shown once, at the end. A figure
    or other rich display appears at once; when the cell has ended it stands with the text of its rank. Below
    all, one row a rank says how far `track()` has come.
    """

    def __init__(self, ranks, progress=None, elsewhere="ranks.outputs"):
        self.ranks, self.progress, self.elsewhere = list(ranks), progress, elsewhere
        self.items = {rank: [Screen()] for rank in self.ranks}  # screens, and rich displays in between
        self.everything = {rank: [] for rank in self.ranks}
        self.handle, self.handles = None, {}
        self.dirty, self.drawn_at = False, 0.0

    def write(self, rank, text):
        if not isinstance(self.items[rank][-1], Screen):
            self.items[rank].append(Screen())
        self.items[rank][-1].write(text)
        self.everything[rank].append(text)
        self.dirty = True

    def clear(self, rank):
        self.items[rank] = [Screen()]
        self.dirty = True

    def rich(self, rank, content, update=False):
        """Show a display_data, execute_result or update_display_data of a rank."""
        data, metadata = content["data"], content["metadata"]
        name = content.get("transient", {}).get("display_id")
        if get_ipython() is None or set(data) == {"text/plain"} and not name:
            self.write(rank, data.get("text/plain", "") + "\n")
        elif not update:
            self.handles[rank, name] = _show(data, metadata)
            self.items[rank].append((data, metadata, name))
        elif (rank, name) in self.handles:
            self.handles[rank, name].update(data, raw=True, metadata=metadata)
            self.items[rank] = [
                (data, metadata, name) if isinstance(item, tuple) and item[2] == name else item
                for item in self.items[rank]
            ]

    def draw(self, final=False):
        """Show the text again if it has changed and the last time is long enough ago, or if it is final."""
        now = time.monotonic()
        if not final and (not self.dirty or now - self.drawn_at < REFRESH_SECONDS):
            return
        self.dirty, self.drawn_at = False, now
        if final and any(len(items) > 1 for items in self.items.values()) and get_ipython() is not None:
            self._draw_in_order()
            return
        rows = self._rows(FINAL_ROWS if final or len(self.ranks) == 1 else LIVE_ROWS, fold=final)
        if get_ipython() is None:
            if final and rows:
                print("\n".join(rows), flush=True)
        elif self.handle is not None:
            self.handle.update({"text/plain": "\n".join(rows)}, raw=True)
        elif rows:
            self.handle = _show({"text/plain": "\n".join(rows)})

    def _rows(self, limit, fold):
        groups = {}
        for rank, items in self.items.items():
            screens = [item for item in items if isinstance(item, Screen)]
            shown = [row for screen in screens for row in screen.shown(limit, rank, self.elsewhere)]
            if shown:
                groups.setdefault(tuple(shown) if fold else rank, (shown, []))[1].append(rank)
        rows = [f"{_label(ranks, self.ranks)} {row}" for shown, ranks in groups.values() for row in shown]
        return rows + self._progress_rows()

    def _progress_rows(self):
        rows = self.progress.rows() if self.progress else {}
        total, lines = rows.pop(None, None), []
        for rank, row in rows.items():
            colored = _BAR.sub(lambda bar, rank=rank: _colored(bar[0], rank), row)
            lines.append(f"{_label([rank], self.ranks)} {colored}")
        return lines if total is None else [*lines, f"{_label(list(rows), self.ranks)} {total}"]

    def _draw_in_order(self):
        """Replace what was shown as it came by the same, rank after rank."""
        clear_output(wait=True)
        for rank, items in self.items.items():
            for item in items:
                if not isinstance(item, Screen):
                    _show({"text/plain": _label([rank], self.ranks)})
                    _show(item[0], item[1])
                elif rows := item.shown(FINAL_ROWS, rank, self.elsewhere):
                    _show({"text/plain": "\n".join(f"{_label([rank], self.ranks)} {row}" for row in rows)})
        if rows := self._progress_rows():
            _show({"text/plain": "\n".join(rows)})

    @property
    def outputs(self):
        """The whole text of each rank, rank 0 first."""
        return ["".join(self.everything[rank]) for rank in self.ranks]


def _label(ranks, of):
    """`rank 2 │` in the colour of the rank; as wide for every group of the cell."""
    text = names(ranks)
    width = max(len(names([rank])) for rank in of)
    if len(ranks) == 1:
        return _colored(f"{text:>{width}} │", ranks[0])
    return f"\x1b[1m{text:>{width}} │\x1b[0m"


def _colored(text, rank):
    return f"\x1b[{COLORS[rank % len(COLORS)]}m{text}\x1b[0m"


def _show(data, metadata=None):
    return display(data, raw=True, metadata=metadata or {}, display_id=True)


def pass_on(message):
    """Give a widget's message from a rank to the notebook's front end, which then shows the widget.

    One way only: a bar moves, but a slider that a rank shows does not reach the rank.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is not None:
        kernel.session.send(
            kernel.iopub_socket,
            message["msg_type"],
            message["content"],
            parent=kernel.get_parent(),
            ident=f"comm-{message['content']['comm_id']}".encode(),
            metadata=message["metadata"],
            buffers=message["buffers"],
        )
