"""What is inside the sealed part of JVP/1 datagrams, as Scapy layers (docs/protocol.md has the layouts).

PATH, REATTACH and the heads of the DATA kinds; CONTROL frames stand in control.py. `jvp` puts them on their datagrams.
"""

from typing import Any, ClassVar

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    FieldLenField,
    FlagsField,
    IntField,
    IP6Field,
    LongField,
    PacketListField,
    ShortField,
    StrLenField,
    ThreeBytesField,
    XStrField,
    XStrFixedLenField,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, bind_layers

from jvpn.protocol.constants import (
    CHALLENGE_SIZE,
    HEADER_SIZE,
    REATTACH_REQUEST_SIZE,
    TAG_SIZE,
    TICKET_SIZE,
    PathKind,
    Transport,
)
from jvpn.protocol.offload import OFFLOAD, Segmentation
from jvpn.protocol.paths import PATH_SIZE, UNSOLICITED
from jvpn.protocol.reattach import NO_CHALLENGE, Cause, Result


def named(kind: Any) -> dict[int, str]:
    """An IntEnum as Scapy's enum fields want it."""
    return {int(member): member.name for member in kind}


class VersionField(LongField):
    """A state_version: shown as epoch.count."""

    def i2repr(self, pkt: Packet | None, x: int) -> str:
        return f"{x >> 40}.{x & (1 << 40) - 1}"


class JVPProbe(Packet):
    name = "JVP PROBE"
    fields_desc: ClassVar = [
        ByteEnumField("kind", PathKind.PROBE, named(PathKind)),
        ByteField("flags", 0),
        ShortField("zero", 0),
        LongField("timestamp_us", 0),
        LongField("received", 0),
        LongField("highest", 0),
        XStrFixedLenField("zeros", bytes(20), 20),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *args: Any, **kargs: Any) -> type[Packet]:
        """PATH plaintexts are told apart by their first byte."""
        return _PATH_LAYERS.get(_pkt[0], cls) if _pkt else cls

    def mysummary(self) -> str:
        return self.sprintf("JVP PROBE %JVPProbe.timestamp_us%")


class JVPProbeAck(Packet):
    name = "JVP PROBE_ACK"
    fields_desc: ClassVar = [
        ByteEnumField("kind", PathKind.PROBE_ACK, named(PathKind)),
        FlagsField("flags", 0, 8, ["active", "bound"]),
        ShortField("zero", 0),
        LongField("timestamp_us", UNSOLICITED),
        LongField("received", 0),
        LongField("highest", 0),
        XStrFixedLenField("challenge", NO_CHALLENGE, CHALLENGE_SIZE),
        IntField("highest_installed", 0),
    ]

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, JVPProbe) and self.timestamp_us == other.timestamp_us != UNSOLICITED)

    def mysummary(self) -> str:
        return self.sprintf("JVP PROBE_ACK %JVPProbeAck.timestamp_us% [%JVPProbeAck.flags%]")


class JVPMtu(Packet):
    name = "JVP MTU_PROBE or MTU_ACK"
    fields_desc: ClassVar = [
        ByteEnumField("kind", PathKind.MTU_PROBE, named(PathKind)),
        FlagsField("flags", 0, 8, ["settled"]),
        ShortField("size", 0),
        LongField("timestamp_us", 0),
        ShortField("confirmed", 0),
        XStrField("zeros", bytes(PATH_SIZE - 14)),
    ]

    def answers(self, other: Packet) -> int:
        asked = isinstance(other, JVPMtu) and (self.kind, other.kind) == (
            PathKind.MTU_ACK,
            PathKind.MTU_PROBE,
        )
        return int(asked and self.timestamp_us == other.timestamp_us)

    def mysummary(self) -> str:
        return self.sprintf("JVP %JVPMtu.kind% %JVPMtu.size% confirmed %JVPMtu.confirmed%")


_PATH_LAYERS: dict[int, type[Packet]] = {
    PathKind.PROBE_ACK: JVPProbeAck,
    PathKind.MTU_PROBE: JVPMtu,
    PathKind.MTU_ACK: JVPMtu,
}


class JVPReport(Packet):
    """What came on one index; bit k of `missing` is next_counter - 1 - k, least significant first."""

    name = "JVP report"
    fields_desc: ClassVar = [
        IntField("path_index", 0),
        LongField("next_counter", 0),
        XStrFixedLenField("missing", bytes(32), 32),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def _reports() -> list[Any]:
    return [
        FieldLenField("n", None, fmt="B", count_of="reports"),
        PacketListField("reports", [], JVPReport, count_from=lambda packet: packet.n),
    ]


class JVPRequest(Packet):
    """Built with zeros up to the 176 bytes that every REQUEST has."""

    name = "JVP REATTACH_REQUEST plaintext"
    SIZE: ClassVar = REATTACH_REQUEST_SIZE - HEADER_SIZE - TICKET_SIZE - TAG_SIZE
    fields_desc: ClassVar = [
        LongField("attempt", 1),
        IntField("path_index", 0),
        VersionField("state_version", 0),
        ByteEnumField("cause", Cause.TRANSPORT_DEAD, named(Cause)),
        ByteEnumField("transport", Transport.UDP, named(Transport)),
        ShortField("cost", 0),
        XStrFixedLenField("challenge", NO_CHALLENGE, CHALLENGE_SIZE),
        *_reports(),
        XStrField("zeros", b""),
    ]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        return pkt.ljust(self.SIZE, b"\0") + pay

    def mysummary(self) -> str:
        return self.sprintf(
            "JVP REQUEST attempt %JVPRequest.attempt% index %JVPRequest.path_index% %JVPRequest.cause%"
        )


class JVPAck(Packet):
    name = "JVP REATTACH_ACK plaintext"
    fields_desc: ClassVar = [
        LongField("attempt", 1),
        ByteEnumField("result", Result.BOUND, named(Result)),
        IntField("bound_index", 0),
        VersionField("state_version", 0),
        IntField("highest_installed", 0),
        IP6Field("observed_address", "::"),
        ShortField("observed_port", 0),
        XStrFixedLenField("challenge", NO_CHALLENGE, CHALLENGE_SIZE),
        *_reports(),
    ]

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, JVPRequest) and self.attempt == other.attempt)

    def mysummary(self) -> str:
        return self.sprintf("JVP ACK attempt %JVPAck.attempt% %JVPAck.result% index %JVPAck.bound_index%")


class JVPFail(Packet):
    name = "JVP REATTACH_FAIL plaintext"
    fields_desc: ClassVar = [
        LongField("attempt", 1),
        VersionField("state_version", 0),
        IntField("retry_after_ms", 0),
        FieldLenField("reason_length", None, fmt="B", length_of="reason"),
        StrLenField("reason", b"", length_from=lambda packet: packet.reason_length),
        FieldLenField("owner_length", None, fmt="B", length_of="owner"),
        StrLenField("owner", b"", length_from=lambda packet: packet.owner_length),
    ]

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, JVPRequest) and self.attempt == other.attempt)

    def mysummary(self) -> str:
        return self.sprintf("JVP FAIL attempt %JVPFail.attempt% %JVPFail.reason%")


class JVPOffload(Packet):
    """`checksum_offset` holds the segment index where there is a segmentation."""

    name = "JVP offload header"
    fields_desc: ClassVar = [
        FlagsField("flags", 0, 8, ["partial", "last"]),
        ByteEnumField("segmentation", Segmentation.NONE, named(Segmentation)),
        ShortField("segment_size", 0),
        ShortField("checksum_start", 0),
        ShortField("checksum_offset", 0),
    ]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        inner: dict[int, type[Packet]] = {4: IP, 6: IPv6}
        return inner.get(payload[0] >> 4) or self.default_payload_class(payload)


class JVPResentHead(Packet):
    name = "JVP RESENT head"
    fields_desc: ClassVar = [ByteField("index_distance", 0), ThreeBytesField("old_counter", 0)]


class JVPFragmentHead(Packet):
    """What follows is a part of a DATA or RESENT plaintext, which says little alone: it is Raw."""

    name = "JVP FRAGMENT head"
    fields_desc: ClassVar = [
        IntField("packet_id", 0),
        ShortField("offset", 0),
        BitField("unused", 0, 6),
        BitField("resent", 0, 1),
        BitField("last", 0, 1),
        ByteField("zero", 0),
    ]


bind_layers(JVPResentHead, JVPOffload)
assert len(JVPOffload()) == OFFLOAD.size
