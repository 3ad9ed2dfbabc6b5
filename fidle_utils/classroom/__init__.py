"""For the instructor: the two-hour path through the lessons, its view, and recorded results as a net."""

from fidle_utils.classroom.live_path import PathError, Section, live_path, minutes_table
from fidle_utils.classroom.view import write_view

__all__ = ["PathError", "Section", "live_path", "minutes_table", "write_view"]
