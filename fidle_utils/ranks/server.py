"""The warm server: imports torch and ipykernel once, forks ranks, reaps them, and ends with the notebook.

As `python -m fidle_utils.ranks.server FD DIRECTORY`. It never touches CUDA, runs no operator and starts no
thread, so a fork is safe. Messages are tuples on a `multiprocessing.connection.Connection`:

    notebook → server   ("start", rank, settings)
    server → notebook   ("ready", seconds) · ("started", rank, pid) · ("exited", rank, pid, status)
"""

import contextlib
import ctypes
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, wait

import psutil

# Imported before the first rank is forked: a rank needs these at once (the optimizers import _dynamo).
NEEDED = ("torch", "torch.distributed", "torch._dynamo", "ipykernel.ipkernel", "fidle_utils.ranks.process")
# Imported afterwards, until the first rank is asked for: from then on the server must answer at once.
USEFUL = (
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.pipelining",
    "torch.distributed.checkpoint",
    "torch.profiler",
    "torch.testing",
    "matplotlib.pyplot",
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"


def prctl(option, value):
    """Ask the Linux kernel for a property of this process (nothing happens elsewhere)."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Server:
    """Starts, watches and ends the rank processes of one notebook."""

    def __init__(self, connection, directory, fork):
        self.connection, self.directory, self.fork = connection, directory, fork
        self.ranks = {}  # pid -> rank
        self.lifelines = {}  # pid -> our end of a pipe: when it closes, the rank exits
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self, start):
        """Obey the notebook until its end of the connection closes, however it closes."""
        useful = list(USEFUL) if self.fork else []
        try:
            self.connection.send(("ready", time.perf_counter() - start))
            while True:
                ready = wait([self.connection, self.wake_read], timeout=0.1 if useful else None)
                if self.wake_read in ready:
                    os.read(self.wake_read, 4096)
                    self.reap()
                if self.connection in ready:
                    getattr(self, (message := self.connection.recv())[0])(*message[1:])
                if self.ranks:
                    useful.clear()
                elif not ready:
                    warm(useful.pop(0))
        except (EOFError, ConnectionError, BrokenPipeError):
            pass
        finally:
            self.end()

    def start(self, rank, settings):
        read, write = os.pipe()
        if self.fork:
            pid = os.fork()
            if pid == 0:
                self._become_rank(settings, read, write)
        else:
            pid = _spawn(settings, read)
        os.close(read)
        self.ranks[pid], self.lifelines[pid] = rank, write
        self.connection.send(("started", rank, pid))

    def _become_rank(self, settings, read, write):
        """In the forked child: forget everything of the server, then be a kernel until the end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            gc.enable()
            self.connection.close()
            for fd in (write, self.wake_read, self.wake_write, *self.lifelines.values()):
                os.close(fd)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            from fidle_utils.ranks import process

            process.main(settings, read)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.ranks:
                os.close(self.lifelines.pop(pid))
                _kill_group(pid)  # what it started, workers of a DataLoader for instance
                rank = self.ranks.pop(pid)
                self._kill_orphans()
                self.connection.send(("exited", rank, pid, os.waitstatus_to_exitcode(status)))

    def _kill_orphans(self):
        """Kill the processes that a dead rank left to us: we are their reaper."""
        for child in psutil.Process().children():
            if child.pid not in self.ranks:
                _kill_group(child.pid)

    def end(self):
        for pid in list(self.ranks):
            _kill_group(pid)
        self.connection.close()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:  # children of children become ours, one generation at a time
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    self.ranks.clear()
                    self._kill_orphans()
                    time.sleep(0.01)
            except ChildProcessError:
                break
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def _leaving_early(connection, directory):
    """While imports take their seconds: end as soon as the notebook does. It says nothing before "ready"."""
    over = threading.Event()

    def watch():
        while not over.is_set():
            if connection.poll(0.1):
                shutil.rmtree(directory, ignore_errors=True)
                os._exit(1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # there is one thread again: a fork is safe


def warm(module):
    """Import one module if it is there; a rank can do without."""
    try:
        importlib.import_module(module)
    except Exception:
        pass
    gc.freeze()


def _rehearse_a_traceback():
    """Format one: the first imports much, and a rank that fails should say so at once."""
    from IPython.core.ultratb import VerboseTB

    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        VerboseTB().text(*sys.exc_info())


def _spawn(settings, lifeline):
    """Where a fork is not safe (macOS): a fresh interpreter, which imports everything again."""
    import json

    code = "import sys, json; from fidle_utils.ranks import process; "
    code += "process.main(json.loads(sys.argv[1]), int(sys.argv[2]))"
    command = [sys.executable, "-c", code, json.dumps(settings), str(lifeline)]
    child = subprocess.Popen(command, pass_fds=[lifeline], env=settings["env"], cwd=settings["cwd"])
    child.returncode = 0  # reap() waits for it, not subprocess
    return child.pid


def _kill_group(pid):
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def main():
    start = time.perf_counter()
    gc.disable()  # imports take a third less time; a rank enables it again
    connection, directory, fork = Connection(int(sys.argv[1])), sys.argv[2], sys.argv[3] == "fork"
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = Server(connection, directory, fork)
    if fork:
        with _leaving_early(connection, directory):
            for module in NEEDED:
                importlib.import_module(module)
            _rehearse_a_traceback()
        gc.freeze()  # keep the collector of a rank from touching, hence copying, these pages
    server.serve(start)


if __name__ == "__main__":
    main()
