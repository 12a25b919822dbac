"""Calls to a cluster of etcd over its JSON gateway (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/).

One thread, one connection, kept open; a member that does not answer is left for the next one. No call blocks longer
than its timeout. What only reads is asked again elsewhere; what writes is, only where it is certain that nothing was
done: otherwise it is a StoreError that says so, since a claim that was granted would be refused the second time.
"""

import http.client
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jvpn.store import etcd_troubles as troubles
from jvpn.store.base import StoreError
from jvpn.store.etcd_keys import Json
from jvpn.store.etcd_socket import DeadlineSocket, Endpoint, endpoint, tls_context

#: gRPC's codes of what another member may answer otherwise: UNKNOWN, DEADLINE_EXCEEDED, ABORTED, INTERNAL,
#: UNAVAILABLE. All others are refusals: nothing was done.
_PASSING = frozenset({2, 4, 10, 13, 14})
_UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """How to reach a cluster. `endpoints`: `http[s]://address:port` of its members. `timeout_s`: the longest that any
    call blocks."""

    endpoints: Sequence[str]
    timeout_s: float = 2.0
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str = field(default="", repr=False)


class EtcdRefused(StoreError):
    """etcd understood, and does not do it. `code`: gRPC's."""

    def __init__(self, member: Endpoint, message: str, code: int) -> None:
        super().__init__(f"etcd at {member} refuses: {message}")
        self.code = code


class _NotDone(Exception):
    """No member has the request."""


class _Unclear(Exception):
    """It may or may not have been done."""


class EtcdClient:
    """Raises StoreError, from the constructor for what cannot be an access. Not to be shared by threads."""

    def __init__(self, access: EtcdAccess) -> None:
        self.access = access
        self._tls: ssl.SSLContext | None = None
        try:
            self._members = [endpoint(url) for url in access.endpoints]
            if any(member.secured for member in self._members):
                self._tls = tls_context(access.ca, access.certificate, access.key)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot use etcd: {error}") from error
        if not self._members:
            raise StoreError("cannot use etcd: no endpoint is named")
        self._at = 0
        self._connection: _Connection | None = None
        self._token: str | None = None

    @property
    def member(self) -> Endpoint:
        """The one that is asked next."""
        return self._members[self._at]

    def read(self, path: str, body: Json, timeout_s: float | None = None) -> Json:
        """What may be asked twice: members share the time, so that one that is silent leaves some for the others."""
        return self._call(path, body, timeout_s, twice=True)

    def write(self, path: str, body: Json, timeout_s: float | None = None) -> Json:
        return self._call(path, body, timeout_s, twice=False)

    def _call(self, path: str, body: Json, timeout_s: float | None, twice: bool) -> Json:
        until_s = time.monotonic() + (self.access.timeout_s if timeout_s is None else timeout_s)
        if self.access.user is None:
            return self._anywhere(path, body, until_s, twice)
        if self._token is None:
            self._authenticate(until_s)
        try:
            return self._anywhere(path, body, until_s, twice)
        except EtcdRefused as error:
            if error.code != _UNAUTHENTICATED:
                raise
        # Tokens end, and a member that was restarted has forgotten them.
        self._authenticate(until_s)
        return self._anywhere(path, body, until_s, twice)

    def _authenticate(self, until_s: float) -> None:
        self._token = None
        body = {"name": self.access.user, "password": self.access.password}
        self._token = str(self._anywhere("/v3/auth/authenticate", body, until_s, True)["token"])

    def _anywhere(self, path: str, body: Json, until_s: float, twice: bool) -> Json:
        data = json.dumps(body).encode()
        said: dict[str, list[str]] = {}
        for members_left in range(len(self._members), 0, -1):
            now_s = time.monotonic()
            share_s = now_s + (until_s - now_s) / members_left
            try:
                self._connect(share_s)
                return self._ask(path, data, share_s if twice else until_s)
            except _NotDone as error:
                said.setdefault(str(error), []).append(str(self.member))
            except _Unclear as error:
                said.setdefault(str(error), []).append(str(self.member))
                if not twice:
                    member = self.member
                    self._leave()
                    raise StoreError(f"etcd may or may not have kept it: {member}: {error}") from error
            self._leave()
        reasons = "; ".join(f"{', '.join(members)}: {why}" for why, members in said.items())
        raise StoreError(f"no member of etcd answers ({reasons})")

    def _connect(self, until_s: float) -> None:
        if self._connection is not None and not self._connection.ended and self._connection.deadline.fresh():
            return
        self._drop()
        try:
            tls = self._tls if self.member.secured else None
            self._connection = _Connection(self.member, DeadlineSocket(self.member, tls, until_s))
        except OSError as error:
            raise _NotDone(self._why_not(error)) from error

    def _ask(self, path: str, data: bytes, until_s: float) -> Json:
        assert self._connection is not None
        self._connection.deadline.until_s = until_s
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = self._token
        try:
            self._connection.request("POST", path, data, headers)
            response = self._connection.getresponse()
            reply: Json = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Unclear(self.why_ended(error, self._connection.answered)) from error
        self._connection.answered = True
        # Of an answer that is a stream, the first message; an error of one is inside of it.
        reply = reply.get("result", reply) if isinstance(reply, dict) else reply
        if not isinstance(reply, dict):
            raise _Unclear("what it says is not of etcd")
        problem = reply.get("error")
        if response.status == http.HTTPStatus.OK and problem is None:
            return reply
        said: Json = problem if isinstance(problem, dict) else reply
        code = int(said.get("grpc_code") or said.get("code") or 2)
        message = str(said.get("message", problem))
        if code in _PASSING:
            raise _Unclear(message)
        raise EtcdRefused(self.member, message, code)

    def _why_not(self, error: Exception) -> str:
        """There is no connection to the member."""
        return troubles.at_connect(error, self.member, self.access.ca, self.access.certificate)

    def why_ended(self, error: Exception, answered: bool) -> str:
        """Of a connection or stream, for people; `answered`: something came on it before."""
        if answered:
            return troubles.later(error)
        return troubles.at_first_words(error, self.member, self.access.certificate)

    def _leave(self) -> None:
        """For the next member."""
        self._drop()
        self._at = (self._at + 1) % len(self._members)

    def stream(self, path: str, body: Json, timeout_s: float) -> DeadlineSocket:
        """A connection whose answer goes on: JSON, one message a line, after an HTTP header. Raises StoreError."""
        until_s = time.monotonic() + timeout_s
        if self.access.user is not None:
            self._authenticate(until_s)
        member, data = self.member, json.dumps(body).encode()
        # HTTP/1.0, for an answer without chunks.
        lines = [f"POST {path} HTTP/1.0", "Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [] if self._token is None else [f"Authorization: {self._token}"]
        try:
            opened = DeadlineSocket(member, self._tls if member.secured else None, until_s)
            opened.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        except OSError as error:
            why = self._why_not(error)
            self._leave()
            raise StoreError(f"etcd at {member} does not answer: {why}") from error
        return opened

    def leave(self) -> None:
        """The member of a stream that ended: the next call and the next stream go to another one."""
        self._leave()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.deadline.close()
            self._connection = None

    def close(self) -> None:
        self._drop()


class _Connection(http.client.HTTPConnection):
    """`ended`: the member takes no other request here."""

    def __init__(self, member: Endpoint, opened: DeadlineSocket) -> None:
        super().__init__(member.address, member.port)
        self.ended = False
        #: It has worked once.
        self.answered = False
        self.deadline = opened
        self.sock = opened
        # One that was closed meanwhile is not to be opened again by itself, without a deadline.
        self.auto_open = 0

    def close(self) -> None:
        """Called as soon as the header says that this was the last request: the body is still to be read."""
        self.ended = True
