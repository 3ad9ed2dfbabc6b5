"""A job of Slurm, from Python: submit it, watch it, read what its ranks wrote, cancel it, find it again."""

import json
import os
import shutil
import time
from pathlib import Path

from fidle_utils.cluster import slurm
from fidle_utils.cluster.batch import Batch
from fidle_utils.cluster.errors import ClusterError
from fidle_utils.cluster.logs import Logs
from fidle_utils.cluster.status import Status

__all__ = ["Job", "attach", "submit"]

LAST_ROWS = 15  # of a log, in an error


def submit(script, **asked):
    """Submit a Python script that joins its ranks as exported ones do; returns a Job at once.

    `asked`: profile, nodes, ntasks_per_node, world_size, cpus_per_task, time, account, qos, launcher ("srun"
    or "torchrun") and any other option of sbatch, with `_` for `-`: `submit("train.py", nodes=2,
    profile="h100", account="abc", qos="dev")`. Writes train.slurm beside the script: `sbatch` can submit it
    as well. Raises ClusterError if there is no Slurm, or if it refuses the job.
    """
    script = Path(script).resolve()
    if not script.exists():
        raise ClusterError(f"there is no {script}: `%ranks export {script.name}` writes one from your cells")
    if shutil.which("sbatch") is None:
        raise ClusterError(slurm.NO_SLURM.format(command="sbatch"))
    batch = Batch.of(script, **asked)
    batch.write()
    asked = {option: value for option, value, _ in batch.directives()}
    said = slurm.ask("sbatch", "--parsable", batch.path.name, cwd=script.parent, asked=asked)
    job_id = int(said.strip().splitlines()[-1].partition(";")[0])  # id;cluster
    folder = script.parent / f"{script.stem}-{job_id}"
    folder.mkdir(exist_ok=True)
    kept = dict(id=job_id, script=str(script))
    kept.update(world_size=batch.world_size, ntasks_per_node=batch.ntasks_per_node)
    (folder / "job.json").write_text(json.dumps(kept))
    job = Job(folder, kept)
    job.notes = batch.notes
    return job


def attach(job):
    """The Job with that number, or in that folder, after the notebook was closed.

    Slurm says where a job of that number writes; once it has forgotten, the current folder is searched.
    """
    if str(job).isdigit():
        said = slurm.show(job) if shutil.which("scontrol") else None
        parent = Path(said["WorkDir"]) if said else Path()
        found = sorted(parent.glob(f"*-{job}/job.json"))
        if not found:
            where = parent.resolve()
            raise ClusterError(f"no folder of job {job} in {where}: attach(FOLDER) takes the folder of a job")
        path = found[0]
    else:
        path = Path(job) / "job.json"
        if not path.exists():
            raise ClusterError(f"{path} does not exist: this is not the folder of a job of ours")
    return Job(path.parent.resolve(), json.loads(path.read_text()))


class Job:
    """A job that was submitted with `submit`. `id`: its number; `folder`: what its ranks write."""

    def __init__(self, folder, kept):
        self.id, self.folder, self.script = kept["id"], Path(folder), Path(kept["script"])
        self.world_size, self.notes = kept["world_size"], ()
        self._last, self._per_node = None, kept["ntasks_per_node"]

    def __len__(self):
        return self.world_size

    @property
    def logs(self):
        """A new reader of what the ranks write."""
        return Logs(self.folder, self.world_size, self._per_node)

    @property
    def status(self):
        """Its Status now: `.state` is Slurm's word, `str()` a sentence."""
        if self._last is None or not self._last.ended or self._last.state == "UNKNOWN":
            kept = self.folder / "end.json"
            if kept.exists():
                said = json.loads(kept.read_text())
            else:
                said = slurm.show(self.id) or slurm.recall(self.id)
            self._last = Status.of(said)
            if self._last.ended and said and not kept.exists():  # Slurm forgets within minutes
                kept.write_text(json.dumps(said))
        return self._last

    @property
    def state(self):
        """PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL…"""
        return self.status.state

    @property
    def outputs(self):
        """The whole text of each rank, rank 0 first."""
        logs = self.logs
        return [logs.text(rank) for rank in range(self.world_size)]

    @property
    def log(self):
        """What the batch script itself, and Slurm, wrote."""
        path = self.script.parent / f"{self.script.stem}-{self.id}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def throughput(self):
        """What `track()` recorded in the job, as `ranks.throughput` of a cell; ClusterError without any."""
        from fidle_utils.measure.throughput import Throughput

        try:
            return Throughput.load(self.logs.latest / "track")
        except FileNotFoundError:
            raise ClusterError(
                f"job {self.id} has recorded no step: loops in `track(…)` are, as soon as its ranks run them"
            ) from None

    def wait(self, timeout=None):
        """Wait for its end, showing nothing.

        Raises ClusterError if it fails, TimeoutError if it has not ended after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.status.ended:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} has not ended within {timeout} s: {self.status}")
            time.sleep(0.5)
        self.check()

    def follow(self):
        """Show its state and what its ranks write until it ends; raises ClusterError if it fails.

        The stop button ends the watching, not the job.
        """
        from fidle_utils.cluster.live import watch

        if watch(self):
            self.check()

    def cancel(self):
        """End it, or take it out of the queue; returns when Slurm has done so."""
        if not self.status.ended:
            slurm.ask("scancel", str(self.id))
            deadline = time.monotonic() + slurm.PATIENCE_SECONDS
            while not self.status.ended and time.monotonic() < deadline:
                time.sleep(0.2)

    def check(self):
        """Raise ClusterError if the job has failed: how, and the last words of the rank that failed first."""
        status = self.status
        if not status.ended or status.succeeded or status.state == "UNKNOWN":
            return
        words = [f"Job {self.id}: {status}"]
        if status.state == "FAILED":
            words += self._last_words()
        raise ClusterError("\n".join(words))

    def _last_words(self):
        """The end of the log of the rank that raised first; else of the batch script's."""
        raised = []
        for rank in range(self.world_size):
            paths = self.logs.paths(rank)
            if "Traceback (most recent call last)" in self.logs.text(rank):
                raised.append((max(os.stat(path).st_mtime for path in paths), rank))
        if raised:
            rank = min(raised)[1]
            return [f"rank {rank}:", *self.logs.text(rank).rstrip().splitlines()[-LAST_ROWS:]]
        return self.log.rstrip().splitlines()[-LAST_ROWS:]

    def __repr__(self):
        return f"job {self.id} ({self.script.name}, {self.world_size} ranks) · {self.status}"
