"""REATTACH_REQUEST, _ACK and _FAIL: proof of possession of a session over a path, and its answer.

    REQUEST = header ‖ ticket 44 ‖ sealed(attempt 8, index 4, state_version 8, cause 1, transport 1, cost 2,
              challenge 16, n 1, n × report 44, zeros)                                                  256 bytes
    ACK     = header ‖ salt 16 ‖ sealed(attempt 8, result 1, bound index 4, state_version 8, highest installed 4,
              observed source 18, challenge 16, n 1, n × report 44)                                   ≤ 256 bytes
    FAIL    = header ‖ salt 16 ‖ sealed(attempt 8, state_version 8, retry_after_ms 4, reason 1 + n, owner 1 + n)

The REQUEST is sealed under the reattach key with nonce index ‖ counter; the answers under a key derived from a fresh
salt with nonce zero, so that two nodes answering one request share no nonce. AAD is the header.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from jvpn.protocol import keys
from jvpn.protocol.constants import (
    CHALLENGE_SIZE,
    HEADER_SIZE,
    MAX_REPORTS,
    REATTACH_ACK_MAX_SIZE,
    REATTACH_REQUEST_SIZE,
    REPORT_SIZE,
    SALT_SIZE,
    TAG_SIZE,
    TICKET_SIZE,
    PacketType,
    Transport,
)
from jvpn.protocol.keys import ZERO_NONCE, SessionSecrets
from jvpn.protocol.tickets import NO_TICKET
from jvpn.protocol.wire import Header, WireError

_REQUEST = struct.Struct(">QIQBBH16sB")
_ACK = struct.Struct(">QBIQI16sH16sB")
_FAIL = struct.Struct(">QQI")
_REPORT = struct.Struct(">IQ32s")
_SEALED_AT: Final = HEADER_SIZE + TICKET_SIZE
_PLAINTEXT: Final = REATTACH_REQUEST_SIZE - _SEALED_AT - TAG_SIZE
NO_CHALLENGE: Final = bytes(CHALLENGE_SIZE)


class Cause(IntEnum):
    """Why the client asks; the names are reason codes of the session machine."""

    TRANSPORT_DEAD = 1
    QUALITY_SWITCH = 2
    PREFERENCE_SWITCH = 3
    TRANSPORT_RETURNED = 4
    OPERATOR_SWITCH = 5
    ADDRESS_CHANGED = 6
    NODE_DRAIN = 7
    REATTACH_REQUESTED = 8


class Result(IntEnum):
    BOUND = 0
    PENDING = 1


class Report(NamedTuple):
    """What came on an index: `next_counter` (0 nothing, all ones unknown) and what of the 256 before is missing."""

    path_index: int
    next_counter: int
    missing: bytes


class Request(NamedTuple):
    attempt: int
    path_index: int
    state_version: int
    cause: Cause
    transport: Transport
    cost: int
    challenge: bytes = NO_CHALLENGE
    reports: tuple[Report, ...] = ()


class Ack(NamedTuple):
    """`bound_index` is NO_INDEX when nothing is bound."""

    attempt: int
    result: Result
    bound_index: int
    state_version: int
    highest_installed: int
    observed_address: bytes
    observed_port: int
    challenge: bytes
    reports: tuple[Report, ...] = ()


class Fail(NamedTuple):
    attempt: int
    state_version: int
    retry_after_ms: int
    reason: str
    owner: str = ""


def seal_request(
    secrets: SessionSecrets, steering_id: bytes, counter: int, request: Request, ticket: bytes = NO_TICKET
) -> bytes:
    """A REQUEST datagram of exactly 256 bytes. `counter` is never used twice with one index."""
    header = Header(PacketType.REATTACH_REQUEST, steering_id, counter).encode()
    fixed = _REQUEST.pack(
        request.attempt,
        request.path_index,
        request.state_version,
        request.cause,
        request.transport,
        request.cost,
        request.challenge,
        len(request.reports),
    )
    plaintext = (fixed + _encode_reports(request.reports)).ljust(_PLAINTEXT, b"\0")
    nonce = keys.nonce(request.path_index, counter)
    key = keys.reattach_key(secrets)
    return header + ticket + secrets.suite.aead(key).encrypt(nonce, plaintext, header)


def open_request(secrets: SessionSecrets, index: int, datagram: bytes) -> Request:
    """Open a REQUEST that came on the steering id of `index`. Raises WireError `bad_proof` or `bad_reattach`."""
    header = datagram[:HEADER_SIZE]
    counter = int.from_bytes(header[12:20], "big")
    plaintext = _open(
        secrets, keys.reattach_key(secrets), keys.nonce(index, counter), datagram[_SEALED_AT:], header
    )
    attempt, inner_index, version, cause, transport, cost, challenge, count = _REQUEST.unpack_from(plaintext)
    asked, over = _CAUSES.get(cause), _TRANSPORTS.get(transport)
    if inner_index != index or asked is None or over is None or count > MAX_REPORTS:
        raise WireError("bad_reattach")
    end = _REQUEST.size + count * REPORT_SIZE
    if plaintext.count(0, end) != len(plaintext) - end:
        raise WireError("bad_reattach")
    reports = _decode_reports(plaintext[_REQUEST.size : end])
    return Request(attempt, index, version, asked, over, cost, challenge, reports)


def seal_ack(secrets: SessionSecrets, salt: bytes, steering_id: bytes, ack: Ack) -> bytes:
    fixed = _ACK.pack(
        ack.attempt,
        ack.result,
        ack.bound_index,
        ack.state_version,
        ack.highest_installed,
        ack.observed_address,
        ack.observed_port,
        ack.challenge,
        len(ack.reports),
    )
    plaintext = fixed + _encode_reports(ack.reports)
    return _seal_answer(secrets, salt, PacketType.REATTACH_ACK, steering_id, plaintext)


def open_ack(secrets: SessionSecrets, datagram: bytes) -> Ack:
    """Raises WireError `bad_proof` or `bad_reattach`."""
    plaintext = _open_answer(secrets, datagram)
    if len(plaintext) < _ACK.size:
        raise WireError("bad_reattach")
    attempt, result, bound, version, highest, address, port, challenge, count = _ACK.unpack_from(plaintext)
    if result not in _RESULTS or len(plaintext) != _ACK.size + count * REPORT_SIZE or count > MAX_REPORTS:
        raise WireError("bad_reattach")
    reports = _decode_reports(plaintext[_ACK.size :])
    return Ack(attempt, Result(result), bound, version, highest, address, port, challenge, reports)


def seal_fail(secrets: SessionSecrets, salt: bytes, steering_id: bytes, fail: Fail) -> bytes:
    plaintext = _FAIL.pack(fail.attempt, fail.state_version, fail.retry_after_ms)
    plaintext += _string(fail.reason) + _string(fail.owner)
    return _seal_answer(secrets, salt, PacketType.REATTACH_FAIL, steering_id, plaintext)


def open_fail(secrets: SessionSecrets, datagram: bytes) -> Fail:
    """Raises WireError `bad_proof` or `bad_reattach`."""
    plaintext = _open_answer(secrets, datagram)
    try:
        attempt, version, retry_after_ms = _FAIL.unpack_from(plaintext)
        reason, rest = _read_string(plaintext[_FAIL.size :])
        owner, rest = _read_string(rest)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError("bad_reattach") from error
    if rest:
        raise WireError("bad_reattach")
    return Fail(attempt, version, retry_after_ms, reason, owner)


_CAUSES: Final = {int(cause): cause for cause in Cause}
_RESULTS = frozenset(int(r) for r in Result)
_TRANSPORTS: Final = {int(transport): transport for transport in Transport}


def _seal_answer(
    secrets: SessionSecrets, salt: bytes, kind: PacketType, steering_id: bytes, plaintext: bytes
) -> bytes:
    header = Header(kind, steering_id).encode()
    key = keys.reply_key(secrets, salt)
    datagram = header + salt + secrets.suite.aead(key).encrypt(ZERO_NONCE, plaintext, header)
    if len(datagram) > REATTACH_ACK_MAX_SIZE:
        raise ValueError(f"an answer of {len(datagram)} bytes exceeds {REATTACH_ACK_MAX_SIZE}")
    return datagram


def _open_answer(secrets: SessionSecrets, datagram: bytes) -> bytes:
    if not HEADER_SIZE + SALT_SIZE + TAG_SIZE < len(datagram) <= REATTACH_ACK_MAX_SIZE:
        raise WireError("bad_length")
    header = datagram[:HEADER_SIZE]
    sealed_at = HEADER_SIZE + SALT_SIZE
    key = keys.reply_key(secrets, datagram[HEADER_SIZE:sealed_at])
    return _open(secrets, key, ZERO_NONCE, datagram[sealed_at:], header)


def _open(secrets: SessionSecrets, key: bytes, nonce: bytes, sealed: bytes, header: bytes) -> bytes:
    try:
        return secrets.suite.aead(key).decrypt(nonce, sealed, header)
    except InvalidTag as error:
        raise WireError("bad_proof") from error


def _encode_reports(reports: tuple[Report, ...]) -> bytes:
    return b"".join(_REPORT.pack(*report) for report in reports)


def _decode_reports(data: bytes) -> tuple[Report, ...]:
    return tuple(Report(*fields) for fields in _REPORT.iter_unpack(data))


def _string(text: str) -> bytes:
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def _read_string(data: bytes) -> tuple[str, bytes]:
    size = data[0]
    if len(data) < 1 + size:
        raise IndexError
    return data[1 : 1 + size].decode("ascii"), data[1 + size :]
