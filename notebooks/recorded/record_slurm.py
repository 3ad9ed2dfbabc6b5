"""Run lesson 01 beside a Slurm and write its session, which is shown where there is none.

    python tests/slurm/mini_slurm.py python notebooks/recorded/record_slurm.py "mini Slurm, two virtual nodes"

as root, in the folder of the project. The argument says which machine it is.
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOKS = Path(__file__).parents[1]
OUT = "recorded/slurm/meet_jean_zay.json"


def main(machine):
    """Run the code cells of the lesson, then save what its session has heard."""
    lesson = jupytext.read(NOTEBOOKS / "py" / "01_meet_jean_zay.py")
    command = "python tests/slurm/mini_slurm.py python notebooks/recorded/record_slurm.py"
    save = f"assert slurm.live\nslurm.save({OUT!r}, {machine!r}, {command!r})"
    lesson.cells.append(new_code_cell(save))
    NotebookClient(lesson, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    print(NOTEBOOKS / OUT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
