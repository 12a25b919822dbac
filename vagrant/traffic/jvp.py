# scapy.contrib.description = Jumping VPN, JVP/1
# scapy.contrib.status = loads
"""JVP/1 for Scapy: every datagram of docs/protocol.md, on UDP port 51820 (`bind_port` for others).

    from vagrant.traffic import jvp
    jvp.use_keylog("session.keys")          # optional: the sealed parts are dissected too
    for packet in rdpcap("session.pcap"):
        packet.show()

What opened with a key log has its plaintext as layers behind it and is sealed again when it is built, so a field may be
changed and the datagram stays authentic. What did not open keeps its ciphertext. Anything that is no JVP/1 is Raw.
"""

from pathlib import Path
from typing import Any, ClassVar, Final

from scapy.config import conf
from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    LongField,
    XStrField,
    XStrFixedLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw, bind_bottom_up, bind_layers, bind_top_down

from jvpn.protocol.constants import (
    HEADER_SIZE,
    KEY_SIZE,
    MAC_SIZE,
    MAX_CONTROL_DATAGRAM,
    MAX_UDP_PAYLOAD,
    REATTACH_ACK_MAX_SIZE,
    REATTACH_REQUEST_SIZE,
    SALT_SIZE,
    TAG_SIZE,
    TICKET_SIZE,
    PacketType,
)
from jvpn.protocol.suites import SUITES
from jvpn.protocol.wire import Header, WireError
from vagrant.traffic.control import JVPFrames
from vagrant.traffic.keylog import KeyLog, Sealing
from vagrant.traffic.plaintexts import (
    JVPAck,
    JVPFail,
    JVPFragmentHead,
    JVPOffload,
    JVPProbe,
    JVPRequest,
    JVPResentHead,
    named,
)

PORT: Final = 51820
#: What a header may break and still be shown: the layer has a field for it, or the size is judged by type below.
_SHOWN: Final = frozenset({"reserved_bits", "bad_length"})

conf.contribs["JVP"] = {"keylog": None}


def use_keylog(log: KeyLog | Path | str | None) -> None:
    """Open sealed parts with this key log, or the one in this file, from now on; None: no more.

    Raises OSError and KeyLogError.
    """
    conf.contribs["JVP"]["keylog"] = KeyLog.read(log) if isinstance(log, Path | str) else log


def bind_port(port: int) -> None:
    """Take UDP datagrams from and to this port for JVP/1 as well."""
    bind_bottom_up(UDP, JVP, sport=port)
    bind_bottom_up(UDP, JVP, dport=port)


class JVP(Packet):
    """The header of 20 bytes. The layer behind it is chosen by `type`, if it has a size that the type may have."""

    name = "JVP/1"
    fields_desc: ClassVar = [
        ByteEnumField("type", PacketType.DATA, named(PacketType)),
        BitField("version", 1, 4),
        BitField("phase", 0, 4),
        ByteEnumField("suite", 0, {0: "none"} | {number: row.name for number, row in SUITES.items()}),
        ByteField("zero", 0),
        XStrFixedLenField("steering_id", bytes(8), 8),
        LongField("counter", 0),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *args: Any, **kargs: Any) -> type[Packet]:
        if _pkt is not None:
            try:
                Header.decode(_pkt)
            except WireError as refused:
                if refused.reason not in _SHOWN:
                    return Raw
        return cls

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        found = super().guess_payload_class(payload)
        fits = HEADER_SIZE + len(payload) in SIZES.get(self.type, ())
        return found if fits else Raw

    def hashret(self) -> bytes:
        return bytes(self.steering_id)

    def answers(self, other: Packet) -> int:
        same = isinstance(other, JVP) and self.steering_id == other.steering_id
        return int(same and self.payload.answers(other.payload))

    def mysummary(self) -> str:
        return self.sprintf("JVP %JVP.type% %JVP.steering_id% {JVP:counter %JVP.counter%}")


#: Bytes of a whole datagram, by type (docs/protocol.md, "Header").
SIZES: Final[dict[int, range]] = {
    PacketType.HANDSHAKE_INIT: range(161, MAX_CONTROL_DATAGRAM + 1),
    PacketType.HANDSHAKE_RESPONSE: range(88, 88 + 1),
    PacketType.COOKIE: range(68, 68 + 1),
    PacketType.REATTACH_REQUEST: range(REATTACH_REQUEST_SIZE, REATTACH_REQUEST_SIZE + 1),
    PacketType.REATTACH_ACK: range(112, REATTACH_ACK_MAX_SIZE + 1),
    PacketType.REATTACH_FAIL: range(74, REATTACH_ACK_MAX_SIZE + 1),
    PacketType.DATA: range(64, MAX_UDP_PAYLOAD + 1),
    PacketType.CONTROL: range(46, MAX_CONTROL_DATAGRAM + 1),
    PacketType.PATH: range(84, MAX_UDP_PAYLOAD + 1),
    PacketType.FRAGMENT: range(36, MAX_UDP_PAYLOAD + 1),
    PacketType.RESENT: range(68, MAX_UDP_PAYLOAD + 1),
    PacketType.RESET: range(36, 36 + 1),
}


# --- what Noise or nothing seals: never opened by a key log -----------------------------------------------------------


class JVPHandshakeInit(Packet):
    name = "JVP HANDSHAKE_INIT"
    fields_desc: ClassVar = [
        XStrFixedLenField("ephemeral", bytes(KEY_SIZE), KEY_SIZE),
        XStrFixedLenField("sealed_static", bytes(KEY_SIZE + TAG_SIZE), KEY_SIZE + TAG_SIZE),
        XStrField("sealed_payload", bytes(13 + TAG_SIZE), remain=2 * MAC_SIZE),
        XStrFixedLenField("mac1", bytes(MAC_SIZE), MAC_SIZE),
        XStrFixedLenField("mac2", bytes(MAC_SIZE), MAC_SIZE),
    ]


class _HandshakeAnswer(Packet):
    def answers(self, other: Packet) -> int:
        return int(isinstance(other, JVPHandshakeInit))


class JVPHandshakeResponse(_HandshakeAnswer):
    name = "JVP HANDSHAKE_RESPONSE"
    fields_desc: ClassVar = [
        XStrFixedLenField("ephemeral", bytes(KEY_SIZE), KEY_SIZE),
        XStrFixedLenField("sealed_payload", bytes(20 + TAG_SIZE), 20 + TAG_SIZE),
    ]


class JVPCookie(_HandshakeAnswer):
    name = "JVP COOKIE"
    fields_desc: ClassVar = [
        XStrFixedLenField("salt", bytes(SALT_SIZE), SALT_SIZE),
        XStrFixedLenField("sealed_cookie", bytes(16 + TAG_SIZE), 16 + TAG_SIZE),
    ]


class JVPReset(Packet):
    name = "JVP RESET"
    fields_desc: ClassVar = [XStrFixedLenField("token", bytes(16), 16)]

    def answers(self, other: Packet) -> int:
        return int(isinstance(other, JVPReattachRequest))


# --- what the session's keys seal -------------------------------------------------------------------------------------


class Sealed(Packet):
    """A datagram under keys of the session. `sealing` says which, once it is open; who makes a datagram sets it.

    While it is set and a plaintext follows, `sealed` and `tag` show what was captured; built is what follows.
    """

    __slots__ = ["sealing"]
    fields_desc: ClassVar = [
        XStrField("sealed", b"", remain=TAG_SIZE),
        XStrFixedLenField("tag", bytes(TAG_SIZE), TAG_SIZE),
    ]

    def __init__(self, *args: Any, sealing: Sealing | None = None, **kargs: Any) -> None:
        self.sealing = sealing
        super().__init__(*args, **kargs)

    def salt_in_clear(self) -> bytes:
        return b""

    def do_dissect_payload(self, s: bytes) -> None:
        log: KeyLog | None = conf.contribs["JVP"]["keylog"]
        if log is not None and isinstance(self.underlayer, JVP):
            opened = log.open(self.underlayer.self_build(), self.salt_in_clear(), self.sealed + self.tag)
            if opened is not None:
                s, self.sealing = opened
                # What is built from now on is made of the plaintext.
                self.raw_packet_cache = None
        super().do_dissect_payload(s)

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if self.sealing is None or not self.payload or self.underlayer is None:
            return pkt + pay
        clear = pkt[: len(pkt) - len(self.sealed) - TAG_SIZE]
        plaintext = pay + self.payload.build_padding()
        return clear + self.sealing.seal(self.underlayer.self_build(), self.salt_in_clear(), plaintext)

    def build_padding(self) -> bytes:
        return b"" if self.sealing is not None else super().build_padding()

    def copy(self) -> "Sealed":
        made = super().copy()
        made.sealing = self.sealing
        return made

    def clone_with(self, payload: Any = None, **kargs: Any) -> Any:
        made = super().clone_with(payload, **kargs)
        made.sealing = self.sealing
        return made

    def answers(self, other: Packet) -> int:
        """Of the same kind, with a plaintext that answers the other's; what is not open answers nothing."""
        opened = bool(self.payload) and bool(other.payload)
        return int(opened and type(self) is type(other) and self.payload.answers(other.payload))


class JVPReattachRequest(Sealed):
    name = "JVP REATTACH_REQUEST"
    fields_desc: ClassVar = [
        XStrFixedLenField("ticket", bytes(TICKET_SIZE), TICKET_SIZE),
        *Sealed.fields_desc,
    ]


class _ReattachAnswer(Sealed):
    fields_desc: ClassVar = [XStrFixedLenField("salt", bytes(SALT_SIZE), SALT_SIZE), *Sealed.fields_desc]

    def salt_in_clear(self) -> bytes:
        return bytes(self.salt)

    def answers(self, other: Packet) -> int:
        """The steering id has been compared; where both are open, so is the attempt."""
        if not isinstance(other, JVPReattachRequest):
            return 0
        return int(self.payload.answers(other.payload)) if self.payload and other.payload else 1


class JVPReattachAck(_ReattachAnswer):
    name = "JVP REATTACH_ACK"


class JVPReattachFail(_ReattachAnswer):
    name = "JVP REATTACH_FAIL"


class JVPData(Sealed):
    name = "JVP DATA"


class JVPControl(Sealed):
    name = "JVP CONTROL"


class JVPPath(Sealed):
    name = "JVP PATH"


class JVPFragment(Sealed):
    name = "JVP FRAGMENT"


class JVPResent(Sealed):
    name = "JVP RESENT"


#: The layer of each type, and what is sealed in it.
LAYERS: Final[dict[PacketType, tuple[type[Packet], type[Packet] | None]]] = {
    PacketType.HANDSHAKE_INIT: (JVPHandshakeInit, None),
    PacketType.HANDSHAKE_RESPONSE: (JVPHandshakeResponse, None),
    PacketType.COOKIE: (JVPCookie, None),
    PacketType.REATTACH_REQUEST: (JVPReattachRequest, JVPRequest),
    PacketType.REATTACH_ACK: (JVPReattachAck, JVPAck),
    PacketType.REATTACH_FAIL: (JVPReattachFail, JVPFail),
    PacketType.DATA: (JVPData, JVPOffload),
    PacketType.CONTROL: (JVPControl, JVPFrames),
    PacketType.PATH: (JVPPath, JVPProbe),
    PacketType.FRAGMENT: (JVPFragment, JVPFragmentHead),
    PacketType.RESENT: (JVPResent, JVPResentHead),
    PacketType.RESET: (JVPReset, None),
}

for _kind, (_layer, _inside) in LAYERS.items():
    bind_bottom_up(JVP, _layer, type=int(_kind))
    # Who makes a handshake message has to say its suite; the first is taken if nobody does.
    _suite = {"suite": 1} if issubclass(_layer, JVPHandshakeInit | _HandshakeAnswer) else {}
    bind_top_down(JVP, _layer, type=int(_kind), **_suite)
    if _inside is not None:
        bind_layers(_layer, _inside)

bind_port(PORT)
bind_top_down(UDP, JVP, sport=PORT, dport=PORT)
