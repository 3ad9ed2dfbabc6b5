"""The exercises of the course: what each is called, and which cells solve it.

They are read from notebooks/py, which no learner edits: a notebook that was changed, copied or half deleted
leaves them as they are.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@dataclass(frozen=True)
class Exercise:
    """`name`: what its check says; `variables`: what its stub defines; `solutions`: the folded cells."""

    name: str
    lesson: str  # 04_split_the_data
    variables: frozenset
    solutions: tuple

    def is_solved_by(self, source):
        """True if this cell is one of the solution's, whatever its spaces and comments."""
        return meaning(source) in map(meaning, self.solutions)


@functools.cache
def titles(folder=NOTEBOOKS / "py"):
    """Lesson → its title, "Split the data", in order."""
    found = {}
    for path in _lessons(folder):
        heading = re.search(r"^# # (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        found[path.stem] = heading.partition("·")[2].strip() or heading
    return found


@functools.cache
def exercises(folder=NOTEBOOKS / "py"):
    """Name of an exercise → Exercise, in the order of the lessons."""
    found = {}
    for path in _lessons(folder):
        stub, name, solutions = "", None, {}
        for tags, source in code_cells(path):
            if "exercise" in tags:
                stub, name = source, None
            elif "check" in tags:
                name = checked(source)
                solutions[name] = (stub, [])
            elif "solution" in tags and name:
                solutions[name][1].append(source)
        for name, (stub, cells) in solutions.items():
            found[name] = Exercise(name, path.stem, frozenset(defined(stub)), tuple(cells))
    return found


def _lessons(folder):
    return sorted(Path(folder).glob("[0-9][0-9]_*.py"))


def code_cells(path):
    """Return (tags, source) of each code cell of a lesson in jupytext's percent format."""
    parts = re.split(r"^# %%(.*)\n", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [
        (re.findall(r'"([^"]+)"', "".join(re.findall(r"tags=(\[.*?\])", options))), source.strip())
        for options, source in zip(parts[::2], parts[1::2], strict=True)
        if "[markdown]" not in options
    ]


def meaning(source):
    """The parsed code of a cell; its text where it is no Python."""
    tree = _parsed(source)
    return ast.dump(tree) if tree.body else source.strip()


def checked(source):
    """The name that the call of `check` in a cell gives to its exercise: see `teach.check`."""
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
            for keyword in node.keywords:
                if keyword.arg == "name":
                    return keyword.value.value
            first = node.args[0]
            return first.value if isinstance(first, ast.Constant) else getattr(first, "id", None)
    return None


def _parsed(source):
    """The cell without its magics; empty if it is no Python."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def defined(source):
    """The names of functions, classes and variables that a cell defines; none of a cell that is no Python."""
    names = set()
    for node in _parsed(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} if target else set()
    return names
