"""The schedules of the papers. p is `n_ranks`, m `n_micro_batches`, v `n_virtual_stages`."""

from collections import Counter

from fidle_utils.schedules.schedule import Operation, Schedule

__all__ = ["SCHEDULES", "gpipe", "interleaved", "one_f_one_b", "zb_h1", "zb_h2", "zb_v"]


def gpipe(n_ranks, n_micro_batches):
    """Return GPipe: every forward, then every backward (Huang et al. 2019, arXiv:1811.06965, Section 2.3).

    Backwards go in the order of the forwards, as PyTorch does it; the paper draws them in reverse. Time and
    peak are the same. Total (m+p−1)(F+B+W); each rank holds m micro-batches.
    """
    _check_sizes(n_ranks, n_micro_batches)
    kinds = ("F", "BW")
    order = [
        [Operation(kind, i, rank) for kind in kinds for i in range(n_micro_batches)]
        for rank in range(n_ranks)
    ]
    return Schedule("GPipe", order)


def one_f_one_b(n_ranks, n_micro_batches):
    """Return 1F1B with a flush: one forward, one backward, as soon as a backward can start.

    Total (m+p−1)(F+B+W) like GPipe, but rank r holds min(m, p−r) micro-batches. PipeDream-flush, Narayanan
    et al. 2021, arXiv:2006.09503, and arXiv:2104.04473, Section 2.2.1.
    """
    _check_sizes(n_ranks, n_micro_batches)
    order = [
        _alternate(*_turns(rank, n_ranks, n_micro_batches, 1), warm_up=n_ranks - 1 - rank)
        for rank in range(n_ranks)
    ]
    return Schedule("1F1B", order)


def interleaved(n_ranks, n_micro_batches, n_virtual_stages=2):
    """Return interleaved 1F1B: rank r holds the v stages r, r+p, r+2p … (arXiv:2104.04473, Section 2.2.2).

    The bubble is (p−1)/(v·m) of the ideal time, v times smaller; there are v times more messages, and rank 0
    holds p·(1 + (p−1)/(p·v)) micro-batches if m ≥ 2p (arXiv:2205.05198, Section 4.2.3). Micro-batches go by
    groups of p, so m must be a multiple of p. Megatron-LM runs all forwards first where m = p; this does not.
    """
    _check_sizes(n_ranks, n_micro_batches, n_virtual_stages)
    if n_virtual_stages < 2:
        raise ValueError("interleaved with 1 stage a rank: take one_f_one_b, or 2 stages or more")
    if n_micro_batches % n_ranks:
        more = n_micro_batches + -n_micro_batches % n_ranks
        raise ValueError(
            f"interleaved goes by groups of {n_ranks} micro-batches, and {n_micro_batches} is no multiple: "
            f"take {more} micro-batches, or one_f_one_b"
        )
    order = [
        _alternate(
            *_turns(rank, n_ranks, n_micro_batches, n_virtual_stages),
            warm_up=(n_virtual_stages - 1) * n_ranks + 2 * (n_ranks - 1 - rank),
        )
        for rank in range(n_ranks)
    ]
    return Schedule("interleaved 1F1B", order)


def zb_h1(n_ranks, n_micro_batches):
    """Return ZB-H1: 1F1B whose W are put off by `rank` micro-batches, to fill the end of the step.

    Total m(F+B+W) + (p−1)(F+B−W) where W ≤ F, W ≤ B and m ≥ p, with no more memory than 1F1B (Qi et al. 2024,
    arXiv:2401.10241, Section 2.1 and Table 2).
    """
    _check_sizes(n_ranks, n_micro_batches)
    order = [
        _alternate(*_turns(rank, n_ranks, n_micro_batches, 1), warm_up=n_ranks - 1 - rank, w_behind=rank)
        for rank in range(n_ranks)
    ]
    return Schedule("ZB-H1", order)


def zb_h2(n_ranks, n_micro_batches):
    """Return ZB-H2: ZB-H1 with up to 2p−1 forwards first, and W put off twice as far.

    A rank loses (p−1)(F+B−2W) from its first start to its last end, nothing if F = B = W; the first ranks
    hold up to 2p−1 micro-batches. For m ≥ 2p−1 (arXiv:2401.10241, Section 2.2 and Table 2).
    """
    _check_sizes(n_ranks, n_micro_batches)
    order = [
        _alternate(
            *_turns(rank, n_ranks, n_micro_batches, 1), warm_up=2 * (n_ranks - 1 - rank), w_behind=2 * rank
        )
        for rank in range(n_ranks)
    ]
    return Schedule("ZB-H2", order)


def zb_v(n_ranks, n_micro_batches):
    """Return ZB-V: rank r holds stages r and 2p−1−r, so that a micro-batch goes down and up the ranks.

    No rank waits once it has started if F = B = W, communication is 0 and m ≥ 2p−1; each holds p
    micro-batches, like the first rank of 1F1B (Qi et al. 2024, arXiv:2401.10241, Section 6). With other
    durations the paper searches an order by heuristic; this one stays. With fewer micro-batches it is the
    order for 2p−1 of them without those that do not exist, as PyTorch does it.
    """
    _check_sizes(n_ranks, n_micro_batches)
    return Schedule("ZB-V", [_zb_v_rank(rank, n_ranks, n_micro_batches) for rank in range(n_ranks)])


SCHEDULES = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "interleaved 1F1B": interleaved,
    "ZB-H1": zb_h1,
    "ZB-H2": zb_h2,
    "ZB-V": zb_v,
}


def _turns(rank, n_ranks, n_micro_batches, n_virtual_stages):
    """The (micro-batch, stage) of a rank's forwards, then of its backwards, in groups of p."""
    held = range(rank, n_ranks * n_virtual_stages, n_ranks)
    return [
        [
            (micro_batch, stage)
            for first in range(0, n_micro_batches, n_ranks)
            for stage in stages
            for micro_batch in range(first, min(first + n_ranks, n_micro_batches))
        ]
        for stages in (held, held[::-1])
    ]


def _alternate(forwards, backwards, warm_up, w_behind=None):
    """`warm_up` forwards, then one forward and one backward in turn; W stands `w_behind` backwards later."""
    warm_up = min(warm_up, len(forwards))
    order = [Operation("F", *forward) for forward in forwards[:warm_up]]
    for i, backward in enumerate(backwards):
        order += [Operation("F", *forward) for forward in forwards[warm_up + i :][:1]]
        order.append(Operation("BW" if w_behind is None else "B", *backward))
        if w_behind is not None and i >= w_behind:
            order.append(Operation("W", *backwards[i - w_behind]))
    if w_behind:
        order += [Operation("W", *backward) for backward in backwards[-w_behind:]]
    return order


def _zb_v_rank(rank, n_ranks, n_micro_batches):
    down, up = rank, 2 * n_ranks - 1 - rank  # the stages on the way to the last rank and on the way back
    below = n_ranks - rank
    n_planned = max(n_micro_batches, 2 * n_ranks - 1)
    plan = [("F", down)] * (2 * below - 1) + [("F", up), ("F", down)] * rank
    plan += [("F", up), ("B", up), ("W", up)] * below
    for i in range(n_planned - n_ranks):
        plan += [("F", down)] if i < n_planned - 2 * n_ranks + 1 + rank else []
        plan += [("B", down), ("W", down), ("F", up), ("B", up), ("W", up)]
    plan += [("B", down), ("B", up)] * rank + [("B", down), ("W", down)] * below
    plan += [("W", up)] * rank + [("W", down)] * rank

    order, seen = [], Counter()
    for kind, stage in plan:
        order.append(Operation(kind, seen[kind, stage], stage))
        seen[kind, stage] += 1
    return [operation for operation in order if operation.micro_batch < n_micro_batches]


def _check_sizes(n_ranks, n_micro_batches, n_virtual_stages=1):
    for name, value in (
        ("ranks", n_ranks),
        ("micro-batches", n_micro_batches),
        ("virtual stages", n_virtual_stages),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{value!r} {name}: take a whole number, 1 or more")
