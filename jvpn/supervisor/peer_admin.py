"""What the gateway answers on its admin socket about its peers: who they are, and that a clock may begin anew."""

import contextlib
from typing import TYPE_CHECKING

from jvpn.clocks import now_ms
from jvpn.config.keys import format_key
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import PeerSnapshot
from jvpn.store.base import OwnershipStore, StoreError
from jvpn.supervisor.expired import over_by
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.store_desk import forget_expired

if TYPE_CHECKING:
    from jvpn.supervisor.process import Gateway

#: How long an operator waits for the store, and the gateway with him.
PATIENCE_S = 1.0
#: Characters of an operator's name that go into an event.
BY_MAX = 64


class PeerAdmin:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def show(self, name: str) -> list[PeerSnapshot]:
        """The peer of that name, or all of them when `name` is empty. Raises AdminError."""
        wanted = [self._one(name)] if name else list(self._gateway.core.context.peers.peers.values())
        leased = self._leased() if any(not peer.addresses for peer in wanted) else {}
        return [self._snapshot(peer, leased.get(peer.public_key, ())) for peer in wanted]

    def _leased(self) -> dict[bytes, tuple[str, ...]]:
        """What clients have out of the pool; of those that have a session here, where the store does not answer."""
        found: dict[bytes, tuple[str, ...]] = {}
        for session in self._gateway.core.context.sessions.values():
            addresses = (prefix.partition("/")[0] for prefix in session.prefixes)
            found[session.peer.public_key] = tuple(addresses)
        with contextlib.suppress(StoreError):
            self._gateway.desk.at_once(lambda store: found.update(store.inner_addresses()), PATIENCE_S)
        return found

    def release_address(self, name: str) -> dict[str, object]:
        """Others may have what the peer was given out of the pool. Raises AdminError: it has a session."""
        peer = self._one(name)
        if peer.addresses:
            remedy = "its addresses are in the configuration: change them there"
            raise AdminError(f"{name} has nothing out of the pool; {remedy}")
        before = self._leased().get(peer.public_key, ())
        released: list[bool] = []
        over = over_by(self._gateway.core.context, now_ms())

        def release(store: OwnershipStore) -> None:
            forget_expired(store, lambda record: record.client_public == peer.public_key and over(record))
            released.append(store.release_addresses(peer.public_key))

        try:
            self._gateway.desk.at_once(release, PATIENCE_S)
        except StoreError as error:
            raise AdminError(f"{error}; try again") from error
        if not all(released):
            remedy = "end it first: jvpn terminate; one that is only stored ends with its time to live"
            raise AdminError(
                f"{name} has a session, here or stored, and keeps its address while it does; {remedy}"
            )
        return {"peer": peer.name, "released": list(before)}

    def reset_clock(self, name: str, by: str) -> dict[str, object]:
        """Forget the peer's handshake timestamp, durably, then in memory; its sessions go on. Raises AdminError."""
        peer = self._one(name)
        core = self._gateway.core
        forgot_us = core.context.peers.newest_us(peer.public_key)
        try:
            self._gateway.desk.at_once(lambda store: store.forget_timestamp(peer.public_key), PATIENCE_S)
        except StoreError as error:
            raise AdminError(f"{error}; the timestamp is still in force: try again") from error
        core.reset_clock(peer, by[:BY_MAX] if by.isprintable() else "")
        return {"peer": peer.name, "forgot_us": forgot_us}

    def _one(self, name: str) -> Peer:
        peer = self._gateway.core.context.peers.named(name)
        if peer is None:
            raise AdminError(f"no peer is named {name!r}; 'jvpn peer show' lists them")
        return peer

    def _snapshot(self, peer: Peer, leased: tuple[str, ...]) -> PeerSnapshot:
        context = self._gateway.core.context
        sessions = context.sessions.values()
        return PeerSnapshot(
            name=peer.name,
            public_key=format_key(peer.public_key),
            addresses=list(peer.addresses),
            pool_addresses=[] if peer.addresses else list(leased),
            policy=f"{peer.policy.name}@{peer.policy.version}",
            last_handshake_us=context.peers.newest_us(peer.public_key),
            stale_inits=context.peers.stale_inits[peer.public_key],
            sessions=[session.hex_id for session in sessions if session.peer.public_key == peer.public_key],
        )
