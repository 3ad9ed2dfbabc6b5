import os

import torch
import torch.distributed as dist

rank = int(os.environ["RANK"])  # my number among all ranks
world_size = int(os.environ["WORLD_SIZE"])  # how many ranks there are
local_rank = int(os.environ["LOCAL_RANK"])  # my number on this machine

# One GPU for each rank: NCCL. Otherwise every rank computes on the CPU and talks through gloo.
gpu_each = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
device = torch.device(os.environ.get("RANKS_DEVICE") or (f"cuda:{local_rank}" if gpu_each else "cpu"))
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group(os.environ.get("RANKS_BACKEND") or ("nccl" if device.type == "cuda" else "gloo"))
