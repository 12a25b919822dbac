"""What becomes of the sessions and nodes of a fleet, as etcd tells it: for a node that lost a session while it did not
look, and for the way of what is sent to a client from inside.

A watch begins with `Everything`, all owners and nodes at one moment, then gives each change after it. It goes on where
it was over lost connections and other members. Where etcd has thrown away what was between (compaction) there is an
`Everything` again: what the node believes to own and does not find there, it has lost.
"""

import json
import time
from dataclasses import dataclass, field

from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_keys import Json, Keys
from jvpn.store.etcd_socket import DeadlineSocket
from jvpn.store.node_about import NodeAbout, understood

_PAGE = 2048
#: After so long without a word the member is asked something that takes a majority to answer: one that hangs, or is
#: cut off from the others, keeps its connections open.
_SILENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Ownership:
    """A session's owner. `born`: etcd's revision at which the session began, greater for one that began later."""

    owner: str
    version: int
    prefixes: tuple[str, ...]
    born: int


@dataclass(frozen=True, slots=True)
class Owned:
    """A session was kept, taken over, or has ended (`now` is None then). `before` is None for one that has just begun,
    and where etcd does not know any more."""

    session_id: bytes
    before: Ownership | None
    now: Ownership | None
    revision: int

    def lost_by(self, node_id: str) -> bool:
        """Whether it was that node's and is not now. True where nobody knows whose it was: better told than not."""
        if self.now is not None and self.now.owner == node_id:
            return False
        if self.before is not None:
            return self.before.owner == node_id
        return self.now is None or self.now.born != self.revision


@dataclass(frozen=True, slots=True)
class Announced:
    """A node says this of itself, as long as its lease goes on; None when that has ended."""

    node_id: str
    about: NodeAbout | None
    revision: int


@dataclass(frozen=True, slots=True)
class Asked:
    """`asker` asks `node_id`, which lives, for a session whose client has come there under `attempt`."""

    node_id: str
    session_id: bytes
    asker: str
    attempt: int
    revision: int


@dataclass(slots=True)
class Everything:
    """All sessions, all nodes that live, and what they are asked for."""

    owners: dict[bytes, Ownership] = field(default_factory=dict)
    nodes: dict[str, NodeAbout] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    revision: int = 0


Change = Owned | Announced | Asked | Everything


class FleetWatch:
    """`poll(timeout_s)`: changes in the order of etcd. One thread; raises StoreError.

    `revision`: all changes up to it were given. Given to another watch, that one goes on from there; None begins with
    Everything.
    """

    def __init__(self, access: EtcdAccess, prefix: str = "/jvpn", revision: int | None = None) -> None:
        self.revision = revision
        self._client = EtcdClient(access)
        self._keys = Keys(prefix)
        self._stream: DeadlineSocket | None = None
        self._unread = b""
        self._in_body = False
        self._heard_s = 0.0

    def poll(self, timeout_s: float) -> list[Change]:
        """What has changed, as soon as something has; nothing after `timeout_s`. After a StoreError call it again: it
        goes on where it was, at another member. Reading everything or reconnecting may take the access's timeout."""
        until_s = time.monotonic() + timeout_s
        if self.revision is None:
            return [self._everything()]
        if self._stream is None:
            self._open()
        changes: list[Change] = []
        while not changes:
            line = self._line(until_s)
            if line is None:
                self._check_silence()
                break
            changes = self._changes(line)
        return changes

    def _open(self) -> None:
        assert self.revision is not None
        wanted = {
            **self._keys.watched,
            "start_revision": str(self.revision + 1),
            "prev_kv": True,
            "progress_notify": True,
        }
        timeout_s = self._client.access.timeout_s
        self._stream = self._client.stream("/v3/watch", {"create_request": wanted}, timeout_s)
        self._unread, self._in_body, self._heard_s = b"", False, time.monotonic()

    def _check_silence(self) -> None:
        """Raises StoreError when the member that is watched at does not answer."""
        if time.monotonic() - self._heard_s < _SILENCE_S:
            return
        watched = self._client.member
        self._client.read("/v3/kv/range", {**self._keys.watched, "count_only": True})
        if self._client.member != watched:
            self._close_stream()
            raise StoreError(f"the watch at etcd's member {watched} is broken: it does not answer")
        self._heard_s = time.monotonic()

    def _line(self, until_s: float) -> bytes | None:
        """The next line of the answer's body; None when it has not come in time. Raises StoreError at its end."""
        assert self._stream is not None
        self._stream.until_s = until_s
        while True:
            if not self._in_body and b"\r\n\r\n" in self._unread:
                header, _, self._unread = self._unread.partition(b"\r\n\r\n")
                self._in_body = True
                if b" 200 " not in header.split(b"\r\n")[0] + b" ":
                    raise self._broken(f"it says {header.splitlines()[0].decode(errors='replace')}")
            if self._in_body and b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                return line
            try:
                more = self._stream.receive()
            except TimeoutError:
                return None
            except OSError as error:
                raise self._broken(self._client.why_ended(error, self._in_body)) from error
            if not more:
                ended = self._client.why_ended(ConnectionResetError(), self._in_body)
                raise self._broken(ended)
            self._unread += more
            self._heard_s = time.monotonic()

    def _broken(self, why: str) -> StoreError:
        member = self._client.member
        self._close_stream()
        self._client.leave()
        return StoreError(f"the watch at etcd's member {member} is broken: {why}")

    def _changes(self, line: bytes) -> list[Change]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise self._broken("what it says is no JSON") from error
        result = message.get("result")
        if result is None:
            raise self._broken(str(message.get("error", message)))
        if int(result.get("compact_revision", 0)):
            self._close_stream()
            self.revision = None
            return [self._everything()]
        if result.get("canceled"):
            raise self._broken(str(result.get("cancel_reason", "it has ended the watch")))
        changes = [change for event in result.get("events", []) if (change := self._change(event))]
        # Only what this watch was told counts: the answer to its creation bears a revision of later changes.
        if not result.get("created"):
            self.revision = max(self.revision or 0, int(result["header"]["revision"]))
        return list(changes)

    def _change(self, event: Json) -> Change | None:
        kv = event["kv"]
        key, revision, gone = (
            ops.data(kv["key"]).decode(),
            int(kv["mod_revision"]),
            event.get("type") == "DELETE",
        )
        node_id = self._keys.node_of(key)
        if node_id is not None:
            return Announced(node_id, None if gone else understood(ops.value_of(kv)), revision)
        session_id = ops.hex_tail(key)
        if session_id is None:
            return None
        nudged = self._keys.nudged_by(key)
        if nudged is not None:
            return None if gone else self._asked(nudged, session_id, kv)
        return Owned(
            session_id, self._owner(event.get("prev_kv")), None if gone else self._owner(kv), revision
        )

    def _owner(self, kv: Json | None) -> Ownership | None:
        """None where etcd does not know any more, or somebody has written what is no owner."""
        if kv is None:
            return None
        try:
            version, owner, prefixes = ops.split_owner(ops.value_of(kv))
        except ValueError:
            return None
        return Ownership(owner, version, prefixes, int(kv["create_revision"]))

    def _asked(self, node_id: str, session_id: bytes, kv: Json) -> Asked | None:
        try:
            attempt, asker = ops.split_nudge(ops.value_of(kv))
        except ValueError:
            return None
        return Asked(node_id, session_id, asker, attempt, int(kv["mod_revision"]))

    def _everything(self) -> Everything:
        found, wanted = Everything(), self._keys.watched
        while True:
            page = {**wanted, "limit": str(_PAGE), "revision": str(found.revision)}
            reply = self._client.read("/v3/kv/range", page)
            found.revision = found.revision or int(reply["header"]["revision"])
            kvs = reply.get("kvs", [])
            for kv in kvs:
                match self._change({"kv": kv}):
                    case Announced(node_id, about) if about is not None:
                        found.nodes[node_id] = about
                    case Owned(session_id, _, now) if now is not None:
                        found.owners[session_id] = now
                    case Asked() as asked:
                        found.asked.append(asked)
            if not kvs or not reply.get("more"):
                break
            wanted = {**wanted, "key": ops.text(ops.data(kvs[-1]["key"]) + b"\0")}
        self.revision = found.revision
        return found

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self._close_stream()
        self._client.close()
