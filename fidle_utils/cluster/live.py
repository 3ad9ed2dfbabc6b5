"""A job as it runs, in the notebook's cell: its state, and the rows of `%%ranks` for what its ranks write."""

import time

from IPython import get_ipython
from IPython.display import display

from fidle_utils.ranks.output import CellOutput

LOOK_SECONDS = 0.5  # at files
ASK_SECONDS = (1.0, 10.0)  # Slurm: at first, and when a job waits for long; its controller serves everybody


def watch(job):
    """Show the job until it ends; returns False if the stop button ended the watching first."""
    header, logs = _Header(job), job.logs
    output = CellOutput(range(job.world_size), logs.progress, elsewhere="job.outputs")
    asked_at, pause, state = 0.0, ASK_SECONDS[0], None
    try:
        while True:
            if time.monotonic() - asked_at >= pause:
                status, asked_at = job.status, time.monotonic()
                pause = ASK_SECONDS[0] if status.state != state else min(pause * 1.3, ASK_SECONDS[1])
                state = status.state
                header.show(status)
            _take(logs, output)
            output.draw()
            if status.ended:
                break
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        output.draw(final=True)
        print(f"Job {job.id} goes on. job.follow() shows it again, job.cancel() ends it.", flush=True)
        return False
    _take(logs, output)
    output.draw(final=True)
    return True


def _take(logs, output):
    if logs.restarted():
        for rank in output.ranks:
            output.clear(rank)
    for rank, text in logs.news():
        output.write(rank, text)
    if logs.receive():
        output.dirty = True


class _Header:
    """The row with the job's state: one that changes in a notebook, a line for each new state elsewhere."""

    def __init__(self, job):
        self.job, self.handle, self.said = job, None, None

    def show(self, status):
        text = f"job {self.job.id} · {status}"
        if get_ipython() is None:
            if (status.state, status.reason) != self.said:
                print(text, flush=True)
            self.said = status.state, status.reason
        elif self.handle is None:
            self.handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": text}, raw=True)
