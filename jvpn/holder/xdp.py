"""Attach the steering program to an interface, find it again, take it away: IFLA_XDP over netlink.

A program stays attached when the process that attached it ends; that is wanted (a restart of the supervisor stops
no traffic), so stopping the gateway means `detach`. Source: include/uapi/linux/if_link.h.

pyroute2 runs an event loop of its own: on a thread that runs asyncio, call these through `asyncio.to_thread`.
"""

import errno
import os
import socket
from typing import Any, Final, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from jvpn.holder import bpf_syscall

PROGRAM_NAME: Final = "jvp_steer"

_FLAG_UPDATE_IF_NOEXIST: Final = 1 << 0
_FLAG_REPLACE: Final = 1 << 4
_FLAGS: Final = {"native": 1 << 2, "generic": 1 << 1}
#: IFLA_XDP_ATTACHED as pyroute2 names its values.
_ATTACHED: Final = {"xdp": "native", "xdpgeneric": "generic", "xdpoffload": "offload", "xdpmulti": "several"}
_IDS_BY_MODE: Final = (
    "IFLA_XDP_PROG_ID",
    "IFLA_XDP_DRV_PROG_ID",
    "IFLA_XDP_SKB_PROG_ID",
    "IFLA_XDP_HW_PROG_ID",
)


class Attached(NamedTuple):
    """The program on an interface; `mode` is native, generic, offload or several."""

    mode: str
    program_id: int
    program_name: str


class ForeignProgram(Exception):
    """Another program holds the interface; nothing was changed."""

    def __init__(self, interface: str, attached: Attached) -> None:
        super().__init__(
            f"{interface} already runs the XDP program {attached.program_name or '(unnamed)'!r} "
            f"(id {attached.program_id}, {attached.mode}), which is not ours and stays. See it with "
            f"'ip link show {interface}'; whoever attached it can remove it with 'ip link set {interface} xdp off'."
        )
        self.attached = attached


def index_of(interface: str | int) -> int:
    """The index of an interface given by name or index. Raises OSError when there is none of that name."""
    if isinstance(interface, int):
        return interface
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise OSError(errno.ENODEV, f"there is no interface {interface!r}: see 'ip link'") from error


def current(interface: str | int) -> Attached | None:
    """The program on the interface, None when there is none. Raises OSError when there is no such interface."""
    return _attached(_xdp_attributes(index_of(interface)))


def everywhere() -> dict[str, Attached]:
    """The programs on all interfaces of this network namespace, by interface."""
    found = {}
    with IPRoute() as netlink:
        for link in netlink.get_links():
            nested = link.get_attr("IFLA_XDP")
            attached = _attached(dict(nested["attrs"])) if nested else None
            if attached is not None:
                found[str(link.get_attr("IFLA_IFNAME"))] = attached
    return found


def _attached(attributes: dict[str, Any]) -> Attached | None:
    mode = _ATTACHED.get(attributes.get("IFLA_XDP_ATTACHED") or "")
    if mode is None:
        return None
    program_id = next((attributes[name] for name in _IDS_BY_MODE if attributes.get(name)), 0)
    return Attached(mode, program_id, _program_name(program_id))


def attach(interface: str | int, program_fd: int, mode: str = "native") -> None:
    """Attach in `mode` (native or generic). Our own program there, of this or an earlier start, is replaced.

    In the same mode that is one atomic exchange; between modes there is a moment without a program, in which frames
    pass. Raises ForeignProgram, and OSError when the driver or kernel refuses.
    """
    index = index_of(interface)
    present = current(index)
    if present is not None and not _is_ours(present, program_fd):
        raise ForeignProgram(_name_of(index), present)
    if present is not None and present.mode == mode:
        if present.program_id == bpf_syscall.prog_info(program_fd).id:
            return
        old_fd = bpf_syscall.prog_fd_by_id(present.program_id)
        try:
            _set_xdp(index, program_fd, _FLAGS[mode] | _FLAG_REPLACE, old_fd)
        finally:
            os.close(old_fd)
        return
    if present is not None:
        _set_xdp(index, -1, _FLAGS.get(present.mode, 0))
    _set_xdp(index, program_fd, _FLAGS[mode] | _FLAG_UPDATE_IF_NOEXIST)


def attach_best(interface: str | int, program_fd: int) -> tuple[str, list[str]]:
    """Native, else generic, else none. Returns the mode reached ("none" at the end) and why each better one failed.

    Raises ForeignProgram.
    """
    notes: list[str] = []
    for mode in ("native", "generic"):
        try:
            attach(interface, program_fd, mode)
        except OSError as error:
            notes.append(f"{mode} XDP on {interface}: {error.strerror or error}")
        else:
            return mode, notes
    return "none", notes


def detach(
    interface: str | int, only_if_prog_name: str = PROGRAM_NAME, program_id: int | None = None
) -> bool:
    """Take our program away; False when there is none, or another, which stays.

    Ours is the one with `program_id`, else any of that name (to read names takes CAP_SYS_ADMIN).
    """
    index = index_of(interface)
    present = current(index)
    if present is None:
        return False
    ours = (
        present.program_name == only_if_prog_name if program_id is None else present.program_id == program_id
    )
    if ours:
        _set_xdp(index, -1, _FLAGS.get(present.mode, 0))
    return ours


def _is_ours(present: Attached, program_fd: int) -> bool:
    return present.program_name == PROGRAM_NAME or present.program_id == bpf_syscall.prog_info(program_fd).id


def _program_name(program_id: int) -> str:
    try:
        fd = bpf_syscall.prog_fd_by_id(program_id)
    except OSError:  # detached since, or not ours to look at
        return ""
    try:
        return bpf_syscall.prog_info(fd).name
    finally:
        os.close(fd)


def _name_of(index: int) -> str:
    return socket.if_indextoname(index)


def _xdp_attributes(index: int) -> dict[str, Any]:
    with IPRoute() as netlink:
        try:
            (link,) = netlink.get_links(index)
        except NetlinkError as error:
            raise OSError(error.code, f"interface {index}: {os.strerror(error.code)}") from error
        nested = link.get_attr("IFLA_XDP")
    return dict(nested["attrs"]) if nested else {}


def _set_xdp(index: int, program_fd: int, flags: int, expected_fd: int | None = None) -> None:
    attributes: list[tuple[str, int]] = [("IFLA_XDP_FD", program_fd), ("IFLA_XDP_FLAGS", flags)]
    if expected_fd is not None:
        attributes.append(("IFLA_XDP_EXPECTED_FD", expected_fd))
    with IPRoute() as netlink:
        try:
            netlink.link("set", index=index, IFLA_XDP={"attrs": attributes})
        except NetlinkError as error:
            raise OSError(error.code, f"{os.strerror(error.code)}: {error}") from error
