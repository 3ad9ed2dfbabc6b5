"""Arithmetic of intervals of time: pairs (start, end). Lists of intervals are returned sorted and disjoint.

Intervals that only touch do not overlap; the union of (0, 1) and (1, 2) is (0, 2). Whole numbers stay whole.
"""

__all__ = ["intersect", "length", "subtract", "tracks", "union"]


def union(intervals):
    """Return the times that lie in at least one of the intervals."""
    merged = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [tuple(interval) for interval in merged]


def intersect(first, second):
    """Return the times that lie in an interval of both lists."""
    first, second, common, i, j = union(first), union(second), [], 0, 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            common.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return common


def subtract(first, second):
    """Return the times that lie in an interval of `first` and in none of `second`."""
    second, rest, j = union(second), [], 0
    for start, end in union(first):
        while j < len(second) and second[j][1] <= start:
            j += 1
        i = j
        while i < len(second) and second[i][0] < end:
            if start < second[i][0]:
                rest.append((start, second[i][0]))
            start = second[i][1]
            i += 1
        if start < end:
            rest.append((start, end))
    return rest


def length(intervals):
    """Return how long the union of the intervals is: what overlaps counts once."""
    return sum(end - start for start, end in union(intervals))


def tracks(intervals):
    """Return a track for each interval, numbered from 0: few, and intervals of one do not overlap."""
    numbers, ends = [0] * len(intervals), []
    for i in sorted(range(len(intervals)), key=lambda i: intervals[i]):
        start, end = intervals[i]
        free = next((number for number, until in enumerate(ends) if until <= start), len(ends))
        ends[free:] = [end, *ends[free + 1 :]]
        numbers[i] = free
    return numbers
