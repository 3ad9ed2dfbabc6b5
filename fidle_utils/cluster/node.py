"""On a compute node: the warm server that ranks are forked from, connected to the notebook over TCP.

As `python -m fidle_utils.cluster.node ADDRESS PORT`, started by srun, once a node. It proves with the key in
FIDLE_RANKS_KEY that it is ours, and ends with the connection. Beyond what a local server says and hears:

    notebook → node   ("launch", rank, settings, key) · ("kill", pid, signal) · ("tell", token, what, …)
    node → notebook   ("node", number, name, address, gpus) · ("channels", rank, info)
                      ("answer", token, value)
"""

import gc
import importlib
import os
import socket
import sys
import tempfile
import time
from multiprocessing.connection import Client

from fidle_utils.ranks.server import NEEDED, PR_SET_CHILD_SUBREAPER, Server, _leaving_early, prctl

CHANNELS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


class NodeServer(Server):
    """Starts, watches and ends the ranks of one node."""

    def __init__(self, connection, directory, address):
        super().__init__(connection, directory, fork=True)
        self.address, self.launched = address, 0

    def launch(self, rank, settings, key):
        """Start a rank whose channels are at this node's address only."""
        from jupyter_client.connect import write_connection_file

        self.launched += 1
        path = os.path.join(self.directory, f"{rank}-{self.launched}")
        files = {kind: f"{path}.{kind}" for kind in ("errors", "where")}
        for name in (*files.values(), f"{path}.json"):
            os.close(os.open(name, os.O_CREAT | os.O_TRUNC, 0o600))
        info = dict(transport="tcp", ip=self.address, **dict(zip(CHANNELS, self._free_ports(), strict=True)))
        write_connection_file(f"{path}.json", key=key, **info)
        env = {**os.environ, **settings["env"]}
        env["RANKS_KERNEL_PORTS"] = ",".join(str(info[name]) for name in CHANNELS)
        env.pop("FIDLE_RANKS_KEY", None)
        settings.update(env=env, connection_file=f"{path}.json", files=files)
        settings.update(ipython_dir=os.path.join(self.directory, "ipython"))
        self.connection.send(("channels", rank, dict(info, files=files)))
        self.start(rank, settings)

    def _free_ports(self):
        sockets = [socket.socket() for _ in CHANNELS]
        try:
            for one in sockets:
                one.bind((self.address, 0))
            return [one.getsockname()[1] for one in sockets]
        finally:
            for one in sockets:
                one.close()

    def kill(self, pid, number):
        """Send a signal to a rank."""
        if pid in self.ranks:
            os.kill(pid, number)

    def tell(self, token, what, *argument):
        """Answer a question of the notebook's."""
        self.connection.send(("answer", token, getattr(self, f"_{what}")(*argument)))

    def _file(self, path, start):
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read()
        except OSError:
            return b""

    def _processor_seconds(self, pid):
        from fidle_utils.ranks.link import processor_seconds

        return processor_seconds(pid)

    def _memory_mb(self, pid):
        from fidle_utils.ranks.link import memory_mb

        return memory_mb(pid)


def main():
    start = time.perf_counter()
    gc.disable()
    key = bytes.fromhex(os.environ["FIDLE_RANKS_KEY"])
    connection = Client((sys.argv[1], int(sys.argv[2])), authkey=key)
    address = socket.gethostbyname(socket.gethostname())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # Slurm sets it; to ask CUDA would open it
    name, number = os.environ["SLURMD_NODENAME"], int(os.environ["SLURM_NODEID"])
    connection.send(("node", number, name, address, len(visible.split(",")) if visible else 0))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    directory = tempfile.mkdtemp(prefix="ranks-")
    server = NodeServer(connection, directory, address)
    with _leaving_early(connection, directory):
        for module in NEEDED:
            importlib.import_module(module)
    gc.freeze()
    server.serve(start)


if __name__ == "__main__":
    main()
