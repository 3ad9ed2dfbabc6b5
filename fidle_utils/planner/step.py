"""Seconds of one optimizer step, by part, of the slowest GPU.

compute at an achieved ceiling (compute.py) · exposed communication by group (network.py) · the bubble of the
pipeline (fidle_utils.schedules) · the optimizer.
"""

from fidle_utils.planner import calibration
from fidle_utils.planner.compute import head_seconds, layer_seconds
from fidle_utils.planner.layout import layers_by_stage
from fidle_utils.planner.memory import stage_parameters
from fidle_utils.planner.network import all_reduce, gather, point_to_point

__all__ = ["PARTS", "step_by_part"]

PARTS = (
    "compute",
    "computed again",
    "tensor communication",
    "context communication",
    "pipeline communication",
    "data communication",
    "bubble",
    "optimizer",
)


def step_by_part(model, machine, layout, software):
    """Return part → seconds; the keys are PARTS and the sum is the step."""
    m, p = layout.micro_batches, layout.pipeline
    layers = layers_by_stage(model, layout)
    one = layer_seconds(model, machine.gpu, layout, software)
    tensor = _tensor(model, machine, layout, software)
    context = _context(model, machine, layout)
    per_layer = one.total + tensor + context
    head = head_seconds(model, machine.gpu, layout, software)
    transfer = _transfer(model, machine, layout, software)
    by_stage = [n * per_layer + transfer for n in layers]
    by_stage[-1] += sum(head)
    slowest = max(range(p), key=lambda stage: by_stage[stage])
    n, is_last = layers[slowest], slowest == p - 1
    parts = dict.fromkeys(PARTS, 0.0)
    parts["compute"] = m * (n * (one.total - one.again) + is_last * sum(head))
    parts["computed again"] = m * n * one.again
    parts["tensor communication"] = m * n * tensor
    parts["context communication"] = m * n * context
    parts["pipeline communication"] = m * transfer
    parts["bubble"] = bubble_seconds(layout, by_stage, slowest, one, layers)
    data, hidden_under = _data(model, machine, layout, software, n, one, head, slowest)
    hidden = min(data * software.overlap_data, hidden_under)
    parts["data communication"] = data - hidden * (1 - calibration.CONTENTION)
    parts["optimizer"] = _optimizer(model, machine, layout, n, slowest)
    return parts


def bubble_seconds(layout, by_stage, slowest, one, layers):
    """Return the seconds that the slowest stage waits for the others, in a step.

    The first micro-batch comes down and its gradient goes up through all other stages: their time once,
    over v if interleaved (arXiv:2104.04473, Section 2.2). Zero bubble: (p−1)(F+B−W), (p−1)(F+B−2W), 0
    instead of (p−1)(F+B+W) (arXiv:2401.10241, Table 2). fidle_utils.schedules simulates the same:
    tests/test_planner.py.
    """
    others = sum(by_stage) - by_stage[slowest]
    if layout.schedule == "interleaved":
        return others / layout.virtual_stages
    weight = (layout.pipeline - 1) * max(layers) * one.backward_weight
    saved = {"ZB-H1": 2 * weight, "ZB-H2": 3 * weight, "ZB-V": others}.get(layout.schedule, 0)
    return max(0.0, others - saved)


def _tokens(model, layout):
    return layout.micro_batch * model.sequence_length / layout.context


def _tensor(model, machine, layout, software):
    """Exposed seconds of tensor parallelism, a layer and micro-batch.

    Two all-reduces of 2·n·h bytes forward and two backward (arXiv:1909.08053, Section 3); two more if the
    layer is computed again. With sequence parallelism each is an all-gather and a reduce-scatter: same bytes.
    """
    forward = 2 + (2 * layout.checkpointed if layout.checkpointing == "full" else 0)
    exposed = forward * (1 - software.overlap_tensor_forward * (1 - calibration.CONTENTION))
    exposed += 2 * (1 - software.overlap_tensor_backward * (1 - calibration.CONTENTION))
    return exposed * all_reduce(machine, 2 * _tokens(model, layout) * model.hidden, layout.tensor)


def _context(model, machine, layout):
    """Seconds to gather keys and values over the context ranks forward and backward, and reduce gradients.

    Llama 3 (arXiv:2407.21783, Section 3.3.2) gathers keys and values, and does not hide it.
    """
    whole = 2 * layout.micro_batch * model.sequence_length * 2 * model.kv_hidden / layout.tensor
    times = 3 + (layout.checkpointed if layout.checkpointing == "full" else 0)
    return times * gather(machine, whole, layout.context, layout.tensor)


def _transfer(model, machine, layout, software):
    """Exposed seconds in which a stage sends an activation on and a gradient back, a micro-batch.

    2·n·h/t bytes each, as the tensor ranks send a part each (arXiv:2104.04473, Section 4.1), v times.
    """
    if layout.pipeline == 1:
        return 0.0
    n_bytes = 2 * _tokens(model, layout) * model.hidden / layout.tensor
    stride = layout.n_gpus // layout.pipeline
    once = 2 * layout.virtual_stages * point_to_point(machine, n_bytes, stride)
    return once * (1 - software.overlap_pipeline * (1 - calibration.CONTENTION))


def _data(model, machine, layout, software, layers, one, head, stage):
    """(seconds of communication between data ranks in a step, seconds of computation beside it).

    All-reduce of the gradients, or reduce-scatter and all-gather of the parameters with ZeRO 1 and 2: 2Ψ;
    ZeRO-3 gathers twice and reduces, in each micro-batch: 3Ψ (arXiv:1910.02054, Section 7).
    """
    # Frameworks send a layer, or a bucket of about that size, at a time.
    parameters = stage_parameters(model, layout, stage, layers)
    size, stride = layout.shards, layout.tensor
    m = layout.micro_batches
    bytes_reduced = software.reduce_bytes
    if layout.zero < 3:
        gathered = 2 if layout.zero else bytes_reduced
        seconds = gather(machine, (bytes_reduced + gathered) * parameters, size, stride, layers)
        return seconds, layers * one.total + sum(head)
    gathers = (2 if layout.reshard else 1) * (m if layout.reshard else 1)
    seconds = gathers * gather(machine, 2 * parameters, size, stride, layers)
    seconds += m * gather(machine, bytes_reduced * parameters, size, stride, layers)
    return seconds, m * (layers * one.total + sum(head))


def _optimizer(model, machine, layout, layers, stage):
    """Adam reads and writes the fp32 parameter and two moments, reads the gradient, writes a 16-bit copy."""
    parameters = stage_parameters(model, layout, stage, layers)
    split = layout.shards if layout.zero else 1
    rate = 1e9 * machine.gpu.memory_gb_per_second * calibration.MEMORY_FRACTION
    return 30 * parameters / split / rate
