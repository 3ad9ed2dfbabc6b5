"""The notebook's end of one rank: four Jupyter channels over sockets that only this user can open."""

import os
import signal

import psutil
import zmq
from jupyter_client.client import KernelClient
from jupyter_client.connect import write_connection_file

PUSH, VALUE = "fidle_utils.push", "fidle_utils.value"  # comm targets: notebook → rank, rank → notebook
TRACK = "fidle_utils.track"  # rank → notebook: what track() has recorded
DISCONNECT = signal.SIGUSR2
IDLE, BUSY, DEAD = "idle", "busy", "dead"


def execute_request(session, code, *, silent=False, execution_count=None):
    """Make a cell to send to any number of ranks: (msg_id, frames)."""
    content = dict(code=code, silent=silent, store_history=not silent)
    content.update(user_expressions={}, allow_stdin=False, stop_on_error=True)
    metadata = {"execution_count": execution_count} if execution_count else {}
    message = session.msg("execute_request", content, metadata=metadata)
    return message["header"]["msg_id"].encode(), session.serialize(message)


def processor_seconds(pid):
    """Seconds of the processor that a process and its children have used; 0.0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def memory_mb(pid):
    """The memory of a process, and its part of what it shares with others; 0 if it is gone."""
    try:
        info = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return round(getattr(info, "pss", info.uss) / 1e6)


class Link:
    """One rank as the notebook sees it.

    Attributes: rank, pid, state (idle, busy or dead), exit_code (negative: killed by that signal), files
    (paths: `errors` has what it wrote to descriptor 2, `where` has its stack whenever it was asked for).
    """

    def __init__(self, rank, directory, generation, context, session):
        name = f"{rank}-{generation}"
        self.rank = rank
        self.connection_file = os.path.join(directory, f"{name}.json")
        self.files = {kind: os.path.join(directory, f"{name}.{kind}") for kind in ("errors", "where")}
        for path in (*self.files.values(), self.connection_file):
            os.close(os.open(path, os.O_CREAT | os.O_TRUNC, 0o600))
        ports = dict(shell_port=1, iopub_port=2, stdin_port=3, hb_port=4, control_port=5)
        path = os.path.join(directory, name)
        write_connection_file(self.connection_file, transport="ipc", ip=path, key=session.key, **ports)
        client = KernelClient(context=context, session=session, connection_file=self.connection_file)
        client.load_connection_file()
        self._open(client, session)

    def _open(self, client, session):
        """Open the channels of a KernelClient that knows where they are."""
        self.client, self.session = client, session
        self.pid, self.state, self.exit_code = None, IDLE, None
        self.shell = self.client.connect_shell()
        self.iopub = self.client.connect_iopub()
        self.welcomed = self.told_to_disconnect = False
        self.request = None  # the msg_id of what it executes
        self.reports = None  # the comm_id under which track() reports
        self._replied = self._idle = False
        self._errors_read = 0

    def execute(self, request):
        """Send a cell that `execute_request` has made; `receive` brings what it says."""
        self.request, frames = request
        self.state = BUSY
        self._replied = self._idle = False
        self.shell.send_multipart(frames)

    def push(self, key, data):
        """Send bytes, which the rank keeps under `key` until it is told what to do with them."""
        content = dict(comm_id=os.urandom(16).hex(), target_name=PUSH, data={"key": key})
        self.session.send(self.shell, "comm_open", content, buffers=[data])

    def receive(self):
        """Yield the messages that have come from the rank; then `state` says whether it still works."""
        for socket in (self.iopub, self.shell):
            while True:
                try:
                    topics, parts = self.session.feed_identities(socket.recv_multipart(zmq.NOBLOCK))
                    if self._is_progress(topics, parts):
                        continue
                    yield self.session.deserialize(parts)
                except zmq.Again:
                    break
                except (ValueError, IndexError):  # cut off by the death of the rank
                    continue

    def _is_progress(self, topics, parts):
        """Take in, unread, that a request begins, ends or is answered: most messages of a short cell do.

        The socket is ours alone, so the signature of what is not read need not be checked.
        """
        header, parent, content = parts[1], parts[2], parts[4]
        answer = b'"execute_reply"' in header
        if not answer and not (topics and topics[0].endswith((b".status", b".execute_input"))):
            return False
        if self.request is not None and self.request in parent:
            self._replied = self._replied or answer
            self._idle = self._idle or (not answer and b'"idle"' in content)
            if self._replied and self._idle and self.state == BUSY:
                self.state = IDLE
        return True

    def new_errors(self):
        """What the rank has written to descriptor 2 since the last call (C++ messages, most of the time)."""
        data = self._read("errors", self._errors_read)
        self._errors_read += len(data)
        return data.decode(errors="replace")

    def stack(self, start=0):
        """Its stacks in bytes, from byte `start` on; SIGUSR1 has it write one more."""
        return self._read("where", start)

    def _read(self, kind, start):
        try:
            if os.stat(self.files[kind]).st_size <= start:
                return b""
            with open(self.files[kind], "rb") as file:
                file.seek(start)
                return file.read()
        except OSError:
            return b""

    def processor_seconds(self):
        """What it and its children have used; 0.0 if it is gone."""
        return processor_seconds(self.pid)

    def memory_mb(self):
        """Memory of its own; 0 if it is gone."""
        return memory_mb(self.pid)

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
