"""Published tables that figures and the planner compare with; README.md says where each comes from."""

import csv
from functools import lru_cache
from pathlib import Path

__all__ = ["names", "table"]

_FOLDER = Path(__file__).parent


def names():
    """Return the names of all tables, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.csv"))


def table(name, /, **equal):
    """Return a published table as a list of dicts: numbers as int or float, an empty cell as None.

    `equal` keeps the rows whose columns have these values: `table("zero_bubble", schedule="1F1B", pp=8)`.
    Units stand in the names of the columns. Raises LookupError for a table or a column that does not exist.
    """
    rows = _rows(name)
    if unknown := [column for column in equal if column not in rows[0]]:
        raise LookupError(f"no column {unknown[0]!r} in {name}: there are {', '.join(rows[0])}")
    return [dict(row) for row in rows if all(row[column] == value for column, value in equal.items())]


@lru_cache
def _rows(name):
    if name not in names():
        raise LookupError(f"no published table {name!r}: there are {', '.join(names())}")
    with open(_FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [{column: _value(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _value(text):
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text or None
