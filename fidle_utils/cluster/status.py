"""The state of a job: Slurm's words, and one sentence for a reader."""

from dataclasses import dataclass

from fidle_utils.cluster.profiles import seconds

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
    "PREEMPTED", "REVOKED", "UNKNOWN",
}  # fmt: skip

# Why a job waits (squeue's REASON). Those that only a person can mend come with what to do.
_WAITS = {
    "None": "Slurm is about to look at it",
    "Priority": "jobs of higher priority come first",
    "Resources": "waiting for free nodes",
    "BeginTime": "it may start in a moment",
    "Dependency": "another job must end first",
    "PartitionTimeLimit": "it asks for more time than the partition allows: cancel it and ask for less",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: cancel it and ask for fewer",
    "PartitionConfig": "the partition has not that many nodes: cancel it and ask for fewer",
    "PartitionDown": "the partition is down",
    "BadConstraints": "no node has what it asks for: cancel it and ask for something else",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "JobHeldUser": "it is held: `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "InvalidAccount": "its account is not valid: cancel it and name another",
    "InvalidQOS": "its QoS is not valid: cancel it and name another",
    "AssocGrpGRESMinutes": "the hours of your project are used up",
    "AssocGrpBillingMinutes": "the hours of your project are used up",
    "AssocGrpCPUMinutesLimit": "the hours of your project are used up",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as this QoS allows",
    "QOSMaxGRESPerUser": "your jobs hold as many GPUs as this QoS allows",
    "QOSGrpGRES": "this QoS has given out all its GPUs",
}


@dataclass(frozen=True)
class Status:
    """What Slurm says of a job now. `state` is Slurm's word; times in seconds."""

    state: str
    reason: str = ""
    nodes: str = ""
    run_s: int = 0
    limit_s: int = 0
    restarts: int = 0
    exit_code: int = 0
    signal: int = 0

    @classmethod
    def of(cls, said):
        """From the dict of `slurm.show` or `slurm.recall`; None means that Slurm has forgotten the job."""
        if said is None:
            return cls("UNKNOWN")
        code, _, signal = said.get("ExitCode", "0:0").partition(":")
        return cls(
            state=said["JobState"],
            reason=said.get("Reason", ""),
            nodes=said.get("NodeList", "").replace("(null)", ""),
            run_s=_seconds(said.get("RunTime", "0")),
            limit_s=_seconds(said.get("TimeLimit", "0")),
            restarts=int(said.get("Restarts", 0)),
            exit_code=int(code),
            signal=int(signal or 0),
        )

    @property
    def ended(self):
        """True if the job will not run (again)."""
        return self.state in ENDED

    @property
    def succeeded(self):
        """True if it ended and every rank ended well."""
        return self.state == "COMPLETED"

    def __str__(self):
        where = f" on {self.nodes}" if self.nodes else ""
        match self.state:
            case "PENDING":
                words = f"PENDING: {_WAITS.get(self.reason.split(',')[0], self.reason)} ({self.reason})"
            case "RUNNING" | "COMPLETING":
                words = f"{self.state}{where} for {clock(self.run_s)} of {clock(self.limit_s)}"
            case "COMPLETED":
                words = f"COMPLETED{where} in {clock(self.run_s)}"
            case "TIMEOUT":
                words = (
                    f"TIMEOUT{where}: its {clock(self.limit_s)} ran out. Ask for more (time=), do less, "
                    "or save checkpoints and go on in a next job"
                )
            case "NODE_FAIL":
                words = f"NODE_FAIL: one of {self.nodes} failed. The script is not to blame: submit it again"
            case "CANCELLED":
                words = f"CANCELLED after {clock(self.run_s)}"
            case "OUT_OF_MEMORY":
                words = f"OUT_OF_MEMORY{where}: the memory of a node, not of a GPU, was full"
            case "FAILED":
                how = f"signal {self.signal}" if self.signal else f"exit code {self.exit_code}"
                words = f"FAILED{where} after {clock(self.run_s)} with {how}"
            case "UNKNOWN":
                words = "forgotten by Slurm: it ended some time ago; what it wrote is here"
            case _:
                words = f"{self.state}{where}"
        if self.restarts:
            times = "once" if self.restarts == 1 else f"{self.restarts} times"
            words += (
                f" · put back into the queue {times} (a node failed, or somebody asked): it starts afresh"
            )
        return words


def clock(duration):
    """Seconds as 12 s, 3:05 min or 1:02:03 h."""
    minutes, rest = divmod(int(duration), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def _seconds(text):
    if text.isdigit():
        return int(text)
    try:
        return seconds(text)
    except ValueError:  # UNLIMITED, Partition_Limit
        return 0
