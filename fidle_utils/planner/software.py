"""What the software does, as a few switches with a physical cause each."""

from dataclasses import dataclass, replace

__all__ = ["SOFTWARE", "Software"]


@dataclass(frozen=True)
class Software:
    """How a framework computes, overlaps and stores. Each field is a cause that a profile shows.

    `flash`: attention without the s × s scores in memory (arXiv:2205.14135), causal half only.
    `flash_version`: 3 also for cuDNN's, both made for Hopper (arXiv:2407.08608). `fused`: norms,
    activations and dropout in few kernels (torch.compile, Megatron) or one by one (eager). `dropout`:
    dropout in training, as the GPT of 2021–22; masks are stored. `overlap_…`: the part of a communication
    that may run under computation: 0 or 1 where a text or a profile says so; that of tensor parallelism has
    a value for forward and one for backward. `gradient_bytes`: a parameter's gradient as stored, all its
    copies; `reduce_bytes`: as it is communicated; `optimizer_bytes`: fp32 parameter and two moments, 12,
    and what an implementation adds. `keeps_outputs`: a stage keeps what it sent. `fused_loss`: logits are
    never whole in memory (Liger). `nvidia_smi`: memory is what the driver counts, with CUDA's context and
    NCCL's buffers, rather than the most that PyTorch allocated. `source`: where the switches come from.
    """

    name: str = "today"
    flash: bool = True
    flash_version: int = 2
    fused: bool = True
    dropout: bool = False
    overlap_data: float = 1.0
    overlap_tensor_forward: float = 0.0
    overlap_tensor_backward: float = 0.0
    overlap_pipeline: float = 1.0
    gradient_bytes: int = 4
    reduce_bytes: int = 4
    nvidia_smi: bool = False
    fused_loss: bool = False
    optimizer_bytes: int = 12
    keeps_outputs: bool = False
    source: str = ""

    def with_(self, **changes):
        """Return the software with some switches changed."""
        return replace(self, **changes)


_MEGATRON = Software(
    "Megatron-LM 2021",
    flash=False,
    dropout=True,
    overlap_data=0,
    overlap_pipeline=0,
    gradient_bytes=2,
    reduce_bytes=2,
    source="arXiv:2104.04473, Section 4: fused kernels; nothing said to overlap; 2 + 2 + 12 bytes as in ZeRO",
)
_DEEPSPEED = _MEGATRON.with_(
    # Found while looking at all rows of BigScience, not only at those it is calibrated on: their steps cost
    # what norms and dropout cost one kernel at a time (53 passes a layer instead of 11), whatever TP and PP.
    fused=False,
    keeps_outputs=True,
    nvidia_smi=True,
    source="DeepSpeed 0.6: an fp32 copy of the gradient's shard, or bf16 gradients beside fp32 ones",
)
_LIST = (
    Software(source="PyTorch 2, torch.compile, FlashAttention-2: fp32 gradients, all of data's overlapped"),
    _MEGATRON,
    _MEGATRON.with_(
        name="Megatron-LM 2022",
        overlap_tensor_backward=1,
        source="arXiv:2205.05198, Table 4: backward is 1.55 forward: its all-reduces are hidden",
    ),
    _MEGATRON.with_(name="DeepSpeed ZeRO-3 2021", overlap_data=1, source="arXiv:2104.04473, Section 5.2"),
    _DEEPSPEED.with_(name="Megatron-DeepSpeed 2022, fp16", optimizer_bytes=16),
    _DEEPSPEED.with_(name="Megatron-DeepSpeed 2022, bf16", gradient_bytes=6, reduce_bytes=4),
    Software(
        "Megatron-core",
        flash_version=3,
        overlap_tensor_forward=0.5,
        overlap_tensor_backward=1,
        source="Megatron-LM README: overlap everywhere; its 0.5, and cuDNN's attention, are assumed",
    ),
    Software("FSDP2, compiled", source="idriscnrs/Democratizing-LLM-FT: torch.compile=True"),
    Software("FSDP2, eager", fused=False, source="idriscnrs/Democratizing-LLM-FT: torch.compile=False"),
)
SOFTWARE = {software.name: software for software in _LIST}
