"""The kept captures of a real gateway and client show every type to its plaintext, with their key log alone."""

from pathlib import Path

from dissected import check, read
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy_capture import strict_scapy

from jvpn.protocol import control, messages
from jvpn.protocol.constants import PacketType
from jvpn.protocol.control import ControlType
from vagrant.traffic.captures import FOLDER, KEYS, PCAPS
from vagrant.traffic.control import JVPFrame
from vagrant.traffic.joined import joined
from vagrant.traffic.jvp import JVP

__all__ = ["strict_scapy"]


def test_every_type_is_dissected_to_its_plaintext() -> None:
    assert {path.name for path in FOLDER.glob("*.pcap")} == {path.name for path in PCAPS}
    check(read(PCAPS, KEYS))


def test_the_key_log_of_another_session_opens_nothing_of_them(tmp_path: Path) -> None:
    others = tmp_path / "other.keys"
    others.write_text(f"JVP1 1 1 1 {'01' * 32} {'02' * 32}\n")
    packets = read(PCAPS, others)
    assert {PacketType(packet[JVP].type) for packet in packets} == set(PacketType)
    assert list(joined(packets)) == []


def test_joined_messages_are_those_that_the_product_reads() -> None:
    """The product's own channel, given the frames of one end, hands out what `joined` does."""
    packets = read(PCAPS, KEYS)
    for up in (True, False):
        said = [
            p for p in packets if p[JVP].type == PacketType.CONTROL and (p[IP].src[:7] == "10.201.") is up
        ]
        channel = control.ControlChannel()
        plaintexts = [bytes(packet[JVP].payload.payload) for packet in said]
        heard = [message for plaintext in plaintexts for message in channel.receive(plaintext)]
        frames = [whole for whole in joined(said) if isinstance(whole, JVPFrame)]
        shown = {(frame.type, bytes(frame.payload)) for frame in frames if frame.type != ControlType.ACK}
        assert shown == {(message.kind, message.value) for message in heard}
        for kind, value in shown:
            if kind == ControlType.CONFIG:
                assert messages.decode_config(value).addresses == ["10.8.0.2/32", "fd00:8::2/128"]


def test_parts_that_are_said_again_make_no_second_message() -> None:
    packets = read(PCAPS, KEYS)
    (rekey,) = [p for p in joined(packets) if JVPFrame in p and p.type == ControlType.REKEY_INIT]
    chunks = [
        p
        for p in packets
        if p[JVP].type == PacketType.CONTROL and bytes(p[JVP].payload.payload)[:2] == b"\x04\x01"
    ]
    assert len(chunks) == 2
    for said in (chunks * 2, chunks[::-1], [chunks[0], *chunks]):
        assert [bytes(whole) for whole in joined(said)] == [bytes(rekey)]
    assert list(joined(chunks[:1] * 2)) == []


def test_nothing_in_them_names_a_machine_or_a_day() -> None:
    packets = read(PCAPS, KEYS)
    assert {address for packet in packets for address in (packet[Ether].src, packet[Ether].dst)} == {
        "02:00:00:00:00:01",
        "02:00:00:00:00:02",
    }
    assert min(packet.time for packet in packets) == 1_767_225_600
    networks = {packet[IP].src.rsplit(".", 1)[0] for packet in packets}
    assert networks == {"10.201.1", "10.201.2", "203.0.113"}
