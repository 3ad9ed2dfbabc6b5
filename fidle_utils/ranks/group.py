"""The life of a group of ranks: start, connect, repair, end."""

import atexit
import os
import pickle
import signal
import time

import zmq

from fidle_utils.ranks.cell import CellRun
from fidle_utils.ranks.errors import RankError
from fidle_utils.ranks.export import History
from fidle_utils.ranks.launch import ServerProcess
from fidle_utils.ranks.link import DEAD
from fidle_utils.ranks.locate import names
from fidle_utils.ranks.placement import place
from fidle_utils.ranks.report import causes, report

IN_RANK = '__import__("fidle_utils.ranks.calls", fromlist=["calls"])'  # how a cell calls our code there


class Group:
    """The processes behind `ranks`: a server, a link to each rank, and what they have run."""

    def __init__(self):
        self._server = self._store = self._context = None
        self._links, self._options = [], None
        self._generation = 0
        self.history = History()
        atexit.register(self.stop)

    def __len__(self):
        return len(self._links)

    def warm(self):
        """Start the server that ranks are forked from; `start` then takes about a second."""
        if "RANKS_BACKEND" in os.environ:
            raise RuntimeError("this is a rank: start ranks from a cell of the notebook, without %%ranks")
        if self._server is None or not self._server.alive:
            self._server = ServerProcess()
            self._server.links = self._links = []

    def start(self, n=None, *, device=None, backend=None, threads=None, slurm=None):
        """Start `n` ranks, or have `n` instead of those that run. Returns the seconds that it took.

        n: default one a GPU if there are several, else 4. device: "cpu" or "cuda"; default a GPU each
        if there are enough. backend: default "nccl" on GPUs, "gloo" on CPUs. threads: of each rank, default 1
        as with torchrun. slurm: a dict, what to ask of Slurm (see `cluster.Batch.of`); the ranks then run on
        compute nodes, whose devices decide. Raises ValueError if there is no such device, RuntimeError if a
        rank cannot start.
        """
        start = time.perf_counter()
        if slurm is None:
            if self._on_nodes:
                self.stop()
            self.warm()  # before torch is imported here: both take a moment
            options = place(n, device, backend, threads)
        else:
            options = self._allocate(n, slurm)
        if self._links and all(link.state != DEAD for link in self._links) and options == self._options:
            self._say(
                f"{len(self)} ranks are running already, with their variables (%ranks restart for new ones)"
            )
            return 0.0
        self._end_ranks()
        self._context = self._context or zmq.Context()
        self._context.rcvhwm = 0  # never drop what a rank prints
        self._options = options
        self._generation += 1
        self.history.clear()
        try:
            self._links += [self._launch(rank) for rank in range(options.world_size)]
            self._connect()
        except BaseException:
            self._end_ranks()
            raise
        seconds = time.perf_counter() - start
        self._say(f"{options.world_size} ranks ready in {seconds:.1f} s · {options}")
        for note in options.notes:
            self._say(note)
        return seconds

    @property
    def _on_nodes(self):
        return self._server is not None and not isinstance(self._server, ServerProcess)

    def _allocate(self, n, slurm):
        """Have servers on compute nodes, those that are there if they fit; returns their Placement."""
        from fidle_utils.cluster.interactive import NodeServers

        if not (self._on_nodes and self._server.alive and self._server.asked == (n, slurm)):
            self.stop()
            self._server = NodeServers(n, slurm)
            self._server.links = self._links = []
        return self._server.placement

    def restart(self):
        """End all ranks and start as many new ones; their variables are gone."""
        options = self._options
        if not options:
            return self.start()
        self._end_ranks()
        return self.start(**options.asked)

    def stop(self):
        """End all ranks and the server that started them."""
        if self._server is not None:
            self._server.close()
            self._end_ranks()
            self._server = None

    def _end_ranks(self):
        if self._server is not None and self._server.alive:
            for link in self._links:
                link.signal(signal.SIGKILL)
            deadline = time.monotonic() + 5
            while any(link.state != DEAD for link in self._links) and time.monotonic() < deadline:
                self._bury()
                time.sleep(0.002)
        for link in self._links:
            link.close()
        self._links.clear()
        self._options = self._store = None

    def _launch(self, rank):
        settings = self._server.settings(rank, self._options)
        return self._server.start(rank, self._generation, settings, self._context)

    def _connect(self, patience=60.0):
        """Wait until every rank listens, then make the default process group.

        Returns the names of variables, on any rank, that still belong to the group before.
        """
        self._await_welcome(patience)
        self._store = self._server.new_store()  # not the last one: it holds the addresses of the last group
        run = CellRun(self._links, self._server, timeout=patience, quiet=True)
        told = [link.rank for link in self._links if link.told_to_disconnect]
        run.run(f"{IN_RANK}.connect({self._store.port}, {told})", silent=True)
        for link in self._links:
            link.told_to_disconnect = False
        if run.failures or run.timed_out:
            raise RankError(
                ["the ranks could not be connected: try %ranks restart", *report(run)], causes(run)
            )
        return sorted(set().union(*(pickle.loads(names) for names in run.values.values())))

    def _await_welcome(self, patience):
        poller, waiting = zmq.Poller(), {}
        for link in self._links:
            if not link.welcomed:
                poller.register(link.iopub, zmq.POLLIN)
                waiting[link.iopub] = link
        deadline = time.monotonic() + patience
        while waiting:
            for socket, _ in poller.poll(20):
                if any(message["msg_type"] == "iopub_welcome" for message in waiting[socket].receive()):
                    waiting.pop(socket).welcomed = True
                    poller.unregister(socket)
            for rank, code in self._server.exits():
                words = self._links[rank].new_errors().strip()
                raise RuntimeError(f"rank {rank} exited with code {code} while it started\n{words}")
            if time.monotonic() > deadline:
                silent = names([link.rank for link in waiting.values()])
                raise RuntimeError(
                    f"{silent} did not answer within {patience:g} s; %ranks restart tries again"
                )

    def _bury(self):
        """Mark the ranks that have exited; returns their (rank, exit code)."""
        exits = self._server.exits()
        for rank, code in exits:
            self._links[rank].died(code)
        return exits

    def _repair(self, disconnected):
        """Replace the dead, connect everybody again. Returns lines that say what that means."""
        dead = [link.rank for link in self._links if link.state == DEAD]
        if not self._server.alive:
            why = self._server.epitaph
            self._server.close()
            self._server = None
            self._links.clear()
            return [f"→ All ranks are gone with their variables: run the cells from %ranks on again.{why}"]
        if not (dead or disconnected):
            return []
        self._generation += 1
        for rank in dead:
            self._links[rank].close()
            self._links[rank] = self._launch(rank)
        stale = self._connect()
        if len(dead) == len(self._links):
            return ["→ All ranks were replaced: their variables are gone. Run the cells after %ranks again."]
        advice = ["→ The ranks are connected again and keep their variables."]
        if stale:
            advice.append(f"→ Make again what belongs to the old connections: {', '.join(stale)}.")
        if dead:
            were, their = ("was", "its") if len(dead) == 1 else ("were", "their")
            gone = f"→ {names(dead)} {were} replaced: {their} variables are gone."
            advice.append(f"{gone} Run the cells that define them again.")
        return advice

    def _say(self, text):
        print(text, flush=True)
