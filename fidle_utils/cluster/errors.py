"""What goes wrong on a cluster, said once and clearly."""


class ClusterError(RuntimeError):
    """Slurm is missing, refused a job, or the job failed; the message says what to do next."""

    def _render_traceback_(self):
        """What IPython prints instead of frames of our own code."""
        first, *rest = str(self).splitlines() or [""]
        return [f"\x1b[1m{first}\x1b[0m", *rest]
