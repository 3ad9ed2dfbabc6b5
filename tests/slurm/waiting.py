"""What the tests of Slurm share."""

import time


def wait_until(happened, seconds=30):
    """True as soon as `happened()`, False if it has not after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (it := happened()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return it
