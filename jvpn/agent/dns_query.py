"""One question to one name server over one device: the gateway's name, asked beside the tunnel (RFC 1035, RFC 3596).

The system's resolver cannot be used for this while the tunnel stands: its name servers may be behind the tunnel that
is to be mended.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address

PORT = 53
TYPE_A, TYPE_AAAA, CLASS_IN = 1, 28, 1
_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_RECURSION_DESIRED = 0x0100
_RESPONSE, _TRUNCATED, _RCODE = 0x8000, 0x0200, 0x000F
_SIZES = {TYPE_A: 4, TYPE_AAAA: 16}
_MAX_BYTES = 4096


class DnsError(Exception):
    """No usable answer; the text says why."""


def encode_query(name: str, kind: int, identifier: int) -> bytes:
    """Raises DnsError for a name that DNS cannot carry."""
    labels = name.rstrip(".").encode("idna" if not name.isascii() else "ascii").split(b".")
    if any(not 1 <= len(label) <= 63 for label in labels) or sum(map(len, labels)) + len(labels) > 254:
        raise DnsError(f"{name} is no DNS name")
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return (
        _HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0)
        + question
        + struct.pack(">HH", kind, CLASS_IN)
    )


def decode_answer(query: bytes, answer: bytes) -> list[tuple[str, int]]:
    """The addresses in `answer` of the type that `query` asked for, in its order, and their times to live in seconds;
    aliases are passed over.

    Raises DnsError when it is no whole answer to this query.
    """
    question_end = len(query)
    if len(answer) < question_end or answer[:2] != query[:2] or answer[12:question_end] != query[12:]:
        raise DnsError("an answer to another question")
    _id, flags, _questions, count, _authority, _additional = _HEADER.unpack_from(answer)
    if not flags & _RESPONSE or flags & _TRUNCATED:
        raise DnsError("a truncated answer")
    if flags & _RCODE:
        raise DnsError("no such name" if flags & _RCODE == 3 else f"the name server says {flags & _RCODE}")
    (wanted,) = struct.unpack_from(">H", query, question_end - 4)
    try:
        return [
            (str(ip_address(data)), ttl_s)
            for kind, ttl_s, data in _records(answer, question_end, count)
            if kind == wanted
        ]
    except (struct.error, IndexError, ValueError) as error:
        raise DnsError("a broken answer") from error


def _records(answer: bytes, at: int, count: int) -> Iterator[tuple[int, int, bytes]]:
    for _ in range(count):
        while answer[at]:
            # A compression pointer ends a name.
            if answer[at] >= 0xC0:
                at += 1
                break
            at += 1 + answer[at]
        at += 1
        kind, klass, ttl_s, size = _RECORD.unpack_from(answer, at)
        at += _RECORD.size
        if klass == CLASS_IN and size == _SIZES.get(kind, -1):
            yield kind, ttl_s, answer[at : at + size]
        at += size


def query(name: str, kind: int, server: str, device: str | None, timeout_s: float) -> list[tuple[str, int]]:
    """Addresses of `name` and their times to live in seconds. Raises DnsError, or OSError when the server does not
    answer in time."""
    message = encode_query(name, kind, int.from_bytes(os.urandom(2)))
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    until = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        if device is not None:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        # Connected: answers of others do not reach it.
        asking.connect((server, PORT))
        asking.send(message)
        while True:
            asking.settimeout(max(0.001, until - time.monotonic()))
            answer = asking.recv(_MAX_BYTES)
            if answer[:2] == message[:2]:
                return decode_answer(message, answer)
