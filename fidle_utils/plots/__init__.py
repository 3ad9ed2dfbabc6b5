"""Every figure of the course. Each function draws on `ax`, or on a new figure, and returns its Axes."""

from fidle_utils.plots.data_parallel import (
    plot_batch_means,
    plot_batch_split,
    plot_buckets,
    plot_drift,
    plot_equal_losses,
    plot_overlap,
    plot_ring_bytes,
)
from fidle_utils.plots.measures import (
    plot_bytes_sent,
    plot_loss,
    plot_machine,
    plot_moments,
    plot_scaling,
    plot_timeline,
)
from fidle_utils.plots.style import RANK_COLORS, rank_color, source_note

__all__ = [
    "RANK_COLORS",
    "plot_batch_means",
    "plot_batch_split",
    "plot_buckets",
    "plot_bytes_sent",
    "plot_drift",
    "plot_equal_losses",
    "plot_loss",
    "plot_machine",
    "plot_moments",
    "plot_overlap",
    "plot_ring_bytes",
    "plot_scaling",
    "plot_timeline",
    "rank_color",
    "source_note",
]
