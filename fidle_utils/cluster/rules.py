"""The rules of a machine, applied to a batch script: what would go wrong, line by line.

Slurm refuses some mistakes. Others it accepts: they cost hours, or idle processors, or a job that ends
after ten minutes. The numbers are those of profiles.toml, which says where each was read.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fidle_utils.cluster.profiles import profile, profiles, seconds
from fidle_utils.cluster.request import MACHINE, OPTIONS, Request

__all__ = ["Finding", "Request", "charged_gpus", "findings"]

INTERNET = re.compile(r"^\s*(?:python3? -m )?(pip3? install|conda install|wget|curl|git (?:clone|pull))\b")


@dataclass(frozen=True)
class Finding:
    """One mistake: the `line` of the file (0: the file as a whole), `what` is wrong, what to do `next`."""

    line: int
    what: str
    next: str

    def __str__(self):
        where = f"line {self.line}" if self.line else "the file"
        return f"{where}: {self.what}. {self.next}."


def charged_gpus(request, kind):
    """The GPUs that count for this request: reserved ones, cores beyond their share, whole nodes from two on.

    Source: IDRIS, http://www.idris.fr/en/docs/jean-zay/gestion-compte/heures-calcul.
    """
    kind = profile(kind) if isinstance(kind, str) else kind
    if request.nodes > 1:
        return request.nodes * kind.gpus_per_node
    return min(kind.gpus_per_node, max(request.gpus, -(-request.tasks * request.cpus // kind.cpus_per_task)))


def findings(text):
    """Everything wrong with a batch script for Jean Zay, as Findings in the order of its lines.

    `text`: the script, or the Path of its file. An empty list says that no rule of ours is broken; whether
    the project has hours left, only Slurm knows.
    """
    text = text.read_text() if isinstance(text, Path) else text
    request = Request.of(text)
    found = [*_words(request), *_nodes(request)]
    if not text.startswith("#!"):
        found += [Finding(1, "the first line does not name a shell", "Begin with #!/bin/bash")]
    if request.kind:
        for rule in (_shape, _cores, _account, _time, _modules):
            found += rule(request, request.kind)
    found += _commands(request)
    return sorted(found, key=lambda finding: finding.line or 10**6)


# ------------------------------------------------------------------------------------------- the rules


def _words(request):
    for number, text, why in request.strays:
        yield Finding(
            number,
            f"Slurm does not read {text!r}: {why}",
            "Write it as #SBATCH --option=value, above all commands",
        )
    for name in request.options:
        if name not in OPTIONS:
            close = get_close_matches(name, OPTIONS, 1, 0.7)
            meant = f"You meant --{close[0]}" if close else "`man sbatch` lists them"
            yield Finding(request.lines[name], f"sbatch knows no option --{name}", meant)


def _nodes(request):
    if request.kind:
        return
    known = [
        each for name, each in profiles().items() if name.startswith(MACHINE) and "constraint" in each.sbatch
    ]
    names = ", ".join(each.sbatch["constraint"] for each in known)
    if "constraint" in request.options:
        what = f"no node has the constraint {request.options['constraint']!r}"
        yield Finding(request.lines["constraint"], what, f"Choose one of {names}")
    else:
        yield Finding(0, "nothing says which kind of node the job needs", f"Add --constraint, one of {names}")


def _shape(request, kind):
    suffix = re.search(r"@\w+", request.options.get("account", ""))
    if suffix and suffix[0] != kind.account_suffix and "constraint" in request.options:
        what = f"the nodes are {request.options['constraint']}, the account pays for {suffix[0][1:]}"
        yield Finding(
            request.lines["constraint"],
            what,
            f"Make the two agree: the account ends in {kind.account_suffix} on these nodes",
        )
    elif (
        suffix
        and "constraint" in kind.sbatch
        and "constraint" not in request.options
        and "partition" not in request.options
    ):
        what = f"the account pays for {suffix[0][1:]}, but no constraint asks for such nodes"
        yield Finding(request.lines["account"], what, f"Add #SBATCH --constraint={kind.sbatch['constraint']}")
    where = request.lines.get("gres", request.lines.get("gpus-per-node", 0))
    torchrun = any(re.search(r"torchrun|torch\.distributed\.run", command) for _, command in request.body)
    if not request.gpus:
        yield Finding(
            where,
            "no GPU is asked for: the job gets none",
            f"Add #SBATCH --gres=gpu:{min(request.tasks, kind.gpus_per_node)}",
        )
    elif request.gpus > kind.gpus_per_node:
        yield Finding(
            where,
            f"{request.gpus} GPUs of a node: these nodes have {kind.gpus_per_node}",
            "--gres counts the GPUs of one node, not of the job",
        )
    elif request.gpus != request.tasks and not torchrun:
        what = f"{request.tasks} tasks and {request.gpus} GPUs on each node"
        use = "GPUs stay idle" if request.gpus > request.tasks else "tasks share a GPU"
        yield Finding(
            request.lines.get("ntasks-per-node", where),
            f"{what}: {use}",
            "One task for each GPU: make --ntasks-per-node and --gres agree",
        )
    elif request.nodes > 1 and request.gpus < kind.gpus_per_node:
        what = f"{request.gpus} of the {kind.gpus_per_node} GPUs of each node: whole nodes are charged"
        yield Finding(where, what, f"Fill the nodes: --gres=gpu:{kind.gpus_per_node}, on fewer of them")


def _cores(request, kind):
    where, cpus, share = request.lines.get("cpus-per-task", 0), request.cpus, kind.cpus_per_task
    share *= max(1, request.gpus // max(request.tasks, 1)) if request.gpus <= kind.gpus_per_node else 1
    of = f"{kind.cpus_per_node} cores for {kind.gpus_per_node} GPUs"
    if cpus * request.tasks > kind.cpus_per_node:
        all_cores = request.tasks * cpus
        what = f"{request.tasks} tasks of {cpus} cores are {all_cores}: a node has {kind.cpus_per_node}"
        yield Finding(where, what, f"Write --cpus-per-task={share}")
    elif cpus > share:
        yield Finding(
            where,
            f"{cpus} cores a task are more than a GPU's share ({of}): more GPUs are charged",
            f"Write --cpus-per-task={share}",
        )
    elif cpus < share:
        yield Finding(
            where,
            f"{cpus} cores a task leave others of the node idle ({of}), and memory comes with the cores",
            f"Write --cpus-per-task={share}",
        )
    hint = kind.sbatch.get("hint")
    if hint and request.options.get("hint") != hint:
        yield Finding(
            request.lines.get("hint", 0),
            "nothing keeps two tasks off one physical core",
            f"Add #SBATCH --hint={hint}",
        )


def _account(request, kind):
    account, where = request.options.get("account", ""), request.lines.get("account", 0)
    if not account:
        yield Finding(where, "no account is named", f"Add #SBATCH --account=PROJECT{kind.account_suffix}")
    elif "@" not in account:
        what = f"{account!r} does not say which hours pay: a project's hours are kept apart by kind of node"
        yield Finding(where, what, f"Write --account={account}{kind.account_suffix}")
    elif not account.endswith(kind.account_suffix) and "constraint" not in request.options:
        yield Finding(
            where, f"{account!r} does not pay for these nodes", f"Its end must be {kind.account_suffix}"
        )


def _time(request, kind):
    if "time" not in request.options:
        yield Finding(
            0,
            "no time is asked for: Slurm ends the job after 10 minutes",
            "Add #SBATCH --time=hours:minutes:seconds",
        )
    try:
        asked = seconds(request.options.get("time", "00:10:00"))
    except ValueError as error:
        yield Finding(request.lines["time"], f"{str(error).partition(':')[0]}", "Write hours:minutes:seconds")
        return
    qos = request.options.get("qos")
    gpus, doubt = (
        request.nodes * request.gpus,
        " (as users report)" if kind.confidence.get("qos") == "quoted" else "",
    )
    fits = [
        n
        for n, limit in kind.qos.items()
        if asked <= seconds(limit["time"]) and gpus <= limit.get("gpus", gpus)
    ]
    instead = (
        f"On these nodes {fits[0]} allows it" if fits else "Ask for less: no QoS of these nodes allows it"
    )
    limit = kind.qos.get(qos, {})
    if qos and kind.qos and qos not in kind.qos:
        yield Finding(
            request.lines["qos"], f"these nodes have no QoS {qos!r}", f"Choose one of {', '.join(kind.qos)}"
        )
    elif limit and asked > seconds(limit["time"]):
        what = f"{request.options['time']} is more than the {limit['time']} of {qos}{doubt}"
        yield Finding(request.lines["time"], what, instead)
    elif gpus > limit.get("gpus", gpus):
        yield Finding(
            request.lines["qos"], f"{gpus} GPUs are more than the {limit['gpus']} of {qos}{doubt}", instead
        )


def _modules(request, kind):
    loads = [
        (n, word) for n, command in request.body if "module load" in command for word in command.split()[2:]
    ]
    arch = [(n, word) for n, word in loads if word.startswith("arch/")]
    torch = [n for n, word in loads if word.startswith("pytorch")]
    wanted = next((word for word in kind.modules if word.startswith("arch/")), None)
    for number, word in arch:
        if word != wanted:
            yield Finding(
                number,
                f"{word} is not for these nodes",
                f"Write module load {wanted}" if wanted else "Leave it out",
            )
    if torch and wanted and not arch:
        yield Finding(
            torch[0], "PyTorch is loaded for another kind of node", f"Write module load {wanted} before it"
        )
    elif torch and arch and arch[0][0] > torch[0]:
        what = f"{arch[0][1]} comes after PyTorch, which was already taken for another kind of node"
        yield Finding(arch[0][0], what, "Load arch/… first: it decides which pytorch-gpu you get")


def _commands(request):
    for number, command in request.body:
        if network := INTERNET.match(command):
            what = f"`{network[1]}` needs the internet, which compute nodes do not reach"
            yield Finding(number, what, "Run it on a login node before the job")
    started = [(n, command) for n, command in request.body if re.search(r"python|torchrun", command)]
    if (
        request.nodes * request.tasks > 1
        and started
        and not any("srun" in command for _, command in request.body)
    ):
        program, tasks = started[0][1].split()[0], request.nodes * request.tasks
        what = f"{program} runs once, on the first node: {tasks} tasks were asked for"
        yield Finding(started[0][0], what, "Put srun before it: srun starts every task")
