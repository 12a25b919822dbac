"""Where a worker process begins. Importing this module is what takes a new worker its time."""

import gc
import os
import signal
import socket

from workers import bulk, privileges
from workers.commands import Ready
from workers.loop import Loop


def worker_main(channel: socket.socket, parent_pid: int = 0) -> None:
    """Report Ready, then do as `channel` (a SEQPACKET Unix socket) says until Stop, its end, or that of `parent_pid`
    (0: whoever is the parent now)."""
    # Ctrl-C in a terminal reaches the whole process group; who gives the commands decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    privileges.die_with_parent(parent_pid or os.getppid())
    loop = Loop(channel)
    # While files may still be opened.
    bulk.find()
    # What is imported lives as long as the process: keep the collector from walking it.
    gc.collect()
    gc.freeze()
    loop.channel.post(Ready(os.getpid()))
    loop.run()
