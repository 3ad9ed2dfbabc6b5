"""What runs inside a rank: an IPython kernel, and the few things that the notebook asks of it.

Between notebook and rank goes the Jupyter protocol only. Values travel as binary buffers of comm messages.
"""

import faulthandler
import gc
import io
import linecache
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import types
from importlib.resources import files

import cloudpickle
import numpy
import psutil
import torch
from comm import create_comm
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from fidle_utils.ranks.link import DISCONNECT, PUSH, VALUE

# A rank is debugged by nobody: spare every rank the import of a debugger.
sys.modules["debugpy.server"] = None
import ipykernel.debugger  # noqa: E402, F401

del sys.modules["debugpy.server"]

PRELUDE = files("fidle_utils.ranks").joinpath("prelude.py").read_text()
MAX_UNSENT_MESSAGES = 100_000

_TALKING = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel", "ProcessGroup", "DeviceMesh"}

_inbox = {}
_disconnected = threading.Event()


class RankStream(OutStream):
    """A stream of a rank. What libraries write to descriptor 2 goes to a file, which survives an abort."""

    def __init__(self, session, pub_thread, name, **options):
        super().__init__(session, pub_thread, name, **options, watchfd=name == "stdout")


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
    signal.pthread_sigmask(signal.SIG_BLOCK, {DISCONNECT})  # in every thread: _obey waits for it
    threading.Thread(target=_hold, args=(lifeline,), daemon=True).start()
    threading.Thread(target=_obey, daemon=True).start()
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
    app.kernel.comm_manager.register_target(PUSH, _receive)
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


def _obey():
    """Disconnect whenever the notebook says so; the main thread may be blocked meanwhile."""
    while True:
        signal.sigwait({DISCONNECT})
        _disconnect()
        _disconnected.set()


def _disconnect():
    """Shut the connections to the other ranks and the store: who waits on one, here or there, gets an error.

    On gloo nothing else frees a rank that is blocked in a collective, but for killing it.
    """
    for connection in psutil.Process().net_connections("tcp"):
        local_only = connection.raddr and connection.raddr.ip == connection.laddr.ip
        if local_only and connection.status == psutil.CONN_ESTABLISHED:
            try:
                with socket.socket(fileno=os.dup(connection.fd)) as ours:
                    ours.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed meanwhile
                pass
    if torch.cuda.is_initialized():
        from torch.distributed import distributed_c10d

        try:
            distributed_c10d._abort_process_group()
        except Exception:  # no group, or an older name of it: the rank will be replaced
            pass


# Called in a rank by the cells that the notebook side writes.


def connect(port, disconnected):
    """Make the default process group anew; the notebook has started a store on `port`.

    `disconnected`: the ranks that have been told to disconnect. They must have done so, or it would hit the
    new connections. Sends the names of variables that belong to the old ones.
    """
    import torch.distributed as dist

    if int(os.environ["RANK"]) in disconnected:
        _disconnected.wait(timeout=10)
        _disconnected.clear()
    if dist.is_initialized():
        try:
            dist.destroy_process_group()
        except Exception:  # its connections were shut
            pass
        sys.last_type = sys.last_value = sys.last_traceback = sys.last_exc = None
        gc.collect()  # frames of the failure hold the old group, its sockets and threads
    os.environ["MASTER_PORT"] = str(port)
    send(0, [name for name, value in _namespace().items() if _talks(value)])
    exec(compile(PRELUDE, "prelude.py", "exec"), _namespace())


def _talks(value):
    """True for what holds connections: models wrapped for parallel training, groups, meshes."""
    return any(base.__name__ in _TALKING for base in type(value).__mro__)


def push(key):
    """Set the variables that the notebook sent under `key`."""
    values = pickle.loads(_inbox.pop(key))
    _namespace().update({name: _at_home(value) for name, value in values.items()})


def call(key):
    """Call the function that the notebook sent under `key` and send back what it returns."""
    (function, args, kwargs), source = pickle.loads(_inbox.pop(key))
    if source:  # tracebacks and inspect.getsource() show the function as it stands in the notebook
        path, lines = source
        linecache.cache[path] = (sum(map(len, lines)), None, lines, path)
    added = _lend_names(function)
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        # Shown from the learner's function on, without the frames that led there.
        trace = error.__traceback__.tb_next or error.__traceback__
        RankApp.instance().kernel.shell.showtraceback((type(error), error, trace))
        return
    finally:
        for name in added:  # a stale reference would keep tensors alive
            function.__globals__.pop(name, None)
    send(key, result, f"the result of {getattr(function, '__name__', 'the function')}()")


def fetch(key, name):
    """Send the variable `name` to the notebook."""
    namespace = _namespace()
    if name not in namespace:
        raise NameError(f"name '{name}' is not defined")
    send(key, namespace[name], f"{name!r}")


def timeline_start():
    """Start to record what this rank does."""
    from fidle_utils.measure import timeline

    timeline.record()


def timeline_stop(key):
    """Send the events since `timeline_start`."""
    from fidle_utils.measure import timeline

    send(key, timeline.collect())


def send(key, value, what="the value"):
    """Send one value to the notebook, tensors as CPU tensors. Raises TypeError if it cannot be pickled."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(value)
    except Exception as error:
        reason = str(error) or type(error).__name__
        hint = "Send numbers, tensors, arrays, lists or dicts of them"
        raise TypeError(f"{what} cannot be sent to the notebook ({reason}). {hint}") from None
    create_comm(target_name=VALUE, data={"key": key}, buffers=[buffer.getvalue()]).close()


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, value):
        if isinstance(value, torch.Tensor) and value.is_cuda:  # the notebook should not open the GPU
            return value.cpu().__reduce_ex__(5)
        return super().reducer_override(value)


def _lend_names(function):
    """Let a function that was written in the notebook use `rank`, `device` and all that cells defined here.

    What it brought along wins. Returns the names that were added to its globals.
    """
    if not _is_of_the_notebook(function):
        return []
    added = [name for name in _namespace() if name not in function.__globals__]
    function.__globals__.update({name: _namespace()[name] for name in added})
    return added


def _at_home(value):
    """A function that was written in the notebook, as if a cell here had defined it; other values unchanged.

    What it needs of the notebook comes along, where this rank has not got a variable of that name.
    """
    if isinstance(value, type) and value.__module__ == "__main__":
        for name, method in list(vars(value).items()):
            if _is_of_the_notebook(method):
                setattr(value, name, _at_home(method))
    if not _is_of_the_notebook(value):
        return value
    here = _namespace()
    for name, brought in value.__globals__.items():
        here.setdefault(name, brought)
    function = types.FunctionType(value.__code__, here, value.__name__, value.__defaults__, value.__closure__)
    function.__kwdefaults__, function.__doc__ = value.__kwdefaults__, value.__doc__
    function.__dict__.update(value.__dict__)
    return function


def _is_of_the_notebook(value):
    return isinstance(value, types.FunctionType) and value.__module__ == "__main__"


def _receive(comm, message):
    _inbox[message["content"]["data"]["key"]] = bytes(message["buffers"][0])


def _namespace():
    return RankApp.instance().kernel.shell.user_ns
