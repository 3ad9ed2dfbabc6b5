"""python -m fidle_utils.classroom: write the live view, print its minutes; --time 04 06 times its cells."""

import argparse
import os
import sys

from fidle_utils.classroom.live_path import PathError, as_text, chosen, read_path
from fidle_utils.classroom.view import VIEW, write_view


def main(arguments):
    """Return an exit code."""
    parser = argparse.ArgumentParser(prog="python -m fidle_utils.classroom", description=__doc__)
    parser.add_argument(
        "--time", nargs="*", metavar="NN", help="run the live cells of these lessons, or of all"
    )
    asked = parser.parse_args(arguments)
    if asked.time is not None:
        return time_lessons(asked.time)
    sections, faults = read_path()
    print(as_text(sections), flush=True)
    print(*faults, sep="\n", end="\n" * bool(faults), file=sys.stderr)  # no reason to send the room away
    _, kept = write_view()
    for path in kept:
        print(f"kept as you changed it: {os.path.relpath(path)}. Delete it to get it anew.")
    print(f"\nThe live cells alone: {os.path.relpath(VIEW)}")
    return 0


def time_lessons(numbers):
    """Run the live cells of these lessons, or of all, and print their seconds; returns an exit code."""
    from fidle_utils.classroom.rehearse import RehearsalError, run_live, timing_table

    failed = False
    for path in chosen(numbers):
        try:
            print(*timing_table(run_live(path), path.stem), sep="\n", flush=True)
        except RehearsalError as error:
            failed = True
            print(error, flush=True)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PathError as error:
        sys.exit(str(error))
