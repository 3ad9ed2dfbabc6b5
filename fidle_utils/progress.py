"""A learner's progress: what `check` said of each exercise, kept in one file on this machine.

`progress.json` lies in the course's folder, or in ~/.local/share/fidle where that cannot be written;
FIDLE_PROGRESS names another file, or is "off". Nothing leaves the machine: `save("your name")` writes a copy
that you may send, `python -m fidle_utils.progress export class/*.json -o class.csv` makes a table of many.

States: *to do* → *tried* (an answer, not right yet) → *solution shown* or *solved*. An own right answer after
the solution was run is *solved after the solution*. Solved stays solved. *Run All* runs the solutions, so it
shows them and solves nothing.
"""

import contextlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fidle_utils.exercises import NOTEBOOKS, defined, exercises, titles

__all__ = ["load", "path", "save", "show", "table"]

SCHEMA = 1
TODO, TRIED, SHOWN, SOLVED, AFTER = (
    "to do", "tried", "solution shown", "solved", "solved after the solution"
)  # fmt: skip
_STATES = (TODO, TRIED, SHOWN, AFTER, SOLVED)
_trouble = []  # why nothing is kept, said once by `show`


class ProgressError(ValueError):
    """A file that is not one of ours; says why."""


# ------------------------------------------------------------------------------------------------- the file


def path():
    """Where progress is kept; None if FIDLE_PROGRESS is "off"."""
    named = os.environ.get("FIDLE_PROGRESS", "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser()
    if os.access(NOTEBOOKS.parent, os.W_OK):
        return NOTEBOOKS.parent / "progress.json"
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "fidle" / "progress.json"


def load(file=None):
    """Return the progress in a file, by default the learner's own: {} if there is none.

    Raises ProgressError for a file that is not whole.
    """
    file = Path(file) if file else path()
    if file is None or not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content["schema"] == SCHEMA, f"schema {content['schema']!r}; this version reads {SCHEMA}"
        kept = content["exercises"]
        good = all(entry["state"] in _STATES and entry["last"] for entry in kept.values())
        assert good, "an exercise without a state that we know"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ProgressError(f"{file} is not a whole progress file: {error or type(error).__name__}") from None
    return content


def _put_aside(file):
    """A damaged file is kept under another name, and we begin anew."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    aside = file.with_name(f"{file.stem}.damaged-{now}.json")
    os.replace(file, aside)
    _trouble.append(f"{file.name} was damaged: it is kept as {aside.name}, and a new one was begun.")


@contextlib.contextmanager
def _alone(file):
    """Two notebooks may write at once: one after the other, where the file system can tell them apart."""
    with open(file.with_suffix(".lock"), "w") as lock:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file, content):
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".progress-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as temporary:
            json.dump(content, temporary, indent=1, ensure_ascii=False)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


# ------------------------------------------------------------------------------------- what a check says


def note(name, verdict, cells=None):
    """Keep what `check` said, "to do", "wrong" or "right", of the exercise `name`. Never raises.

    `cells`: the sources run so far, the current one last; by default those of this notebook. Where no front
    end sent the cell (nbval, nbclient, a script) nobody learns, and nothing is kept.
    """
    try:
        file = path()
        if cells is None:
            cells = _cells_of_a_learner()
        if file is None or cells is None or verdict == TODO or name not in exercises():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            try:
                content = load(file)
            except ProgressError:
                _put_aside(file)
                content = {}
            content = {"schema": SCHEMA, "exercises": {}} | content
            before = content["exercises"].get(name, {})
            content["exercises"][name] = _next(before, verdict, _is_solution(exercises()[name], cells))
            _write(file, content)
    except Exception as error:  # a lesson goes on without it
        _trouble.append(f"Progress is not kept: {error}. FIDLE_PROGRESS can name another file.")


def _cells_of_a_learner():
    """The sources of the cells run so far if a front end sent this one, else None."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return None
    sent = shell.get_parent().get("metadata", {}).get("cellId") or os.environ.get("JPY_SESSION_NAME")
    return list(shell.history_manager.input_hist_raw) if sent else None


def _is_solution(exercise, cells):
    """True if the last cell that defined the checked answer was a solution."""
    for source in reversed(cells):
        if exercise.variables & defined(source):
            return source.strip() in exercise.solutions
    return bool(cells) and cells[-1].strip() in exercise.solutions


def _next(before, verdict, from_solution):
    """The entry of an exercise after one more check."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    state, tries = before.get("state", TODO), before.get("tries", 0)
    if from_solution:
        state = SHOWN if state in (TODO, TRIED) and verdict == "right" else state
    else:
        tries += 1
        if verdict == "right":
            state = AFTER if state in (SHOWN, AFTER) else SOLVED
        elif state == TODO:
            state = TRIED
    return {"state": state, "tries": tries, "first": before.get("first", now), "last": now}


# ------------------------------------------------------------------------------------------- what is shown


def table(content=None):
    """Return (lesson, title, exercise, state) of every exercise of the course."""
    kept = (load() if content is None else content).get("exercises", {})
    names = titles()
    return [
        (exercise.lesson, names[exercise.lesson], name, kept.get(name, {}).get("state", TODO))
        for name, exercise in exercises().items()
    ]


def show(lesson=None):
    """Show how far you are: of all lessons, or the exercises of one, named by its number ("04")."""
    from fidle_utils.progress_view import display

    try:
        rows = table()
    except ProgressError as error:
        rows = table({})
        _trouble.append(str(error))
    notes = list(dict.fromkeys(_trouble))
    _trouble.clear()
    if path() is not None:
        notes.append(f"Kept in {path()}, on this machine only.")
    display(rows, lesson, notes)


def save(name, folder="."):
    """Write your progress, with your name in it, to progress_NAME.json: a file to send to your teacher."""
    word = "_".join(part for part in "".join(c if c.isalnum() else " " for c in name).split())
    if not word:
        raise ValueError('save("your name"): a name has letters')
    content = {"schema": SCHEMA, "exercises": {}} | load() | {"name": name}
    file = Path(folder) / f"progress_{word}.json"
    _write(file, content)
    print(f"{file}: {name}, and the state, tries and times of {len(content['exercises'])} exercises.")
    return file


if __name__ == "__main__":
    import sys

    from fidle_utils.progress_class import main

    sys.exit(main(sys.argv[1:]))
