"""Every number of the planner that is fitted or assumed, by name, with what it was fitted on.

All else is counted (bytes, FLOPs) or read from a source. The rows used here are left out of the validation:
published.py says which they are.
"""

__all__ = []

# The part of the matmul ceiling that a large, aligned product reaches in training: the ceiling is the best
# size, alone on the GPU. It falls from generation to generation: the power cap bites, kernels get short.
# Ampere: Korthikanti Table 4, layer times (with MEMORY_FRACTION). Hopper: IDRIS, 14B on H100. Blackwell: all
# rows on GB200, whose code was not tuned for it; tuned code may do better. Volta: as Ampere. Others: assumed.
GEMM_FRACTION = {"Volta": 0.95, "Ampere": 0.95, "Hopper": 0.70, "Blackwell": 0.55, "other": 0.75}

# The part of the data sheet's memory bandwidth that element-wise kernels reach. Korthikanti Table 4.
MEMORY_FRACTION = 0.85

# Flash attention, as a part of the matmul ceiling: FlashAttention-2 reaches 50 to 73 % of the peak of an A100
# (arXiv:2307.08691) and 35 % of an H100's (arXiv:2407.08608); the same speed is assumed on Blackwell.
FLASH_FRACTION = {"Volta": 0.4, "Ampere": 0.65, "Hopper": 0.45, "Blackwell": 0.25, "other": 0.4}

# FlashAttention-3 is 1.5 to 2 times as fast on an H100 (arXiv:2407.08608, abstract).
FLASH_3_GAIN = 1.5

# The speed of a product with a size that is no multiple of 8 elements (16 bytes: no whole vectors), as a part
# of an aligned one. BigScience on one node: heads of 450.
UNALIGNED = 0.05

# Communication that runs under computation takes multiprocessors and memory bandwidth from it: the part of
# its time that is lost all the same. IDRIS, 14B on InfiniBand.
CONTENTION = 0.20

# The part of a node's links that rings reach together. InfiniBand: "80 to 90 % of the specification is the
# best case" (ml-engineering, read). Omni-Path: what is left of BigScience's batch-size warm-up after bubbles.
NETWORK_FRACTION = {"InfiniBand": 0.8, "Omni-Path": 0.55}

# GB/s that one ring reaches out of a node where that is less than the links give. PTD-P Table 2, 174.6B with
# ZeRO-3: 17 of a 25 GB/s port. IDRIS, 14B on Omni-Path: 3.5 with FSDP2, 1.9 with NeMo's container, of 12.5;
# IDRIS warns that NCCL may fall back silently to a slower path there.
RING = {"DeepSpeed ZeRO-3 2021": 17.0, "FSDP2": 3.5, "NeMo": 1.9}

# Seconds that each collective costs whatever its size, inside a node and more for each node: the smallest
# sizes of nccl_allreduce_busbw (44 µs for an all-reduce, two collectives), and NCCL's tuning.cc.
LATENCY_NODE = 25e-6
LATENCY_NETWORK = 15e-6

# Kernels of one layer in forward, and seconds in which the processor launches one: assumed, and only of
# weight for small models.
KERNELS_FUSED = 20
KERNELS_EAGER = 60
LAUNCH_SECONDS = 7e-6

# Bytes of each logit: bf16 (2), fp32 (4) and a 16-bit gradient (2). IDRIS, 14B.
LOGIT_BYTES = 8

# What nvidia-smi counts beyond the allocator's peak: CUDA's context, NCCL's buffers and DeepSpeed's buckets
# in GB, and the part by which the allocator reserves more than it gives. BigScience: one node, and 181B on
# TP 8.
CONTEXT_GB = 5.0
RESERVED = 1.08
