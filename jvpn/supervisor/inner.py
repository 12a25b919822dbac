"""Inner prefixes of sessions that come from the store."""

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.supervisor.peers import Peer


def prefixes_of(record: SessionRecord) -> tuple[str, ...]:
    """The addresses in a record, each as a prefix of its own."""
    v4, v6 = record.inner_v4, record.inner_v6
    return (*(() if v4 is None else (f"{v4}/32",)), *(() if v6 is None else (f"{v6}/128",)))


def still_theirs(
    peer: Peer, record: SessionRecord, pooled: bool, pool: InnerPool | None
) -> tuple[str, ...] | None:
    """What a stored session may have, as the configuration is now; None when it may not have what it has.

    A pooled address is its client's as long as the store has the session (jvpn/store): only the configuration can have
    given it to somebody else.
    """
    if peer.addresses:
        return peer.addresses
    addresses = [address for address in (record.inner_v4, record.inner_v6) if address is not None]
    if not pooled or pool is None or not addresses or any(address not in pool for address in addresses):
        return None
    return prefixes_of(record)
