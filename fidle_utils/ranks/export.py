"""The `%%ranks` cells run so far, as a script for torchrun, Slurm's srun, or one process alone."""

import ast
import io
import tokenize
from dataclasses import dataclass
from datetime import date
from importlib.resources import files

from IPython.core.inputtransformer2 import TransformerManager

from fidle_utils.ranks.locate import names

_LITERALS = (int, float, str, bool, type(None))
END = """\
# %% the end
import time

dist.barrier()
dist.destroy_process_group()
# gloo's threads may still hold a tensor of the last message; letting go of it while Python ends
# aborts the process (https://github.com/pytorch/pytorch/issues/190489).
time.sleep(0.1)
"""


@dataclass
class Cell:
    """One `%%ranks` cell: on which ranks (None: all), and whether it failed or echoed its last value."""

    source: str
    only: list | None
    failed: bool = True
    echoed: bool = False


class History:
    """What the ranks have run since they were started, in order."""

    def __init__(self):
        self.entries = []

    def clear(self):
        self.entries.clear()

    def cell(self, source, only):
        self.entries.append(Cell(source, only))
        return self.entries[-1]

    def note(self, text):
        self.entries.append(f"# {text}")

    def push(self, values):
        for name, value in values.items():
            plain = isinstance(value, _LITERALS)
            self.entries.append(
                f"{name} = {value!r}" if plain else f"# {name} was pushed from the notebook: define it here"
            )

    def script(self, world_size, threads=1, name="train.py"):
        """The script, and a sentence on what was left out (empty if nothing was)."""
        launcher = files("fidle_utils.cluster").joinpath("launcher.py").read_text()
        prelude = files("fidle_utils.ranks").joinpath("prelude.py").read_text()
        start = f"torchrun --nproc-per-node {world_size} {name}"
        start = start if threads == 1 else f"OMP_NUM_THREADS={threads} {start}"
        parts = [
            f'"""Exported from a notebook on {date.today()}. Start it with: {start}"""\n',
            f"# %% who am I?\n{launcher}",
            f"# %% join the other ranks\n{prelude}",
        ]
        failed = 0
        for entry in self.entries:
            if isinstance(entry, str):
                parts.append(entry + "\n")
            elif entry.failed:
                failed += 1
            else:
                parts.append(_as_script(entry))
        parts.append(END)
        cells = "cell" if failed == 1 else "cells"
        return "\n".join(parts), f"{failed} {cells} that failed left out" if failed else ""


def _as_script(cell):
    code = _without_magics(cell.source.strip("\n"))
    if cell.only is not None and not ast.parse(code).body:
        code = f"{code}\npass".lstrip()
    if cell.echoed:
        code = _print_last(code)
    if cell.only is None:
        return f"# %%\n{code}\n"
    ranks = sorted(set(cell.only))
    condition = f"rank == {ranks[0]}" if len(ranks) == 1 else f"rank in {tuple(ranks)}"
    return f"# %% on {names(ranks)} only\nif {condition}:\n{_indent(code)}\n"


def _without_magics(source):
    """Plain Python; lines that only IPython understands become comments."""
    lines = []
    for line in TransformerManager().transform_cell(source).rstrip("\n").split("\n"):
        if "get_ipython()" in line and "get_ipython()" not in source:
            space = line[: len(line) - len(line.lstrip())]
            lines.append(f"{space}pass  # left out, IPython only: {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _print_last(code):
    """The notebook showed the value of the last expression: print it."""
    body = ast.parse(code).body
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr):
        return code
    lines, more = code.split("\n"), isinstance(last.value, ast.Tuple)
    lines[last.end_lineno - 1] = _insert(
        lines[last.end_lineno - 1], last.end_col_offset, "))" if more else ")"
    )
    lines[last.lineno - 1] = _insert(lines[last.lineno - 1], last.col_offset, "print((" if more else "print(")
    return "\n".join(lines)


def _insert(line, column, text):
    data = line.encode()  # ast counts bytes
    return (data[:column] + text.encode() + data[column:]).decode()


def _indent(code):
    """Indent code, but not the inside of strings of several lines."""
    inside = set()
    kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in kinds:
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
    rows = enumerate(code.split("\n"), start=1)
    return "\n".join(row if number in inside or not row else f"    {row}" for number, row in rows)
