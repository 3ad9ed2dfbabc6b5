"""Processes that run a notebook's cells together: `from fidle_utils import ranks`."""

from fidle_utils.ranks.errors import RankError, RanksStopped
from fidle_utils.ranks.front import Ranks

__all__ = ["RankError", "Ranks", "RanksStopped"]
