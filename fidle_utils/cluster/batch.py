"""A batch script: what is asked of Slurm, and the lines that start the ranks."""

import os
import shlex
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fidle_utils.cluster.errors import ClusterError
from fidle_utils.cluster.profiles import profile as named
from fidle_utils.cluster.profiles import seconds

__all__ = ["Batch"]

LAUNCHERS = ("srun", "torchrun")
COMMENT_COLUMN = 44
ROOT = Path(__file__).parents[2]  # the folder that holds fidle_utils


@dataclass(frozen=True)
class Batch:
    """A job for `script`, a path: `nodes` × `ntasks_per_node` ranks on the nodes of a profile.

    Make one with `Batch.of(…)`, which fills in what is not given and raises ClusterError for what the profile
    knows to be impossible. `text` is the batch script, `notes` is what deserves a word.
    """

    script: Path
    profile: object
    nodes: int
    ntasks_per_node: int
    cpus_per_task: int
    time: str
    account: str
    qos: str
    launcher: str
    options: dict
    notes: tuple

    @classmethod
    def of(
        cls,
        script,
        *,
        profile="generic-cpu",
        world_size=None,
        nodes=None,
        ntasks_per_node=None,
        cpus_per_task=None,
        time="00:10:00",
        account=None,
        qos=None,
        launcher="srun",
        **options,
    ):
        """What to ask for, from what is given. `options`: any other of sbatch, `_` for `-`.

        `world_size` alone fills whole nodes; with `nodes` it is shared among them. Neither: a rank a GPU.
        """
        kind = named(profile)
        if launcher not in LAUNCHERS:
            raise ClusterError(f"the launcher is srun or torchrun, not {launcher!r}")
        nodes, tasks = _shape(kind, world_size, nodes, ntasks_per_node)
        cpus = cpus_per_task or kind.cpus_per_task
        if kind.cpus_per_node and tasks * cpus > kind.cpus_per_node:
            raise ClusterError(
                f"{tasks} tasks of {cpus} cores are {tasks * cpus}: "
                f"a node has {kind.cpus_per_node} ({kind.title})"
            )
        options = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
        account = account and (account if "@" in account else account + kind.account_suffix)
        qos, notes = _full_qos(kind, qos), []
        _check_limits(kind, qos, time, nodes * tasks)
        if kind.account_suffix and not (account or "SBATCH_ACCOUNT" in os.environ):
            notes.append(f"No account is named: if Slurm asks for one, it is PROJECT{kind.account_suffix}.")
        if nodes > 1 and tasks < kind.gpus_per_node:
            notes.append(
                f"{tasks} of the {kind.gpus_per_node} GPUs of each node are used; whole nodes are counted."
            )
        return cls(
            Path(script), kind, nodes, tasks, cpus, time, account, qos, launcher, options, tuple(notes)
        )

    @property
    def world_size(self):
        """The number of ranks."""
        return self.nodes * self.ntasks_per_node

    @property
    def path(self):
        """The batch script, beside the Python script."""
        return self.script.with_suffix(".slurm")

    @property
    def python(self):
        """The Python of the job: that of the modules, or the one that runs here."""
        return "python" if self.profile.modules or self.profile.commands else shlex.quote(sys.executable)

    def directives(self):
        """The options of sbatch: (name, value, comment)."""
        kind, name = self.profile, self.script.stem
        yield "job-name", name, ""
        yield "nodes", self.nodes, ""
        yield "ntasks-per-node", self.ntasks_per_node, "a task is a rank"
        if kind.uses_gpus and "gres" not in self.options:
            yield "gres", f"gpu:{self.ntasks_per_node}", "a GPU for each rank of a node"
        of = f" of the node's {kind.cpus_per_node}" if kind.cpus_per_node else ""
        yield "cpus-per-task", self.cpus_per_task, f"cores for each rank{of}"
        for option, value in {**kind.sbatch, **self.options}.items():
            yield option, value, "physical cores, no hyper-threads" if value == "nomultithread" else ""
        if self.account:
            yield "account", self.account, ""
        if self.qos:
            yield "qos", self.qos, ""
        yield "time", self.time, "hours:minutes:seconds"
        yield "output", f"{name}-%j.out", f"this script's words; those of the ranks are in {name}-JOB/"

    @property
    def text(self):
        """The batch script."""
        kind, name = self.profile, self.script.stem
        lines = [
            "#!/bin/bash",
            f"# {self.world_size} ranks of {self.script.name}, for {kind.title}. Written on {date.today()}.",
            f"# In this folder: sbatch {self.path.name}",
            *(_directive(*each) for each in self.directives()),
            "",
        ]
        if kind.modules:
            lines += ["module purge", *(f"module load {module}" for module in kind.modules)]
        lines += kind.commands
        lines += [f"export {key}={shlex.quote(value)}" for key, value in kind.environment.items()]
        if self._needs_our_package():
            lines.append(f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH  # fidle_utils")
        if lines[-1]:
            lines.append("")
        lines += [
            "# The ranks meet on the first node, at a port that this job has for itself.",
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            "",
            f"folder=$PWD/{shlex.quote(name)}-$SLURM_JOB_ID${{SLURM_RESTART_COUNT:+/restart$SLURM_RESTART_COUNT}}",
            'mkdir -p "$folder"',
            "export FIDLE_TRACK=$folder/track  # where track() writes",
            "",
            *(self._srun() if self.launcher == "srun" else self._torchrun()),
        ]
        return "\n".join(lines) + "\n"

    def _srun(self):
        # Since 22.05, srun no longer takes --cpus-per-task over from the batch script.
        yield 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \\'
        yield '    --output="$folder/rank%t.out" \\'
        yield f"    {self.python} -u {shlex.quote(self.script.name)}"

    def _torchrun(self):
        yield "export folder"
        yield 'srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \\'
        yield '    --cpus-per-task="$((SLURM_NTASKS_PER_NODE * SLURM_CPUS_PER_TASK))" bash -c \''
        yield f"    {_in_quotes(self.python)} -m torch.distributed.run --nnodes=$SLURM_NNODES \\"
        yield f"        --nproc-per-node={self.ntasks_per_node} --node-rank=$SLURM_NODEID \\"
        yield "        --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT \\"
        yield '        --redirects=3 --log-dir="$folder/node$SLURM_NODEID" \\'
        yield f"        {_in_quotes(shlex.quote(self.script.name))}'"

    def _needs_our_package(self):
        """True if the script imports fidle_utils and runs with another Python than this one."""
        return self.python == "python" and "fidle_utils" in (
            self.script.read_text() if self.script.exists() else ""
        )

    def write(self):
        """Write the batch script; returns its path."""
        self.path.write_text(self.text)
        return self.path


def _in_quotes(word):
    """A word that was quoted for the shell, inside of a text that stands in single quotes itself."""
    return word.replace("'", "'\\''")


def _directive(option, value, comment):
    line = f"#SBATCH --{option}" if value is True else f"#SBATCH --{option}={value}"
    return f"{line:<{COMMENT_COLUMN}} # {comment}" if comment else line


def _shape(kind, world_size, nodes, tasks):
    """(nodes, tasks a node)."""
    for name, value in (("world_size", world_size), ("nodes", nodes), ("ntasks_per_node", tasks)):
        if value is not None and value < 1:
            raise ClusterError(f"{name} is {value}: one is the least")
    if tasks is None and world_size is None:
        tasks = kind.gpus_per_node or 1
    if nodes is None:
        fill = tasks or kind.gpus_per_node or world_size
        nodes = -(-world_size // fill) if world_size else 1
    if tasks is None:
        tasks = -(-world_size // nodes)
    if world_size is not None and nodes * tasks != world_size:
        raise ClusterError(
            f"{world_size} ranks do not fill {nodes} nodes evenly: "
            f"ask for {nodes * tasks} ranks, or for another number of nodes"
        )
    if kind.gpus_per_node and tasks > kind.gpus_per_node:
        raise ClusterError(
            f"{tasks} ranks on a node that has {kind.gpus_per_node} GPUs ({kind.title}): "
            f"take {-(-nodes * tasks // kind.gpus_per_node)} nodes"
        )
    return nodes, tasks


def _full_qos(kind, qos):
    """`dev` is the only QoS of the profile that ends in -dev."""
    if qos is None or qos in kind.qos or not kind.qos:
        return qos
    ends = [name for name in kind.qos if name.endswith(f"-{qos}")]
    if len(ends) == 1:
        return ends[0]
    raise ClusterError(f"{kind.title} have no QoS {qos!r}: choose one of {', '.join(kind.qos)}")


def _check_limits(kind, qos, time, gpus):
    try:
        asked = seconds(time)
    except ValueError as error:
        raise ClusterError(str(error)) from None
    limit = kind.qos.get(qos, {})
    doubt = ", as users report" if kind.confidence.get("qos") == "quoted" else ""
    if "time" in limit and asked > seconds(limit["time"]):
        longer = [name for name, other in kind.qos.items() if asked <= seconds(other["time"])]
        other = f"; {longer[0]} allows it" if longer else ""
        raise ClusterError(f"{time} is more than the {limit['time']} of {qos}{doubt}{other}")
    if gpus > limit.get("gpus", gpus):
        raise ClusterError(f"{gpus} GPUs are more than the {limit['gpus']} of {qos}{doubt}")
