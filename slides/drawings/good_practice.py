"""Figures of the deck 10: large batches, sick runs, checkpoints, and which FLOPs were counted."""

import matplotlib.pyplot as plt

from fidle_utils import plots
from fidle_utils.plots import style
from fidle_utils.reference import table

from ._recorded import load_record, note_record

BLOOM_SAVE_SECONDS, BLOOM_FAILURE_SECONDS = (
    40.0,
    7 * 86400.0,
)  # chronicles: about 40 s; a GPU "every week or so"


def large_batches():
    """Errors against the batch by recipe: recorded from lesson 10, and Goyal's table."""
    record = load_record("10")
    errors = {
        recipe: {int(batch): values for batch, values in by_batch.items()}
        for recipe, by_batch in record["values"]["errors"].items()
    }
    axes = plots.plot_batch_sizes(errors, table("goyal_minibatch"))
    note_record(axes[0], record, "8 seeds")
    axes[0].figure.set_size_inches(10.5, 4.2)
    return axes[0].figure


def four_patients():
    """Loss, waiting and weights of a healthy run and of four sick ones, recorded from lesson 10."""
    record = load_record("10")
    axes = plots.plot_vital_signs(record["values"]["logs"])
    figure, note = axes[0][0].figure, note_record(axes[2][0], record)
    note.set_visible(False)  # longer than its column is wide: the layout would part the columns
    note.set_in_layout(False)
    look = {"x": 0.01, "ha": "left", "fontsize": note.get_fontsize(), "color": note.get_color()}
    figure.supxlabel(note.get_text().replace("\n", " "), **look)
    for ax, label in zip(axes[:, 0], ("loss", "waited\n(ms)", "rank"), strict=True):
        ax.set_ylabel(label)
    figure.set_size_inches(10.5, 4.4)
    return figure


def killed_and_resumed():
    """The losses of a run that was killed and started again, recorded from lesson 10."""
    record = load_record("10")
    values = record["values"]
    ax = plots.plot_attempts(values["attempts"], values["reference"], saved=range(5, 28, 5))
    note_record(ax, record, "2 ranks, torchrun")
    ax.figure.set_size_inches(10.5, 4.2)
    ax.set_title("", loc="left")
    return ax


def checkpoint_interval():
    """The share of time lost against the interval between checkpoints, with BLOOM's numbers."""
    save, failure = BLOOM_SAVE_SECONDS, BLOOM_FAILURE_SECONDS
    marks = {"Young: √(2CM)": (2 * save * failure) ** 0.5, "BLOOM: about 3 h": 3 * 3600}
    ax = plots.plot_checkpoint_interval(save, failure, marks=marks)
    ax.figure.set_size_inches(10.5, 4.1)
    ax.set_title("", loc="left")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    return ax


@style.course_style()
def flops_counted():
    """BLOOM's speed as hardware FLOPs and as model FLOPs, beside the peak of an A100."""
    run = next(row for row in table("jeanzay_bigscience_a100") if "final run" in row["notes"])
    peak = next(row["bf16_tflops"] for row in table("gpu_specs") if row["gpu"] == "A100-SXM4-80GB")
    tokens = run["global_batch"] * run["sequence_length"]
    model = 6e9 * run["parameters_billion"] * tokens / run["seconds_per_iteration"] / run["n_gpus"] / 1e12
    bars = {
        "peak of the sheet, dense": (peak, 6),
        "what the hardware did:\nHFU, recomputation counted": (run["tflops_per_gpu"], 1),
        "what the model needs:\nMFU, 6N a token": (model, 0),
    }
    ax = plt.subplots(figsize=(10.5, 3.2))[1]
    values = [value for value, _ in bars.values()]
    drawn = ax.barh(list(bars), values, 0.6, color=[plots.rank_color(color) for _, color in bars.values()])
    ax.bar_label(drawn, [f"{value:.0f}  ({value / peak:.0%})" for value in values], padding=5)
    ax.invert_yaxis()
    ax.set(xlabel="TFLOP/s of one A100", xlim=(0, 1.25 * peak))
    ax.grid(axis="y", visible=False)
    plots.source_note(ax, "published", "BLOOM's log, 384 A100 · MFU: computed")
    return ax
