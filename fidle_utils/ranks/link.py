"""The notebook's end of one rank: four Jupyter channels over sockets that only this user can open."""

import json
import os
import signal

import zmq
from jupyter_client.client import KernelClient
from jupyter_client.connect import write_connection_file

PUSH, VALUE = "fidle_utils.push", "fidle_utils.value"  # comm targets: notebook → rank, rank → notebook
DISCONNECT = signal.SIGUSR2
IDLE, BUSY, DEAD = "idle", "busy", "dead"


class Link:
    """One rank as the notebook sees it.

    Attributes: rank, pid, state (idle, busy or dead), exit_code (negative: killed by that signal), files
    (paths: `errors` has what it wrote to descriptor 2, `where` has its stack whenever it was asked for).
    """

    def __init__(self, rank, directory, generation, context):
        name = f"{rank}-{generation}"
        self.rank, self.pid, self.state, self.exit_code = rank, None, IDLE, None
        self.connection_file = os.path.join(directory, f"{name}.json")
        self.files = {kind: os.path.join(directory, f"{name}.{kind}") for kind in ("errors", "where")}
        for path in (*self.files.values(), self.connection_file):
            os.close(os.open(path, os.O_CREAT | os.O_TRUNC, 0o600))
        ports = dict(shell_port=1, iopub_port=2, stdin_port=3, hb_port=4, control_port=5)
        path = os.path.join(directory, name)
        write_connection_file(
            self.connection_file, transport="ipc", ip=path, key=os.urandom(16).hex().encode(), **ports
        )
        self.client = KernelClient(context=context, connection_file=self.connection_file)
        self.client.load_connection_file()
        self.session = self.client.session
        self.shell = self.client.connect_shell()
        self.iopub = self.client.connect_iopub()
        self.welcomed = self.told_to_disconnect = False
        self.request, self.reply = None, None  # the msg_id of what it executes, and its answer
        self._replied = self._idle = False
        self._errors_read = 0

    def execute(self, code, *, silent=False, execution_count=None):
        """Send a cell; `receive` brings what it says."""
        content = dict(
            code=code,
            silent=silent,
            store_history=not silent,
            user_expressions={},
            allow_stdin=False,
            stop_on_error=True,
        )
        metadata = {"execution_count": execution_count} if execution_count else {}
        message = self.session.msg("execute_request", content, metadata=metadata)
        self.request, self.state = message["header"]["msg_id"], BUSY
        self._replied = self._idle = False
        self.reply = None
        self.session.send(self.shell, message)

    def push(self, key, data):
        """Send bytes, which the rank keeps under `key` until it is told what to do with them."""
        content = dict(comm_id=os.urandom(16).hex(), target_name=PUSH, data={"key": key})
        self.session.send(self.shell, "comm_open", content, buffers=[data])

    def receive(self):
        """Yield the messages that have come from the rank; afterwards `state` says whether it still works."""
        for socket in (self.iopub, self.shell):
            while True:
                try:
                    _, message = self.session.recv(socket, zmq.NOBLOCK)
                except (ValueError, json.JSONDecodeError):  # cut off by the death of the rank
                    continue
                if message is None:
                    break
                mine = self.request is not None and message["parent_header"].get("msg_id") == self.request
                if mine and message["msg_type"] == "execute_reply":
                    self._replied, self.reply = True, message["content"]
                elif mine and message["msg_type"] == "status":
                    self._idle = self._idle or message["content"]["execution_state"] == "idle"
                else:
                    yield message
                if mine and self._replied and self._idle and self.state == BUSY:
                    self.state = IDLE

    def new_errors(self):
        """What the rank has written to descriptor 2 since the last call (C++ messages, most of the time)."""
        try:
            size = os.stat(self.files["errors"]).st_size
            if size <= self._errors_read:
                return ""
            with open(self.files["errors"], "rb") as file:
                file.seek(self._errors_read)
                text = file.read()
        except OSError:
            return ""
        self._errors_read += len(text)
        return text.decode(errors="replace")

    def signal(self, number):
        """Send a signal to the process of the rank, if it lives (the pid is its own until it is reaped)."""
        if self.state != DEAD:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def disconnect(self):
        """Have the rank cut its connections to the others, blocked or not; once, until it is connected."""
        if not self.told_to_disconnect:
            self.told_to_disconnect = True
            self.signal(DISCONNECT)

    def died(self, exit_code):
        self.state, self.exit_code = DEAD, exit_code

    def close(self):
        """Let go of a rank that is dead, and of its files."""
        for channel in (self.shell, self.iopub):
            channel.close(0)
        self.client.cleanup_ipc_files()
        for path in (*self.files.values(), self.connection_file):
            try:
                os.remove(path)
            except FileNotFoundError:  # the server has removed the whole directory
                pass
