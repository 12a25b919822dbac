"""What the opened datagrams of a capture say: frames, probes, causes, results, epochs, counted by name."""

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from scapy.packet import Packet

from jvpn.protocol.constants import PacketType, PathKind
from jvpn.protocol.control import ControlType
from jvpn.protocol.reattach import Cause, Result
from vagrant.traffic import jvp
from vagrant.traffic.control import JVPFrames
from vagrant.traffic.jvp import JVP, LAYERS
from vagrant.traffic.keylog import KeyLog
from vagrant.traffic.plaintexts import JVPAck, JVPFail, JVPRequest

#: What may be said, by group and name; reasons of FAIL are as many as there are.
NAMES: Final[dict[str, type[IntEnum] | None]] = {
    "frames": ControlType,
    "probes": PathKind,
    "requests": Cause,
    "acks": Result,
    "fails": None,
}


def _nothing() -> dict[str, Counter[str]]:
    return {
        group: Counter({member.name: 0 for member in names} if names else {})
        for group, names in NAMES.items()
    }


@dataclass(slots=True)
class Opened:
    """What is opened with `log`, by direction. `closed`: datagrams under keys that the log does not have."""

    log: KeyLog
    closed: int = 0
    ways: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {"up": _nothing(), "down": _nothing()}
    )
    epochs: set[int] = field(default_factory=set)
    phases: set[int] = field(default_factory=set)
    indexes: set[int] = field(default_factory=set)

    def add(self, way: str, payload: bytes) -> None:
        """Open and count a JVP/1 datagram of direction `way`. Handshakes and RESET have nothing to open."""
        if LAYERS[PacketType(payload[0])][1] is None:
            return
        jvp.use_keylog(self.log)
        try:
            packet = JVP(payload)
        finally:
            jvp.use_keylog(None)
        sealing = getattr(packet.payload, "sealing", None)
        if sealing is None:
            self.closed += 1
            return
        self.indexes.add(sealing.index)
        if not isinstance(packet.payload.payload, JVPRequest | JVPAck | JVPFail):
            # Reattach keys depend on neither.
            self.epochs.add(sealing.epoch)
            self.phases.add(sealing.secrets.phase_number)
        for group, name in _names(packet.payload.payload):
            self.ways[way][group][name] += 1

    def told(self) -> dict[str, Any]:
        """For JSON: all names that may be, those that were not said too."""
        lists = {name: sorted(getattr(self, name)) for name in ("epochs", "phases", "indexes")}
        return {"closed": self.closed, **lists, **self.ways}


def _names(plaintext: Packet) -> list[tuple[str, str]]:
    """Group and name of what a plaintext says."""
    if isinstance(plaintext, JVPFrames):
        return [("frames", ControlType(frame.type).name) for frame in plaintext.frames if frame.chunk == 0]
    if isinstance(plaintext, JVPRequest):
        return [("requests", Cause(plaintext.cause).name)]
    if isinstance(plaintext, JVPAck):
        return [("acks", Result(plaintext.result).name)]
    if isinstance(plaintext, JVPFail):
        return [("fails", plaintext.reason.decode(errors="replace"))]
    kind = getattr(plaintext, "kind", None)
    return [("probes", PathKind(kind).name)] if kind is not None else []
