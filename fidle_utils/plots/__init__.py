"""Every figure of the course. Each function draws on `ax`, or on a new figure, and returns its Axes."""

from fidle_utils.plots.collectives import plot_bus_bandwidth
from fidle_utils.plots.communication import plot_communication
from fidle_utils.plots.conversation import (
    plot_algorithms,
    plot_alpha_beta,
    plot_buffers,
    plot_collective,
    plot_film,
    plot_links,
)
from fidle_utils.plots.data_parallel import (
    plot_batch_means,
    plot_batch_split,
    plot_buckets,
    plot_drift,
    plot_equal_losses,
    plot_overlap,
    plot_ring_bytes,
)
from fidle_utils.plots.deepspeed_engine import (
    plot_error_feedback,
    plot_estimates,
    plot_held_bytes,
    plot_sent_bytes,
)
from fidle_utils.plots.good_practice import (
    plot_attempts,
    plot_batch_sizes,
    plot_checkpoint_interval,
    plot_files,
    plot_vital_signs,
)
from fidle_utils.plots.jean_zay import plot_node, plot_transfer_times
from fidle_utils.plots.machine import plot_machine, plot_memory_sweep
from fidle_utils.plots.measures import plot_bytes_sent, plot_loss, plot_moments
from fidle_utils.plots.memory import plot_memory, plot_memory_over_time
from fidle_utils.plots.mesh import plot_cluster, plot_grid, plot_group_bytes, plot_mesh
from fidle_utils.plots.mesh_costs import (
    plot_crossing,
    plot_drops,
    plot_expert_load,
    plot_topologies,
    plot_two_networks,
)
from fidle_utils.plots.model_parallel import (
    plot_layer_times,
    plot_matrix_split,
    plot_model_cuts,
    plot_parallel_block,
    plot_ring_attention,
    plot_tensor_parallel_scaling,
)
from fidle_utils.plots.one_device import (
    plot_accumulation,
    plot_loss_scaling,
    plot_memory_ladder,
    plot_number_formats,
    plot_orders,
    plot_timelines,
    plot_waves,
    plot_workers,
)
from fidle_utils.plots.pipeline import plot_measured_schedule, plot_schedule, plot_schedules
from fidle_utils.plots.pipeline_costs import (
    plot_batch_ramp,
    plot_bubble,
    plot_message_cost,
    plot_peak_activations,
    plot_published_bubbles,
    plot_published_gpipe,
    plot_staleness,
    plot_time_and_memory,
)
from fidle_utils.plots.planning import (
    plot_layouts,
    plot_plan_memory,
    plot_plan_time,
    plot_planner_errors,
    plot_validation,
)
from fidle_utils.plots.roofline import plot_roofline
from fidle_utils.plots.sharding import (
    plot_activation_terms,
    plot_gathered,
    plot_offload,
    plot_shards,
    plot_stages,
    plot_who_holds_what,
    plot_zero_table,
)
from fidle_utils.plots.steps import plot_step, plot_steps
from fidle_utils.plots.style import RANK_COLORS, presentation, rank_color, source_note
from fidle_utils.plots.throughput import plot_scaling, plot_throughput
from fidle_utils.plots.timeline import plot_timeline

__all__ = [
    "RANK_COLORS",
    "plot_accumulation",
    "plot_activation_terms",
    "plot_algorithms",
    "plot_alpha_beta",
    "plot_attempts",
    "plot_batch_means",
    "plot_batch_ramp",
    "plot_batch_sizes",
    "plot_batch_split",
    "plot_bubble",
    "plot_buckets",
    "plot_buffers",
    "plot_bus_bandwidth",
    "plot_bytes_sent",
    "plot_checkpoint_interval",
    "plot_cluster",
    "plot_collective",
    "plot_communication",
    "plot_crossing",
    "plot_drift",
    "plot_drops",
    "plot_equal_losses",
    "plot_error_feedback",
    "plot_estimates",
    "plot_expert_load",
    "plot_files",
    "plot_film",
    "plot_gathered",
    "plot_grid",
    "plot_group_bytes",
    "plot_held_bytes",
    "plot_layer_times",
    "plot_layouts",
    "plot_links",
    "plot_loss",
    "plot_loss_scaling",
    "plot_machine",
    "plot_matrix_split",
    "plot_measured_schedule",
    "plot_memory",
    "plot_memory_ladder",
    "plot_memory_over_time",
    "plot_memory_sweep",
    "plot_mesh",
    "plot_message_cost",
    "plot_model_cuts",
    "plot_moments",
    "plot_node",
    "plot_number_formats",
    "plot_offload",
    "plot_orders",
    "plot_overlap",
    "plot_parallel_block",
    "plot_peak_activations",
    "plot_plan_memory",
    "plot_plan_time",
    "plot_planner_errors",
    "plot_published_bubbles",
    "plot_published_gpipe",
    "plot_ring_attention",
    "plot_ring_bytes",
    "plot_roofline",
    "plot_scaling",
    "plot_schedule",
    "plot_schedules",
    "plot_sent_bytes",
    "plot_shards",
    "plot_stages",
    "plot_staleness",
    "plot_step",
    "plot_steps",
    "plot_tensor_parallel_scaling",
    "plot_throughput",
    "plot_time_and_memory",
    "plot_timeline",
    "plot_timelines",
    "plot_topologies",
    "plot_transfer_times",
    "plot_two_networks",
    "plot_validation",
    "plot_vital_signs",
    "plot_waves",
    "plot_who_holds_what",
    "plot_workers",
    "plot_zero_table",
    "presentation",
    "rank_color",
    "source_note",
]
