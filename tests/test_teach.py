import math

import numpy as np
import pytest
import torch

from fidle_utils import teach


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as bundles by MIME type."""
    bundles = []
    monkeypatch.setattr(teach, "_publish", bundles.append)
    return bundles


@pytest.fixture
def verdict(shown):
    def verdict(*args, **kwargs):
        assert teach.check(*args, **kwargs) is None
        return shown[-1]["text/plain"]

    return verdict


EQUAL = [
    (3, 3.0),
    (0.1 + 0.2, 0.3),
    (torch.tensor(2.5), 2.5),
    (np.float32(2.5), 2.5),
    (math.nan, math.nan),
    (" Yes ", "yes"),
    (True, True),
    (None, None),
    ([1, 2.0], (1, 2)),
    ({"a": [1, "b"]}, {"a": [1, "b"]}),
    (torch.arange(3.0), torch.arange(3.0) + 1e-8),
    (torch.arange(3, dtype=torch.bfloat16), torch.arange(3, dtype=torch.bfloat16)),
    (torch.tensor([math.nan, 1]), torch.tensor([math.nan, 1])),
    (np.arange(3), np.arange(3)),
    (torch.zeros(0), torch.zeros(0)),
]


@pytest.mark.parametrize("answer, expected", EQUAL, ids=repr)
def test_right(verdict, answer, expected):
    assert verdict(answer, expected) == "✓ Right."


WRONG = [
    (2, 3, "not the expected value"),
    (48e6, 48, "unit"),
    (math.nan, 3, "NaN"),
    ("3", 3, "a number is expected; your answer is of type str"),
    (None, 3, "return"),
    (1, True, "True or False"),
    ("no", "yes", "not the expected value"),
    (1, "yes", "a text"),
    ([1, 2], [1, 2, 3], "3 items are expected; your answer has 2"),
    ([1, 2, 4], [1, 2, 3], "item 2"),
    (3, [3], "a list"),
    ({"a": 1}, {"a": 1, "b": 2}, "missing: 'b'"),
    ({"a": 1, "c": 1}, {"a": 1}, "not expected: 'c'"),
    ({"a": 1}, {"a": 2}, "['a']"),
    (torch.zeros(2, 3), torch.zeros(3, 2), "shape (3, 2) is expected; yours is (2, 3)"),
    (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "torch.int64 is expected; yours is torch.float32"),
    ([0.0, 0.0], torch.zeros(2), "a tensor is expected"),
    (np.zeros(2), torch.zeros(2), "a tensor is expected"),
    (torch.zeros(2), np.zeros(2), "NumPy"),
    (torch.tensor([math.nan, 0]), torch.zeros(2), "1 of 2 values are NaN"),
    (torch.tensor([0.0, 1e-3]), torch.zeros(2), "1 of 2 values are wrong"),
    (torch.ones(2), torch.zeros(2), "not the expected value"),
]


@pytest.mark.parametrize("answer, expected, says", WRONG, ids=repr)
def test_wrong_has_one_hint_on_one_line(verdict, answer, expected, says):
    text = verdict(answer, expected)
    assert text.startswith("✗ ") and says in text and "\n" not in text


def test_the_given_hint_replaces_the_general_one_only(verdict):
    assert verdict(2, 3, hint="count again") == "✗ count again"
    assert "NaN" in verdict(math.nan, 3, hint="count again")


@pytest.mark.parametrize("answer", [..., [1, ...], {"a": ...}, (..., 2)], ids=repr)
def test_a_value_still_to_write_is_to_do(verdict, answer):
    assert verdict(answer, 3).startswith("… to do")


def stub(x): ...


def half_a_stub(x):
    total = x.sum()
    mean = ...
    return total - mean


class StubClass:
    def forward(self, x):
        return ...


class StubFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad): ...


STUBS = [stub, half_a_stub, StubClass, StubFunction, lambda x: ...]


@pytest.mark.parametrize("answer", STUBS, ids=lambda f: f.__name__)
def test_a_function_still_to_write_is_to_do_and_not_called(verdict, answer):
    text = verdict(answer, lambda function: 1 / 0)
    assert text.startswith("… to do: complete `" + answer.__name__)


def test_a_stub_without_its_source_is_to_do(verdict):
    names = {}
    exec("def f(x):\n    y = ...\n    return y", names)
    assert verdict(names["f"], lambda f: None).startswith("… to do")


def last_column(x) -> tuple[int, ...]:
    return x[..., -1]


def check_last_column(function):
    torch.testing.assert_close(function(torch.eye(3)), torch.tensor([0.0, 0, 1]))


def test_an_ellipsis_used_as_python_is_no_stub(verdict):
    assert verdict(last_column, check_last_column) == "✓ last_column: right."


def divides_by_zero(x):
    y = 0
    return x / y


def needs_two(x, y):
    return x + y


def returns_nothing(x):
    x + 1


def uses_one(function):
    assert function(1).bit_length() == 1, "one bit is enough"


def test_an_exception_in_the_function_names_the_line_and_shows_no_traceback(verdict):
    text = verdict(divides_by_zero, uses_one)
    line = divides_by_zero.__code__.co_firstlineno + 2
    expected = f"ZeroDivisionError: division by zero (line {line} of your cell: return x / y)"
    assert text == f"✗ divides_by_zero: {expected}"


def test_an_exception_in_the_test_is_about_the_answer(verdict):
    assert "missing 1 required positional argument" in verdict(needs_two, uses_one)
    assert verdict(returns_nothing, uses_one, hint="return it").endswith("your answer. return it")
    assert verdict(lambda x: exit(), uses_one).startswith("✗")


def test_the_assertion_of_the_test_is_the_hint(verdict):
    assert verdict(lambda x: 2, uses_one, name="bits").startswith("✗ bits: one bit is enough")


def compares_as_torch_does(function):
    torch.testing.assert_close(function(1), torch.zeros(2))


def test_the_words_of_torch_give_way_to_the_hint(verdict):
    assert verdict(lambda x: torch.ones(2), compares_as_torch_does, hint="go on").endswith(": go on")
    assert verdict(lambda x: torch.ones(2), compares_as_torch_does).endswith("not the expected value yet.")
    assert "shape" in verdict(lambda x: torch.zeros(3), compares_as_torch_does, hint="start at 0")


def test_rich_output_says_the_same_and_escapes(shown):
    teach.check(1, 2, hint="a < b & c")
    bundle = shown[-1]
    assert bundle["text/plain"] == "✗ a < b & c"
    assert "a &lt; b &amp; c" in bundle["text/html"] and "var(--jp-" in bundle["text/html"]


def test_without_ipython_the_text_is_printed(capsys):
    teach.check(1, 1)
    assert capsys.readouterr().out == "✓ Right.\n"


# predict and reveal: the widgets are real, `.value` is set as a browser would


def test_a_choice_and_its_reveal(shown):
    guess = teach.predict("Equal?", options=["yes", "no"])
    assert shown[-1]["text/plain"] == "▸ Your guess? Equal? (yes / no)"
    assert "application/vnd.jupyter.widget-view+json" in shown[-1]
    assert guess.value is None and repr(guess) == "no guess yet"
    teach.reveal(guess, "no", why="Other data.")
    assert shown[-1]["text/plain"] == "▸ You did not guess; the answer: no. Other data."
    guess.widget.value = "yes"
    teach.reveal(guess, "no", why="Other data.")
    assert shown[-1]["text/plain"] == "▸ You guessed yes; the answer: no. Not this time. Other data."
    guess.widget.value = "no"
    teach.reveal(guess, "no")
    assert shown[-1]["text/plain"] == "✓ You guessed no; the answer: no. Right."


NUMBERS = [
    ("48", "✓ You guessed 48 MB; the answer: 48 MB. Right."),
    ("46,5", "✓ You guessed 46.5 MB; the answer: 48 MB. Right."),
    ("30 MB", "✓ You guessed 30 MB; the answer: 48 MB. Close: too small by 38 %."),
    ("12", "▸ You guessed 12 MB; the answer: 48 MB. Too small by a factor of 4."),
    ("1e3", "▸ You guessed 1\u202f000 MB; the answer: 48 MB. Too large by a factor of 20.8."),
    ("1,000", "▸ You guessed 1\u202f000 MB; the answer: 48 MB. Too large by a factor of 20.8."),
    ("-48", "▸ You guessed -48 MB; the answer: 48 MB. Not this time."),
    ("0", "▸ You guessed 0 MB; the answer: 48 MB. Not this time."),
    ("many", "▸ You guessed many MB; the answer: 48 MB. Not this time."),
    ("", "▸ You did not guess; the answer: 48 MB."),
]


@pytest.mark.parametrize("typed, says", NUMBERS)
def test_a_number_and_its_reveal(shown, typed, says):
    guess = teach.predict("How much?", unit="MB")
    assert shown[-1]["text/plain"] == "▸ Your guess? How much? (MB)"
    guess.widget.value = typed
    teach.reveal(guess, torch.tensor(48.0))
    assert shown[-1]["text/plain"] == says


def test_reveal_takes_a_plain_value(shown):
    teach.reveal(5, 4.9, unit="s")
    assert shown[-1]["text/plain"] == "✓ You guessed 5 s; the answer: 4.9 s. Right."
    teach.reveal(0.3, 0)
    assert shown[-1]["text/plain"].startswith("▸")


def test_a_question_survives_without_widgets(shown, monkeypatch):
    monkeypatch.setattr(teach, "_widgets", lambda guess: 1 / 0)
    guess = teach.predict("How much?")
    assert shown == [{"text/plain": "▸ Your guess? How much? (a number)"}]
    teach.reveal(guess, 3)
    assert shown[-1]["text/plain"] == "▸ You did not guess; the answer: 3."


# check on the ranks

SUM = """# %%ranks
def total(x):
    x = x.clone()
    dist.all_reduce(x)
    return x
"""
FAILING = {
    "right": (SUM, "✓ total: right."),
    "a stub": ("def total(x): ...", "… to do: complete `total`"),
    "not defined": ("", "… to do: `total` is not defined on the ranks: complete it, run its cell"),
    "wrong everywhere": (SUM.replace("return x", "return x + 1"), "✗ total: add them all"),
    "wrong on one": (
        SUM.replace("return x", "return x + (rank == 1)"),
        "✗ total: rank 1: add them all (rank 0: right.)",
    ),
    "raises": (
        SUM.replace("return x", "return x / 0 + y"),
        "✗ total: NameError: name 'y' is not defined (line 5",
    ),
    "raises on one, the other waits": (
        SUM.replace("x.clone()", "x.clone() if rank else x.klone()"),
        "✗ total: rank 0: AttributeError: 'Tensor' object has no attribute 'klone' (line 3",
    ),
    "one does not take part": (
        SUM.replace("    dist", "    if rank: dist"),
        "✗ total: rank 0: add them all; rank 1: was waiting in all_reduce, line 4",
    ),
    "one is right by itself, the other waits": (
        SUM.replace("    dist", "    if rank == 0: return x * world_size\n    dist"),
        "✗ total: timed out after 3 s: rank 1 waits in all_reduce, line 5; rank 0 finished",
    ),
}


@pytest.fixture(scope="module")
def ranks():
    from fidle_utils import ranks

    ranks.start(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def check_total():
    # As in a notebook: a function without a module, which uses names that only the ranks know.
    names = {"torch": torch}
    exec('def check_total(f):\n    assert f(torch.ones(1)).item() == world_size, "add them all"', names)
    return names["check_total"]


@pytest.mark.parametrize("case", FAILING)
def test_on_ranks(verdict, ranks, check_total, case, capsys):
    source, says = FAILING[case]
    ranks.cell(source or "globals().pop('total', None)")
    text = verdict("total", check_total, timeout=3)
    assert text.startswith(says), text
    assert "Traceback" not in capsys.readouterr().out
    ranks.cell("kept = rank")
    assert ranks["kept"] == [0, 1]


def test_what_ranks_return_is_judged_together(verdict, ranks):
    ranks.cell("def mine(): return rank")

    def in_order(values):
        assert values == [0, 1], "in rank order"

    assert verdict("mine", lambda mine: mine(), together=in_order) == "✓ mine: right."
    assert verdict("mine", lambda mine: -mine(), together=in_order) == "✗ mine: in rank order"
