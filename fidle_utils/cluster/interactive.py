"""Interactive ranks on compute nodes: `%ranks 8 --slurm …`. What `ServerProcess` is on one machine.

srun starts a server on each node; each connects back to the notebook. They end when their connection closes,
however the notebook ends; then srun ends, and with it the job that it asked for.
"""

import itertools
import os
import queue
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Listener

from jupyter_client.session import Session

from fidle_utils.cluster import slurm
from fidle_utils.cluster.batch import ROOT, Batch
from fidle_utils.cluster.errors import ClusterError
from fidle_utils.cluster.node_link import NodeLink
from fidle_utils.cluster.profiles import seconds
from fidle_utils.cluster.status import clock
from fidle_utils.ranks.placement import Placement

QUEUE_SECONDS, START_SECONDS, ANSWER_SECONDS = 3.0, 120, 5.0
# What a step is asked for in another way than a batch job.
_NOT_FOR_SRUN = {"job-name", "ntasks-per-node", "cpus-per-task", "output", "nodes"}


class Node:
    """The notebook's end of one server."""

    def __init__(self, connection):
        self.connection, self.alive = connection, True
        _, self.number, self.name, self.address, self.gpus = connection.recv()


class NodeServers:
    """The servers on the nodes of one allocation; `placement` says what was found there."""

    def __init__(self, n, asked):
        self.asked = (n, asked)
        shape = {} if n is None else {"world_size": n}
        self.batch = Batch.of("ranks", **shape, **{"time": "01:00:00", **asked})
        self.session = Session(key=os.urandom(16).hex().encode())
        self.links, self._exits, self._started, self._channels, self._answers = [], [], {}, {}, {}
        self._tokens, self._ready, self.nodes, self.process = itertools.count(), set(), [], None
        self._listener, self._deaf = None, threading.Event()
        self._log = tempfile.TemporaryFile()
        self.address = os.environ.get("FIDLE_ADDRESS") or socket.gethostbyname(socket.gethostname())
        self._events = select.epoll()
        os.register_at_fork(after_in_child=self._forget)
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise
        self.placement = self._place()

    def _allocate(self):
        """Start srun; returns when a server on each node has proved who it is."""
        key = os.urandom(32)
        self._listener = Listener((self.address, 0), authkey=key)
        env = slurm.clean_environment() | {"FIDLE_RANKS_KEY": key.hex()}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        server = [sys.executable, "-m", "fidle_utils.cluster.node", *map(str, self._listener.address)]
        try:
            self.process = subprocess.Popen(
                ["srun", *self._options(), *server],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=env,
                start_new_session=True,  # Jupyter's stop button signals the whole group of the kernel
            )
        except FileNotFoundError:
            raise ClusterError(slurm.NO_SLURM.format(command="srun")) from None
        came = queue.SimpleQueue()
        threading.Thread(target=self._accept, args=(came,), daemon=True).start()
        said, start = False, time.monotonic()
        while len(self.nodes) < self.batch.nodes:
            try:
                self.nodes.append(Node(came.get(timeout=0.2)))
            except queue.Empty:
                if self.process.poll() is not None:
                    asked = {option: value for option, value, _ in self.batch.directives()}
                    raise ClusterError(slurm.in_plain_words(self._words(), asked)) from None
                if not said and time.monotonic() - start > QUEUE_SECONDS and "queued" in self._words():
                    said = True
                    print("Waiting in the queue; the stop button gives up.", flush=True)
        self._stop_listening()
        self.nodes.sort(key=lambda node: node.number)
        for node in self.nodes:
            self._events.register(node.connection.fileno(), select.EPOLLIN)

    def _accept(self, came):
        """Hand on the connections of those who know the key."""
        while not self._deaf.is_set():
            try:
                came.put(self._listener.accept())
            except Exception:  # somebody without the key, or who went away
                continue

    def _stop_listening(self):
        if self._listener is not None and not self._deaf.is_set():
            self._deaf.set()
            socket.create_connection(self._listener.address).close()  # wakes the thread that accepts
            self._listener.close()

    def _options(self):
        """The batch job's options for one step of one task a node."""
        batch = self.batch
        yield from (f"--nodes={batch.nodes}", f"--ntasks={batch.nodes}", "--ntasks-per-node=1")
        yield from (f"--cpus-per-task={batch.cpus_per_task * batch.ntasks_per_node}", "--job-name=ranks")
        yield "--kill-on-bad-exit=1"
        if "SLURM_JOB_ID" in os.environ:  # in an allocation already
            yield from (f"--jobid={os.environ['SLURM_JOB_ID']}", "--overlap")
        for option, value, _ in batch.directives():
            if option not in _NOT_FOR_SRUN:
                yield f"--{option}" if value is True else f"--{option}={value}"

    def _place(self):
        batch, names = self.batch, ", ".join(node.name for node in self.nodes)
        on_gpus = all(node.gpus >= batch.ntasks_per_node for node in self.nodes)
        devices = [
            f"cuda:{local}" if on_gpus else "cpu" for local in range(batch.ntasks_per_node)
        ] * batch.nodes
        why = f"{batch.ntasks_per_node} on each of {names}" if batch.nodes > 1 else f"on {names}"
        why += f", for {clock(seconds(batch.time))}"
        n, asked = self.asked
        return Placement(
            batch.world_size,
            tuple(devices),
            "nccl" if on_gpus else "gloo",
            batch.cpus_per_task,
            why,
            dict(n=n, slurm=asked),
        )

    def _words(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _forget(self):
        """A process that the notebook forks must not keep our ends open: the servers would outlive it."""
        for node in self.nodes:
            try:
                os.close(node.connection.fileno())
            except OSError:  # closed already
                pass

    # What a Group asks of its server

    @property
    def alive(self):
        return bool(self.nodes) and all(node.alive for node in self.nodes)

    @property
    def epitaph(self):
        """Why the nodes are gone, as far as srun says it."""
        try:
            self.process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        if "TIME LIMIT" in (words := self._words().upper()):
            return f" The {clock(seconds(self.batch.time))} that you had asked for are over."
        return " A node failed." if "NODE FAIL" in words else ""

    def fileno(self):
        return self._events.fileno()

    def settings(self, rank, options):
        """What the process of a rank must know, beyond the environment of its node."""
        local_size = self.batch.ntasks_per_node
        env = dict(RANK=rank, LOCAL_RANK=rank % local_size, WORLD_SIZE=options.world_size)
        env.update(LOCAL_WORLD_SIZE=local_size, MASTER_ADDR=self.address, TORCHELASTIC_USE_AGENT_STORE=True)
        env.update(OMP_NUM_THREADS=options.threads, TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL=5)
        env.update(RANKS_DEVICE=options.devices[rank], RANKS_BACKEND=options.backend)
        env.update(RANKS_PEERS=",".join({self.address, *(node.address for node in self.nodes)}))
        env = {name: str(value) for name, value in env.items()}
        return dict(env=env, threads=options.threads, path=sys.path, cwd=os.getcwd())

    def new_store(self):
        """The rendezvous of the ranks, at the notebook's address only, kept in its process."""
        from torch.distributed import TCPStore

        listening = socket.create_server((self.address, 0))
        port = listening.getsockname()[1]
        fd = listening.detach()
        return TCPStore(self.address, port, is_master=True, wait_for_workers=False, master_listen_fd=fd)

    def start(self, rank, generation, settings, context):
        """Start the process of one rank on its node; returns its Link."""
        node = self.nodes[rank // self.batch.ntasks_per_node]
        self._wait_until(lambda: node.number in self._ready)
        self._started.pop(rank, None)
        self.send(node, "launch", rank, settings, self.session.key)
        self._wait_until(lambda: rank in self._started)
        return NodeLink(rank, self._started[rank], self._channels[rank], context, self, node)

    def exits(self):
        """The (rank, exit code) of ranks that have exited since the last call."""
        self._listen()
        pids = {(link.rank, link.pid) for link in self.links}
        exits = [(rank, code) for rank, pid, code in self._exits if (rank, pid) in pids]
        self._exits.clear()
        return exits

    def close(self):
        """End the servers, all ranks, and srun with the allocation that it asked for."""
        self._stop_listening()
        for node in self.nodes:
            self._lost(node)
        if self.process is not None:
            if not self.nodes:
                self.process.terminate()  # it waits in the queue: it cancels the job
            for end in (self.process.terminate, self.process.kill):
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    end()
            self.process.wait()
        self._events.close()
        self._log.close()

    # What the servers say

    def send(self, node, *message):
        """A message to a node; it is lost if the node is."""
        try:
            node.connection.send(message)
        except OSError:
            self._lost(node)

    def ask(self, node, what, *argument):
        """A question to a node; None if it does not answer."""
        token = next(self._tokens)
        self.send(node, "tell", token, what, *argument)
        deadline = time.monotonic() + ANSWER_SECONDS
        while token not in self._answers and node.alive and time.monotonic() < deadline:
            self._listen(0.2)
        return self._answers.pop(token, None)

    def _wait_until(self, happened):
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            self._listen(1.0)
            if not self.alive:
                raise RuntimeError(f"a node is gone: {slurm.in_plain_words(self._words())}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"ranks could not be started within {START_SECONDS} s: try %ranks restart")

    def _listen(self, patience=0.0):
        """Take in what the servers say, waiting at most so many seconds for the first word."""
        by_fd = {node.connection.fileno(): node for node in self.nodes if node.alive}
        for fd, _ in self._events.poll(patience):
            node = by_fd[fd]
            try:
                while node.alive and node.connection.poll():
                    self._hear(node, *node.connection.recv())
            except (EOFError, OSError):
                self._lost(node)

    def _hear(self, node, kind, *rest):
        if kind == "ready":
            self._ready.add(node.number)
        elif kind == "exited":
            self._exits.append(tuple(rest))
        else:
            dict(started=self._started, channels=self._channels, answer=self._answers)[kind][rest[0]] = rest[
                1
            ]

    def _lost(self, node):
        """A node, or its server, is gone, and its ranks with it."""
        if node.alive:
            node.alive = False
            self._events.unregister(node.connection.fileno())
            node.connection.close()
            self._exits += [(link.rank, link.pid, -9) for link in self.links if link.node is node]
