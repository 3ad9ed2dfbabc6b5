"""What the ranks of a job write, read as it grows."""

import codecs
import json
import re

from fidle_utils.measure.throughput import Progress


class Tail:
    """The new text of a file since the last look."""

    def __init__(self, path):
        self.path, self._at = path, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self):
        """What was added; "" if nothing, or if there is no such file yet."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._at)
                data = file.read()
        except OSError:
            return ""
        self._at += len(data)
        return self._decoder.decode(data)


class Logs:
    """The logs and the `track()` records of a job's ranks, of the last time that Slurm started it."""

    def __init__(self, folder, world_size, ranks_per_node):
        self.folder, self.world_size, self.ranks_per_node = folder, world_size, ranks_per_node
        self.progress = Progress()
        self._from, self._tails, self._rest = None, {}, {}

    @property
    def latest(self):
        """Where the ranks write: the job's folder; restart1 in it once Slurm had to start the job again…"""
        again = {int(re.sub(r"\D", "", path.name)): path for path in self.folder.glob("restart*")}
        return again[max(again)] if again else self.folder

    def paths(self, rank):
        """The files that hold what a rank wrote: one with srun, two with torchrun."""
        path = self.latest / f"rank{rank}.out"
        node, local = divmod(rank, self.ranks_per_node)
        torchrun = self.latest.glob(f"node{node}/*/attempt_*/{local}/std*.log")
        return [path] if path.exists() else sorted(torchrun)

    def text(self, rank):
        """All that a rank wrote."""
        return "".join(path.read_text(errors="replace") for path in self.paths(rank))

    def restarted(self):
        """True once, when Slurm has started the job again since the last look: what was read is outdated."""
        before, self._from = self._from, self.latest
        if before in (None, self._from):
            return False
        self.progress.loops.clear()
        self.progress.reports.clear()
        return True

    def news(self):
        """(rank, new text) of each rank that wrote since the last look."""
        for rank in range(self.world_size):
            for path in self.paths(rank):
                if text := self._tails.setdefault(path, Tail(path)).read():
                    yield rank, text

    def receive(self):
        """Take in the records since the last look; True if there were any."""
        news = False
        for path in sorted(self.latest.glob("track/rank*.jsonl")):
            text = self._rest.get(path, "") + self._tails.setdefault(path, Tail(path)).read()
            *lines, self._rest[path] = text.split("\n")  # the last line may not be whole yet
            for line in lines:
                report = json.loads(line)
                self.progress.receive(report["rank"], report)
                news = True
        return news
