"""Slurm's own commands, and its errors in plain words."""

import os
import re
import subprocess

from fidle_utils.cluster.errors import ClusterError

PATIENCE_SECONDS = 60  # for one answer of a busy controller

# What a job must not inherit from the notebook: who the kernel or a rank is, where its figures go, and the
# numbers of a job in which the notebook itself runs.
_OF_THE_NOTEBOOK = re.compile(
    r"JPY_|IPYKERNEL_|MPLBACKEND$|RANKS_|SLURM_(?!CONF$)|SLURMD_|TORCHELASTIC_|PYTEST_CURRENT_TEST$"
    r"|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|GLOO_SOCKET_IFNAME)$"
)

# Words of Slurm → what they mean, and what to do. The first that fits is said, with Slurm's own line.
_REFUSALS = {
    "Invalid account": "you may not use this account: {account}. Yours: `sacctmgr show assoc user=$USER`",
    "Invalid qos": "this cluster has no such QoS for you: {qos}",
    "[Ii]nvalid partition": "there is no such partition: {partition}. `sinfo` lists them",
    "Invalid (feature|constraint)": "no node has this feature: {constraint}. `sinfo -o '%P %f'` lists them",
    "[Tt]ime limit": "the time asked for, {time}, is more than this partition or QoS allows",
    "node configuration|More processors": "no node of this cluster has so many cores or GPUs",
    "[Nn]ode count": "this partition has fewer nodes than {nodes}",
    "QOSMax|AssocMax|AssocGrp|violates accounting": "the limits of your project or QoS allow no such job",
    "contact slurm controller|Connection refused|timed out": "Slurm's controller does not answer: try later",
    "configuration source|fetch config": "Slurm is installed, but this machine belongs to no cluster",
    "authentication|munge|credential": "Slurm does not know who you are (munge): ask its administrators",
}  # fmt: skip
NO_SLURM = (
    "There is no Slurm here: {command} was not found.\n"
    "On a cluster, open this notebook on a login node or in a job. On a machine where you are root,\n"
    "`make slurm` starts a small one. Without: torchrun runs the same script."
)
# What sacct calls a thing → what scontrol calls it.
_RECALLED = dict(
    State="JobState", ExitCode="ExitCode", NodeList="NodeList", ElapsedRaw="RunTime", Timelimit="TimeLimit"
)


def clean_environment():
    """The environment for a job, without what is true of this process only."""
    return {name: value for name, value in os.environ.items() if not _OF_THE_NOTEBOOK.match(name)}


def ask(*command, cwd=None, asked=None):
    """Run a command of Slurm; returns what it prints. Raises ClusterError in plain words.

    `asked`: what the job asked for, to name it in the error.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=clean_environment(),
            timeout=PATIENCE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ClusterError(NO_SLURM.format(command=command[0])) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Slurm has not answered `{command[0]}` for {PATIENCE_SECONDS} s") from None
    if done.returncode:
        raise ClusterError(in_plain_words(done.stderr or done.stdout, asked))
    return done.stdout


class _Asked(dict):
    def __missing__(self, name):
        return "none was given" if name in ("account", "qos") else f"the {name} asked for"


def in_plain_words(stderr, asked=None):
    """Slurm's complaint, with a line of ours before it where we know what it means."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in stderr.strip().splitlines()]
    said = next((line for line in reversed(lines) if line), "no reason")
    for pattern, meaning in _REFUSALS.items():
        if any(re.search(pattern, line) for line in lines):
            return f"{meaning.format_map(_Asked(asked or {}))}\nSlurm: {said}"
    return f"Slurm refused: {said}"


def show(job_id):
    """What `scontrol show job` says, as a dict; None when Slurm has forgotten the job."""
    try:
        text = ask("scontrol", "show", "job", "--oneliner", str(job_id))
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|\s*$)", text.splitlines()[0]))


def recall(job_id):
    """What the accounting (`sacct`) says of a job that the controller forgot; None without accounting."""
    try:
        text = ask("sacct", "-X", "-n", "-P", "-j", str(job_id), "-o", ",".join(_RECALLED))
    except ClusterError:
        return None
    if not text.strip():
        return None
    said = dict(zip(_RECALLED.values(), text.splitlines()[-1].split("|"), strict=True))
    return said | {"JobState": said["JobState"].split()[0]}  # "CANCELLED by 1000"
