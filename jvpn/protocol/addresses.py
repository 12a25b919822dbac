"""Socket addresses as 16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d, which is how dual-stack sockets see both."""

import ipaddress
from functools import lru_cache

ANY = bytes(16)
_MAPPED = bytes(10) + b"\xff\xff"
#: Answers kept of each question: one REQUEST has the same few asked a dozen times.
RECENT = 1024


@lru_cache(RECENT)
def to_bytes(text: str) -> bytes:
    """The 16 bytes of an IPv4 or IPv6 address in text. Raises ValueError when it is neither."""
    ipv4 = _ipv4(text)
    if ipv4 is not None:
        return _MAPPED + ipv4
    packed = ipaddress.ip_address(text.partition("%")[0]).packed
    return packed if len(packed) == 16 else _MAPPED + packed


def _ipv4(text: str) -> bytes | None:
    """What is plainly dotted decimals, in a fraction of the time that ipaddress takes; None: it is to judge."""
    try:
        found = bytes([int(part) for part in text.split(".")])
    except ValueError:
        return None
    return found if len(found) == 4 and _dotted(found) == text else None


def _dotted(ipv4: bytes) -> str:
    return f"{ipv4[0]}.{ipv4[1]}.{ipv4[2]}.{ipv4[3]}"


def is_ipv4(address: bytes) -> bool:
    return address.startswith(_MAPPED)


@lru_cache(RECENT)
def to_text(address: bytes) -> str:
    """Plain IPv4 or IPv6 text."""
    if is_ipv4(address):
        return _dotted(address[12:])
    return str(ipaddress.IPv6Address(address))


@lru_cache(RECENT)
def for_socket(address: bytes) -> str:
    """Text for an AF_INET6 dual-stack socket: IPv4 stays mapped."""
    if is_ipv4(address):
        return f"::ffff:{_dotted(address[12:])}"
    return str(ipaddress.IPv6Address(address))


def endpoint_text(address: bytes, port: int) -> str:
    return joined(to_text(address), port)


def joined(host: str, port: int) -> str:
    """Inverse of `split_endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint(text: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port". Raises ValueError with what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    if not host or ":" in host:
        raise ValueError(f"{text!r} is not host:port (an IPv6 address goes in brackets)")
    return host, int(port)
