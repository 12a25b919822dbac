"""The small interface of an ownership store: who owns a session, durably, and which handshake was the newest."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from jvpn.session.pool import InnerPool, text_of
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION


class StoreError(OSError):
    """The store cannot say or keep something. New ownership is refused; running sessions go on."""


class Claimed(Protocol):
    """Whether a claim was granted, as a truth value. Of one made in a batch it is known when the batch is kept, and
    StoreError until then."""

    def __bool__(self) -> bool: ...


@dataclass(slots=True)
class Birth:
    """A session that asks for inner addresses out of a pool. `record`: as it is kept, with them; None when the pool has
    none for its client, and nothing is kept. Of one born in a batch it is known when that is kept, StoreError until
    then."""

    _record: SessionRecord | None = None
    _known: bool = False

    @property
    def record(self) -> SessionRecord | None:
        if not self._known:
            raise StoreError("whether a session has inner addresses is not known before its batch is kept")
        return self._record

    def settle(self, record: SessionRecord | None) -> None:
        self._record, self._known = record, True


def with_addresses(record: SessionRecord, addresses: Mapping[int, int]) -> SessionRecord:
    """`addresses` by version."""
    v4, v6 = (text_of(version, addresses[version]) if version in addresses else None for version in (4, 6))
    return replace(record, inner_v4=v4, inner_v6=v6)


def is_anothers(present: SessionRecord, record: SessionRecord) -> bool:
    """Whether what is kept of a session is another owner's by now than of `record`, which is of the same session: it is
    in a higher epoch, or was given away in the same one."""
    if present.epoch == record.epoch:
        return present.owner_node != record.owner_node
    return present.epoch > record.epoch


class OwnershipStore(Protocol):
    """Every method that changes something returns only when the change is durable, or raises StoreError."""

    def batch(self) -> AbstractContextManager[None]:
        """What is done inside becomes durable together at its end, or none of it: then StoreError, from inside or at
        the end. Not to be nested; what is read inside need not show what was written inside."""

    def save(self, record: SessionRecord, timestamp_us: int) -> None:
        """Keep a session and its client's newest handshake timestamp; 0 where that has not changed. If the session is
        in a higher epoch by now, or was given to another node in this one by a claim, it is another owner's: nothing of
        the record is kept, see `overtaken`. Nor is it in a store of several nodes, without a timestamp, if the session
        is not there any more: another one has ended it."""

    def overtaken(self) -> list[bytes]:
        """Sessions whose `save` kept nothing since this was called last: somebody else has taken or ended them."""

    def bear(self, record: SessionRecord, timestamp_us: int, pool: InnerPool) -> Birth:
        """`save` for a new session, with inner addresses of its client's own: those that the client was given before,
        else free ones of `pool`, else those of the client without a session that has begun its last one the longest
        ago. No two clients are given one address, and no client loses one while the store has a session of it."""

    def inner_addresses(self) -> dict[bytes, tuple[str, ...]]:
        """What clients were given out of pools, by their public keys."""

    def release_addresses(self, client_public: bytes) -> bool:
        """The client's addresses are free for others; False, and nothing is changed, while it has a session."""

    def load(self, session_id: bytes) -> SessionRecord | None:
        """One session; None when the store knows for certain that there is none."""

    def claim(
        self, record: SessionRecord, seen_version: int, seen_owner: str, *, owner_gone: bool = False
    ) -> Claimed:
        """Compare-and-swap: keep `record` if version and owner are still the ones that were seen, and with `owner_gone`
        if that owner's lease has ended. False if not."""

    def ask_owner(self, session_id: bytes, owner: str, asker: str, attempt: int) -> None:
        """Leave word for a session's owner that its client asks for it at `asker`, under this attempt of a reattach.
        Nothing where there is no other node."""

    def was_asked(self, session_id: bytes, owner: str) -> None:
        """The owner has heard of it."""

    @property
    def fleet_key(self) -> bytes:
        """32 bytes that all nodes on this store share: tickets and reset tokens are made with it."""

    def forget(self, session_id: bytes, version: int = MAX_VERSION) -> None:
        """The session has ended at `version`; one in a higher epoch is another owner's and stays. The client's
        timestamp stays in any case: it must never fall."""

    def forget_others(self, client_public: bytes, session_id: bytes) -> list[SessionRecord]:
        """The client has `session_id` now and no other; returns what else was kept of it, and is not any more."""

    def forget_timestamp(self, client_public: bytes) -> None:
        """An operator says that the client's clock begins anew: the one thing that makes a timestamp fall."""

    def sessions(self) -> list[SessionRecord]:
        """Every session kept. A record that cannot be opened or makes no sense is left out."""

    def expired(self, before_wall_ms: int) -> list[SessionRecord]:
        """Of the next so many sessions that are kept, those whose lifetime was over before that, by the record. Each
        call goes on where the last one stopped, and begins anew at the end. Nothing is forgotten: that is `forget`."""

    def timestamps_us(self) -> dict[bytes, int]:
        """Newest accepted handshake timestamp by client public key."""

    def look(self) -> str:
        """See that what is kept is where the next start finds it, and put it there again if not: what was done then, in
        words, nothing where all is well. Cheap; raises StoreError for what cannot be put there."""

    def close(self) -> None: ...
