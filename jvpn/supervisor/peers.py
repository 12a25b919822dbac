"""The configured peers of a gateway: who may shake hands, under which policy, with which inner addresses."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from jvpn.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Peer:
    """A client known by its public key. `addresses` are its inner prefixes, such as "10.8.0.2/32"; with none, its
    sessions have theirs from the gateway's pool.

    `policy` is what its sessions have unless it asks for one of `others`, by name. `broken`: what is wrong with the
    files of policies that it would have; `own`: the name of its own, where that is one of these.
    """

    name: str
    public_key: bytes
    addresses: tuple[str, ...]
    policy: Policy
    psk: bytes = field(default=bytes(32), repr=False)
    others: tuple[Policy, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    own: str = ""

    def policy_for(self, asked: str) -> Policy | None:
        """The policy of that name, if this peer may have it; an empty name asks for none in particular."""
        allowed = (self.policy, *self.others)
        return self.policy if not asked else next((p for p in allowed if p.name == asked), None)

    def refuses(self, asked: str) -> str:
        """The broken policy that a new session would have, by name; empty when it would have a sound one."""
        if asked in self.broken:
            return asked
        own = self.own or self.policy.name
        return (
            own if own in self.broken and (not asked or self.policy_for(asked) in (None, self.policy)) else ""
        )


@dataclass(slots=True)
class PeerTable:
    """Peers by public key, and the newest handshake timestamp accepted from each.

    Timestamps are the clients' clocks, microseconds since 1970; they only ever rise, unless an operator has one
    forgotten. `stale_inits` counts, for configured peers alone, the INITs that were not newer.
    """

    peers: dict[bytes, Peer]
    timestamps_us: dict[bytes, int] = field(default_factory=dict)
    stale_inits: Counter[bytes] = field(default_factory=Counter)

    def find(self, public_key: bytes) -> Peer | None:
        return self.peers.get(public_key)

    def named(self, name: str) -> Peer | None:
        return next((peer for peer in self.peers.values() if peer.name == name), None)

    def is_fresh(self, public_key: bytes, timestamp_us: int) -> bool:
        return timestamp_us > self.timestamps_us.get(public_key, 0)

    def newest_us(self, public_key: bytes) -> int | None:
        """The timestamp of its last confirmed handshake; None when there is none, or it was forgotten."""
        # A store that has kept a session and no timestamp since has 0.
        return self.timestamps_us.get(public_key) or None

    def forget_clock(self, public_key: bytes) -> None:
        """Its next INIT is fresh whatever its clock says."""
        self.timestamps_us.pop(public_key, None)

    def accept(self, public_key: bytes, timestamp_us: int) -> None:
        self.timestamps_us[public_key] = max(timestamp_us, self.timestamps_us.get(public_key, 0))
