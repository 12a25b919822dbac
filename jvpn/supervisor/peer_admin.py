"""What the gateway answers on its admin socket about its peers: who they are, and that a clock may begin anew."""

from typing import TYPE_CHECKING

from jvpn.config.keys import format_key
from jvpn.observability.admin import AdminError
from jvpn.observability.snapshot import PeerSnapshot
from jvpn.store.base import StoreError
from jvpn.supervisor.peers import Peer

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
        return [self._snapshot(peer) for peer in wanted]

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

    def _snapshot(self, peer: Peer) -> PeerSnapshot:
        context = self._gateway.core.context
        sessions = context.sessions.values()
        return PeerSnapshot(
            name=peer.name,
            public_key=format_key(peer.public_key),
            addresses=list(peer.addresses),
            policy=f"{peer.policy.name}@{peer.policy.version}",
            last_handshake_us=context.peers.newest_us(peer.public_key),
            stale_inits=context.peers.stale_inits[peer.public_key],
            sessions=[session.hex_id for session in sessions if session.peer.public_key == peer.public_key],
        )
