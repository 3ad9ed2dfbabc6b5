"""What the tests of ranks share: a group, cells that fail, and a notebook with a kernel of its own."""

import os
import textwrap
import threading
import time
from pathlib import Path

import psutil
from jupyter_client.manager import KernelManager

from fidle_utils.ranks import RankError

ROOT = Path(__file__).parents[1]
# Three seconds are promised, and kept on a quiet machine; this one shares its cores with other tests.
PROMISED_SECONDS, SLACK_SECONDS = 3.0, 6.0
FREED_SECONDS = PROMISED_SECONDS + SLACK_SECONDS


def cell(source):
    """The text of a `%%ranks` cell as the magic sends it: the magic's own line is line 1."""
    return "# %%ranks\n" + textwrap.dedent(source).strip("\n") + "\n"


def run_failing(ranks, source, **options):
    """Run a cell that must fail; returns the RankError and the seconds that it took."""
    start = time.monotonic()
    try:
        ranks.cell(cell(source), **options)
    except RankError as error:
        return error, time.monotonic() - start
    raise AssertionError("the cell succeeded")


def in_notebook(source):
    """The namespace of functions written in a notebook's cell: they travel by value, not by name."""
    namespace = {"__name__": "__main__"}
    exec(textwrap.dedent(source), namespace)
    return namespace


def gone(pids, seconds=FREED_SECONDS):
    """Those of `pids` that still run after at most `seconds`; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _lives(pid)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Outcome:
    """What one cell of a Notebook showed. `displays`: the data of each output that stands in the end."""

    def __init__(self):
        self.displays, self.error, self.ename, self.seconds = [], "", None, 0.0

    @property
    def text(self):
        """All that stands below the cell as plain text, the error excepted."""
        return "".join(data.get("text/plain", "<figure>") + "\n" for _, data in self.displays)


class Notebook:
    """A kernel, driven as a front end does; clear_output and updates of displays are obeyed."""

    def __init__(self, cwd, first="%load_ext fidle_utils\nfrom fidle_utils import ranks"):
        self.manager = KernelManager(kernel_name="python3")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.manager.start_kernel(cwd=str(cwd), env=dict(os.environ, PYTHONPATH=path))
        self.pid = self.manager.provisioner.pid
        self._connect()
        self.first = first
        assert self.run(first).ename is None

    def _connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, source, timeout=120):
        """Run one cell to its end. Raises TimeoutError if the kernel does not come to an end."""
        outcome, clear = Outcome(), []

        def show(message):
            kind, content = message["msg_type"], message["content"]
            if kind == "clear_output":
                clear.append(True)
                if content["wait"]:
                    return
            if clear and kind in ("stream", "display_data", "execute_result", "error", "clear_output"):
                outcome.displays.clear()
                clear.clear()
            name = content.get("transient", {}).get("display_id")
            if kind == "stream":
                outcome.displays.append((None, {"text/plain": content["text"].rstrip("\n")}))
            elif kind in ("display_data", "execute_result"):
                outcome.displays.append((name, content["data"]))
            elif kind == "update_display_data":
                for at, (shown, _) in enumerate(outcome.displays):
                    if shown == name:
                        outcome.displays[at] = (name, content["data"])
            elif kind == "error":
                outcome.error = "\n".join(content["traceback"])

        start = time.monotonic()
        reply = self.client.execute_interactive(
            source, timeout=timeout, output_hook=show, allow_stdin=False, store_history=True
        )
        outcome.ename = reply["content"].get("ename")  # also of a UsageError, which is shown as text
        outcome.seconds = time.monotonic() - start
        return outcome

    def value(self, expression):
        """The value of an expression in the kernel, by its repr."""
        outcome = self.run(f"print(repr({expression}))")
        assert outcome.ename is None, outcome.error
        return eval(outcome.text, {})

    def run_and_stop(self, source, after=1.5):
        """Run a cell and press the stop button `after` seconds later; `seconds` count from the press."""
        timer = threading.Timer(after, self.manager.interrupt_kernel)
        timer.start()
        try:
            outcome = self.run(source)
        finally:
            timer.join()
        outcome.seconds -= after
        return outcome

    def restart(self):
        self.client.stop_channels()
        self.manager.restart_kernel(now=False)
        self.pid = self.manager.provisioner.pid
        self._connect()

    def close(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()


def footprint(notebook):
    """The processes and the private directory that the kernel of a notebook stands for."""
    pids = [child.pid for child in psutil.Process(notebook.pid).children(recursive=True)]
    return pids, Path(notebook.value("ranks._server.directory"))
