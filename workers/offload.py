"""What the kernel, a library and a compiler take off our hands on this machine: found out by trying, at start."""

import socket
from importlib.machinery import ExtensionFileLoader

import msgspec

from workers import tun, udp


class Offload(msgspec.Struct, frozen=True):
    """`vnet_header`, `tso`, `uso`: of the TUN. `gso` (UDP_SEGMENT) and `gro` (UDP_GRO): of UDP sockets.

    `bulk`: whole runs through the AEAD by libipsec-mb. `compiled`: the busiest modules are machine code.
    """

    vnet_header: bool = False
    tso: bool = False
    uso: bool = False
    gso: bool = False
    gro: bool = False
    bulk: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """For people: what there is, and what is missing."""
        names = {"vnet header": self.vnet_header, "TSO": self.tso, "USO": self.uso}
        udp_names = {"GSO": self.gso, "GRO": self.gro}
        made = "compiled" if self.compiled else "interpreted"
        aead = _told({"libipsec-mb": self.bulk})
        return f"TUN {_told(names)}; UDP {_told(udp_names)}; AEAD {aead}; data plane {made}"


def _told(names: dict[str, bool]) -> str:
    return ", ".join(name if there else f"no {name}" for name, there in names.items())


def find(queue: int) -> Offload:
    """Try everything, on the TUN queue and on a socket that is bound to nothing. What can be had is left on."""
    # It brings numpy, for which a supervisor that is only told of all this has no use.
    from workers import bulk

    vnet_header = tun.has_vnet_header(queue)
    found = tun.negotiate_offload(queue) if vnet_header else tun.Negotiated(False, False)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        segments, joins = udp.can_segment(probe), udp.receive_joined(probe)
    library = bulk.find() is not None
    return Offload(vnet_header, found.tso, found.uso, segments, joins, library, is_compiled())


def is_compiled() -> bool:
    """Whether this process runs the data plane's modules compiled: all of them or none (jvpn/compiled.py)."""
    return isinstance(udp.__loader__, ExtensionFileLoader)
