"""Helpers of the course: ranks in a notebook, checks for exercises, figures and measurements."""

from fidle_utils.ranks import RankError, Ranks

__all__ = ["RankError", "load_ipython_extension", "ranks", "unload_ipython_extension"]
__version__ = "0.1.0"

ranks = Ranks()


def load_ipython_extension(shell):
    """`%load_ext fidle_utils`: define `%ranks`, `%%ranks` and `%recorded`, and start to warm up."""
    from fidle_utils.classroom.recorded import RecordedMagics
    from fidle_utils.ranks.launch import import_torch_early
    from fidle_utils.ranks.magics import RanksMagics

    ranks.warm()
    import_torch_early()
    shell.register_magics(RanksMagics(shell, ranks))
    shell.register_magics(RecordedMagics(shell))


def unload_ipython_extension(shell):
    """`%unload_ext fidle_utils`: end the ranks, forget the cells."""
    ranks.stop()
    shell.magics_manager.registry["RecordedMagics"].close()
