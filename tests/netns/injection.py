"""Datagrams put onto the client's wire as if from any source, and genuine ones taken from it."""

import socket
import struct

from running import PORT

from jvpn.lab.capture import Capture, Frame
from jvpn.lab.links import SERVICE_IP
from jvpn.lab.namespaces import Namespace

_ETHERNET, _IPV4, _UDP = 14, 20, 8


class Injector:
    """Sends UDP datagrams to the gateway from the client's namespace, with any source address and port.

    A raw socket (raw(7), IP_HDRINCL); the kernel fills in the IP checksum, UDP goes without one (RFC 768).
    """

    def __init__(self, namespace: Namespace, device: str) -> None:
        self._socket = namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())

    def send(self, data: bytes, source: tuple[str, int]) -> None:
        address, port = source
        size = _UDP + len(data)
        udp = struct.pack("!HHHH", port, PORT, size, 0)
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            _IPV4 + size,
            0,
            0,
            64,
            socket.IPPROTO_UDP,
            0,
            socket.inet_aton(address),
            socket.inet_aton(SERVICE_IP),
        )
        self._socket.sendto(ip + udp + data, (SERVICE_IP, 0))

    def close(self) -> None:
        self._socket.close()


def payload(frame: Frame) -> bytes:
    """The UDP payload of a captured IPv4 frame."""
    data = frame.data
    size = struct.unpack_from("!H", data, _ETHERNET + _IPV4 + 4)[0]
    return data[_ETHERNET + _IPV4 + _UDP :][: size - _UDP]


def source_port(frame: Frame) -> int:
    port: int = struct.unpack_from("!H", frame.data, _ETHERNET + _IPV4)[0]
    return port


def towards_gateway(namespace: Namespace, device: str) -> Capture:
    """Captures what leaves the client through `device` for the gateway, whole."""
    return Capture(namespace, device, f"udp dst port {PORT}")
