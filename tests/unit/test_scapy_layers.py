"""Scapy's layers of JVP/1 show what the product's own decoders read, and build the very bytes that were captured."""

from pathlib import Path
from typing import Any

from core_pair import GATEWAY_KEY
from scapy.layers.inet import IP, UDP
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import rdpcap, wrpcap
from scapy_capture import FROM_VECTORS, Capture, capture, captured, rebuilt, strict_scapy

from jvpn.protocol import control, keys, messages, paths, reattach
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import HEADER_SIZE, MAC_SIZE, PacketType
from jvpn.protocol.control import ControlType
from jvpn.protocol.suites import suite, x25519_public
from jvpn.protocol.wire import Header
from vagrant.traffic import control as frames
from vagrant.traffic import jvp, plaintexts
from vagrant.traffic.jvp import JVP

__all__ = ["capture", "strict_scapy"]


def state_of(reports: Any) -> list[tuple[int, int, bytes]]:
    return [(report.path_index, report.next_counter, report.missing) for report in reports]


# --- clear ------------------------------------------------------------------------------------------------------------


def test_the_capture_has_every_type(capture: Capture) -> None:
    assert {flight.kind for flight in capture.pair.sent} | FROM_VECTORS == set(PacketType) == set(jvp.LAYERS)


def test_headers_and_layers_are_those_of_the_type_and_build_the_same_bytes(capture: Capture) -> None:
    for flight in capture.pair.sent:
        packet = captured(flight)
        header = Header.decode(flight.data)
        shown = packet[JVP]
        assert (shown.type, shown.steering_id, shown.counter, shown.phase, shown.suite) == header
        assert type(shown.payload) is jvp.LAYERS[header.type][0]
        assert isinstance(shown.payload.payload, NoPayload)
        assert rebuilt(shown) == flight.data
        assert header.type.name in packet.summary()


def test_fields_of_a_handshake(capture: Capture) -> None:
    (init, *_) = capture.flights(PacketType.HANDSHAKE_INIT)
    shown = captured(init)[jvp.JVPHandshakeInit]
    assert shown.mac1 == keys.mac1(suite(1), x25519_public(GATEWAY_KEY), init.data[: -2 * MAC_SIZE])
    assert shown.mac2 == bytes(MAC_SIZE)
    assert (
        HEADER_SIZE + len(shown.ephemeral + shown.sealed_static + shown.sealed_payload) == len(init.data) - 32
    )


def test_answers(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    (init, *_) = capture.flights(PacketType.HANDSHAKE_INIT)
    for kind in (PacketType.HANDSHAKE_RESPONSE, PacketType.COOKIE):
        answer = captured(capture.flights(kind)[0])[JVP]
        assert answer.answers(captured(init)[JVP])
        assert not captured(init)[JVP].answers(answer)
        assert answer.hashret() == captured(init)[JVP].hashret()
    requests = [captured(f)[JVP] for f in capture.flights(PacketType.REATTACH_REQUEST)]
    for kind in (PacketType.REATTACH_ACK, PacketType.REATTACH_FAIL, PacketType.RESET):
        for flight in capture.flights(kind):
            asked = [request for request in requests if captured(flight)[JVP].answers(request)]
            assert asked
            assert {request.steering_id for request in asked} == {flight.data[4:12]}
    probes = [captured(flight)[JVP] for flight in capture.flights(PacketType.PATH) if flight.up]
    solicited = [captured(flight)[JVP] for flight in capture.flights(PacketType.PATH) if not flight.up]
    for answer in solicited:
        (asked,) = [probe for probe in probes if answer.answers(probe)]
        assert not asked.answers(answer)
    told = [captured(flight)[JVP] for flight in capture.flights(PacketType.CONTROL)]
    assert any(answer.answers(asked) for answer in told for asked in told)


# --- opened -----------------------------------------------------------------------------------------------------------


def test_the_key_log_opens_everything_that_session_keys_seal(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    seen: set[type[Packet]] = set()
    for flight in capture.pair.sent:
        shown = captured(flight)[JVP]
        layer, inside = jvp.LAYERS[flight.kind]
        assert type(shown.payload) is layer
        assert isinstance(shown.payload.payload, NoPayload) == (inside is None), flight
        assert rebuilt(shown) == flight.data
        assert bytes(shown.copy()) == flight.data
        seen |= {type(shown.getlayer(n)) for n in range(5) if shown.getlayer(n)}
    assert {plaintexts.JVPProbe, plaintexts.JVPProbeAck, plaintexts.JVPMtu, IP} <= seen


def test_path_plaintexts(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    for flight in capture.flights(PacketType.PATH):
        shown = captured(flight)[jvp.JVPPath].payload
        read = paths.decode(bytes(shown))
        for name in set(read._fields) - {"settled"}:
            assert getattr(shown, name) == getattr(read, name)
        if isinstance(read, paths.MtuProbe | paths.MtuAck):
            assert bool(shown.flags.settled) is read.settled


def test_control_frames(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    seen = set()
    for flight in capture.flights(PacketType.CONTROL):
        shown = captured(flight)[frames.JVPFrames]
        read = control.decode_frames(bytes(shown))
        assert len(read) == len(shown.frames)
        for frame, has in zip(read, shown.frames, strict=True):
            assert (has.type, has.flags, has.length) == (frame.kind, frame.flags, len(frame.value))
            assert (has.message_id, has.chunk, has.chunks) == (frame.message_id, frame.chunk, frame.chunks)
            assert bytes(has.payload) == frame.value
            if frame.chunks == 1:
                seen.add(frame.kind)
                check_value(frame, has.payload)
    assert {ControlType.HEALTH, ControlType.STATE, ControlType.ACK, ControlType.REKEY_RESPONSE} <= seen


def check_value(frame: control.Frame, shown: Packet) -> None:
    match frame.kind:
        case ControlType.HEALTH:
            read = messages.Health.decode(frame.value)
            assert (shown.state_version, shown.proposed) == (read.state_version, read.proposed)
            assert (shown.loss_ppm, shown.rtt_us) == (read.loss_ppm, read.rtt_us)
            assert (shown.rtt_p95_us, shown.jitter_us) == (read.rtt_p95_us, read.jitter_us)
        case ControlType.STATE:
            told = messages.State.decode(frame.value)
            assert (shown.state_version, shown.state) == (told.state_version, told.state)
            assert shown.reason.decode() == told.reason
        case ControlType.CONFIG:
            assert messages.decode_config(shown.text) == messages.decode_config(frame.value)
        case ControlType.REKEY_INIT | ControlType.REKEY_RESPONSE:
            assert shown.phase_number == int.from_bytes(frame.value[:4], "big")
            assert shown.kem_value == frame.value[37:]
        case ControlType.ACK:
            assert shown.acknowledged == int.from_bytes(frame.value[:4], "big")
        case _:
            assert shown.reason == frame.value


def test_reattach_plaintexts(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    causes, results = set(), set()
    for flight in capture.flights(PacketType.REATTACH_REQUEST):
        shown = captured(flight)[jvp.JVPReattachRequest]
        request = shown[plaintexts.JVPRequest]
        read = reattach.open_request(shown.sealing.secrets, shown.sealing.index, flight.data)
        assert (request.attempt, request.path_index, request.state_version) == read[:3]
        assert (request.cause, request.transport, request.cost, request.challenge) == read[3:7]
        assert state_of(request.reports) == [tuple(report) for report in read.reports]
        causes.add(read.cause)
    for flight in capture.flights(PacketType.REATTACH_ACK):
        shown = captured(flight)[jvp.JVPReattachAck]
        ack = shown[plaintexts.JVPAck]
        told = reattach.open_ack(shown.sealing.secrets, flight.data)
        assert (ack.attempt, ack.result, ack.bound_index, ack.state_version, ack.highest_installed) == told[
            :5
        ]
        assert to_bytes(ack.observed_address) == told.observed_address
        assert (ack.observed_port, ack.challenge) == told[6:8]
        assert state_of(ack.reports) == [tuple(report) for report in told.reports]
        results.add(told.result)
    for flight in capture.flights(PacketType.REATTACH_FAIL):
        shown = captured(flight)[jvp.JVPReattachFail]
        fail = shown[plaintexts.JVPFail]
        why = reattach.open_fail(shown.sealing.secrets, flight.data)
        assert (fail.attempt, fail.state_version, fail.retry_after_ms) == why[:3]
        assert (fail.reason.decode(), fail.owner.decode()) == why[3:]
    assert len(causes) >= 1
    assert results == set(reattach.Result)


def test_inner_packets_are_layers(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    for flight in capture.flights(PacketType.DATA):
        inner = captured(flight)[plaintexts.JVPOffload].payload
        assert (inner.dst, inner[UDP].dport, inner[Raw].load) == ("10.8.0.1", 9, b"inner")


def test_a_changed_field_is_sealed_again(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    flight = capture.flights(PacketType.REATTACH_REQUEST)[0]
    packet = captured(flight)
    secrets, index = packet[jvp.JVPReattachRequest].sealing.secrets, packet[plaintexts.JVPRequest].path_index
    packet[plaintexts.JVPRequest].attempt = 77
    packet[JVP].counter += 1
    assert reattach.open_request(secrets, index, bytes(packet[JVP])).attempt == 77
    made = JVP(steering_id=flight.data[4:12], counter=9)
    made /= jvp.JVPReattachRequest(sealing=packet[jvp.JVPReattachRequest].sealing)
    made /= plaintexts.JVPRequest(attempt=78, path_index=index, cause="ADDRESS_CHANGED")
    opened = reattach.open_request(secrets, index, bytes(made))
    assert (opened.attempt, opened.cause) == (78, reattach.Cause.ADDRESS_CHANGED)


def test_a_pcap_is_read_with_a_key_log_file(capture: Capture, tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "x.pcap"), [captured(flight) for flight in capture.pair.sent])
    (tmp_path / "x.keys").write_text("# a session\n\nCLIENT_RANDOM 00 00\n" + "\n".join(capture.lines) + "\n")
    jvp.use_keylog(tmp_path / "x.keys")
    read = [packet[JVP] for packet in rdpcap(str(tmp_path / "x.pcap"))]
    assert [bytes(shown) for shown in read] == [flight.data for flight in capture.pair.sent]
    assert sum(plaintexts.JVPRequest in shown for shown in read) == len(
        capture.flights(PacketType.REATTACH_REQUEST)
    )


def test_messages_are_made_from_layers(capture: Capture) -> None:
    health = frames.JVPFrame(message_id=5) / frames.JVPHealth(state_version=1 << 40, rtt_us=31_000)
    close = frames.JVPFrame(message_id=6) / frames.JVPReason(reason="PEER_CLOSED")
    read = control.decode_frames(bytes(frames.JVPFrames(frames=[health, close])))
    assert [(frame.kind, frame.message_id) for frame in read] == [
        (ControlType.HEALTH, 5),
        (ControlType.CLOSE, 6),
    ]
    assert messages.Health.decode(read[0].value) == messages.Health(1 << 40, rtt_us=31_000)
    fail = plaintexts.JVPFail(reason="NOT_OWNER", owner="gw2:51820")
    jvp.use_keylog(capture.log)
    answer = captured(capture.flights(PacketType.REATTACH_FAIL)[0])[JVP]
    answer[jvp.JVPReattachFail].remove_payload()
    sealed = bytes(answer / fail)
    told = reattach.open_fail(answer.payload.sealing.secrets, sealed)
    assert (told.reason, told.owner) == ("NOT_OWNER", "gw2:51820")


def test_what_lies_behind_an_inner_packet_is_sealed_with_it(capture: Capture) -> None:
    jvp.use_keylog(capture.log)
    shown = captured(capture.flights(PacketType.DATA)[0])[JVP]
    sealing, header = shown.payload.sealing, bytes(shown)[:HEADER_SIZE]
    datagram = header + sealing.seal(header, b"", bytes(shown.payload.payload) + b"behind")
    again = JVP(datagram)
    assert again.lastlayer().load == b"behind"
    assert rebuilt(again) == datagram
