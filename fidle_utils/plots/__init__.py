"""Every figure of the course. Each function draws on `ax`, or on a new figure, and returns its Axes."""

from fidle_utils.plots.collectives import plot_bus_bandwidth
from fidle_utils.plots.communication import plot_communication
from fidle_utils.plots.data_parallel import (
    plot_batch_means,
    plot_batch_split,
    plot_buckets,
    plot_drift,
    plot_equal_losses,
    plot_overlap,
    plot_ring_bytes,
)
from fidle_utils.plots.machine import plot_machine, plot_memory_sweep
from fidle_utils.plots.measures import (
    plot_bytes_sent,
    plot_loss,
    plot_moments,
)
from fidle_utils.plots.memory import plot_memory, plot_memory_over_time
from fidle_utils.plots.roofline import plot_roofline
from fidle_utils.plots.style import RANK_COLORS, presentation, rank_color, source_note
from fidle_utils.plots.throughput import plot_scaling, plot_throughput
from fidle_utils.plots.timeline import plot_timeline

__all__ = [
    "RANK_COLORS",
    "plot_batch_means",
    "plot_batch_split",
    "plot_buckets",
    "plot_bus_bandwidth",
    "plot_bytes_sent",
    "plot_communication",
    "plot_drift",
    "plot_equal_losses",
    "plot_loss",
    "plot_machine",
    "plot_memory",
    "plot_memory_over_time",
    "plot_memory_sweep",
    "plot_moments",
    "plot_overlap",
    "plot_ring_bytes",
    "plot_roofline",
    "plot_scaling",
    "plot_throughput",
    "plot_timeline",
    "presentation",
    "rank_color",
    "source_note",
]
