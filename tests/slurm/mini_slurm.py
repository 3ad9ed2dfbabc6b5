"""A Slurm cluster of two virtual nodes on this machine, with the names of Jean Zay: `MiniSlurm`.

    python tests/slurm/mini_slurm.py COMMAND…    run COMMAND beside a cluster, end both together

Debian's slurm-wlm and munge run in namespaces of their own: processes (when the first of them ends, the
kernel ends all the others), mounts (an /etc/hosts that knows jz0 and jz1) and, for each node, the host name.
All files are in one temporary folder, all ports are free ones. The machine itself is not changed.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from fidle_utils.cluster.profiles import profiles, seconds

HERE = Path(__file__).parent
NODES = ("jz0", "jz1")
PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol", "unshare")
START_SECONDS = 10
SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # an ordinary user's PATH often has no sbin


def why_not():
    """Why no cluster can be started here, in one sentence; empty if it can."""
    if sys.platform != "linux":
        return "Slurm's daemons need Linux"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]:
        return f"{', '.join(missing)} not installed (Debian, Ubuntu: apt install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start slurmd and have it run the jobs of several users"
    namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "true"]
    if subprocess.run(namespaces, capture_output=True).returncode:
        return "this container may not make namespaces (docker run --cap-add SYS_ADMIN would allow it)"
    return ""


class MiniSlurm:
    """A running cluster; `env` is what a client needs (SLURM_CONF). Use it in a `with` block, or `stop()` it.

    Raises RuntimeError, with the last words of the daemons, if it does not answer within START_SECONDS.
    """

    def __init__(self):
        if reason := why_not():
            raise RuntimeError(f"no mini Slurm here: {reason}")
        # Not below TMPDIR, which may be private or too long for the path of a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.process, self.expected = None, set()  # jobs that a test leaves on purpose
        try:
            self._write_files()
            self._start()
        except BaseException:
            self.stop()
            raise

    def _write_files(self):
        self.folder.chmod(0o755)  # jobs of other users read the configuration
        for name, mode in (("munge", 0o755), ("state", 0o700), ("spool", 0o755), ("tmp", 0o1777)):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(mode)
        (self.folder / "gpus").mkdir()
        for n in range(8):
            (self.folder / "gpus" / f"gpu{n}").touch()
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        controller, *nodes = _free_ports(1 + len(NODES))
        values = dict(folder=self.folder, host=socket.gethostname(), port=controller)
        # Two clusters on one machine must not number their jobs alike: MASTER_PORT comes from the number.
        values.update(first_job=random.randrange(1000, 20000))
        values.update({f"port{n}": port for n, port in enumerate(nodes)})
        values["qos"] = ", ".join(_qos())
        for name in ("slurm.conf", "gres.conf", "job_submit.lua"):
            text = (HERE / name).read_text()
            for word, value in values.items():
                text = text.replace(f"@{word.upper()}@", str(value))
            (self.folder / name).write_text(text)
        names = "".join(f"127.0.0.1 {name}\n" for name in NODES)
        (self.folder / "hosts").write_text(names + Path("/etc/hosts").read_text())

    @property
    def env(self):
        """What to add to a client's environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def _start(self):
        # The shell is process 1 of the namespace and lives as long as its standard input is open: as long as
        # we do, however we end.
        with open(self.folder / "daemons.log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
                + ["bash", str(HERE / "daemons.sh"), str(self.folder), *NODES],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env, "PATH": SYSTEM_PATH},
                cwd=self.folder,
                start_new_session=True,  # a Ctrl-C meant for the command beside us is not for the daemons
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the mini Slurm did not start\n{self.last_words()}")
            time.sleep(0.1)

    def _ready(self):
        done = self.run("sinfo", "--noheader", "--Node", "--partition=gpu_p13", "--format=%T", check=False)
        return done.stdout.split() == ["idle"] * len(NODES)

    def run(self, *command, check=True, **options):
        """Run a client (sinfo, scontrol…) on this cluster; returns the CompletedProcess, with text."""
        options = dict(capture_output=True, text=True, timeout=60) | options
        return subprocess.run(command, env={**os.environ, **self.env}, check=check, **options)

    def jobs(self):
        """The numbers of the jobs that wait or run."""
        return [int(word) for word in self.run("squeue", "--noheader", "--format=%A").stdout.split()]

    def steps(self):
        """The numbers of the jobs that have a process: one of Slurm's that runs a step, or one it runs."""
        ours = psutil.Process(self.process.pid).children(recursive=True)
        return [job for process in ours if (job := _job_of(process))]

    def last_words(self, lines=15):
        """The ends of the daemons' logs."""
        logs = sorted(self.folder.glob("*.log"))
        ends = {log.name: log.read_text(errors="replace").splitlines()[-lines:] for log in logs}
        return "\n".join("\n".join([f"— {name}", *end]) for name, end in ends.items())

    def stop(self):
        """End every process of the cluster, jobs included, and remove its folder."""
        if self.process is not None:
            self.process.stdin.close()  # process 1 of the namespace ends, and the kernel ends the rest
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def _qos():
    """The fields of a table in Lua: the minutes that each QoS of Jean Zay allows."""
    for profile in profiles().values():
        for name, limit in profile.qos.items():
            yield f'["{name}"] = {seconds(limit["time"]) // 60}'


def _job_of(process):
    """The number of the job that a process belongs to, None for a daemon."""
    try:
        step = re.match(r"slurmstepd: \[(\d+)", " ".join(process.cmdline()))
        return int(step[1] if step else process.environ().get("SLURM_JOB_ID", 0)) or None
    except psutil.Error:  # it has ended
        return None


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def main(command):
    """Run a command beside a cluster; returns its exit code."""
    if reason := why_not():
        print(f"No mini Slurm here: {reason}.", file=sys.stderr)
        return 1
    with MiniSlurm() as slurm:
        print(f"Slurm runs on {' and '.join(NODES)}, two virtual nodes, until this command ends.")
        print(f"In another terminal: export SLURM_CONF={slurm.env['SLURM_CONF']}; sinfo", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        child = subprocess.Popen(command, env={**os.environ, **slurm.env})
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the command has heard it too, and decides
                continue
            except SystemExit:
                child.terminate()
                child.wait()
                raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["bash"]))
