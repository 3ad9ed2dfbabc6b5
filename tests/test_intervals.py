"""Intervals against counting milliseconds one by one, and the cases where one usually errs."""

import random

import pytest

from fidle_utils.measure.intervals import intersect, length, subtract, tracks, union


def points(intervals):
    """The whole numbers that lie in the intervals: the reference, slow and without a rule to get wrong."""
    return {point for start, end in intervals for point in range(start, end)}


def some(seed):
    draw = random.Random(seed)
    starts = [draw.randrange(60) for _ in range(draw.randrange(12))]
    return [(start, start + draw.randrange(15)) for start in starts]


@pytest.mark.parametrize("seed", range(200))
def test_they_agree_with_counting(seed):
    first, second = some(seed), some(1000 + seed)
    assert points(union(first)) == points(first)
    assert points(intersect(first, second)) == points(first) & points(second)
    assert points(subtract(first, second)) == points(first) - points(second)
    assert length(first) == len(points(first))
    for result in (union(first), intersect(first, second), subtract(first, second)):
        assert all(start < end for start, end in result)
        assert all(one[1] < two[0] or one[1] == two[0] for one, two in zip(result, result[1:], strict=False))


def test_a_union_has_no_seams():
    assert union([(1, 2), (0, 1), (5, 5), (1, 3)]) == [(0, 3)]


def test_tracks_hold_nothing_that_overlaps_and_are_few():
    assert tracks([(0, 10), (5, 6), (6, 9), (10, 11)]) == [0, 1, 1, 0]
    assert tracks([]) == []
    for seed in range(50):
        intervals = some(seed)
        numbers = tracks(intervals)
        for track in set(numbers):
            mine = [interval for interval, number in zip(intervals, numbers, strict=True) if number == track]
            assert length(mine) == sum(end - start for start, end in mine)
        busiest = max((sum(start <= t < end for start, end in intervals) for t in range(80)), default=0)
        assert len({n for n, (a, b) in zip(numbers, intervals, strict=True) if a < b}) <= max(busiest, 1)
