"""Commands of Slurm in a lesson: run where there is a Slurm, else shown from a session that was recorded."""

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from fidle_utils.cluster import slurm
from fidle_utils.cluster.errors import ClusterError

__all__ = ["Session"]


class Session:
    """`run(command)` runs a line of shell in `folder` where a Slurm answers, else shows what was recorded.

    `{job}` in a command is the number of the job submitted last. `recorded`: a JSON file that `save` wrote;
    `live` is true where commands are really run. Each answer is printed below a line that says which it is.
    """

    def __init__(self, recorded, folder="."):
        self.folder, self.job, self.steps = Path(folder), None, []
        self.live = _answers()
        self._recorded = json.loads(Path(recorded).read_text()) if Path(recorded).exists() else None
        self._shown = {}  # (command, job) → how often: its answers come in their order
        if not self.live and self._recorded is None:
            raise ClusterError(f"there is no Slurm here, and no recorded session either: {recorded}")

    @property
    def label(self):
        """Where the answers come from, in one line."""
        if self.live:
            return "measured here · the Slurm of this machine"
        kept = self._recorded
        return f"recorded · {kept['machine']}, {kept['versions']['slurm']} · {kept['date'][:10]}"

    def run(self, command):
        """Run or replay one command, and print what it says; returns that text."""
        said, job = self._ask(command) if self.live else self._replay(command)
        if "sbatch --parsable" in command and said.strip().partition(";")[0].isdigit():
            self.job = int(said.strip().partition(";")[0])
        shown = command.replace("{job}", str(job))
        print(f"[{self.label}]\n$ {shown}\n{said.rstrip()}", flush=True)
        return said

    def wait(self, timeout=60):
        """Return when the job has left the queue, or after `timeout` seconds; at once in a replay."""
        deadline = time.monotonic() + timeout
        while self.live and self.job and time.monotonic() < deadline:
            said, _ = self._ask("squeue --noheader --jobs={job}", keep=False)
            if not said.strip() or "Invalid job id" in said:
                return
            time.sleep(0.5)

    def _ask(self, command, keep=True):
        line = command.replace("{job}", str(self.job))
        try:
            done = subprocess.run(
                line,
                shell=True,
                cwd=self.folder,
                env=slurm.clean_environment(),
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=slurm.PATIENCE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"Slurm has not answered `{line}` for {slurm.PATIENCE_SECONDS} s") from None
        said = done.stdout + done.stderr
        if keep:
            self.steps.append({"command": command, "job": self.job, "said": said})
        return said, self.job

    def _replay(self, command):
        answers = [step for step in self._recorded["steps"] if step["command"] == command]
        if not answers:
            raise ClusterError(f"there is no Slurm here, and this command was not recorded: {command}")
        answers = [step for step in answers if step["job"] == self.job] or answers
        times = self._shown[command, self.job] = self._shown.get((command, self.job), 0) + 1
        step = answers[(times - 1) % len(answers)]
        return step["said"], step["job"]

    def save(self, path, machine, command):
        """Write what was run as a recorded session: the machine, the command that recorded it, versions."""
        said = slurm.ask("sbatch", "--version")
        kept = dict(machine=machine, command=command, date=datetime.now(UTC).isoformat(timespec="minutes"))
        kept |= dict(versions={"slurm": said.strip()}, steps=self.steps)
        Path(path).write_text(json.dumps(kept, indent=1) + "\n")


def _answers():
    """True if a controller of Slurm answers; a machine may have the commands and no cluster."""
    if shutil.which("sbatch") is None:
        return False
    try:
        slurm.ask("sinfo", "--noheader")
    except ClusterError:
        return False
    return True
