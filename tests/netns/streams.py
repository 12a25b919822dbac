"""A TCP connection through the tunnel that knows whether it is alive: every byte is echoed and checked."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from running import PATIENCE_S, wait_for

from jvpn.lab.namespaces import Namespace

_CHUNK = 16 * 1024
_TCP_CLOSE = 7


class TcpEcho:
    """A client in one namespace sends numbered chunks to an echo server in another, one after the other's return."""

    def __init__(self, client: Namespace, server: Namespace, address: str) -> None:
        self._stop = False
        self.rounds = 0
        self.error = ""
        listener = server.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 0))
        listener.listen(1)
        listener.settimeout(20)
        self._near = client.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._near.settimeout(20)
        self._near.connect(listener.getsockname())
        self._far, _peer = listener.accept()
        listener.close()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._echo, self._ask)]
        for end in (self._near, self._far):
            end.settimeout(None)
        for thread in self._threads:
            thread.start()

    def _echo(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._far.recv(1 << 16):
                self._far.sendall(data)

    def _ask(self) -> None:
        try:
            while not self._stop:
                chunk = self.rounds.to_bytes(8, "big") * (_CHUNK // 8)
                self._near.sendall(chunk)
                back = b""
                while len(back) < _CHUNK:
                    piece = self._near.recv(_CHUNK - len(back))
                    if not piece:
                        self.error = "the connection was closed"
                        return
                    back += piece
                if back != chunk:
                    self.error = f"round {self.rounds} came back altered"
                    return
                self.rounds += 1
        except OSError as error:
            self.error = "" if self._stop else str(error)

    def goes_on(self, rounds: int = 5, patience_s: float = PATIENCE_S) -> None:
        """Wait until that many more chunks have come back unaltered."""
        goal = self.rounds + rounds

        def further() -> bool:
            assert not self.error, self.error
            return self.rounds >= goal

        wait_for(further, f"{rounds} more rounds of the TCP stream", patience_s)

    def _part(self) -> None:
        """Close in order, so that no packet of ours is under way any more when the block ends."""
        self._threads[1].join()
        self._near.shutdown(socket.SHUT_WR)
        self._threads[0].join()
        self._far.shutdown(socket.SHUT_WR)
        # The first byte of struct tcp_info is the state (tcp(7)); ours is over when the last ACK has come.
        wait_for(
            lambda: self._far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE, "the end"
        )

    def __enter__(self) -> Self:
        self.goes_on(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        if kind is None and not self.error:
            self._part()
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()
