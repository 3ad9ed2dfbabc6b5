"""Scripts and cells through Slurm: `from fidle_utils import cluster`."""

from fidle_utils.cluster import slurm
from fidle_utils.cluster.batch import Batch
from fidle_utils.cluster.errors import ClusterError
from fidle_utils.cluster.job import Job, attach, submit
from fidle_utils.cluster.profiles import Profile, profile, profiles, seconds
from fidle_utils.cluster.request import Request

__all__ = [
    "Batch",
    "ClusterError",
    "Job",
    "Profile",
    "Request",
    "attach",
    "profile",
    "profiles",
    "seconds",
    "slurm",
    "submit",
]
