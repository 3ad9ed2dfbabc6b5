"""A learner's progress: what `check` said of each exercise, kept in one file on this machine.

`progress.json` lies in the course's folder, or in ~/.local/share/fidle where that is not yours or cannot
be written; FIDLE_PROGRESS names another file, or is "off". Nothing leaves the machine. `save("your name")`
writes a copy to send; `python -m fidle_utils.progress export class/*.json -o class.csv` makes a table.

States: *to do* → *tried* (an answer, not right yet) → *solution shown* or *solved*. An own right answer after
the solution was run is *solved after the solution*. Solved stays solved. *Run All* runs the solutions, so it
shows them and solves nothing. A solution that is only read, or copied by hand into the stub, is not noticed.
"""

import contextlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from IPython import get_ipython

from fidle_utils.exercises import NOTEBOOKS, defined, exercises, titles

__all__ = ["load", "path", "save", "show", "table"]

SCHEMA = 1
TODO, TRIED, SHOWN, SOLVED, AFTER = (
    "to do", "tried", "solution shown", "solved", "solved after the solution"
)  # fmt: skip
_STATES = (TODO, TRIED, SHOWN, AFTER, SOLVED)
_LOCK_SECONDS = 5  # then write all the same: a lesson does not wait for a lock that nobody gives back
_ran = []  # (source, tags) of each cell of this notebook, since `check` was imported
_trouble = []  # why nothing is kept, said once by `show`


class ProgressError(ValueError):
    """A file that cannot be read as progress; says why."""


class NewerError(ProgressError):
    """A file of a later version of the course: whole, but not ours to write."""


# ------------------------------------------------------------------------------------------------- the file


def path():
    """Where progress is kept; None if FIDLE_PROGRESS is "off"."""
    named = os.environ.get("FIDLE_PROGRESS", "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser()
    course = NOTEBOOKS.parent
    mine = not hasattr(os, "getuid") or course.stat().st_uid == os.getuid()
    if mine and os.access(course, os.W_OK):  # a folder that a group shares would mix its learners
        return course / "progress.json"
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "fidle" / "progress.json"


def load(file=None):
    """Return the progress in a file, by default the learner's own: {} if there is none.

    Raises ProgressError for a file that is not whole, OSError for one that cannot be read at all.
    """
    file = Path(file) if file else path()
    if file is None or not file.exists():
        return {}
    text = file.read_bytes()
    try:
        content = json.loads(text)
        schema, kept = content["schema"], content["exercises"]
        whole = all(map(_is_entry, kept.values())) and isinstance(content.get("name", ""), str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProgressError(f"{file} is not a whole progress file: {error!r}") from None
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerError(f"{file} was written by a newer version of the course: update this one.")
    if schema != SCHEMA or not whole:
        raise ProgressError(f"{file} is not a whole progress file: an entry is missing or unknown.")
    return content


def _is_entry(entry):
    times = isinstance(entry["first"], str) and isinstance(entry["last"], str)
    return entry["state"] in _STATES and isinstance(entry["tries"], int) and times


def _put_aside(file):
    """A damaged file is kept under another name, and we begin anew."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    aside = file.with_name(f"{file.stem}.damaged-{now}.json")
    os.replace(file, aside)
    _trouble.append(f"{file.name} was damaged: it is kept as {aside.name}, and a new one was begun.")


@contextlib.contextmanager
def _alone(file):
    """Two notebooks may write at once: one after the other, where the file system can lock."""
    lock = FileLock(file.with_suffix(".lock"), timeout=_LOCK_SECONDS)
    with contextlib.suppress(OSError, NotImplementedError):  # also filelock.Timeout
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def note(name, verdict, ran=None):
    """Keep what `check` said, "to do", "wrong" or "right", of the exercise `name`. Never raises.

    `ran`: (source, tags) of the cells run so far, the current one last; by default those of this notebook.
    Where no front end sent the cell (nbval, nbclient, a script) nobody learns, and nothing is kept.
    """
    try:
        file = path()
        if ran is None and _front_end_sent_this():
            ran = _ran
        if file is None or ran is None or verdict == TODO or name not in exercises():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            try:
                content = load(file)
            except NewerError:
                raise
            except ProgressError:
                _put_aside(file)
                content = {}
            content = {"schema": SCHEMA, "exercises": {}} | content
            before = content["exercises"].get(name, {})
            content["exercises"][name] = _next(before, verdict, _is_solution(exercises()[name], ran))
            _write(file, content)
    except Exception as error:  # a lesson goes on without it
        _trouble.append(f"Progress is not kept: {error}. FIDLE_PROGRESS can name another file.")


def _sent():
    """What the front end said of the running cell: JupyterLab and VS Code send its id and metadata."""
    parent = getattr(get_ipython(), "get_parent", dict)()
    return (parent or {}).get("metadata", {})


def _front_end_sent_this():
    return bool(_sent().get("cellId") or os.environ.get("JPY_SESSION_NAME"))


def _remember(info):
    _ran.append((info.raw_cell or "", _sent().get("tags", ())))


def _is_solution(exercise, ran):
    """True if the last cell that defined the checked answer was a solution.

    The stub holds an own answer, even one that reads like ours: a short exercise has no other. Only where no
    tag came with the cell are the sources compared.
    """
    defining = [cell for cell in ran if exercise.variables & defined(cell[0])]
    source, tags = defining[-1] if defining else ("", ())
    return "solution" in tags or ("exercise" not in tags and exercise.is_solved_by(source))


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
    except (OSError, ProgressError) as error:
        rows = table({})
        _trouble.append(str(error))
    notes = list(dict.fromkeys(_trouble))
    _trouble.clear()
    if path() is not None:
        notes.append(f"Kept in {path()}, on this machine only.")
    if lesson is None:
        notes.append('For your teacher: progress.save("your name") writes a copy to send.')
    display(rows, lesson, notes)


def save(name, folder=None):
    """Write your progress, with your name in it, to progress_NAME.json: a file to send to your teacher.

    It goes to this folder, or to your home where you cannot write here.
    """
    word = "_".join("".join(c if c.isalnum() else " " for c in name).split())
    if not word:
        raise ValueError('save("your name"): a name has letters')
    folder = Path(folder or ("." if os.access(".", os.W_OK) else Path.home()))
    content = {"schema": SCHEMA, "exercises": {}} | load() | {"name": name}
    file = folder.resolve() / f"progress_{word}.json"
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    n = len(content["exercises"])
    what = f"state, tries, first and last time of {n} exercise{'s' * (n != 1)}"
    print(f"{file}\nIn it: the name {name}; {what}.")
    return file


if get_ipython() is not None:
    get_ipython().events.register("pre_run_cell", _remember)

if __name__ == "__main__":
    import sys

    from fidle_utils.progress_class import main

    sys.exit(main(sys.argv[1:]))
