"""The exercises of the course, read from its notebooks: what each is called, and which cells solve it."""

import ast
import functools
import json
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


def titles(folder=NOTEBOOKS):
    """Lesson → its title, "Split the data", in order."""
    found = {}
    for path, cells in _notebooks(folder):
        heading = _source(cells[0]).splitlines()[0]
        found[path.stem] = heading.partition("·")[2].strip() or heading.strip("# ")
    return found


@functools.cache
def exercises(folder=NOTEBOOKS):
    """Name of an exercise → Exercise, in the order of the lessons."""
    found = {}
    for path, cells in _notebooks(folder):
        stub, check = None, None
        solutions = {}
        for cell in cells:
            tags = cell["metadata"].get("tags", [])
            if "exercise" in tags:
                stub, check = _source(cell), None
            elif "check" in tags:
                check = checked(_source(cell))
                solutions[check] = (stub, [])
            elif "solution" in tags and check:
                solutions[check][1].append(_source(cell).strip())
        for name, (stub, cells_of_it) in solutions.items():
            found[name] = Exercise(name, path.stem, frozenset(defined(stub)), tuple(cells_of_it))
    return found


def _notebooks(folder):
    for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb")):
        yield path, json.loads(path.read_text(encoding="utf-8"))["cells"]


def _source(cell):
    return "".join(cell["source"])


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
