"""In a rank: cut its connections when the notebook says so, whatever the main thread is doing."""

import os
import signal
import socket
import threading

import psutil
import torch

from fidle_utils.ranks.link import DISCONNECT

done = threading.Event()  # set when an order has been carried out


def obey():
    """Start the thread that waits for orders. To be called before any other thread starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {DISCONNECT})  # in every thread, so that sigwait gets it
    threading.Thread(target=_wait_for_orders, daemon=True).start()


def _wait_for_orders():
    while True:
        signal.sigwait({DISCONNECT})
        try:
            _shut_connections()
            _abort_nccl()
        finally:
            done.set()


def _shut_connections():
    """Shut those to the other ranks and to the store: who waits on one, here or there, gets an error.

    On gloo nothing else frees a rank that is blocked in a collective, but for killing it.
    """
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_ESTABLISHED and _leads_to_a_rank(connection):
            try:
                with socket.socket(fileno=os.dup(connection.fd)) as ours:
                    ours.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed meanwhile
                pass


def _leads_to_a_rank(connection):
    """True for a connection to another rank or to the store, on this machine or on a node of ours."""
    here, there = connection.laddr, connection.raddr.ip.removeprefix("::ffff:")
    if "RANKS_PEERS" not in os.environ:
        return there == here.ip.removeprefix("::ffff:")
    # Over TCP the notebook speaks to the kernel at these ports: it stays connected.
    is_the_notebook = str(here.port) in os.environ["RANKS_KERNEL_PORTS"].split(",")
    return there in os.environ["RANKS_PEERS"].split(",") and not is_the_notebook


def _abort_nccl():
    """NCCL's kernels wait on the GPU: abort the communicators."""
    if torch.cuda.is_initialized():
        from torch.distributed import distributed_c10d

        try:
            if distributed_c10d.get_backend() == "nccl":
                distributed_c10d._abort_process_group()
        except Exception:  # no group, or another name of it in this release: the rank will be replaced
            pass
