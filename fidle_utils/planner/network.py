"""Seconds of a collective among ranks that stand some way apart.

Volumes: nccl-tests doc/PERFORMANCE.md, all-reduce 2(n−1)/n·S, all-gather and reduce-scatter (n−1)/n·S.
"""

from fidle_utils.planner import calibration

__all__ = ["all_reduce", "gather", "point_to_point"]


def gather(machine, n_bytes, size, stride=1, pieces=1):
    """Return the seconds of an all-gather or a reduce-scatter of `n_bytes` (the whole) among `size` ranks.

    The ranks stand `stride` apart (1: neighbours). A ring enters each node once, so that its (n−1)/n·S bytes
    cross a node's links once; where a node has several such groups at the same time, they share its links.
    `pieces`: the messages that the bytes are sent in, one after the other; each waits for its latency.
    """
    if size == 1:
        return 0.0
    g = machine.gpus_per_node
    inside = min(size, max(1, g // stride))
    volume = n_bytes * (size - 1) / size
    seconds = pieces * calibration.LATENCY_NODE + volume / (1e9 * machine.gpu_bus_gb_per_second)
    if size > inside:
        crossing = volume * (g / inside) / (1e9 * machine.node_gb_per_second * machine.network_fraction)
        if machine.ring_gb_per_second:
            crossing = max(crossing, volume / (1e9 * machine.ring_gb_per_second))
        n_nodes = size / inside
        seconds = max(seconds, crossing + pieces * calibration.LATENCY_NETWORK * n_nodes)
    return seconds


def all_reduce(machine, n_bytes, size, stride=1):
    """Return the seconds of an all-reduce: a reduce-scatter and an all-gather."""
    return 2 * gather(machine, n_bytes, size, stride)


def point_to_point(machine, n_bytes, stride):
    """Return the seconds in which every GPU of a node sends `n_bytes` to the GPU `stride` further on."""
    if stride < machine.gpus_per_node:
        return calibration.LATENCY_NODE + n_bytes / (1e9 * machine.gpu_bus_gb_per_second)
    rate = 1e9 * machine.node_gb_per_second * machine.network_fraction
    return calibration.LATENCY_NETWORK + n_bytes * machine.gpus_per_node / rate
