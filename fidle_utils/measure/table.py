"""A pandas DataFrame that prints all its columns."""

import pandas as pd

__all__ = ["Table"]


class Table(pd.DataFrame):
    """A DataFrame whose text shows every row and column: for small tables that are read, not scrolled."""

    @property
    def _constructor(self):
        return Table

    def __repr__(self):
        return self.to_string()
