"""Classic BPF for a packet socket (Documentation/networking/filter.rst): UDP of one end, and nothing else, wakes us."""

import ctypes
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

#: (address, port)
End = tuple[str, int]
Network = IPv4Network | IPv6Network

_SO_ATTACH_FILTER: Final = 26
_WORD, _HALF, _BYTE, _HALF_BEHIND_IP, _IP_LENGTH = 0x20, 0x28, 0x30, 0x48, 0xB1
_AND, _EQUAL, _RETURN = 0x54, 0x15, 0x06
_ETHERNET: Final = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_WHOLE: Final = 0x40000

#: Code, jump when true, jump when false (-1: to where nothing is passed), number.
_Instruction = tuple[int, int, int, int]


def udp_filter(gateway: End, *, sent: bool, to: Network | None = None) -> bytes:
    """A program (array of struct sock_filter) that passes UDP sent by the gateway, or sent to it, in Ethernet frames
    without VLAN tag, unfragmented; with `to`, only what goes to that network."""
    wide = ":" in gateway[0]
    address = socket.inet_pton(socket.AF_INET6 if wide else socket.AF_INET, gateway[0])
    source, destination = (22, 38) if wide else (26, 30)
    program = [*_equals(_HALF, 12, _IPV6 if wide else _IPV4)]
    program += _equals(_BYTE, 20 if wide else 23, socket.IPPROTO_UDP)
    if not wide:
        program += _equals(_HALF, 20, 0, mask=0x1FFF)
    for at, word in _words(address):
        program += _equals(_WORD, (source if sent else destination) + at, word)
    for at, word, mask in _network(to):
        program += _equals(_WORD, destination + at, word, mask=mask)
    port = 0 if sent else 2
    if wide:
        program += _equals(_HALF, _ETHERNET + 40 + port, gateway[1])
    else:
        program += [(_IP_LENGTH, 0, 0, _ETHERNET), *_equals(_HALF_BEHIND_IP, _ETHERNET + port, gateway[1])]
    return _assembled(program)


def attach(taps: socket.socket, program: bytes) -> None:
    """Have a packet socket take only what the program passes. Raises OSError."""
    kept = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
    taps.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)


def _equals(load: int, at: int, wanted: int, *, mask: int = 0) -> list[_Instruction]:
    masked = [(_AND, 0, 0, mask)] if mask else []
    return [(load, 0, 0, at), *masked, (_EQUAL, 0, -1, wanted)]


def _words(address: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(address), 4):
        yield at, int.from_bytes(address[at : at + 4], "big")


def _network(network: Network | None) -> Iterator[tuple[int, int, int]]:
    if network is not None:
        masks = dict(_words(network.netmask.packed))
        for at, word in _words(network.network_address.packed):
            if masks[at]:
                yield at, word, masks[at]


def _assembled(program: list[_Instruction]) -> bytes:
    whole = [*program, (_RETURN, 0, 0, _WHOLE), (_RETURN, 0, 0, 0)]
    refuse = len(whole) - 1
    return b"".join(
        struct.pack("=HBBI", code, yes, refuse - place - 1 if no < 0 else no, number)
        for place, (code, yes, no, number) in enumerate(whole)
    )
