"""The notebook's end of the warm server: start it early, ask it for ranks, hear of those that exit."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import Pipe

from jupyter_client.session import Session

from fidle_utils.ranks.link import Link

STORE_ADDRESS = "127.0.0.1"
# The path of a Unix socket is limited to about 100 characters.
LONGEST_DIRECTORY = 70
START_SECONDS = 120


class ServerProcess:
    """Owns the server process, the private directory of sockets, and the links to the ranks of one group."""

    epitaph = ""  # why it is gone: nobody knows

    def __init__(self):
        parent = tempfile.gettempdir()
        self.directory = tempfile.mkdtemp(
            prefix="ranks-", dir=parent if len(parent) < LONGEST_DIRECTORY else "/tmp"
        )
        self.session = Session(key=os.urandom(16).hex().encode())
        self.connection, theirs = Pipe()
        self.fork = sys.platform == "linux" and os.environ.get("RANKS_START") != "spawn"
        command = [sys.executable, "-m", "fidle_utils.ranks.server", str(theirs.fileno()), self.directory]
        self.log = os.path.join(self.directory, "server.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "fork" if self.fork else "spawn"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment({"OMP_NUM_THREADS": "1"}),
                cwd=os.getcwd(),
                start_new_session=True,  # Jupyter's stop button signals the whole group of the kernel
            )
        theirs.close()
        # A process that the notebook forks must not keep our end open: the server would outlive the notebook.
        os.register_at_fork(after_in_child=self._forget)
        self.links = []
        self._ready, self._exits, self._started = False, [], {}

    def _forget(self):
        try:
            os.close(self.connection.fileno())
        except OSError:  # closed already
            pass

    @property
    def alive(self):
        return self.process.poll() is None

    def fileno(self):
        return self.connection.fileno()

    def _listen(self, seconds=0.0):
        """Take in what the server says, waiting at most so long for the first message."""
        while self.connection.poll(seconds):
            kind, *rest = self.connection.recv()
            if kind == "ready":
                self._ready = True
            elif kind == "started":
                self._started[rest[0]] = rest[1]
            elif kind == "exited":
                self._exits.append(tuple(rest))
            seconds = 0.0

    def wait_until(self, happened):
        """Listen until `happened()`; raises RuntimeError with the server's last words if it dies."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while not happened():
                self._listen(1.0)
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"ranks could not be started within {START_SECONDS} s: try %ranks restart"
                    )
        except (EOFError, ConnectionError):
            with open(self.log) as log:
                words = log.read().strip().splitlines()
            self.close()
            said = "\n".join(words[-3:])
            raise RuntimeError(
                f"the process that starts ranks died: {said or self.process.returncode}"
            ) from None

    def settings(self, rank, options):
        """What the process of a rank must know; `options`: the Placement."""
        return rank_settings(
            rank,
            options.world_size,
            threads=options.threads,
            device=options.devices[rank],
            backend=options.backend,
        )

    def new_store(self):
        """The rendezvous of the ranks, on a free port of the loopback, kept in the notebook's process."""
        from torch.distributed import TCPStore

        return TCPStore(STORE_ADDRESS, 0, is_master=True, wait_for_workers=False)

    def start(self, rank, generation, settings, context):
        """Start the process of one rank; returns its Link."""
        link = Link(rank, self.directory, generation, context, self.session)
        settings = dict(settings, connection_file=link.connection_file, files=link.files)
        settings.update(ipython_dir=os.path.join(self.directory, "ipython"), path=sys.path, cwd=os.getcwd())
        self.wait_until(lambda: self._ready)
        self._started.pop(rank, None)
        self.connection.send(("start", rank, settings))
        self.wait_until(lambda: rank in self._started)
        link.pid = self._started[rank]
        return link

    def exits(self):
        """The (rank, exit code) of ranks of this group that have exited since the last call."""
        try:
            self._listen()
        except (EOFError, ConnectionError):  # the server was killed; the ranks died with it
            return [(link.rank, -signal.SIGKILL) for link in self.links]
        pids = {link.pid for link in self.links}
        exits = [(rank, code) for rank, pid, code in self._exits if pid in pids]
        self._exits.clear()
        return exits

    def close(self):
        """End the server, all ranks and the directory; returns when they are gone."""
        if self.connection.closed:
            return
        self.connection.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def rank_settings(rank, world_size, *, threads, device, backend):
    """The environment of one rank: what torchrun would set, and the settings of `%ranks`."""
    env = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": STORE_ADDRESS,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store lives in the notebook, not in rank 0
        "OMP_NUM_THREADS": threads,
        "RANKS_DEVICE": device,
        "RANKS_BACKEND": backend,
    }
    return {"env": _environment(env), "threads": threads}


def _environment(changes):
    env = dict(os.environ)
    # These say things of the notebook's kernel that are not true of a rank.
    for name in (
        "JPY_PARENT_PID",
        "JPY_SESSION_NAME",
        "JPY_INTERRUPT_EVENT",
        "IPYKERNEL_CELL_NAME",
        "PYTEST_CURRENT_TEST",
        # NVIDIA's containers turn TF32 on with these: float32 must mean float32 where lessons compare it.
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ):
        env.pop(name, None)
    if sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    env.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler would announce itself on every rank
    env.update({name: str(value) for name, value in changes.items()})
    return env


def import_torch_early():
    """Import torch in a thread while the learner reads; the first `%ranks` then need not wait for it."""
    threading.Thread(target=__import__, args=("torch.distributed",), daemon=True).start()
