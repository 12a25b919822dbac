"""Connections to a member of etcd on which every wait ends in time, however slowly the other end drips."""

import io
import select
import socket
import ssl
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

#: A peer that is gone without a word is noticed after about this long, also where nothing is being sent.
_SILENCE_S = 5
_MOST_BYTES_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    address: str
    port: int
    secured: bool

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.secured else 'http'}://{host}:{self.port}"


def endpoint(url: str) -> Endpoint:
    """From `http[s]://address:port`. Raises ValueError: a name instead of an address would be waited for in DNS."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.port is None or parts.path not in ("", "/"):
        raise ValueError(f"{url!r} is no member of etcd: write http://address:port or https://address:port")
    try:
        address = str(ip_address(parts.hostname or ""))
    except ValueError:
        raise ValueError(f"{url!r} names a host: write its address, no call may wait for DNS") from None
    return Endpoint(address, parts.port, parts.scheme == "https")


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Members are believed by `ca` (the system's where it is None); we show `certificate`. Raises ValueError, in words,
    for a file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise ValueError(f"fleet.ca, {ca}: {_unusable(error)}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise ValueError(
                f"fleet.certificate, {certificate}, with fleet.key, {key}: {_unusable(error)}"
            ) from error
    return context


def _unusable(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the one that the certificate was made for"
    return "not in PEM, or not what the name says"


class DeadlineSocket:
    """A connected socket for `http.client`: what takes longer than `until_s` (time.monotonic) raises TimeoutError."""

    def __init__(self, member: Endpoint, tls: ssl.SSLContext | None, until_s: float) -> None:
        """Raises OSError."""
        self.until_s = until_s
        self._socket = socket.create_connection((member.address, member.port), self._left())
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000)
            if tls is not None:
                self._socket.settimeout(self._left())
                self._socket = tls.wrap_socket(self._socket, server_hostname=member.address)
        except BaseException:
            self._socket.close()
            raise

    def _left(self) -> float:
        left = self.until_s - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def fresh(self) -> bool:
        """Nobody has closed it, nor said something that was not asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(self._left())
            view = view[self._socket.send(view[:_MOST_BYTES_AT_ONCE]) :]

    def receive(self) -> bytes:
        """What has come; empty at the end. After a TimeoutError it can be called again."""
        self._socket.settimeout(self._left())
        return self._socket.recv(_MOST_BYTES_AT_ONCE)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self), _MOST_BYTES_AT_ONCE)

    def receive_into(self, buffer: memoryview) -> int:
        self._socket.settimeout(self._left())
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        self._socket.close()


class _Incoming(io.RawIOBase):
    def __init__(self, source: DeadlineSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        return self._source.receive_into(memoryview(buffer))  # type: ignore[arg-type]
