"""The notebook's end of one rank on a compute node."""

from jupyter_client.client import KernelClient

from fidle_utils.ranks.link import DEAD, Link


class NodeLink(Link):
    """The notebook's end of a rank on a node: channels at the node's address; the rest goes by its server."""

    def __init__(self, rank, pid, info, context, servers, node):
        self.rank, self.servers, self.node = rank, servers, node
        self.files = info.pop("files")
        client = KernelClient(context=context, session=servers.session)
        client.load_connection_info(info)
        self._open(client, servers.session)
        self.pid = pid

    def _read(self, kind, start):
        return self.servers.ask(self.node, "file", self.files[kind], start) or b""

    def processor_seconds(self):
        return self.servers.ask(self.node, "processor_seconds", self.pid) or 0.0

    def memory_mb(self):
        return self.servers.ask(self.node, "memory_mb", self.pid) or 0

    def signal(self, number):
        if self.state != DEAD:
            self.servers.send(self.node, "kill", self.pid, number)

    def close(self):
        """Let go of a rank that is dead."""
        for channel in (self.shell, self.iopub):
            channel.close(0)
