"""Pipeline schedules against closed forms, the order of PyTorch's schedules, and published bubble rates."""

import random
import re
import subprocess
import sys
from itertools import product

import pytest
from torch.distributed.pipelining import schedules as pytorch

from fidle_utils.reference import table
from fidle_utils.schedules import (
    SCHEDULES,
    DeadlockError,
    Operation,
    Schedule,
    clock,
    gpipe,
    interleaved,
    one_f_one_b,
    zb_h1,
    zb_h2,
    zb_v,
)

SIZES = list(product((1, 2, 3, 4, 7), (1, 2, 3, 4, 8, 13)))
GROUPS = list(product((1, 2, 3, 4), (2, 3, 4), (1, 2, 5)))
EXACT = 1e-9


def durations(seed=0):
    """Three random durations in which W is the shortest, as for transformers."""
    generator = random.Random(seed)
    forward, backward = generator.uniform(1, 3), generator.uniform(1, 3)
    return forward, backward, generator.uniform(0, min(forward, backward))


# ---------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_and_1f1b_take_m_plus_p_minus_1_turns(make, p, m):
    forward, backward, weight = durations(p * m)
    done, own = make(p, m).simulate(forward, backward, weight), forward + backward + weight
    assert done.total == pytest.approx((m + p - 1) * own, abs=EXACT)
    assert done.longest_rank == pytest.approx(done.total, abs=EXACT)
    assert done.busy == pytest.approx([m * own] * p, abs=EXACT)
    assert done.idle == pytest.approx([(p - 1) * own] * p, abs=EXACT)
    assert done.bubble_of_ideal == pytest.approx((p - 1) / m, abs=EXACT)
    assert done.bubble_of_total == pytest.approx((p - 1) / (m + p - 1), abs=EXACT)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_holds_m_micro_batches_and_1f1b_at_most_p_minus_rank(p, m):
    assert gpipe(p, m).peak_activations() == [m] * p
    assert one_f_one_b(p, m).peak_activations() == [min(m, p - rank) for rank in range(p)]


@pytest.mark.parametrize(("p", "v", "groups"), GROUPS)
def test_interleaving_divides_the_bubble_by_v_and_costs_activations(p, v, groups):
    m = p * groups
    made = interleaved(p, m, v)
    done = made.simulate(*durations(p * v))
    assert done.bubble_of_ideal == pytest.approx((p - 1) / (v * m), abs=EXACT)
    if groups > 1:
        assert made.peak_activations()[0] == pytest.approx(p * (1 + (p - 1) / (p * v)), abs=EXACT)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= p])
def test_zb_h1_fills_the_end_with_w_in_the_memory_of_1f1b(p, m):
    forward, backward, weight = durations(p + m)
    done = zb_h1(p, m).simulate(forward, backward, weight)
    ideal = m * (forward + backward + weight)
    assert done.total == pytest.approx(ideal + (p - 1) * (forward + backward - weight), abs=EXACT)
    for kept in (0, 0.5, 32 / 34, 1):
        assert max(zb_h1(p, m).peak_activations(kept)) == pytest.approx(p, abs=EXACT)
    # The last rank: p − 1 micro-batches wait for W when the next activation comes.
    assert zb_h1(p, m).peak_activations(0.5)[-1] == pytest.approx(1 + 0.5 * (p - 1), abs=EXACT)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= 2 * p - 1])
def test_zb_h2_starts_early_and_ends_late_in_twice_the_memory(p, m):
    lost = zb_h2(p, m).simulate(3, 2.5, 2).longest_rank - m * 7.5
    assert lost == pytest.approx((p - 1) * (3 + 2.5 - 2 * 2), abs=EXACT)
    assert zb_h2(p, m).simulate().bubble_rate == pytest.approx(0, abs=EXACT)
    assert zb_h2(p, m).peak_activations(0) == [2 * (p - rank) - 1 for rank in range(p)]
    assert zb_h2(p, m).peak_activations(1) == [2 * p - 1] * p


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= 2 * p - 1])
def test_zb_v_has_no_bubble_when_f_b_and_w_are_equal(p, m):
    done = zb_v(p, m).simulate(2, 2, 2)
    assert done.longest_rank == pytest.approx(6 * m, abs=EXACT)
    assert done.bubble_rate == pytest.approx(0, abs=EXACT)
    # The last rank begins p − 1 stages of duration 2/2 later than the first.
    assert done.total == pytest.approx(6 * m + p - 1, abs=EXACT)
    for kept in (0, 1):
        assert zb_v(p, m).peak_activations(kept) == [p] * p


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_events_keep_every_dependency_and_no_rank_does_two_things(make):
    done = make(4, 8).simulate(1.3, 1.7, 0.6, communication=0.25)
    home = done.schedule.rank_of_stage
    ends = {(kind.replace("BW", "B"), i, stage): end for _, kind, i, stage, _, end in done.events}
    for rank, kind, i, stage, start, _ in done.events:
        needs = {"F": [("F", stage - 1)], "W": [("B", stage)]}.get(kind, [("F", stage), ("B", stage + 1)])
        for needed, at in needs:
            if 0 <= at < len(home):
                assert start >= ends[needed, i, at] + 0.25 * (home[at] != rank) - EXACT
    for rank, mine in enumerate(done.schedule.order):
        events = [event for event in done.events if event.rank == rank]
        assert [event[1:4] for event in events] == [tuple(operation) for operation in mine]
        assert all(a.end <= b.start + EXACT for a, b in zip(events, events[1:], strict=False))


def test_communication_counted_by_hand():
    # Two ranks, one micro-batch: F, message, F, B, message, B.
    done = gpipe(2, 1).simulate(1, 2, 3, communication=0.5)
    assert [(e.rank, e.kind, e.start, e.end) for e in done.events] == [
        (0, "F", 0, 1),
        (1, "F", 1.5, 2.5),
        (1, "BW", 2.5, 7.5),
        (0, "BW", 8, 13),
    ]
    # The turn of ZB-V is on one rank: no message between stages 1 and 2.
    starts = {(e.kind, e.stage): e.start for e in zb_v(2, 1).simulate(2, 2, 2, communication=0.5).events}
    assert [starts["F", stage] for stage in range(4)] == [0, 1.5, 2.5, 4]


@pytest.mark.parametrize(("m", "c"), [(1, 0.5), (4, 0.5), (6, 2)])
def test_a_receiver_that_takes_its_messages_itself_pays_for_each(m, c):
    # Rank 1 takes m activations, then rank 0 m gradients, one after the other and nothing beside them.
    done = gpipe(2, m).simulate(1, 2, 3, communication=c, overlap=False)
    assert done.total == pytest.approx(1 + m * (c + 1) + 5 + m * (c + 5), abs=EXACT)
    for make in SCHEDULES.values():
        hidden, paid = (make(4, 8).simulate(1, 1, 1, c, overlap).total for overlap in (True, False))
        assert hidden <= paid + EXACT
        assert make(4, 8).simulate(overlap=False).total == pytest.approx(make(4, 8).simulate().total)


def test_messages_are_two_a_micro_batch_and_border():
    for make in (gpipe, one_f_one_b, zb_h1, zb_h2):
        assert make(4, 8).n_messages == 2 * 8 * 3
    for v in (2, 3):
        made = interleaved(4, 8, v)
        assert made.n_messages == 2 * 8 * (4 * v - 1)
    assert zb_v(4, 8).n_messages == 2 * 8 * (7 - 1)  # the turn of the V stays on its rank


def test_a_list_gives_every_stage_its_own_duration():
    # A slow stage sets the pace: its m operations, the way there and the way back.
    done = gpipe(3, 4).simulate([1, 5, 1], [1, 5, 1], [0, 0, 0])
    assert done.total == 1 + 4 * 5 + 1 + 1 + 4 * 5 + 1
    with pytest.raises(ValueError, match="forward has 2 durations: give one for each of 3 stages"):
        gpipe(3, 4).simulate([1, 2])


class Stage:
    """What PyTorch's schedules ask of a stage, without a model or a process group; it records the order."""

    submod = None

    def __init__(self, stage_index, n_ranks, n_stages):
        self.stage_index, self.num_stages = stage_index, n_stages
        self.group_size, self.group_rank = n_ranks, stage_index % n_ranks
        self.is_first, self.is_last = stage_index == 0, False  # no loss
        self.done = []

    def forward_one_chunk(self, micro_batch, *_, **__):
        self.done.append(("F", micro_batch, self.stage_index))

    def backward_one_chunk(self, micro_batch, *_, **__):
        self.done.append(("BW", micro_batch, self.stage_index))

    def __getattr__(self, name):
        if name.startswith(("get_", "perform_", "scale_")):
            return lambda *_, **__: []
        raise AttributeError(name)


def executed_by_pytorch(cls, p, m):
    """The order that a schedule of one stage a rank really executes."""
    order = []
    for rank in range(p):
        made = cls(Stage(rank, p, p), m)
        made._initialize_stage = lambda *_, **__: None
        made._step_microbatches()
        order.append(tuple(made._stage.done))
    return tuple(order)


def planned_by_pytorch(cls, p, m, v):
    """The order in `pipeline_order`, without idle turns and without the reduction of gradients."""
    made = cls([Stage(i * p, p, p * v) for i in range(v)], m)
    kinds = {"F": "F", "I": "B", "W": "W", "B": "BW"}
    order = []
    for rank in range(p):
        found = [re.fullmatch(r"(\d+)([FIWB])(\d+)", str(action)) for action in made.pipeline_order[rank]]
        order.append(tuple((kinds[f[2]], int(f[3]), int(f[1])) for f in found if f))
    return tuple(order)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_and_1f1b_are_what_pytorch_executes(p, m):
    assert gpipe(p, m).order == executed_by_pytorch(pytorch.ScheduleGPipe, p, m)
    if m >= p:  # PyTorch refuses less
        assert one_f_one_b(p, m).order == executed_by_pytorch(pytorch.Schedule1F1B, p, m)


@pytest.mark.parametrize(("p", "v", "groups"), GROUPS)
def test_interleaved_is_the_order_of_pytorch(p, v, groups):
    expected = planned_by_pytorch(pytorch.ScheduleInterleaved1F1B, p, p * groups, v)
    assert interleaved(p, p * groups, v).order == expected


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m % max(1, m // p) == 0])
def test_zb_h1_is_pytorchs_interleaved_zero_bubble_with_one_stage_a_rank(p, m):
    assert zb_h1(p, m).order == planned_by_pytorch(pytorch.ScheduleInterleavedZeroBubble, p, m, 1)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zb_v_is_the_order_of_pytorch(p, m):
    assert zb_v(p, m).order == planned_by_pytorch(pytorch.ScheduleZBVZeroBubble, p, m, 2)


# ------------------------------------------------------------------------------------ published tables

# µs of F, B, W and communication that the paper's authors published with their scheduler: `settings` in
# megatron/core/pipeline_parallel/v_schedule.py of github.com/sail-sg/zero-bubble-pipeline-parallelism,
# commit 5234a81.
PRINTED = 5.1e-5  # four decimals
PROFILES = {
    (1.5, 24): (18522, 18086, 9337, 601),
    (1.5, 32): (18513, 18086, 9331, 626),
    (1.5, 64): (18546, 18097, 9321, 762),
    (6.2, 24): (29718, 29444, 19927, 527),
    (6.2, 32): (29802, 29428, 19530, 577),
    (6.2, 64): (29935, 29621, 19388, 535),
    (14.6, 48): (11347, 11248, 8132, 377),
    (14.6, 64): (11307, 11254, 8101, 379),
    (14.6, 128): (11325, 11308, 8109, 378),
    (28.3, 96): (10419, 10207, 7715, 408),
    (28.3, 128): (10408, 10204, 7703, 408),
    (28.3, 256): (10402, 10248, 7698, 460),
}


@pytest.mark.parametrize(("size", "m"), PROFILES)
def test_bubble_rates_are_those_of_the_zero_bubble_paper(size, m, monkeypatch):
    rows = table("zero_bubble", parameters_billion=size, n_micro_batches=m)
    published, p = {row["schedule"]: row["bubble_rate"] for row in rows}, rows[0]["pp"]
    profile = PROFILES[size, m]
    for name, make in (("1F1B", one_f_one_b), ("ZB-H1", zb_h1), ("ZB-H2", zb_h2)):
        assert make(p, m).simulate(*profile).bubble_rate == pytest.approx(published[name], abs=PRINTED), name
    # One layer a stage: the embedding and the loss take the places of two more layers.
    made = interleaved(p, m, (rows[0]["layers"] + 2) // p)
    # The authors' estimate makes only the first micro-batch of each group of p wait for its message around
    # the ring, from rank p − 1 to rank 0 or back; the others start before their input is there: `_rk == 0` in
    # get_interleave_schedule, megatron/core/pipeline_parallel/efficiency.py, same repository, commit f68d387.
    # With all of them waiting, as they must, a step takes p messages longer.
    ours, needs = made.simulate(*profile), clock._needs

    def hasty(schedule, operation):
        return [
            needed
            for needed in needs(schedule, operation)
            if operation.micro_batch % p == 0 or abs(_ranks_apart(schedule, operation, needed)) != p - 1
        ]

    monkeypatch.setattr(clock, "_needs", hasty)
    theirs = made.simulate(*profile)
    assert theirs.bubble_rate == pytest.approx(published["1F1B-I"], abs=PRINTED)
    assert ours.total - theirs.total == pytest.approx(p * profile[3], abs=1e-3)
    assert ours.bubble_rate == pytest.approx(published["1F1B-I"], rel=0.05)


def _ranks_apart(schedule, operation, needed):
    return schedule.rank_of_stage[operation.stage] - schedule.rank_of_stage[needed[2]]


def test_an_impossible_order_is_a_deadlock_that_names_rank_and_operation():
    good = one_f_one_b(2, 2)
    swapped = [good.order[0], [good.order[1][i] for i in (1, 0, 2, 3)]]  # a backward before its forward
    with pytest.raises(DeadlockError) as error:
        Schedule("mine", swapped).simulate()
    assert "rank 1 stands at BW of micro-batch 0 on stage 1" in str(error.value)
    assert "waits for F of micro-batch 0 on stage 1 (rank 1)" in str(error.value)
    assert "rank 0 stands at BW of micro-batch 0 on stage 0" in str(error.value)
    w_first = [Operation(kind, 0, 0) for kind in ("F", "W", "B")]
    with pytest.raises(DeadlockError, match="stands at W of micro-batch 0 on stage 0 and waits for B"):
        Schedule("mine", [w_first]).simulate()


def test_an_order_that_is_not_whole_is_refused():
    first, second = gpipe(2, 2).order
    with pytest.raises(ValueError, match="stage 1 does F for micro-batch 1: it must do F, B and W"):
        Schedule("mine", [first, second[:-1]])
    with pytest.raises(ValueError, match="stage 1 does BW, F, F for micro-batch 0"):
        Schedule("mine", [first, [second[0], *second]])
    with pytest.raises(
        ValueError, match="rank 1 cannot do F of micro-batch 1 on stage 0: that stage is on rank 0"
    ):
        Schedule("mine", [first, [Operation("F", 1, 0), *second]], rank_of_stage=[0, 1])
    with pytest.raises(ValueError, match="rank_of_stage has 1 ranks for 2 stages"):
        Schedule("mine", [first, second], rank_of_stage=[0])
    with pytest.raises(ValueError, match="rank 2 of mine has nothing to do"):
        Schedule("mine", [first, second, []])
    with pytest.raises(ValueError, match="F of micro-batch -1 on stage 0: count micro-batches from 0"):
        Schedule("mine", [[Operation("F", -1, 0), *first], second])
    with pytest.raises(ValueError, match="without a gap"):
        Schedule("mine", [first, [operation._replace(stage=2) for operation in second]])


def test_sizes_that_do_not_fit_are_refused_with_what_to_take_instead():
    with pytest.raises(ValueError, match="groups of 4 micro-batches, and 6 is no multiple: take 8"):
        interleaved(4, 6)
    with pytest.raises(ValueError, match="take one_f_one_b"):
        interleaved(4, 8, 1)
    for make, wrong in product(SCHEDULES.values(), [(0, 4), (4, 0), (2, 2.5)]):
        with pytest.raises(ValueError, match="take a whole number, 1 or more"):
            make(*wrong)
    with pytest.raises(ValueError, match="communication=-1"):
        gpipe(2, 2).simulate(communication=-1)
    with pytest.raises(ValueError, match="a time is 0 or more"):
        gpipe(2, 2).simulate(forward=-1)
    with pytest.raises(ValueError, match="every duration is 0"):
        gpipe(2, 2).simulate(0, 0, 0)
    with pytest.raises(ValueError, match="kept_for_w=2"):
        gpipe(2, 2).peak_activations(2)


def test_schedules_import_no_torch():
    code = "import sys, fidle_utils.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
