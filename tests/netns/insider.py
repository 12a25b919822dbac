"""A client that holds a session's keys and does with them what no client should: tests/interop, driven step by step.

It lives in this process; only its sockets are in the client's namespace, beside those of the genuine client 0.
"""

import time
from collections.abc import Callable
from typing import Any

from interop.__main__ import Endpoint
from interop.calling import Identity
from interop.client import Client
from interop.controlling import Attempt, Stage
from interop.path import Path
from interop.session import Session
from interop.wire import Cause, Refused, Type, parse_ack, parse_fail, parse_header
from running import GATEWAY_KEY, PORT, Running, client_key

from jvpn.lab.faults import Uplink
from jvpn.lab.links import SERVICE_IP
from jvpn.protocol.suites import x25519_public

#: Which peer it is; the genuine client is number 0.
NUMBER = 1
INNER, INNER_GATEWAY = "10.8.1.2", "10.8.1.1"


class Insider:
    """One session with paths "a", "b" and "c" over one link, each a socket with a port of its own."""

    def __init__(self, system: Running, link: Uplink) -> None:
        self.system, self.link = system, link
        self.events: list[tuple[str, dict[str, Any]]] = []
        stamp = system.folder / "insider.timestamp"
        identity = Identity(client_key(NUMBER), x25519_public(GATEWAY_KEY), stamp)
        self.inner = Endpoint()
        self.inner.gateway = INNER_GATEWAY
        self.client = Client(
            identity, self.inner.take, lambda event, fields: self.events.append((event, fields))
        )
        self.inner.client = self.client
        for name in "abc":
            self.client.add_path(self._path(name))
        self.client.call("a")
        self.until(lambda: self.client.stage is Stage.BOUND, "the insider's handshake")
        self.warm()

    def _path(self, name: str) -> Path:
        link = self.link
        return link.client.call(
            lambda: Path(name, link.client_ip, link.client_device, (SERVICE_IP, PORT), True)
        )

    @property
    def session(self) -> Session:
        assert self.client.session is not None
        return self.client.session

    @property
    def active(self) -> Path:
        assert self.client.active is not None
        return self.client.active

    @property
    def index(self) -> int:
        assert self.active.index is not None
        return self.active.index

    @property
    def source(self) -> tuple[str, int]:
        name: tuple[str, int] = self.active.socket.getsockname()
        return name

    def row(self) -> dict[str, Any]:
        """Its row of the gateway's `sessions`."""
        mine = self.session.session_id.hex()
        found: dict[str, Any] = next(r for r in self.system.sessions() if r["session_id"] == mine)
        return found

    # Living on

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
        """The client's loop until the condition holds. AssertionError naming `what` when it does not in time."""
        end = time.monotonic() + patience_s
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {patience_s:g} s: {what}"
            self.client.step(0.005)
        return value

    def warm(self) -> None:
        """Every path has a challenge."""
        paths = self.client.paths.values()
        self.until(lambda: all(p.challenge(time.monotonic()) for p in paths), "the insider's candidates")

    def converses(self, count: int = 5) -> None:
        """Pings through the tunnel come back; lost ones are sent again."""
        self.inner.reset()
        last = [0.0]

        def enough() -> bool:
            if time.monotonic() - last[0] > 0.05:
                last[0] = time.monotonic()
                self.inner.ping()
            return self.inner.answered >= count

        self.until(enough, f"{count} answers to the insider's pings")

    # What only a holder of the keys can do

    def request(self, path: Path, attempt: int, *, version: int | None = None, cause: Cause = Cause.TRANSPORT_DEAD,
                challenge: bytes | None = None) -> bytes:  # fmt: skip
        """A REATTACH_REQUEST for a path, with its challenge unless another is given."""
        assert path.index is not None
        known = path.challenge(time.monotonic()) if challenge is None else challenge
        assert known is not None
        said = self.client.version if version is None else version
        return self.session.request(attempt, path.index, said, cause, known)

    def next_attempt(self) -> int:
        number: int = self.client._next_attempt
        self.client._next_attempt += 1
        return number

    def spare(self, *taken: Path) -> Path:
        """A path that is neither active nor one of these."""
        return next(p for p in self.client.paths.values() if p is not self.active and p not in taken)

    def asks(self, requests: list[tuple[Path, bytes]], patience_s: float = 30.0) -> dict[str, Any]:
        """Send REQUESTs at once, and again until each has its ACK or FAIL; those, by the path's name.

        A copy that comes while the worker binds gets no answer of its own, as the page says: hence again.
        """
        found: dict[str, Any] = {}
        end, again = time.monotonic() + patience_s, 0.0
        while len(found) < len(requests):
            assert time.monotonic() < end, f"replies on {sorted(found)} alone"
            if time.monotonic() >= again:
                again = time.monotonic() + 0.2
                for path, datagram in requests:
                    if path.name not in found:
                        path.send(datagram)
            for path, _ in requests:
                while path.name not in found and (datagram_back := path.receive()) is not None:
                    reply = self._reply(datagram_back)
                    if reply is not None:
                        found[path.name] = reply
            time.sleep(0.001)
        return found

    def _reply(self, datagram: bytes) -> Any:
        try:
            kind = parse_header(datagram).type
            if kind == Type.ACK:
                return parse_ack(self.session.open_reply(datagram))
            if kind == Type.FAIL:
                return parse_fail(self.session.open_reply(datagram))
        except Refused:
            pass
        return None

    def follow(self, bound: Any, attempt: int, cause: Cause = Cause.TRANSPORT_DEAD) -> None:
        """Go on where an ACK, taken by hand, says that the session is bound."""
        now = time.monotonic()
        self.client.attempt = Attempt(attempt, cause, list(self.client.paths.values()), (), now, now)
        self.client._bind(self.session, bound)
        self.converses()
        # The path that was left comes back on a fresh index.
        self.warm()

    def close(self) -> None:
        for path in self.client.paths.values():
            path.socket.close()
