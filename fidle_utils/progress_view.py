"""How progress looks: a table that follows the theme of JupyterLab, and the same in plain text."""

import html

from fidle_utils.exercises import titles

SIGN = {
    "to do": ("·", "--jp-ui-font-color2", "#616161"),
    "tried": ("✗", "--jp-error-color1", "#d32f2f"),
    "solution shown": ("▸", "--jp-brand-color1", "#1976d2"),
    "solved": ("✓", "--jp-success-color1", "#388e3c"),
    "solved after the solution": ("✓", "--jp-success-color1", "#388e3c"),
}


def display(rows, lesson, notes):
    """Show `rows` of `progress.table()`, of one lesson or a line for each."""
    from fidle_utils.teach import _publish

    if lesson is None:
        header, lines, foot, coming = *_all_lessons(rows), None
    else:
        header, lines, foot, coming = _one_lesson(rows, lesson)
    then = f" Next: {_words(coming)}." if coming else ""
    plain = [_plain(line, lines) for line in lines] + [foot + then, *notes]
    then = f" Next: {_html(coming)}." if coming else ""
    left = "style='text-align: left'"
    body = "".join(f"<tr>{''.join(f'<td {left}>{_html(cell)}</td>' for cell in line)}</tr>" for line in lines)
    head = "".join(f"<th {left}>{name}</th>" for name in header)
    small = "".join(f"<div style='opacity: .75'>{html.escape(note)}</div>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    rich = f"{table}<p>{html.escape(foot)}{then}</p>{small}"
    _publish({"text/plain": "\n".join(plain), "text/html": rich})


def _html(cell):
    text, state, link = cell if isinstance(cell, tuple) else (cell, None, None)
    text = html.escape(str(text))
    if state:
        sign, color, otherwise = SIGN[state]
        text = f"<b style='color: var({color}, {otherwise})'>{sign}</b> {text}"
    return f"<a href='{link}'>{text}</a>" if link else text


def _words(cell):
    text, state, _ = cell if isinstance(cell, tuple) else (cell, None, None)
    return f"{SIGN[state][0]} {text}" if state else str(text)


def _plain(line, lines):
    widths = [max(len(_words(row[i])) for row in lines) for i in range(len(line))]
    return "  ".join(_words(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _linked(lesson):
    """A cell: number and title of a lesson, with a link to it."""
    return f"{lesson[:2]} · {titles()[lesson]}", None, f"{lesson}.ipynb"


def _is_solved(state):
    return state.startswith("solved")


def _all_lessons(rows):
    lines = []
    for lesson in titles():
        states = [state for name, _, _, state in rows if name == lesson]
        solved = sum(map(_is_solved, states))
        others = [
            f"{states.count(state)} {word}"
            for state, word in (("solution shown", "shown"), ("tried", "tried"))
            if state in states
        ]
        mark = "solved" if states and solved == len(states) else "to do"
        count = (f"{solved} of {len(states)}", mark, None)
        lines.append([_linked(lesson), count, ", ".join(others)])
    solved = sum(_is_solved(state) for *_, state in rows)
    return ("lesson", "solved", ""), lines, f"{solved} of {len(rows)} exercises solved."


def _one_lesson(rows, lesson):
    names = [name for name in titles() if name.startswith(lesson)]
    if len(names) != 1:
        raise ValueError(f"show({lesson!r}): one of {', '.join(name[:2] for name in titles())}")
    mine = [(exercise, state) for name, _, exercise, state in rows if name == names[0]]
    lines = [[(exercise, state, None), state] for exercise, state in mine]
    left = [exercise for exercise, state in mine if not _is_solved(state)]
    everything = list(titles())
    coming = everything[everything.index(names[0]) + 1 :][:1]  # none after the last
    foot = f"Left here: {', '.join(left)}." if left else "All exercises of this lesson are solved."
    return ("exercise", ""), lines, foot, _linked(coming[0]) if coming else None
