"""A class's progress in one table: python -m fidle_utils.progress export class/*.json -o class.csv."""

import argparse
import glob
import sys
from pathlib import Path

from fidle_utils import progress
from fidle_utils.exercises import exercises


def class_table(files):
    """Return (pandas.DataFrame, complaints): a row for each learner, a column for each exercise.

    Of two files with one name the one that was worked on last counts; a bad file is left out and named.
    """
    import pandas as pd

    learners, complaints = {}, []
    for file in map(Path, files):
        try:
            content = progress.load(file)
            if not content:
                raise progress.ProgressError(f"{file} does not exist")
        except (OSError, progress.ProgressError) as error:
            complaints.append(str(error))
            continue
        name = _name(content) or str(file.with_suffix(""))
        last = max((entry["last"] for entry in content["exercises"].values()), default="")
        if name in learners:
            complaints.append(f"two files of {name}: the one worked on last counts")
        if name not in learners or last > learners[name][0]:
            learners[name] = (last, content["exercises"])
    columns = {name: f"{exercise.lesson[:2]} {name}" for name, exercise in exercises().items()}
    rows = {}
    for learner, (last, kept) in sorted(learners.items()):
        states = {column: kept.get(name, {}).get("state", progress.TODO) for name, column in columns.items()}
        solved = sum(state.startswith("solved") for state in states.values())
        shown = list(states.values()).count(progress.SHOWN)
        tries = sum(entry.get("tries", 0) for entry in kept.values())
        rows[learner] = {"solved": solved, "solution shown": shown, "tries": tries, "last": last, **states}
    head = ["solved", "solution shown", "tries", "last", *columns.values()]
    return pd.DataFrame.from_dict(rows, orient="index", columns=head).rename_axis("learner"), complaints


def _name(content):
    """The learner's name on one line; a spreadsheet would compute what begins with one of =+-@."""
    return " ".join(content.get("name", "").split()).lstrip("=+-@ ")


def per_exercise(frame):
    """Return a DataFrame: how many learners have solved, been shown, tried and not begun each exercise."""
    import pandas as pd

    columns = [column for column in frame.columns if column[:2].isdigit()]
    counts = {
        column: {
            "solved": frame[column].str.startswith("solved").sum(),
            "solution shown": (frame[column] == progress.SHOWN).sum(),
            "tried": (frame[column] == progress.TRIED).sum(),
            "to do": (frame[column] == progress.TODO).sum(),
        }
        for column in columns
    }
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("exercise")


def main(arguments):
    """Return an exit code: 0 if at least one file could be read."""
    parser = argparse.ArgumentParser(prog="python -m fidle_utils.progress", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    export = verbs.add_parser("export", help="one table of a class's files")
    export.add_argument("files", nargs="+", metavar="FILE.json")
    export.add_argument("-o", "--out", metavar="class.csv", help="write the table there")
    asked = parser.parse_args(arguments)
    files = [file for name in asked.files for file in sorted(glob.glob(name)) or [name]]  # for Windows
    frame, complaints = class_table(files)
    print(*complaints, sep="\n", end="\n" * bool(complaints), file=sys.stderr)
    if frame.empty:
        print("no progress file could be read", file=sys.stderr)
        return 1
    print(per_exercise(frame).to_string())
    mean = frame["solved"].mean()
    print(f"\n{len(frame)} learners; on average {mean:.1f} of {len(exercises())} exercises are solved")
    if asked.out:
        frame.to_csv(asked.out, encoding="utf-8-sig")  # so that Excel reads é
        print(f"the table: {asked.out}")
    return 0
