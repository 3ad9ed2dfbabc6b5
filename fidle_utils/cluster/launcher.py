import os
import re
import subprocess

# Who am I, among how many? torchrun says so in RANK and its like. srun (and submitit, which uses it) has
# other names for the same numbers. A plain `python` says nothing: it is alone.
env = os.environ
if "RANK" not in env and "SLURM_STEP_NUM_TASKS" in env:  # a task of srun; a batch script itself is none
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    tasks = re.findall(r"(?:^|,)(\d+)", env["SLURM_STEP_TASKS_PER_NODE"])  # "4(x2),3": nodes of 4, 4 and 3
    env["LOCAL_WORLD_SIZE"] = max(tasks, key=int)
    if "MASTER_ADDR" not in env:  # meet at the first node, on a port that this job has for itself
        nodes = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
        env["MASTER_ADDR"] = subprocess.check_output(nodes, text=True).split()[0]
        env["MASTER_PORT"] = str(10000 + int(env["SLURM_JOB_ID"]) % 20000)
elif "RANK" not in env:
    env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    env.update(MASTER_ADDR="localhost", MASTER_PORT="0")
