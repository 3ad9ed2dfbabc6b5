"""What a failed or stopped `%%ranks` cell raises: short, with the traceback that matters once."""


class RankError(RuntimeError):
    """A cell failed, hung or timed out on at least one rank.

    Attributes: rank, ename, evalue, line (of the first failure; rank None if none raised), failures (a list),
    report (str, a line for each group of ranks that did the same).
    """

    def __init__(self, report, failures=(), advice=()):
        first = failures[0] if failures else None
        self.rank, self.line = (first.rank, first.line) if first else (None, None)
        self.ename, self.evalue = (first.ename, first.evalue) if first else (None, None)
        self.failures, self.report, self.advice = list(failures), "\n".join(report), list(advice)
        super().__init__("\n".join(report))

    def _render_traceback_(self):
        """What IPython prints instead of the frames of our own code."""
        lines = [self.failures[0].traceback] if self.failures and self.failures[0].traceback else []
        return [*lines, "", *(f"\x1b[1m{line}\x1b[0m" for line in self.report.splitlines()), *self.advice]


class RanksStopped(KeyboardInterrupt):
    """The stop button ended a cell."""

    def __init__(self, report, advice=()):
        self.report, self.advice = "\n".join(report), list(advice)
        super().__init__(self.report)

    _render_traceback_ = RankError._render_traceback_
    failures = ()
