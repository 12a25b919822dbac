"""Inner prefixes of sessions that come from the store."""

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.supervisor.peers import Peer


def prefixes_of(record: SessionRecord) -> tuple[str, ...]:
    """The addresses in a record that come from a pool, each as a prefix of its own."""
    return tuple(f"{address}/{128 if ':' in address else 32}" for address in record.inner_prefixes)


def still_theirs(
    peer: Peer, record: SessionRecord, pooled: bool, pool: InnerPool | None
) -> tuple[str, ...] | None:
    """What a stored session may have, as the configuration is now; None when it may not have what it has.

    A pooled address is its client's as long as the store has the session (jvpn/store): only the configuration can have
    given it to somebody else.
    """
    if peer.addresses:
        return peer.addresses
    addresses = record.inner_prefixes
    if not pooled or pool is None or not addresses or any(address not in pool for address in addresses):
        return None
    return prefixes_of(record)
