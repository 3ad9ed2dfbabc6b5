"""The one exception of the planner."""

__all__ = ["PlanError"]


class PlanError(ValueError):
    """A plan that cannot be: what is wrong, where, and what to do next, in one sentence."""


def check(condition, message):
    """Raise PlanError with `message` unless `condition` holds."""
    if not condition:
        raise PlanError(message)


def check_counts(**counts):
    """Raise PlanError unless every number is whole and 1 or more; names are read from the keywords."""
    for name, value in counts.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        words = name.replace("_", " ")
        check(whole and value >= 1, f"{value!r} {words}: take a whole number, 1 or more")
