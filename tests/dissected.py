"""Captures of a real gateway and client as Scapy shows them, and what must hold for them."""

from collections.abc import Iterable
from pathlib import Path

from scapy.layers.inet import UDP
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import rdpcap

from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType
from vagrant.traffic import jvp
from vagrant.traffic.control import JVPConfig, JVPFrame, JVPRekey
from vagrant.traffic.joined import joined
from vagrant.traffic.jvp import JVP, PORT
from vagrant.traffic.plaintexts import JVPMtu, JVPOffload, JVPProbe, JVPProbeAck, JVPResentHead

#: Of each type, who sends it: True is the client.
SENDERS = {
    PacketType.HANDSHAKE_INIT: {True},
    PacketType.HANDSHAKE_RESPONSE: {False},
    PacketType.COOKIE: {False},
    PacketType.REATTACH_REQUEST: {True},
    PacketType.REATTACH_ACK: {False},
    PacketType.REATTACH_FAIL: {False},
    PacketType.DATA: {True, False},
    PacketType.CONTROL: {True, False},
    PacketType.PATH: {True, False},
    PacketType.FRAGMENT: {True, False},
    PacketType.RESENT: {True, False},
    PacketType.RESET: {False},
}
#: All but REKEY_REQUIRED, which takes 2^27 packets or a rekey that does not come.
FRAMES = set(ControlType) - {ControlType.REKEY_REQUIRED}


def read(paths: Iterable[Path], keys: Path) -> list[Packet]:
    """All packets of these captures, in the order of their times, opened with a key log."""
    jvp.use_keylog(keys)
    try:
        return sorted((packet for path in paths for packet in rdpcap(str(path))), key=lambda p: p.time)
    finally:
        jvp.use_keylog(None)


def check(packets: list[Packet]) -> None:
    """Every type is there from who sends it, everything opens, nothing is left that no layer describes."""
    seen: dict[PacketType, set[bool]] = {kind: set() for kind in PacketType}
    told: set[type[Packet]] = set()
    for packet in packets:
        datagram = packet[UDP].payload
        assert isinstance(datagram, JVP), packet
        layer, inside = jvp.LAYERS[PacketType(datagram.type)]
        assert type(datagram.payload) is layer
        assert isinstance(datagram.payload.payload, NoPayload) == (inside is None), packet
        seen[PacketType(datagram.type)].add(packet[UDP].dport == PORT)
        told |= set(datagram.layers())
        again = datagram.copy()
        again.clear_cache()
        assert bytes(again) == packet.original[-len(bytes(again)) :]
    assert seen == SENDERS
    assert {JVPProbe, JVPProbeAck, JVPMtu} <= told
    check_wholes(list(joined(packets)))


def check_wholes(wholes: list[Packet]) -> None:
    """All messages and inner packets are told to their last byte."""
    frames = [whole for whole in wholes if isinstance(whole, JVPFrame)]
    assert {ControlType(frame.type) for frame in frames} == FRAMES
    for frame in frames:
        assert Raw not in frame, frame
        assert frame.length == len(bytes(frame.payload))
    (rekey,) = {bytes(frame): frame for frame in frames if frame.type == ControlType.REKEY_INIT}.values()
    assert (rekey[JVPRekey].phase_number, len(rekey[JVPRekey].kem_value)) == (1, 1_184)
    config = next(frame for frame in frames if JVPConfig in frame)
    assert config[JVPConfig].text.startswith(b'{"addresses":["10.8.0.2/32"')
    inner = [whole for whole in wholes if not isinstance(whole, JVPFrame)]
    assert {type(whole) for whole in inner} == {JVPOffload, JVPResentHead}
    for whole in inner:
        # Raw is what users said, behind their own headers.
        assert len(whole.layers()) > 2
        assert not isinstance(whole[JVPOffload].payload, Raw), whole
    assert any(UDP in whole and len(whole[UDP].payload) == 1_350 for whole in inner)
