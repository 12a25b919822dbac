"""What becomes of the owners of sessions, as etcd tells it: for a node that lost a session while it did not look.

A watch begins with `Everything`, all owners at one moment, then gives each change after it. It goes on where it was
over lost connections and other members. Where etcd has thrown away what was between (compaction) there is an
`Everything` again: what the node believes to own and does not find there, it has lost.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from jvpn.store import etcd_keys as ops
from jvpn.store.base import StoreError
from jvpn.store.etcd_client import EtcdAccess, EtcdClient
from jvpn.store.etcd_keys import Json, Keys
from jvpn.store.etcd_socket import DeadlineSocket

_PAGE = 2048
#: After so long without a word the member is asked something that takes a majority to answer: one that hangs, or is
#: cut off from the others, keeps its connections open.
_SILENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Released:
    """A session that this node owned belongs to `owner` now; to nobody when that is None: it has ended."""

    session_id: bytes
    owner: str | None
    version: int
    revision: int


@dataclass(frozen=True, slots=True)
class Everything:
    """Version and node of every session there is."""

    owners: Mapping[bytes, tuple[int, str]]
    revision: int


Change = Released | Everything


class OwnerWatch:
    """`poll(timeout_s)`: changes for `node_id`, in the order of etcd. One thread; raises StoreError.

    `revision`: all changes up to it were given. Given to another watch, that one goes on from there; None begins with
    Everything.
    """

    def __init__(
        self, access: EtcdAccess, node_id: str, prefix: str = "/jvpn", revision: int | None = None
    ) -> None:
        self.revision = revision
        self._client = EtcdClient(access)
        self._prefix = Keys(prefix).owners
        self._node_id = node_id
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
            **ops.whole(self._prefix),
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
        self._client.read("/v3/kv/range", {**ops.whole(self._prefix), "count_only": True})
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
                raise self._broken(str(error)) from error
            if not more:
                raise self._broken("it has ended the watch")
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
        changes = [change for event in result.get("events", []) if (change := self._released(event))]
        # Only what this watch was told counts: the answer to its creation bears a revision of later changes.
        if not result.get("created"):
            self.revision = max(self.revision or 0, int(result["header"]["revision"]))
        return list(changes)

    def _released(self, event: Json) -> Released | None:
        """None for what was another node's before, and for what stays this one's."""
        kv = event["kv"]
        session_id = ops.hex_tail(ops.data(kv["key"]).decode())
        if session_id is None:
            return None
        version, owner = self._owner(event.get("prev_kv"))
        born = kv.get("create_revision") == kv["mod_revision"]
        # Without what was there before, which may be compacted, it may have been this node's: better told than not.
        if born or owner not in (self._node_id, None):
            return None
        revision = int(kv["mod_revision"])
        if event.get("type") == "DELETE":
            return Released(session_id, None, version, revision)
        version, owner = self._owner(kv)
        return None if owner == self._node_id else Released(session_id, owner, version, revision)

    def _owner(self, kv: Json | None) -> tuple[int, str | None]:
        """0 and None where etcd does not know any more, or somebody has written what is no owner."""
        try:
            return (0, None) if kv is None else ops.split_owner(ops.value_of(kv))
        except ValueError:
            return 0, None

    def _everything(self) -> Everything:
        owners: dict[bytes, tuple[int, str]] = {}
        wanted, revision = ops.whole(self._prefix), 0
        while True:
            page = {**wanted, "limit": str(_PAGE), "revision": str(revision)}
            reply = self._client.read("/v3/kv/range", page)
            revision = revision or int(reply["header"]["revision"])
            kvs = reply.get("kvs", [])
            for kv in kvs:
                session_id = ops.hex_tail(ops.data(kv["key"]).decode())
                version, owner = self._owner(kv)
                if session_id is not None and owner is not None:
                    owners[session_id] = (version, owner)
            if not kvs or not reply.get("more"):
                break
            wanted = ops.rest(self._prefix, ops.data(kvs[-1]["key"]).decode())
        self.revision = revision
        return Everything(owners, revision)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self._close_stream()
        self._client.close()
