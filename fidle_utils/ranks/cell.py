"""One cell on many ranks: its output while it runs, and order restored when it fails, hangs or is stopped."""

import pickle
import signal
import threading
import time

import zmq

from fidle_utils.measure.throughput import Progress
from fidle_utils.ranks.link import BUSY, DEAD, TRACK, VALUE, execute_request
from fidle_utils.ranks.locate import HangWatch, explain, last_place, locate
from fidle_utils.ranks.output import CellOutput, pass_on
from fidle_utils.ranks.report import Failure, cause_of_death, place_of_error

LOOK_SECONDS = 0.7  # between two looks for a hang
GRACE_SECONDS = 0.5  # after the first failure, for ranks that are about to fail or finish by themselves
INSIST_SECONDS = 1.0  # after the first attempt to free a rank, the next one
KILL_SECONDS = 2.0  # after the first attempt, ranks that are still in the cell are replaced
GIVE_UP_SECONDS = 10.0  # after the first attempt, all that still work


class CellRun:
    """Runs code on `links` and waits for all of them. `server` tells which ranks exit."""

    def __init__(self, links, server, *, timeout=None, quiet=False):
        self.links, self.server, self.timeout, self.quiet = links, server, timeout, quiet
        self.by_rank = {link.rank: link for link in links}
        self.tracked = Progress()
        self.output = CellOutput(self.by_rank, self.tracked)
        self.failures, self.values, self.echoed = {}, {}, False
        self.places, self.replaced = {}, []
        self.stopped = self.timed_out = self.disconnected = False
        self.hang = None
        self._own_comms = set()
        self._stop_pressed = 0
        self._rescue_since = None
        self._rescue_step = 0

    def run(self, source, **options):
        """Execute `source` everywhere; returns when no rank works any more."""
        self.source = source
        self.watch = HangWatch(self.links, source)
        request = execute_request(self.server.session, source, **options)
        for link in self.links:
            link.execute(request)
        started = self._last_change = time.monotonic()
        poller = zmq.Poller()
        for link in self.links:
            poller.register(link.iopub, zmq.POLLIN)
            poller.register(link.shell, zmq.POLLIN)
        poller.register(self.server.fileno(), zmq.POLLIN)
        looked = started
        with _stop_button(self._press_stop):
            while any(link.state == BUSY or self._condemned(link) for link in self.links):
                # Ranks that share two cores with the notebook lose time whenever it wakes up.
                in_a_hurry = self.output.dirty or self._rescue_since is not None
                self._receive(dict(poller.poll(50 if in_a_hurry else 250)))
                now = time.monotonic()
                self._decide(now - started, now)
                if now - looked > LOOK_SECONDS and self._rescue_since is None:
                    looked = now
                    self._look_for_a_hang()
                if not self.quiet:
                    self.output.draw()
        self._read_errors()
        if not self.quiet:
            self.output.draw(final=True)

    def _condemned(self, link):
        """True while a rank that we killed is not known to be dead: it may still answer."""
        return link.rank in self.replaced and link.state != DEAD

    # What comes in

    def _receive(self, ready):
        """Take in what has come on the sockets in `ready`."""
        for link in self.links:
            if link.iopub in ready or link.shell in ready:
                before = link.state
                for message in link.receive():
                    self._handle(link, message)
                if link.state != before:
                    self._last_change = time.monotonic()
        if self.server.fileno() in ready:
            for rank, exit_code in self.server.exits():
                link = self.by_rank.get(rank)
                if link is not None:
                    for message in link.receive():  # its last words
                        self._handle(link, message)
                    self._died(link, exit_code)

    def _handle(self, link, message):
        kind, content, rank = message["msg_type"], message["content"], link.rank
        if kind == "stream":
            self.output.write(rank, content["text"])
        elif kind in ("display_data", "execute_result"):
            self.echoed = self.echoed or kind == "execute_result"
            self.output.rich(rank, content)
        elif kind == "update_display_data":
            self.output.rich(rank, content, update=True)
        elif kind == "clear_output":
            self.output.clear(rank)
        elif kind == "error":
            traceback = "\n".join(content["traceback"])
            self.failures[rank] = Failure(
                rank, content["ename"], content["evalue"], place_of_error(traceback), traceback
            )
            self._last_change = time.monotonic()
        elif kind.startswith("comm_"):
            self._comm(link, message)

    def _comm(self, link, message):
        content = message["content"]
        if content.get("target_name") == VALUE:
            self.values[link.rank] = message["buffers"][0]
            self._own_comms.add(content["comm_id"])
        elif content.get("target_name") == TRACK:
            link.reports = content["comm_id"]
        elif content["comm_id"] == link.reports:
            self.tracked.receive(link.rank, pickle.loads(message["buffers"][0]))
            self.output.dirty = True
        elif content["comm_id"] not in self._own_comms:
            pass_on(message)

    def _died(self, link, exit_code):
        if link.rank in self.replaced:
            link.died(exit_code)
            return
        last_words = link.new_errors()
        if last_words:
            self.output.write(link.rank, last_words)
        link.died(exit_code)
        how, why = cause_of_death(exit_code, last_words)
        place = last_place(link, self.source) if exit_code < 0 else None
        self.failures[link.rank] = Failure(link.rank, f"died ({how})", why, place)
        self._last_change = time.monotonic()

    # What to do about it

    def _press_stop(self):
        self._stop_pressed += 1

    def _decide(self, elapsed, now):
        busy = [link for link in self.links if link.state == BUSY]
        if not busy:
            return
        if self._rescue_since is None:
            if self._stop_pressed:
                self.stopped = True
            elif self.timeout is not None and elapsed > self.timeout:
                self.timed_out = True
            elif not (self.failures and now - self._last_change > GRACE_SECONDS):
                return
            self.places = locate(busy, self.source)
            self.hang = explain(self.places, self.links)
            self._rescue_since = now
            self._free(busy, self.places)
        elif self._rescue_step == 1 and now - self._rescue_since > INSIST_SECONDS:
            self._free(busy, locate(busy, self.source), insist=True)
        elif self._rescue_step == 2 and now - self._rescue_since > KILL_SECONDS:
            self._kill([link for link in busy if self._is_stuck(link)])
            self._rescue_step = 3
        elif self._rescue_step == 3 and now - self._rescue_since > GIVE_UP_SECONDS or self._stop_pressed > 2:
            self._kill(busy)

    def _is_stuck(self, link):
        """True if a rank is still in the cell; False if it is about to say how it failed."""
        place = locate([link], self.source).get(link.rank)
        return place is None or place.line is not None

    def _kill(self, links):
        for link in links:
            if link.rank not in self.replaced:
                self.replaced.append(link.rank)
                link.signal(signal.SIGKILL)

    def _free(self, busy, places, insist=False):
        """Interrupt ranks that compute; cut the connections of all if one waits for another."""
        self._rescue_step += 1
        for link in busy:
            place = places.get(link.rank)
            # One that waits is freed by its connections; one outside the cell is about to say what it raised.
            if place is None or (place.line is not None and (insist or not place.waits_in)):
                link.signal(signal.SIGINT)
        waiting = any(places.get(link.rank) is None or places[link.rank].waits_in for link in busy)
        if (waiting or insist) and not self.disconnected:
            self.disconnected = True
            for link in self.server.links:
                link.disconnect()

    def _read_errors(self):
        for link in self.links:
            if text := link.new_errors():
                self.output.write(link.rank, text)

    def _look_for_a_hang(self):
        self._read_errors()
        if not self.quiet and (places := self.watch.look()):
            note = "Press the stop button to free them; their variables are kept."
            if self.timeout is not None:
                note = f"They are freed when {self.timeout:g} s are over."
            print(f"This looks like a hang: {explain(places, self.links)}.\n{note}", flush=True)


class _stop_button:
    """While a cell runs, SIGINT calls `pressed` and interrupts nothing half-way (only in the main thread)."""

    def __init__(self, pressed):
        self.pressed = pressed

    def __enter__(self):
        self.previous = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, lambda *_: self.pressed())

    def __exit__(self, *_):
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
