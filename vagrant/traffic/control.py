"""The frames of a CONTROL plaintext and their values, as Scapy layers (docs/protocol.md, "CONTROL").

A value that is cut into chunks stays Raw in each of its frames; `joined` puts it together.
"""

from typing import Any, ClassVar

from scapy.fields import (
    ByteEnumField,
    ByteField,
    FieldLenField,
    FlagsField,
    IntField,
    LenField,
    PacketListField,
    ShortField,
    StrField,
    StrLenField,
    XStrField,
    XStrFixedLenField,
)
from scapy.packet import Packet, Raw, bind_layers

from jvpn.protocol.constants import KEY_SIZE
from jvpn.protocol.control import ControlType
from jvpn.protocol.handshake import Kem
from vagrant.traffic.plaintexts import VersionField, named

#: The session machine numbers its states in this order (docs/protocol.md, "STATE").
STATES: dict[int, str] = dict(
    enumerate(("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "DEGRADED", "TERMINATED"))
)


class JVPFrame(Packet):
    """One frame; its value is its payload."""

    name = "JVP frame"
    fields_desc: ClassVar = [
        ByteEnumField("type", ControlType.HEALTH, named(ControlType)),
        FlagsField("flags", 0, 8, ["wants_ack"]),
        LenField("length", None, fmt="H"),
        IntField("message_id", 0),
        ByteField("chunk", 0),
        ByteField("chunks", 1),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return s[: self.length], s[self.length :]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        return Raw if self.chunks != 1 else super().guess_payload_class(payload)

    def mysummary(self) -> str:
        return self.sprintf("JVP %JVPFrame.type% %JVPFrame.message_id%")


class JVPFrames(Packet):
    """A CONTROL plaintext: one frame or several."""

    name = "JVP CONTROL plaintext"
    fields_desc: ClassVar = [PacketListField("frames", [], JVPFrame)]

    def answers(self, other: Packet) -> int:
        """Whether a frame in it acknowledges one of the other's."""
        if not isinstance(other, JVPFrames):
            return 0
        asked = {frame.message_id for frame in other.frames if frame.flags.wants_ack}
        return int(
            any(frame[JVPFrameAck].acknowledged in asked for frame in self.frames if JVPFrameAck in frame)
        )

    def mysummary(self) -> str:
        return "JVP " + " ".join(frame.sprintf("%JVPFrame.type%") for frame in self.frames)


class JVPConfig(Packet):
    """UTF-8 JSON."""

    name = "JVP CONFIG"
    fields_desc: ClassVar = [StrField("text", b"{}")]


class JVPHealth(Packet):
    name = "JVP HEALTH"
    fields_desc: ClassVar = [
        VersionField("state_version", 0),
        ByteEnumField("proposed", 0, STATES | {0: "none"}),
        FlagsField("flags", 0, 8, ["limited"]),
        ShortField("zero", 0),
        IntField("loss_ppm", 0),
        IntField("rtt_us", 0),
        IntField("rtt_p95_us", 0),
        IntField("jitter_us", 0),
    ]


class JVPState(Packet):
    name = "JVP STATE"
    fields_desc: ClassVar = [
        VersionField("state_version", 0),
        ByteEnumField("state", 0, STATES),
        FieldLenField("reason_length", None, fmt="B", length_of="reason"),
        StrLenField("reason", b"", length_from=lambda packet: packet.reason_length),
    ]


class JVPRekey(Packet):
    """REKEY_INIT or REKEY_RESPONSE; `kem_value` is the encapsulation key or the ciphertext, empty without KEM."""

    name = "JVP rekey"
    fields_desc: ClassVar = [
        IntField("phase_number", 1),
        ByteEnumField("kem", Kem.NONE, named(Kem)),
        XStrFixedLenField("public", bytes(KEY_SIZE), KEY_SIZE),
        XStrField("kem_value", b""),
    ]


class JVPReason(Packet):
    """The value of REKEY_REQUIRED, SWITCH and CLOSE."""

    name = "JVP reason"
    fields_desc: ClassVar = [StrField("reason", b"PEER_CLOSED")]


class JVPFrameAck(Packet):
    """Bit c mod 8 of byte c div 8, least significant first, is chunk c."""

    name = "JVP ACK of a message"
    fields_desc: ClassVar = [IntField("acknowledged", 0), XStrField("bitmap", b"\x01")]


_VALUES: dict[ControlType, Any] = {
    ControlType.CONFIG: JVPConfig,
    ControlType.HEALTH: JVPHealth,
    ControlType.STATE: JVPState,
    ControlType.REKEY_INIT: JVPRekey,
    ControlType.REKEY_RESPONSE: JVPRekey,
    ControlType.REKEY_REQUIRED: JVPReason,
    ControlType.SWITCH: JVPReason,
    ControlType.CLOSE: JVPReason,
    ControlType.ACK: JVPFrameAck,
}
for _kind, _layer in _VALUES.items():
    bind_layers(JVPFrame, _layer, type=int(_kind))
