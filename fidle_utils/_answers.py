"""What `teach.check` needs to know of an answer: is it still a stub, and does it equal what was expected?"""

import ast
import inspect
import math
import textwrap

import numpy as np
import torch

UNEQUAL = "not the expected value yet."
_UNITS = (8, 1e3, 2**10, 1e6, 2**20, 1e9, 2**30)  # bytes and bits, kilo, mega, giga


def is_stub(value):
    """True when `value` is, or holds, an Ellipsis; or is a function or class whose source still has one."""
    if isinstance(value, dict):
        return any(map(is_stub, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(is_stub, value))
    if isinstance(value, type):
        methods = (getattr(v, "__func__", v) for v in vars(value).values())  # static and class methods too
        return any(is_stub(v) for v in methods if inspect.isfunction(v))
    return value is ... or (inspect.isfunction(value) and _has_ellipsis(value))


def _has_ellipsis(function):
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source: it came from another process, or is a lambda
        return Ellipsis in function.__code__.co_consts
    # x[..., 0] and tuple[int, ...] are Python, not gaps.
    indexes = {id(n) for s in ast.walk(tree) if isinstance(s, ast.Subscript) for n in ast.walk(s.slice)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in indexes)
    return any(constant.value is ... for constant in constants)


def assert_equal(answer, expected, tol):
    """Raise AssertionError: with a hint when the form is wrong, without when only the value is."""
    if answer is None and expected is not None:
        raise AssertionError("the answer is None: does your function `return` its result?")
    if isinstance(expected, torch.Tensor | np.ndarray):
        _assert_equal_arrays(answer, expected, tol)
    elif isinstance(expected, bool | np.bool_):
        _assert_type(answer, bool | np.bool_, "True or False")
        assert bool(answer) == expected
    elif isinstance(expected, int | float | np.number):
        _assert_equal_numbers(answer, float(expected), tol)
    elif isinstance(expected, str):
        _assert_type(answer, str, "a text (str)")
        assert answer.strip().casefold() == expected.strip().casefold()
    elif isinstance(expected, dict):
        _assert_equal_dicts(answer, expected, tol)
    elif isinstance(expected, list | tuple):
        _assert_type(answer, list | tuple, "a list or a tuple")
        same = len(answer) == len(expected)
        assert same, f"{len(expected)} items are expected; your answer has {len(answer)}."
        for i, (a, e) in enumerate(zip(answer, expected, strict=True)):
            _assert_equal_inside(f"item {i}", a, e, tol)
    else:
        _assert_type(answer, type(expected), f"a {type(expected).__name__}")
        assert answer == expected


def _assert_equal_inside(where, answer, expected, tol):
    try:
        assert_equal(answer, expected, tol)
    except AssertionError as error:
        raise AssertionError(f"{where}: {str(error) or UNEQUAL}") from None


def _assert_type(answer, types, description):
    given = type(answer).__name__
    assert isinstance(answer, types), f"{description} is expected; your answer is of type {given}."


def _assert_equal_numbers(answer, expected, tol):
    if isinstance(answer, torch.Tensor | np.ndarray) and math.prod(answer.shape) == 1:
        answer = answer.item()
    _assert_type(answer, int | float | np.number, "a number")
    assert not math.isnan(answer) or math.isnan(expected), "the answer is NaN, not a number."
    if math.isnan(expected) or math.isclose(answer, expected, rel_tol=tol, abs_tol=tol):
        assert math.isnan(answer) == math.isnan(expected)
        return
    ratio = answer / expected if expected else 0
    unit = ratio > 0 and any(math.isclose(max(ratio, 1 / ratio), factor, rel_tol=0.01) for factor in _UNITS)
    raise AssertionError("check the unit: right but for a factor such as 8, 1000 or 1024." if unit else "")


def _assert_equal_dicts(answer, expected, tol):
    _assert_type(answer, dict, "a dict")
    missing, extra = expected.keys() - answer.keys(), answer.keys() - expected.keys()
    assert not missing, "missing: " + ", ".join(sorted(map(repr, missing)))
    assert not extra, "not expected: " + ", ".join(sorted(map(repr, extra)))
    for key in expected:
        _assert_equal_inside(f"[{key!r}]", answer[key], expected[key], tol)


def _assert_equal_arrays(answer, expected, tol):
    kind = torch.Tensor if isinstance(expected, torch.Tensor) else np.ndarray
    _assert_type(answer, kind, "a tensor" if kind is torch.Tensor else "a NumPy array")
    shape, dtype = tuple(expected.shape), expected.dtype
    assert tuple(answer.shape) == shape, f"shape {shape} is expected; yours is {tuple(answer.shape)}."
    assert answer.dtype == dtype, f"{dtype} is expected; yours is {answer.dtype}."
    a, e = (torch.as_tensor(t).detach().cpu() for t in (answer, expected))
    a, e = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, e))
    n_nan = (a.isnan() & ~e.isnan()).sum().item()
    assert not n_nan, f"{n_nan} of {a.numel()} values are NaN."
    wrong = (~torch.isclose(a, e, rtol=tol, atol=tol, equal_nan=True)).sum().item()
    assert not wrong or wrong == a.numel(), f"{wrong} of {a.numel()} values are wrong."
    assert not wrong
