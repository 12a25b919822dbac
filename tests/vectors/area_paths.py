"""Probes, challenges, and the reattach."""

from common import (
    CHALLENGE,
    DOWN,
    EPOCH,
    SALT,
    SESSION_ID,
    UP,
    Vector,
    given_secrets,
    pattern,
    phase_zero,
    seal_data_kind,
    vector,
)

from jvpn.protocol import keys, paths, reattach, tickets
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import NO_INDEX, OFFLOAD_HEADER_SIZE, OVERHEAD_IPV4, PacketType, Transport
from jvpn.protocol.reattach import NO_CHALLENGE, Ack, Cause, Fail, Report, Request, Result
from jvpn.protocol.suites import SUITES, Suite


def path_vectors() -> list[Vector]:
    vectors = []
    for suite in SUITES.values():
        secrets = phase_zero(suite)
        common = given_secrets(secrets) | {"epoch": EPOCH, "index": 2}
        probe = paths.Probe(123_456_789, 17, 40)
        given = common | {"direction": 0, "counter": 9} | probe._asdict()
        datagram = seal_data_kind(secrets, UP, PacketType.PATH, 2, 9, probe.encode())
        vectors.append(vector(f"PROBE {suite.name}", suite, given, {"datagram": datagram}))
        for name, ack in (
            ("PROBE_ACK", paths.ProbeAck(3, 123_456_789, 9, 9, CHALLENGE, 7)),
            ("unsolicited PROBE_ACK", paths.ProbeAck(1, 0, 9, 9, CHALLENGE, 7)),
        ):
            counter = 1 << 48 | 4
            given = common | {"direction": 1, "counter": counter} | ack._asdict()
            datagram = seal_data_kind(secrets, DOWN, PacketType.PATH, 2, counter, ack.encode())
            vectors.append(vector(f"{name} {suite.name}", suite, given, {"datagram": datagram}))
        vectors += _mtu(suite)
    return [*vectors, _challenge("192.0.2.10", "198.51.100.1"), _challenge("2001:db8::10", "2001:db8::1")]


def _mtu(suite: Suite) -> list[Vector]:
    """A probe of 1400 bytes over IPv4, and its answer; then that of a client which asks for no more than 1280."""
    secrets, vectors = phase_zero(suite), []
    for name, size, confirmed, settled in (("", 1400, 1280, False), (", settled", 1280, 1280, True)):
        length = size - OVERHEAD_IPV4 + OFFLOAD_HEADER_SIZE
        for kind, way, counter, message in (
            ("MTU_PROBE", UP, 11, paths.MtuProbe(123_456_789, size, confirmed, settled)),
            ("MTU_ACK", DOWN, 1 << 48 | 6, paths.MtuAck(123_456_789, size, confirmed, settled)),
        ):
            given = given_secrets(secrets) | {
                "epoch": EPOCH,
                "index": 2,
                "direction": int(way),
                "counter": counter,
                **message._asdict(),
            }
            plaintext = message.encode(length)
            datagram = seal_data_kind(secrets, way, PacketType.PATH, 2, counter, plaintext)
            vectors.append(vector(f"{kind}{name} {suite.name}", suite, given, {"datagram": datagram}))
    return vectors


def _challenge(source: str, local: str) -> Vector:
    key, slot = pattern(0xF0), 27
    made = paths.challenge(
        key, SESSION_ID, to_bytes(source), 40_000, to_bytes(local), 4789, Transport.UDP, slot
    )
    given = {
        "key": key,
        "session_id": SESSION_ID,
        "source": to_bytes(source),
        "source_port": 40_000,
        "local": to_bytes(local),
        "local_port": 4789,
        "transport": int(Transport.UDP),
        "slot": slot,
    }
    return vector(f"challenge for {source}", None, given, {"challenge": made})


def reattach_vectors() -> list[Vector]:
    return [v for suite in SUITES.values() for v in (*_requests(suite), *_answers(suite), _ticket(suite))]


REPORT = Report(0, 300, pattern(0x05))


def _requests(suite: Suite) -> list[Vector]:
    secrets = phase_zero(suite)
    vectors = []
    for name, counter, challenge, reports, ticket in (
        ("cold", 0, NO_CHALLENGE, (), tickets.NO_TICKET),
        ("validated", 1, CHALLENGE, (), tickets.NO_TICKET),
        ("with a report", 2, CHALLENGE, (REPORT,), tickets.NO_TICKET),
        ("with a ticket", 3, CHALLENGE, (), pattern(0xB0, 44)),
    ):
        request = Request(
            4, 3, EPOCH << 40 | 6, Cause.TRANSPORT_DEAD, Transport.UDP, 0, challenge, tuple(reports)
        )
        datagram = reattach.seal_request(secrets, keys.steering_id(secrets, 3), counter, request, ticket)
        given = given_secrets(secrets) | {
            "counter": counter,
            "attempt": request.attempt,
            "index": request.path_index,
            "state_version": request.state_version,
            "cause": int(request.cause),
            "transport": int(request.transport),
            "cost": request.cost,
            "challenge": challenge,
            "reports": [list(report) for report in reports],
            "ticket": ticket,
        }
        vectors.append(vector(f"REQUEST {name} {suite.name}", suite, given, {"datagram": datagram}))
    return vectors


def _answers(suite: Suite) -> list[Vector]:
    secrets = phase_zero(suite)
    steering_id = keys.steering_id(secrets, 3)
    source = to_bytes("192.0.2.10")
    version = EPOCH << 40 | 8
    common = given_secrets(secrets) | {"index": 3, "salt": SALT, "attempt": 4, "state_version": version}
    vectors = []
    for name, result, bound, reports in (
        ("PENDING", Result.PENDING, 0, ()),
        ("PENDING, nothing bound", Result.PENDING, NO_INDEX, ()),
        ("BOUND", Result.BOUND, 3, ()),
        ("BOUND with a report", Result.BOUND, 3, (REPORT,)),
    ):
        ack = Ack(4, result, bound, version, 8, source, 40_000, CHALLENGE, tuple(reports))
        given = common | {
            "result": int(result),
            "bound_index": bound,
            "highest_installed": 8,
            "observed_address": source,
            "observed_port": 40_000,
            "challenge": CHALLENGE,
            "reports": [list(report) for report in reports],
        }
        datagram = reattach.seal_ack(secrets, SALT, steering_id, ack)
        vectors.append(vector(f"ACK {name} {suite.name}", suite, given, {"datagram": datagram}))
    fail = Fail(4, version, 1_500, "SWITCH_RATE_LIMITED", "gw2.example:4789")
    given = common | {"retry_after_ms": 1_500, "reason": fail.reason, "owner": fail.owner}
    datagram = reattach.seal_fail(secrets, SALT, steering_id, fail)
    return [*vectors, vector(f"FAIL {suite.name}", suite, given, {"datagram": datagram})]


def _ticket(suite: Suite) -> Vector:
    secrets, fleet_key, nonce = phase_zero(suite), pattern(0xF0), pattern(0xA0, 12)
    steering_id = keys.steering_id(secrets, 3)
    token = tickets.reset_token(fleet_key, SESSION_ID)
    given = given_secrets(secrets) | {
        "fleet_key": fleet_key,
        "session_id": SESSION_ID,
        "index": 3,
        "nonce": nonce,
    }
    out = {
        "ticket": tickets.seal_ticket(fleet_key, steering_id, SESSION_ID, nonce),
        "reset_token": token,
        "reset": tickets.reset_datagram(steering_id, token),
    }
    return vector(f"ticket and RESET {suite.name}", suite, given, out)
