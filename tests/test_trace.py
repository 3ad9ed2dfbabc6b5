"""The profiler's trace: what counts as what, without a GPU and with one.

The traces are written by hand as libkineto/src/output_json.cpp writes them: names, fields, and identifiers
that tie a kernel to its launch ("correlation") and to its operator ("External id"). Times in microseconds.
"""

import pytest

from fidle_utils.measure.trace import WAIT, collective, read

BASE, PROCESS, AUTOGRAD = 1_790_000_000_000_000_000, 4000, 4001


def slice_(name, start, end, category="cpu_op", pid=PROCESS, tid=PROCESS, **args):
    return dict(ph="X", cat=category, name=name, pid=pid, tid=tid, ts=start, dur=end - start, args=args)


def note(name, start, end, tid=PROCESS):
    return slice_(name, start, end, "user_annotation", tid=tid)


def forward(name, start, end, number):
    return slice_(name, start, end, **{"Sequence number": number, "Fwd thread id": 0})


def backward(node, start, end, number, tid=PROCESS):
    name = f"autograd::engine::evaluate_function: {node}"
    return slice_(name, start, end, tid=tid, **{"Sequence number": number, "Fwd thread id": 1})


def arrow(start):
    return dict(ph="s", id=1, pid=PROCESS, tid=PROCESS, ts=start, cat="fwdbwd", name="fwdbwd")


def trace(*events):
    return {"schemaVersion": 1, "baseTimeNanoseconds": BASE, "traceEvents": list(events)}


def rows(*events, **options):
    found = read(trace(*events), **options)[0]
    return [(e.kind, (e.start - BASE) / 1e3, (e.end - BASE) / 1e3) for e in found]


def kinds(*events):
    return [row[0] for row in rows(*events)]


# -------------------------------------------------------------------------------------- without a GPU


def test_only_outermost_operators_count():
    step = [
        forward("aten::linear", 0, 10, 0),
        forward("aten::t", 1, 2, 0),
        forward("aten::addmm", 3, 9, 1),
        forward("aten::mm", 10, 12, 2),
        backward("AddmmBackward0", 12, 20, 1),
        slice_("aten::mm", 13, 19),
        note("Optimizer.step#SGD.step", 20, 25),
        slice_("aten::add_", 21, 22),
        note("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 25, 30),
        slice_("aten::stack", 26, 27),
    ]
    assert kinds(*step) == ["forward", "compute", "backward", "optimizer", "data loading"]


def test_forward_is_what_autograd_wrote_down_and_not_all_that_it_could_have():
    # The number is what autograd would give next: it moves on only where autograd took it.
    plain, linear, mean = (forward("aten::x", t, t + 1, n) for t, n in ((0, 5), (2, 5), (4, 6)))
    assert kinds(plain, linear, mean) == ["compute", "forward", "compute"]
    assert kinds(plain, linear, mean, arrow(4)) == ["compute", "forward", "forward"]


def test_a_block_with_the_name_of_a_kind_is_of_that_kind():
    inside = [forward("aten::linear", 2, 4, 0), forward("aten::linear", 5, 6, 1)]
    assert rows(note("compute", 0, 10), *inside) == [("compute", 0, 10)]
    assert rows(note("backward", 0, 10), *inside) == [("backward", 0, 10)]
    assert kinds(note("my own block", 0, 10), *inside) == ["forward", "compute"]
    assert kinds(note("DistributedDataParallel.forward", 0, 10), *inside) == ["forward", "compute"]


def test_gloo_communicates_on_its_own_threads_beside_backward():
    events = [
        backward("torch::autograd::AccumulateGrad", 0, 10, 0),
        slice_("c10d::allreduce_", 4, 5),
        note("gloo:all_reduce", 5, 30, tid=4010),
        slice_("aten::copy_", 6, 8, tid=4010),  # by gloo: part of the collective, not computing
        slice_("c10d::_reduce_scatter_base_", 31, 32),
        note("gloo:all_reduce", 33, 40, tid=4011),
    ]
    found = read(trace(*events), {4010: (0, 1), 4011: (0, 1, 2, 3)})[0]
    assert [(e.kind, e.what, e.group, e.lane) for e in found] == [
        ("backward", "", None, "main thread"),
        ("communication", "all_reduce", (0, 1), "gloo 0"),
        ("communication", "reduce_scatter", (0, 1, 2, 3), "gloo 1"),
    ]


def test_sends_and_receives_stand_beside_what_the_same_thread_computes():
    events = [
        note("fidle: from rank 0 to rank 3", 0, 2),
        note("gloo:send", 1, 20),
        slice_("aten::mm", 3, 10),
        note("gloo:recv", 4, 25),
    ]
    found = read(trace(*events))[0]
    assert [(e.kind, e.what, e.group) for e in found] == [
        ("communication", "send", (0, 3)),
        ("compute", "", None),
        ("communication", "recv", None),
    ]


def test_a_thread_that_waits_for_a_collective_does_not_compute():
    node = backward("AllReduceBackward", 0, 100, 3)
    for wait in (note(WAIT, 40, 70), slice_("_c10d_functional::wait_tensor", 40, 70)):
        assert rows(node, wait) == [("backward", 0, 40), ("backward", 70, 100)]
    assert rows(note("compute", 0, 10), note(WAIT, 0, 10), note("compute", 20, 30)) == [("compute", 20, 30)]
    assert rows(node) == [("backward", 0, 100)]


@pytest.mark.parametrize(
    "name, word",
    {
        "gloo:all_reduce": "all_reduce",
        "c10d::allreduce_": "all_reduce",
        "c10d::_allgather_base_": "all_gather",
        "allgather_into_tensor_coalesced": "all_gather",
        "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL": "reduce_scatter",
        "_reduce_scatter_base": "reduce_scatter",
        "all_to_allv": "all_to_all",
        "ncclDevKernel_Reduce_Sum_f32_RING_LL": "reduce",
        "ncclDevKernel_SendRecv": "send and recv",
        "gloo:broadcast": "broadcast",
        "gloo:barrier": "barrier",
        "gloo:gather": "gather",
        "aten::mm": "",
    }.items(),
)
def test_collectives_have_one_word_each(name, word):
    assert collective(name) == word


# ------------------------------------------------------------------------------------------- on a GPU


def launch(correlation, at, tid=PROCESS, name="cudaLaunchKernel"):
    return slice_(name, at, at + 5, "cuda_runtime", tid=tid, cbid=211, correlation=correlation)


def kernel(name, start, end, correlation, stream=7, category="kernel", **args):
    where = {"device": 0, "context": 1, "stream": stream, "correlation": correlation}
    return slice_(name, start, end, category, pid=0, tid=stream, **where, **args)


ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
COLLECTIVE = {
    "Collective name": "allreduce",
    "In msg nelems": 4096,
    "Out msg nelems": 4096,
    "Group size": 2,
    "dtype": "Float",
    "Process Group Name": "0",
    "Process Group Description": "default_pg",
    "Process Group Ranks": "[0, 1]",
}
STEP = [
    note("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0, 15),
    slice_("aten::to", 16, 20, **{"External id": 3}),
    launch(1, 17, name="cudaMemcpyAsync"),
    kernel("Memcpy HtoD (Pinned -> Device)", 20, 90, 1, category="gpu_memcpy", bytes=65536),
    note("DistributedDataParallel.forward", 21, 60),
    forward("aten::linear", 22, 50, 0),
    forward("aten::addmm", 24, 48, 0),
    launch(2, 30),
    kernel("ampere_sgemm_128x64_tn", 100, 300, 2),
    slice_("aten::mse_loss", 51, 59, **{"Sequence number": 1, "Fwd thread id": 0, "External id": 9}),
    arrow(51),
    kernel(
        "void at::native::elementwise_kernel<4>", 300, 310, 77, **{"External id": 9}
    ),  # its launch is lost
    backward("AddmmBackward0", 60, 120, 0, tid=AUTOGRAD),
    launch(4, 70, tid=AUTOGRAD),
    kernel("ampere_sgemm_64x64_nt", 310, 600, 4),
    backward("torch::autograd::AccumulateGrad", 121, 160, 0, tid=AUTOGRAD),
    note("nccl:all_reduce", 130, 140, tid=AUTOGRAD),
    slice_("record_param_comms", 131, 139, tid=AUTOGRAD, **{"External id": 20, **COLLECTIVE}),
    launch(5, 132, tid=AUTOGRAD, name="cudaLaunchKernelExC"),
    kernel(ALL_REDUCE, 400, 800, 5, stream=20, **{"External id": 20, **COLLECTIVE}),
    slice_("nccl:all_reduce", 400, 800, "gpu_user_annotation", pid=0, tid=20),
    note("Optimizer.step#AdamW.step", 170, 200),
    launch(6, 180),
    kernel("Memset (Device)", 800, 810, 6, category="gpu_memset"),
    launch(7, 186),
    kernel("void multi_tensor_apply_kernel<2>", 810, 900, 7),
    kernel("triton_poi_fused_add_0", 900, 950, 99),  # launched outside of operators
    slice_("cudaDeviceSynchronize", 201, 950, "cuda_runtime", correlation=8),
]


def test_kernels_are_of_the_kind_of_the_operator_that_launched_them():
    found = read(trace(*STEP))[0]
    assert [(e.kind, e.what, e.lane, (e.start - BASE) / 1e3, (e.end - BASE) / 1e3) for e in found] == [
        ("data loading", "", "main thread", 0, 15),
        ("data transfer", "", "stream 7", 20, 90),
        ("forward", "", "stream 7", 100, 300),
        ("forward", "", "stream 7", 300, 310),
        ("backward", "", "stream 7", 310, 600),
        ("communication", "all_reduce", "stream 20", 400, 800),
        ("optimizer", "", "stream 7", 800, 810),
        ("optimizer", "", "stream 7", 810, 900),
        ("compute", "", "stream 7", 900, 950),
    ]
    assert next(e.group for e in found if e.what) == (0, 1)


def test_the_operators_of_the_cpu_are_kept_for_the_export():
    operators = read(trace(*STEP))[1]
    assert {"aten::linear", "aten::addmm", "DistributedDataParallel.forward"} <= {e.name for e in operators}
    assert {e.lane for e in operators} == {"main thread", "thread 1"}


def test_nccl_without_its_description_is_known_by_the_name_of_its_kernel():
    found = read(trace(kernel("ncclDevKernel_AllGather_RING_LL(args)", 0, 9, 1, stream=20)))[0]
    assert [(e.kind, e.what, e.group) for e in found] == [("communication", "all_gather", None)]
    for rank, end, other in ((0, "send", {"Dst Rank": 1}), (1, "recv", {"Src Rank": 0}), (0, "send", {})):
        named = {"Collective name": end, **other}  # PyTorch writes the other end only
        found = read(trace(kernel("ncclDevKernel_SendRecv(args)", 0, 9, 1, stream=20, **named)), rank=rank)[0]
        assert [(e.what, e.group) for e in found] == [(end, (0, 1) if other else None)]
