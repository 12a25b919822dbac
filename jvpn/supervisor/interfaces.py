"""What the gateway sets up on the machine's interfaces: the TUN's addresses, and the steering program where it fits."""

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from jvpn.holder import bpf_syscall, xdp
from jvpn.protocol.offload import longest_superpacket
from jvpn.supervisor.steering_backend import SteeringBackend, XdpMode, cpumap_supported

_WORST_FIRST: tuple[XdpMode, ...] = ("none", "generic", "native")


@dataclass(slots=True)
class XdpState:
    """The program, the mode of each interface, and why a better one was not to be had."""

    program_id: int = 0
    modes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def configure_tun(name: str, addresses: list[str], mtu: int) -> None:
    """Give the TUN its inner addresses ("10.8.0.1/24") and MTU and set it up. Raises OSError with the remedy."""
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        try:
            for address in addresses:
                interface = ipaddress.ip_interface(address)
                netlink.addr(
                    "replace", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen
                )
            longest = longest_superpacket(mtu)
            netlink.link("set", index=index, mtu=mtu, gso_max_size=longest, state="up")
        except NetlinkError as error:
            raise OSError(
                error.code, f"TUN {name}: {error}; are its addresses free on this machine?"
            ) from error


def carriers() -> list[str]:
    """Interfaces on which datagrams for our listeners may arrive: every one that is up, but loopback and TUN.

    A listener's address may sit on any interface and be reached through another, so its carrier cannot be told from
    the address alone.
    """
    with IPRoute() as netlink:
        return [
            link.get_attr("IFLA_IFNAME")
            for link in netlink.get_links()
            if link["flags"] & 1 and not link["flags"] & 8 and _kind(link) not in ("tun", "dummy")
        ]


def kinds() -> dict[str, str | None]:
    """The kind ("veth", "vlan" …; None for hardware) of each interface, up or not."""
    with IPRoute() as netlink:
        return {link.get_attr("IFLA_IFNAME"): _kind(link) for link in netlink.get_links()}


def _kind(link: Any) -> str | None:
    found: str | None = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    return found


def attach_steering(
    state: XdpState, steering: SteeringBackend, steer_fd: int, interfaces: list[str], wanted: str
) -> None:
    """Attach the steering program as well as each interface can; `wanted`: auto, native, generic or off.

    A foreign program stays and is noted; that interface works without XDP, by the reuseport program alone. Where an
    earlier supervisor attached it and it is not wanted any more, it goes.
    """
    ours = state.program_id = bpf_syscall.prog_info(steer_fd).id
    detach_everywhere(ours, () if wanted == "off" else interfaces)
    for interface in interfaces:
        state.modes[interface] = "none" if wanted == "off" else _attach(state, steer_fd, interface, wanted)
    if wanted == "off":
        state.notes.append("no XDP, by configuration (xdp: off)")
    modes = set(state.modes.values())
    if modes:
        worst = min((m for m in _WORST_FIRST if m in modes), key=_WORST_FIRST.index)
        steering.set_xdp_mode("native" if worst == "none" and "native" in modes else worst)
    steering.allow_cpumap(cpumap_supported() and may_cross(state.modes, kinds()))


def may_cross(modes: Mapping[str, str], kinds: Mapping[str, str | None]) -> bool:
    """Whether frames may be moved to another CPU: not those of a veth, and the program does not tell interfaces apart.

    A veth has built the sk_buff before the program runs, on the sender's CPU; a frame that crosses loses it, with the
    checksum that its sender left to the device, so that it is dropped unless the sender filled that in.
    """
    native = [name for name, mode in modes.items() if mode == "native"]
    return bool(native) and all(kinds.get(name) != "veth" for name in native)


def detach_everywhere(program_id: int, but: Collection[str] = ()) -> None:
    """Take a program from the interfaces where an earlier supervisor attached it."""
    for interface, attached in xdp.everywhere().items():
        if attached.program_id == program_id and interface not in but:
            xdp.detach(interface, program_id=program_id)


def _attach(state: XdpState, steer_fd: int, interface: str, wanted: str) -> str:
    try:
        if wanted != "auto":
            xdp.attach(interface, steer_fd, wanted)
            return wanted
        mode, notes = xdp.attach_best(interface, steer_fd)
        state.notes += notes
    except (xdp.ForeignProgram, OSError) as error:
        state.notes.append(str(error) if interface in str(error) else f"{interface}: {error}")
        return "none"
    return mode


def detach_steering(state: XdpState) -> None:
    """Take our program from every interface that still has it."""
    for interface, mode in state.modes.items():
        if mode == "none":
            continue
        try:
            xdp.detach(interface, program_id=state.program_id)
        except OSError as error:
            state.notes.append(f"{interface}: {error}")
