"""The client's one data worker: started, given its sockets, told what to do, ended."""

import os
import signal
import socket
from collections.abc import Iterator

from multiprocess import get_context

from jvpn.holder import descriptors
from jvpn.protocol.constants import TUN_MTU
from workers import commands
from workers.main import worker_main
from workers.offload import Offload

START_S = 30.0
NOBODY = 65_534


class DataWorker:
    """A running worker, told what of `offload` it may use.

    Commands that only set it up have sequence number 0: nobody waits for the answers.

    Raises OSError when it does not come up in START_S.
    """

    def __init__(
        self, page_fd: int, tun_fd: int, sockets: dict[int, socket.socket], offload: Offload
    ) -> None:
        self._offload = offload
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = get_context("spawn").Process(target=worker_main, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.pid: int = process.pid
        self.pidfd = os.pidfd_open(self.pid)
        # Whatever the priority of who starts it: bulk traffic is not to be preferred.
        os.setpriority(os.PRIO_PROCESS, self.pid, 0)
        try:
            self._set_up(page_fd, tun_fd, sockets)
        except OSError:
            self.close()
            raise

    def _set_up(self, page_fd: int, tun_fd: int, sockets: dict[int, socket.socket]) -> None:
        channel = self._channel
        descriptors.send(channel, commands.encode(commands.AttachPage(0)), [page_fd])
        descriptors.send(
            channel, commands.encode(commands.AttachTun(0, self._offload.vnet_header, TUN_MTU)), [tun_fd]
        )
        for number, opened in sockets.items():
            self.attach(number, opened)
        self.tell(commands.Start(0, 0, -1, False, NOBODY, NOBODY, self._offload.bulk))
        # Only the worker reads the sockets: a handshake begun before it is ready would wait for it, and seem lost.
        channel.settimeout(START_S)
        channel.recv(commands.MAX_MESSAGE)
        channel.settimeout(None)

    def fileno(self) -> int:
        return self._channel.fileno()

    def attach(self, number: int, opened: socket.socket) -> None:
        """Read and send on `opened` as socket `number`, in place of the one that had that number."""
        attach = commands.AttachSocket(0, number, gro=self._offload.gro, segment=self._offload.gso)
        descriptors.send(self._channel, commands.encode(attach), [opened.fileno()])

    def detach(self, number: int) -> None:
        self.tell(commands.DetachSocket(0, number))

    def tell(self, command: commands.Command) -> None:
        """Raises OSError when the worker does not take it (it is dead, or far behind)."""
        self._channel.send(commands.encode(command), socket.MSG_DONTWAIT)

    def reports(self) -> Iterator[commands.Report]:
        """Everything that it has said since."""
        while True:
            try:
                message = self._channel.recv(commands.MAX_MESSAGE, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not message:
                return
            yield commands.decode_report(message)

    def close(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.pidfd)
        self._channel.close()
