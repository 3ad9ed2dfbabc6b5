"""`%ranks` and `%%ranks`: the notebook's words for `fidle_utils.ranks`."""

import argparse
import ast
import difflib
import os
import shlex
import sys
import traceback

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from fidle_utils.ranks.errors import RankError
from fidle_utils.ranks.front import execution_count
from fidle_utils.ranks.locate import Place
from fidle_utils.ranks.report import Failure

WORDS = ("restart", "stop", "export", "submit")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message}. {self.format_usage().strip()}")


def _words(line):
    try:
        return shlex.split(line)
    except ValueError as error:  # a quotation that does not end
        raise UsageError(f"{line}: {error}") from None


def _above_zero(kind):
    def number(text):
        if not (value := kind(text)) > 0:
            raise ValueError
        return value

    return number


def _line_parser():
    parser = _Parser(
        prog="%ranks", add_help=False, usage="%ranks [N | restart | stop | export FILE | submit] [options]"
    )
    parser.add_argument("what", nargs="?")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--backend")
    parser.add_argument("--threads", type=_above_zero(int))
    return parser


def _slurm_parser(word):
    """For `%ranks export` and `%ranks submit`: the file, and what to ask of Slurm."""
    usage = f"%ranks {word} [FILE] [--slurm [PROFILE]] [--nodes N] [--account PROJECT] [--time 00:10:00] …"
    parser = _Parser(prog=f"%ranks {word}", add_help=False, usage=usage)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--slurm", nargs="?", const="", metavar="PROFILE")
    for option in ("nodes", "ntasks-per-node", "cpus-per-task"):
        parser.add_argument(f"--{option}", type=_above_zero(int))
    for option in ("time", "account", "qos", "partition", "constraint"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--launcher", choices=("srun", "torchrun"))
    return parser


def _cell_parser():
    parser = _Parser(prog="%%ranks", add_help=False, usage="%%ranks [0,2] [--timeout SECONDS] [--timeline]")
    parser.add_argument("only", nargs="?")
    parser.add_argument("--timeout", type=_above_zero(float))
    parser.add_argument("--timeline", action="store_true")
    return parser


@magics_class
class RanksMagics(Magics):
    """Holds the magic; `ranks` is the object that does the work."""

    def __init__(self, shell, ranks):
        super().__init__(shell)
        self.ranks = ranks

    @line_cell_magic("ranks")
    def magic(self, line, cell=None):
        """Start ranks and run cells on them.

        %ranks 4                    start four ranks, or have four instead of those that run
        %ranks 4 --device cpu       on the CPU even if there are GPUs; also --backend gloo, --threads 2
        %ranks 8 --slurm h100       on compute nodes of a cluster; also --nodes 2, --account abc, --qos dev
        %ranks                      what each rank does now
        %ranks restart · %ranks stop
        %ranks export train.py      the cells so far as a script for torchrun
        %ranks export train.py --slurm h100 --nodes 2 --account abc       and train.slurm for sbatch
        %ranks submit               export the cells, submit them to Slurm, show the job; the same options
        %ranks submit train.py      submit this script as it is
        %%ranks                     run this cell on every rank
        %%ranks 0,2                 only on ranks 0 and 2
        %%ranks --timeout 20        stop the cell after 20 s
        %%ranks --timeline          record a timeline as well: ranks.timeline
        """
        return self._line(line) if cell is None else self._cell(line, cell)

    def _line(self, line):
        words = _words(line)
        if words and words[0] in ("export", "submit"):
            return getattr(self, f"_{words[0]}")(words[1:])
        if "--slurm" in words:
            return self._start_on_nodes(words)
        asked = _line_parser().parse_args(words)
        options = dict(device=asked.device, backend=asked.backend, threads=asked.threads)
        if asked.what is None and not any(options.values()):
            print(self.ranks)
        elif asked.what is None or asked.what.lstrip("-").isdigit():
            _plainly(self.ranks.start, int(asked.what) if asked.what else None, **options)
        elif asked.what == "restart":
            _plainly(self.ranks.restart)
        elif asked.what == "stop":
            count = len(self.ranks)
            self.ranks.stop()
            print(f"{count} ranks stopped" if count else "there were no ranks")
        else:
            close = difflib.get_close_matches(asked.what, WORDS, n=1)
            meant = f" Did you mean %ranks {close[0]}?" if close else ""
            raise UsageError(
                f"%ranks {asked.what}: a number, restart, stop, export or submit is expected.{meant}"
            )

    def _export(self, words):
        asked = _slurm_parser("export").parse_args(words)
        self._write(asked.file or "train.py")
        if any(value is not None for name, value in vars(asked).items() if name != "file"):
            from fidle_utils.cluster import Batch

            batch = _plainly(Batch.of, asked.file or "train.py", **self._for_slurm(asked))
            batch.write()
            print(f"{batch.path}: {batch.nodes} × {batch.ntasks_per_node} ranks, {batch.profile.title}")
            print(*batch.notes, f"sbatch {batch.path.name}", sep="\n")

    def _submit(self, words):
        """Export and submit the cells, or submit a script that is there; show the job until it ends."""
        from fidle_utils.cluster import submit

        asked = _slurm_parser("submit").parse_args(words)
        if asked.file is None:
            self._write("train.py")
        self.ranks.job = _plainly(submit, asked.file or "train.py", **self._for_slurm(asked))
        print(*self.ranks.job.notes, sep="\n", end="\n" * bool(self.ranks.job.notes))
        print(f"ranks.job is job {self.ranks.job.id}, in {self.ranks.job.folder}", flush=True)
        self.ranks.job.follow()

    def _start_on_nodes(self, words):
        asked = vars(_slurm_parser("N").parse_args(words))
        asked = {name: value for name, value in asked.items() if value is not None}
        count, asked["profile"] = asked.pop("file", None), asked.pop("slurm") or "generic-cpu"
        if count is not None and not count.isdigit():
            raise UsageError(f"%ranks {count} --slurm: a number of ranks is expected")
        _plainly(self.ranks.start, count and int(count), slurm=asked)

    def _for_slurm(self, asked):
        """What `Batch.of` takes, from the options of the line."""
        options = {name: value for name, value in vars(asked).items() if value is not None}
        options.pop("file", None)
        placement, generic = self.ranks.placement, "generic-cpu"
        if placement and "ntasks_per_node" not in options:
            options["world_size"] = placement.world_size  # as many as in the notebook
        if placement and placement.devices[0] != "cpu":
            generic = "generic-gpu"
        elif placement and not options.get("slurm"):
            options.setdefault("cpus_per_task", placement.threads)
        options["profile"] = options.pop("slurm", "") or generic
        return options

    def _write(self, path):
        cells = sum(not isinstance(entry, str) and not entry.failed for entry in self.ranks.history.entries)
        if not cells:
            raise UsageError("nothing to export: no %%ranks cell has succeeded since the ranks were started")
        script, left_out = self.ranks.script(os.path.basename(path))
        with open(path, "w") as file:
            file.write(script)
        left_out = f"; {left_out}" if left_out else ""
        print(f"{path}: {cells} {'cell' if cells == 1 else 'cells'}{left_out}")
        print(f"torchrun --nproc-per-node {len(self.ranks)} {path}")

    def _cell(self, line, cell):
        asked = _cell_parser().parse_args(_words(line))
        # The magic's own line counts, so that line numbers are those of the notebook's cell.
        source = cell if cell.startswith("%%") else f"# %%ranks {line}\n{cell}"
        self._check_syntax(source)
        only = _parse_ranks(asked.only)
        _plainly(
            self.ranks.cell, source, only=only, timeout=asked.timeout, timeline=asked.timeline, shown=cell
        )

    def _check_syntax(self, source):
        """Raise RankError here, before any rank sees the cell, if it is not Python."""
        try:
            code = self.shell.transform_cell(source)
            compile(code, f"Cell In[{execution_count()}]", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            text = "".join(traceback.format_exception_only(error)).rstrip()
            failure = Failure(None, type(error).__name__, error.msg, Place(error.lineno, None), text)
            report = [f"{type(error).__name__} on line {error.lineno}: no rank has run this cell"]
            raise RankError(report, [failure]) from None


def _plainly(function, *args, **kwargs):
    """Call; a wrong argument is answered in one line instead of a traceback of ours."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise UsageError(str(error)) from None
    finally:
        sys.stdout.flush()


def _parse_ranks(text):
    """`0,2` or `0-2` as a list of ranks; None for all."""
    if text is None:
        return None
    chosen = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen += range(int(first), int(last if dash else first) + 1)
        if not chosen:
            raise ValueError
    except ValueError:
        raise UsageError(f"%%ranks {text}: ranks are given as 0,2 or 0-2") from None
    return chosen
