"""Exercises and predictions: `check` an answer, `predict` before a measurement, `reveal` after it."""

import html
import linecache
import math
import re
import time
import traceback
import uuid

from fidle_utils import progress
from fidle_utils._answers import UNEQUAL, assert_equal, is_stub

__all__ = ["check", "predict", "reveal"]

_TORCH_SAYS = ("are not close!", "are not equal!")  # torch.testing's words, when no message was given

# ------------------------------------------------------------------------------------------------ check


def check(answer, expected, tol=1e-6, hint="", name=None, timeout=20, together=None):
    """Say whether `answer` is right, with one hint when it is not; an untouched stub is "to do".

    - `check(value, expected)` compares numbers, strings, lists, dicts, tensors and arrays, within `tol`
      (relative and absolute).
    - `check(function, test)` calls `test(function)`, which raises AssertionError("a hint") on a wrong answer.
    - `check("name", test)` does so on every rank, for a `name` that `%%ranks` cells defined. After `timeout`
      seconds it is stopped, and what each rank waited for becomes the hint. Where ranks must be compared,
      `test` returns a value and `together(values)`, run here on one value a rank, raises AssertionError.

    `hint` stands in where the comparison or the test has nothing to say. What is said of an exercise of the
    course is kept: see `fidle_utils.progress`.
    """
    on_ranks = isinstance(answer, str) and answer.isidentifier() and callable(expected)
    label = name or (answer if on_ranks else getattr(answer, "__name__", ""))
    if on_ranks:
        status, message = _judge_on_ranks(answer, expected, hint, timeout, together)
    else:
        status, message, _ = _judge(answer, expected, tol, hint)
    if status == "to do":
        message = f"to do: {message or 'replace each … of the stub'}, run its cell, then this one."
    elif label:
        message = f"{label}: {message or 'right.'}"
    if label:
        progress.note(label, status)
    _show(status, message or "Right.")


def _judge(answer, expected, tol, hint):
    """Return (status, message, what the test returned) of one answer in this process."""
    if is_stub(answer):
        return "to do", f"complete `{answer.__name__}`" if callable(answer) else "", None
    try:
        value = expected(answer) if callable(expected) else assert_equal(answer, expected, tol)
    except AssertionError as error:
        said = str(error).strip().partition("\n")[0]
        return "wrong", (hint if said.endswith(_TORCH_SAYS) else said) or hint or UNEQUAL, None
    except (Exception, SystemExit) as error:
        return "wrong", _describe(error, answer, expected, hint), None
    return "right", "", value


def _describe(error, answer, test, hint):
    """Return one line on an exception: type, message, and the learner's own line if it came from there."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    functions = [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]
    files = {function.__code__.co_filename for function in functions if hasattr(function, "__code__")}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files and frame.name != getattr(test, "__name__", "")
    ]
    if not frames:
        return f"the check could not use your answer. {hint or text}"
    line = linecache.getline(frames[-1].filename, frames[-1].lineno).strip()
    return f"{text} (line {frames[-1].lineno} of your cell: {line})"


# -------------------------------------------------------------------------------------------- on the ranks


def _judge_on_ranks(name, test, hint, timeout, together):
    """Return (status, message): one line when every rank says the same."""
    from fidle_utils import RankError, ranks

    try:
        verdicts = ranks.run(_judge_here, name, test, hint, uuid.uuid4().hex, timeout=timeout)
    except RankError as error:
        if error.ename == "AssertionError":  # raised by _judge_here: it is the hint
            waiting = [line for line in error.report.splitlines() if "waiting in" in line]
            return "wrong", "; ".join([f"rank {error.rank}: {error.evalue}", *waiting])
        return "wrong", "\n".join([error.report or str(error), *error.advice])  # what became of the ranks
    statuses = [status for status, _, _ in verdicts]
    if together and set(statuses) == {"right"}:
        return _judge([value for _, _, value in verdicts], together, None, hint)[:2]
    if len({verdict[:2] for verdict in verdicts}) == 1:
        return verdicts[0][:2]
    status = "to do" if "to do" in statuses else "wrong"
    concerned = [rank for rank, s in enumerate(statuses) if s == status]
    others = [rank for rank, s in enumerate(statuses) if s == "right"]
    verdict = f"rank {concerned[0]}: {verdicts[concerned[0]][1]}"
    return status, verdict + (f" ({_names(others)}: right.)" if others else " (So on every rank.)")


def _judge_here(name, test, hint, key):
    """On a rank: judge the variable `name`; raise if this rank failed and would leave others waiting."""
    from IPython import get_ipython

    names = get_ipython().user_ns
    if name not in names:
        return "to do", f"`{name}` is not defined on the ranks: complete it", None
    if "__file__" not in test.__globals__:  # written in the notebook: it may use what cells defined here
        for variable, value in names.items():
            test.__globals__.setdefault(variable, value)
    status, message, value = _judge(names[name], test, None, hint)
    if not _all_arrive(key, wait_seconds=1 if status == "wrong" else 0) and status == "wrong":
        raise AssertionError(message)
    return status, message, value


def _all_arrive(key, wait_seconds):
    """Tell the store that this rank is done; True if all the others are within `wait_seconds`."""
    from torch.distributed import distributed_c10d, get_world_size

    store, deadline = distributed_c10d._get_default_store(), time.monotonic() + wait_seconds
    store.add(key, 1)
    while (arrived := store.add(key, 0)) < get_world_size() and time.monotonic() < deadline:
        time.sleep(0.02)
    return arrived == get_world_size()


def _names(ranks):
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))


# -------------------------------------------------------------------------------------- predict and reveal


class Guess:
    """What the learner guessed: `value` is None until there is an answer, then a text or a number."""

    def __init__(self, question, options=None, unit=None):
        self.question, self.options, self.unit = question, options, unit
        self.widget = None

    @property
    def value(self):
        answer = self.widget.value if self.widget else None
        if answer is None or not str(answer).strip():
            return None
        return answer if self.options else _to_number(answer)

    def __repr__(self):
        return "no guess yet" if self.value is None else f"guess: {_format(self.value, self.unit)}"


def predict(question, options=None, unit=None):
    """Ask for a guess before the measurement: one of `options`, or a number in `unit`. Give it to `reveal`.

    A browser shows radio buttons or a box. Where nobody can answer the question stays, and nothing waits.
    """
    guess = Guess(question, options, unit)
    choices = " / ".join(map(str, options)) if options else unit or "a number"
    text = f"▸ Your guess? {question} ({choices})"
    try:
        guess.widget, box = _widgets(guess)
        bundle = box._repr_mimebundle_() | {"text/plain": text}
    except Exception:  # no ipywidgets, or no kernel to serve them: a guess can wait, the lesson cannot
        bundle = {"text/plain": text}
    _publish(bundle)
    return guess


def _widgets(guess):
    import ipywidgets

    wide = {"layout": ipywidgets.Layout(width="auto"), "style": {"description_width": "initial"}}
    if guess.options:
        field = ipywidgets.RadioButtons(options=list(guess.options), value=None, **wide)
        row = [field]
    else:
        field = ipywidgets.Text(placeholder="a number", layout=ipywidgets.Layout(width="10em"))
        row = [ipywidgets.HBox([field, ipywidgets.Label(guess.unit or "")])]
    question = ipywidgets.HTML(f"<b>Your guess?</b> {html.escape(guess.question)}")
    return field, ipywidgets.VBox([question, *row])


def reveal(guess, truth, why="", unit=None, tol=0.1):
    """Show the guess beside the measured `truth`, how far off a number is, then `why`.

    A number within `tol` (relative) is right, within a factor of 2 close. `guess` comes from `predict`,
    or is a plain value; without one, the truth and the reason are shown all the same.
    """
    unit = unit or getattr(guess, "unit", None)
    value = guess.value if isinstance(guess, Guess) else guess
    truth = truth.item() if hasattr(truth, "item") else truth
    measured = _format(truth, unit)
    if value is None:
        status, text = "guess", f"You did not guess; the answer: {measured}."
    else:
        status, comment = _compare(value, truth, tol)
        text = f"You guessed {_format(value, unit)}; the answer: {measured}. {comment}"
    _show(status, f"{text} {why}".strip())


def _compare(value, truth, tol):
    if isinstance(truth, bool) or not isinstance(truth, int | float) or not isinstance(value, int | float):
        same = str(value).strip().casefold() == str(truth).strip().casefold()
        return ("right", "Right.") if same else ("guess", "Not this time.")
    if math.isclose(value, truth, rel_tol=tol):
        return "right", "Right."
    if not value or not truth or (value < 0) != (truth < 0):
        return "guess", "Not this time."
    factor, way = max(value / truth, truth / value), "large" if abs(value) > abs(truth) else "small"
    if factor <= 2:
        return "right", f"Close: too {way} by {100 * abs(value / truth - 1):.0f} %."
    return "guess", f"Too {way} by a factor of {_format(factor)}."


def _to_number(text):
    """Read "1 000", "0,5" or "12 MB" as a number; return the text itself where there is none."""
    digits = "".join(text.split())
    if not re.match(r"[1-9]\d{0,2}(,\d{3})+(?!\d)", digits):
        digits = digits.replace(",", ".", 1)  # a French decimal comma; otherwise it separates thousands
    digits = digits.replace(",", "")
    match = re.match(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", digits, re.IGNORECASE)
    return float(match[0]) if match else text


def _format(value, unit=None):
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = float(value).is_integer() or 1e3 <= abs(value) < 1e6
        short = f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:.2e}"
        value = f"{value:,.0f}".replace(",", "\u202f") if whole else short
    return f"{value} {unit}" if unit else str(value)


# ---------------------------------------------------------------------------------------------- display

_STYLE = {  # status → sign, JupyterLab's colour for it, and one where there is no JupyterLab
    "to do": ("…", "--jp-warn-color1", "#f57c00"),
    "wrong": ("✗", "--jp-error-color1", "#d32f2f"),
    "right": ("✓", "--jp-success-color1", "#388e3c"),
    "guess": ("▸", "--jp-brand-color1", "#1976d2"),
}


def _show(status, text):
    """Display one line: as HTML in colours that follow the theme, as the same words in plain text."""
    sign, color, otherwise = _STYLE[status]
    color, body = f"var({color}, {otherwise})", html.escape(text).replace("\n", "<br>")
    rich = (
        f'<div style="border-left: 4px solid {color}; padding: 4px 12px; '
        f'color: var(--jp-ui-font-color1, inherit)"><b style="color: {color}">{sign}</b> {body}</div>'
    )
    _publish({"text/plain": f"{sign} {text}", "text/html": rich})


def _publish(bundle):
    from IPython import get_ipython
    from IPython.display import publish_display_data

    if get_ipython() is None:
        print(bundle["text/plain"])
    else:
        publish_display_data(bundle)
