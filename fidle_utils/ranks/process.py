"""What a rank is: a process with an IPython kernel, which talks to the notebook in Jupyter's protocol."""

import faulthandler
import os
import resource
import signal
import sys
import threading

import numpy
import torch
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from fidle_utils.measure import tracking
from fidle_utils.ranks import calls, disconnect
from fidle_utils.ranks.link import PUSH

# A rank is debugged by nobody: spare every rank the import of a debugger.
sys.modules["debugpy.server"] = None
import ipykernel.debugger  # noqa: E402, F401

del sys.modules["debugpy.server"]

MAX_UNSENT_MESSAGES = 100_000


class RankStream(OutStream):
    """A stream of a rank. What libraries write to descriptor 2 goes to a file, which survives an abort."""

    _written_last = None
    _unsent = False

    def __init__(self, session, pub_thread, name, **options):
        super().__init__(session, pub_thread, name, **options, watchfd=name == "stdout")

    def write(self, string):
        other, RankStream._written_last = RankStream._written_last, self
        if other not in (self, None) and os.getpid() == self._master_pid:
            other.flush()  # stdout and stderr are shown together: keep their order
        self._unsent = True
        return super().write(string)

    def flush(self):
        if self._unsent:  # the kernel flushes after every cell, and each time waits for another thread
            self._unsent = False
            super().flush()


class RankKernel(IPythonKernel):
    """An IPython kernel that numbers cells as the notebook does: tracebacks name the right one."""

    async def execute_request(self, stream, ident, parent):
        if count := parent["metadata"].get("execution_count"):
            self.shell.execution_count = count
        await super().execute_request(stream, ident, parent)


class RankApp(IPKernelApp):
    """The kernel application of a rank."""

    def init_iopub(self, context):
        context.sndhwm = MAX_UNSENT_MESSAGES  # zmq drops messages above it; the default is 1000
        super().init_iopub(context)


def main(settings, lifeline):
    """Be a rank until the lifeline closes. `settings`: env, cwd, path, connection_file, files, threads."""
    if hasattr(os, "setsid") and os.getpid() != os.getsid(0):
        os.setsid()
    os.environ.clear()
    os.environ.update(settings["env"])
    os.chdir(settings["cwd"])
    sys.path[:] = settings["path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _redirect(settings["files"])
    disconnect.obey()
    threading.Thread(target=_hold, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(settings["threads"])
    torch.seed()  # after a fork every rank would draw the same "random" numbers
    numpy.random.seed()

    os.environ["IPYTHONDIR"] = settings["ipython_dir"]  # no start-up files, no history of the learner's
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.cache_size = 0  # Out[] would keep tensors alive
    config.IPKernelApp.outstream_class = f"{__name__}.RankStream"
    app = RankApp.instance(
        connection_file=settings["connection_file"],
        kernel_class=RankKernel,
        config=config,
        log_level=50,
    )
    app.initialize([])
    del os.environ["IPYTHONDIR"]
    app.kernel.comm_manager.register_target(PUSH, calls.receive)
    tracking.send_to = calls.track
    app.shell.events.register("post_run_cell", lambda result: tracking.report_all())
    app.start()


def _redirect(paths):
    """Point the three standard descriptors away from the server's; print the stack on SIGUSR1."""
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(paths["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, target in ((0, null), (1, null), (2, errors)):
        os.dup2(target, fd)
    os.close(null), os.close(errors)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)
    where = open(paths["where"], "ab", buffering=0)
    faulthandler.enable(file=where, all_threads=False)  # a segmentation fault says where
    faulthandler.register(signal.SIGUSR1, file=where, all_threads=False)
    main.keep = where  # faulthandler keeps the descriptor only


def _hold(lifeline):
    """Wait for the end of the lifeline: it means that the notebook and the server are gone."""
    os.read(lifeline, 1)
    os._exit(1)
