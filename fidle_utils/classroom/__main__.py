"""python -m fidle_utils.classroom: write the live view, print its minutes; --time 04 06 times its cells."""

import argparse
import os
import sys

from fidle_utils.classroom.live_path import NOTEBOOKS, PathError, as_text, lessons, live_path
from fidle_utils.classroom.view import VIEW, write_view


def main(arguments):
    """Return an exit code."""
    parser = argparse.ArgumentParser(prog="python -m fidle_utils.classroom", description=__doc__)
    parser.add_argument(
        "--time", nargs="*", metavar="NN", help="run the live cells of these lessons, or of all"
    )
    asked = parser.parse_args(arguments)
    try:
        print(as_text(live_path()))
    except PathError as error:
        print(error, file=sys.stderr)
        return 1
    if asked.time is not None:
        from fidle_utils.classroom.rehearse import run_live, timing_table

        for path in lessons(NOTEBOOKS):
            if not asked.time or path.stem[:2] in asked.time:
                print(*timing_table(run_live(path), path.stem), sep="\n", flush=True)
        return 0
    _, kept = write_view()
    for path in kept:
        print(f"kept as you changed it: {os.path.relpath(path)}. Delete it to get it anew.")
    print(f"\nThe live cells alone: {os.path.relpath(VIEW)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
