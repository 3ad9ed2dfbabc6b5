"""What lessons measured for the slides: record_slides.py of notebooks/recorded/slides wrote it there."""

import json
from pathlib import Path

from fidle_utils.plots import style

FOLDER = Path(__file__).parents[2] / "notebooks" / "recorded" / "slides"


def load_record(number):
    """Return the record of a lesson: machine, date, versions, command, values."""
    return json.loads((FOLDER / f"{number}.json").read_text())


def note_record(ax, record, text=""):
    """Say under `ax` where and when its numbers were recorded, in the place of "measured here"."""
    for words in [words for words in ax.texts if words.get_text().startswith("measured here")]:
        words.remove()
    said = f"{record['machine']} · gloo · {record['date']}" + f" · {text}" * bool(text)
    return style.source_note(ax, "recorded", said)
