"""In a rank: what the notebook's own cells call. Values travel as the binary buffers of comm messages."""

import gc
import io
import linecache
import os
import pickle
import sys
import types
from functools import cache
from importlib.resources import files

import cloudpickle
import torch
import torch.distributed as dist
from comm import create_comm
from IPython import get_ipython

from fidle_utils.ranks import disconnect
from fidle_utils.ranks.link import TRACK, VALUE

PRELUDE = files("fidle_utils.ranks").joinpath("prelude.py").read_text()
_TALKING = {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel", "ProcessGroup", "DeviceMesh"}
_inbox = {}


def connect(port, disconnected):
    """Make the default process group anew; the notebook has started a store on `port`.

    `disconnected`: the ranks that have been told to disconnect. They must have done so, or it would hit the
    new connections. Sends the names of variables that belong to the old ones.
    """
    if int(os.environ["RANK"]) in disconnected:
        disconnect.done.wait(timeout=10)
        disconnect.done.clear()
    if dist.is_initialized():
        try:
            dist.destroy_process_group()
        except Exception:  # its connections were shut
            pass
        sys.last_type = sys.last_value = sys.last_traceback = sys.last_exc = None
        gc.collect()  # frames of the failure hold the old group, its sockets and threads
    os.environ["MASTER_PORT"] = str(port)
    send([name for name, value in _namespace().items() if _talks(value)])
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
        get_ipython().showtraceback((type(error), error, trace))
        return
    finally:
        for name in added:  # a stale reference would keep tensors alive
            function.__globals__.pop(name, None)
    send(result, f"the result of {getattr(function, '__name__', 'the function')}()")


def fetch(name):
    """Send the variable `name` to the notebook."""
    namespace = _namespace()
    if name not in namespace:
        raise NameError(f"name '{name}' is not defined")
    send(namespace[name], f"{name!r}")


def timeline_start():
    """Start to record what this rank does."""
    from fidle_utils.measure import timeline

    timeline.record()


def timeline_stop():
    """Send the events since `timeline_start`."""
    from fidle_utils.measure import timeline

    send(timeline.collect())


def send(value, what="the value"):
    """Send one value to the notebook, tensors as CPU tensors. Raises TypeError if it cannot be pickled."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(value)
    except Exception as error:
        reason = str(error) or type(error).__name__
        hint = "Send numbers, tensors, arrays, lists or dicts of them"
        raise TypeError(f"{what} cannot be sent to the notebook ({reason}). {hint}") from None
    create_comm(target_name=VALUE, buffers=[buffer.getvalue()]).close()


def track(report):
    """Send a report of `track()` to the notebook, pickled: JSON cannot say that a loss is not a number."""
    _reports().send(buffers=[pickle.dumps(report, protocol=5)])


@cache
def _reports():
    return create_comm(target_name=TRACK)


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


def receive(comm, message):
    """Keep what the notebook sends until a call asks for it."""
    _inbox[message["content"]["data"]["key"]] = bytes(message["buffers"][0])


def _namespace():
    return get_ipython().user_ns
