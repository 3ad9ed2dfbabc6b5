"""What a `MemoryLedger` counts with: storages, hooks on autograd, modules and optimizers."""

import contextlib
import sys
import threading
import time
import weakref

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from fidle_utils.measure.storages import inner, optimizer_tensors, predicted_states, storages, tensors, unique

_in_backward = torch._C._current_graph_task_id  # -1 outside


class Watch:
    """Writes the events and moments of a ledger while its block runs."""

    def __init__(self, ledger, model, optimizer, inputs):
        self._ledger, self._model = ledger, model
        optimizers = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
        self._optimizers = [optimizer for optimizer in optimizers if optimizer is not None]
        self._given = list(tensors(inputs))
        self._lock = threading.RLock()  # the backward of each GPU runs on a thread of its own
        self._open = False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ledger.rank = torch.distributed.get_rank()
        self._cuda = next((p.device for p in model.parameters() if p.is_cuda), None)
        self._begin()

    def _begin(self):
        """Measure what there is, from nothing."""
        ledger, self._started = self._ledger, None
        ledger.events.clear()
        ledger.moments.clear()
        self._levels = {}  # (part, device) → bytes
        self._holders = {}  # storage of an activation → how many hold it
        self._inputs, self._gathered, self._gradients = set(), {}, {}
        self._forward = False
        self._see_buckets()
        # Kept, because FSDP2 puts full parameters in their place for a while.
        self._parameters = list(self._model.parameters())
        # Storages, not their addresses alone: an address may be used again.
        parameters = {s._cdata: s for p in self._parameters for s in storages(p)}
        buffers = {s._cdata: s for b in self._model.buffers() for s in storages(b)}
        self._known = parameters | buffers
        self._set("parameters", _bytes_by_device(parameters))
        buffers = {key: s for key, s in buffers.items() if key not in parameters}
        self._set("buffers", _bytes_by_device(buffers))
        ledger.device = next((s.device.type for s in parameters.values()), "cpu")
        self._see_inputs(self._given)
        self.measure("start")
        if not ledger.at("start")["optimizer states"]:
            ledger.predicted_optimizer_states = predicted_states(self._optimizers)

    def open(self):
        self._open = True
        self._begin()
        with contextlib.ExitStack() as stack:  # undoes what was done if the rest fails
            stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            stack.enter_context(self._nested_hooks_seen())
            for handle in self._hooks():
                stack.callback(handle.remove)
            self._hooked = stack.pop_all()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._started = time.perf_counter()

    def _hooks(self):
        model = self._model
        yield model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        for parameter in self._parameters:
            if parameter.requires_grad:
                yield parameter.register_post_accumulate_grad_hook(self._after_gradient)
        fsdp = sys.modules.get("torch.distributed.fsdp")
        for module in model.modules() if fsdp else ():
            if isinstance(module, fsdp.FSDPModule):
                yield module.register_forward_pre_hook(self._before_gathered)
                yield module.register_forward_hook(self._after_gathered)
        for optimizer in map(inner, self._optimizers):
            if hasattr(optimizer, "register_step_pre_hook"):
                yield optimizer.register_step_pre_hook(self._before_step)
                yield optimizer.register_step_post_hook(self._after_step)

    def close(self):
        self._hooked.close()
        self.measure("end")
        if self._ledger.at("end")["optimizer states"]:
            self._ledger.predicted_optimizer_states = None
        if self._cuda is not None:
            self._ledger.allocated_peak = torch.cuda.max_memory_allocated(self._cuda)
        self._open = False
        # What autograd still holds refers to this object: it must not keep the model alive.
        self._ledger = self._model = self._optimizers = None
        self._known = self._parameters = self._gathered = self._given = ()

    def measure(self, moment):
        """Measure what is not followed event by event, and name the moment."""
        gradients = (p.grad for p in self._parameters if p.grad is not None)
        gradients = unique(gradients, without=self._known)
        states = (state for optimizer in self._optimizers for state in optimizer_tensors(optimizer))
        self._gradients = {key: seen for key, seen in self._gradients.items() if key in gradients}
        self._see_gradients(gradients)
        states = unique(states, without=self._known.keys() | gradients.keys())
        self._set("optimizer states", _bytes_by_device(states))
        self._sample_gathered()
        self._name(moment)

    def _before_step(self, *_):
        self.measure("before optimizer step")

    def _after_step(self, *_):
        self.measure("after optimizer step")

    def _name(self, moment):
        allocated = None if self._cuda is None else torch.cuda.memory_allocated(self._cuda)
        row = {"moment": moment, "seconds": self._seconds(), "n_events": len(self._ledger.events)}
        self._ledger.moments.append(row | {"allocated_bytes": allocated})

    def _seconds(self):
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def _add(self, part, device, n_bytes):
        if not n_bytes:
            return
        with self._lock:
            self._levels[part, device] = self._levels.get((part, device), 0) + n_bytes
            self._ledger.events.append((self._seconds(), part, device, n_bytes))

    def _set(self, part, n_bytes):
        """Make the bytes of `part` those of `n_bytes`, a dict by device."""
        with self._lock:
            for device in n_bytes.keys() | {device for name, device in self._levels if name == part}:
                self._add(part, device, n_bytes.get(device, 0) - self._levels.get((part, device), 0))

    # ----------------------------------------------------------------------------------------- activations

    def _pack(self, tensor):
        if _in_backward() == -1:
            self._forward = True
        found = list(storages(tensor))
        gathered = any(storage._cdata in self._gathered for storage in found)
        held = _Held()
        held.storages = ()
        # Of an output, a detached alias: the output itself would hold the node that holds it.
        held.tensor = tensor if tensor.is_leaf else tensor.detach()
        held.version, held.watch, held.is_gathered = tensor._version, self, gathered
        held.storages = [self._hold(storage) for storage in found if self._is_activation(storage)]
        return held

    def _unpack(self, held):
        if held.tensor._version != held.version:  # a check that autograd leaves to whoever hooks
            raise RuntimeError(
                f"a tensor of shape {tuple(held.tensor.shape)} that backward needs was modified in place "
                "after it was saved: use the operation that makes a new tensor (x + 1 for x += 1)."
            )
        if self._open:
            self._backward_begins()
            if held.is_gathered:
                self._sample_gathered()
        return held.tensor

    def _is_activation(self, storage):
        return not any(storage._cdata in others for others in (self._known, self._inputs, self._gathered))

    def _hold(self, storage):
        key, device, n_bytes = storage._cdata, storage.device.type, storage.nbytes()
        with self._lock:
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._holders[key] == 1:
                self._add("activations", device, n_bytes)
        return key, device, n_bytes

    def _let_go(self, key, device, n_bytes):
        if not self._open:
            return
        with self._lock:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._add("activations", device, -n_bytes)

    @contextlib.contextmanager
    def _nested_hooks_seen(self):
        """See what checkpointing computes again: its own hooks, nested in ours, receive it in our place."""
        initialise = saved_tensors_hooks.__init__

        def seen(hooks, pack, unpack):
            def pack_seen(tensor):
                if self._open and _in_backward() != -1:
                    self._recomputed(tensor)
                return pack(tensor)

            initialise(hooks, pack_seen, unpack)

        saved_tensors_hooks.__init__ = seen
        try:
            yield
        finally:
            saved_tensors_hooks.__init__ = initialise

    def _recomputed(self, tensor):
        """Count from now until the storage is freed: who holds it is not ours to know."""
        self._backward_begins()
        for storage in storages(tensor):
            if self._is_activation(storage) and storage._cdata not in self._holders:
                weakref.finalize(storage, self._let_go, *self._hold(storage)).atexit = False

    def _backward_begins(self):
        if self._forward and _in_backward() != -1:
            self._forward = False
            self._name("end of forward")
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)

    def _backward_ends(self):
        if self._open:
            self.measure("end of backward")

    # --------------------------------------------------------------------------- inputs, gradients, FSDP2

    def _before_model(self, model, args, kwargs):
        self._see_inputs(tensors((args, kwargs)))

    def _see_inputs(self, given):
        for storage in unique(given, without=self._known).values():
            key, device, n_bytes = storage._cdata, storage.device.type, storage.nbytes()
            if key not in self._inputs and key not in self._holders:
                self._inputs.add(key)
                self._add("inputs", device, n_bytes)
                if self._open:  # what is counted just once need not be followed
                    weakref.finalize(storage, self._input_freed, key, device, n_bytes).atexit = False

    def _input_freed(self, key, device, n_bytes):
        if self._open:
            self._inputs.discard(key)
            self._add("inputs", device, -n_bytes)

    def _after_gradient(self, parameter):
        self._see_gradients({s._cdata: s for s in storages(parameter.grad)})
        self._sample_gathered()  # FSDP2 has just emptied some

    def _see_gradients(self, found):
        for key, storage in found.items():
            if key not in self._gradients:
                self._gradients[key] = storage.device.type, storage.nbytes()
                if self._open:  # `zero_grad` lets it go, maybe in the middle of what is watched
                    weakref.finalize(storage, self._gradient_freed, key).atexit = False
        self._follow_gradients()

    def _gradient_freed(self, key):
        if self._open and self._gradients.pop(key, None):
            self._follow_gradients()

    def _follow_gradients(self):
        n_bytes = {}
        for device, size in self._gradients.values():
            n_bytes[device] = n_bytes.get(device, 0) + size
        for device, in_buckets in self._views_of.items():
            n_bytes[device] = max(n_bytes.get(device, 0), in_buckets)  # the buckets stay when `.grad` is None
        self._set("gradients", n_bytes)

    def _see_buckets(self):
        """DDP keeps a flat copy of each gradient that it reduces, or makes `.grad` a view of it."""
        copies, self._views_of = {}, {}
        for module in self._model.modules():
            if isinstance(module, DistributedDataParallel):
                totals = self._views_of if module.gradient_as_bucket_view else copies
                ignored = getattr(module, "parameters_to_ignore", ())
                for name, p in module.module.named_parameters():
                    if p.requires_grad and name not in ignored:
                        totals[p.device.type] = totals.get(p.device.type, 0) + p.nbytes
        self._set("gradient buckets", copies)

    def _before_gathered(self, module, _):
        found = (s for p in module.parameters() for s in storages(p))
        self._gathered.update({s._cdata: s for s in found if s._cdata not in self._known})
        self._sample_gathered()

    def _after_gathered(self, *_):
        self._sample_gathered()

    def _sample_gathered(self):
        # What FSDP2 has emptied has 0 bytes.
        self._set("gathered parameters", _bytes_by_device(self._gathered))


class _Held:
    """What autograd holds in place of a tensor; its end is the moment when the tensor is let go."""

    __slots__ = ("is_gathered", "storages", "tensor", "version", "watch")

    def __del__(self):
        self.tensor = None
        for storage in self.storages:
            self.watch._let_go(*storage)


def _bytes_by_device(found):
    totals = {}
    for storage in found.values():
        totals[storage.device.type] = totals.get(storage.device.type, 0) + storage.nbytes()
    return totals
