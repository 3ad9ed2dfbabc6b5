"""What a batch script asks of Slurm, read back from its text as sbatch reads it."""

import re
from dataclasses import dataclass, field

from fidle_utils.cluster.profiles import profiles

__all__ = ["Request"]

MACHINE = "jean-zay-"
SHORT = {
    "J": "job-name",
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "C": "constraint",
    "A": "account",
}
SHORT |= {
    "p": "partition",
    "q": "qos",
    "t": "time",
    "o": "output",
    "e": "error",
    "a": "array",
    "d": "dependency",
}
OPTIONS = {
    *SHORT.values(),
    "ntasks-per-node",
    "gres",
    "gpus",
    "gpus-per-node",
    "gpus-per-task",
    "hint",
    "mem",
}
OPTIONS |= {"exclusive", "mail-type", "mail-user", "signal", "requeue", "no-requeue", "open-mode", "comment"}
OPTIONS |= {
    "chdir",
    "export",
    "reservation",
    "begin",
    "mem-per-cpu",
    "cpus-per-gpu",
    "threads-per-core",
    "exclude",
}
DIRECTIVE = re.compile(r"#SBATCH\s+(?:--([\w-]+)(?:[= ]\s*(\S+))?|-(\w)\s*(\S+)?)")


@dataclass(frozen=True)
class Request:
    """What a batch script asks for: `options` and `lines`, by long name; `body`: (line number, command)."""

    options: dict = field(default_factory=dict)
    lines: dict = field(default_factory=dict)
    body: tuple = ()
    strays: tuple = ()  # (line number, text, why): directives that Slurm does not read

    @classmethod
    def of(cls, text):
        """Read the text of a batch script as sbatch does: directives end at the first command."""
        options, lines, body, strays = {}, {}, [], []
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("#SBATCH"):
                found = DIRECTIVE.match(line)
                if not found:
                    strays.append((number, line.strip(), "it has no --option"))
                elif body:
                    strays.append((number, line.strip(), "sbatch stops reading at the first command"))
                else:
                    name = found[1] or SHORT.get(found[3], found[3])
                    value = found[2] if found[1] else found[4]
                    options[name] = "" if value is None or value.startswith("#") else value
                    lines[name] = number
            elif re.match(r"\s*#+\s*SBATCH\s+-", line):
                strays.append(
                    (number, line.strip(), "a directive begins with #SBATCH, without a blank or a second #")
                )
            elif line.strip() and not line.lstrip().startswith("#"):
                body.append((number, line.strip()))
        return cls(options, lines, tuple(body), tuple(strays))

    def number(self, name, default=None):
        """An option as a whole number; `default` where it is missing or no number."""
        value = self.options.get(name, "")
        return int(value) if value.isdigit() else default

    @property
    def nodes(self):
        """The number of nodes, 1 unless asked for."""
        return self.number("nodes", 1)

    @property
    def tasks(self):
        """Tasks a node: --ntasks-per-node, or --ntasks shared among the nodes."""
        return self.number("ntasks-per-node") or -(-self.number("ntasks", 1) // max(self.nodes, 1))

    @property
    def gpus(self):
        """GPUs a node; 0 where none is asked for."""
        asked = self.options.get("gres", "") or f"gpu:{self.options.get('gpus-per-node', 0)}"
        count = re.fullmatch(r"gpu:(?:\w+:)?(\d+)", asked)
        return int(count[1]) if count else 0

    @property
    def cpus(self):
        """Cores a task, 1 unless asked for."""
        return self.number("cpus-per-task", 1)

    @property
    def kind(self):
        """The profile of its nodes: by constraint, else partition, else account; or None."""
        wanted = self.options.get("constraint", "").split("&")[0].strip('"')
        known = {name: each for name, each in profiles().items() if name.startswith(MACHINE)}
        for name, value in (("constraint", wanted), ("partition", self.options.get("partition"))):
            for each in known.values():
                if value and each.sbatch.get(name) == value:
                    return each
        if wanted:
            return None
        suffix = re.search(r"@\w+", self.options.get("account", ""))
        return next((each for each in known.values() if suffix and each.account_suffix == suffix[0]), None)
