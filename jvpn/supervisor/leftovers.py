"""What a gateway that died without stopping leaves on a machine, and its removal.

Sockets and TUN go with the last process. An attached XDP program, pins in the bpffs and socket files stay, and only
they are looked for. Nothing of a gateway that lives is touched, nor of another gateway on the same machine.
"""

import os
import socket
import struct
from pathlib import Path

from jvpn.holder import succession, xdp
from jvpn.holder.bpffs import is_bpffs
from jvpn.holder.inventory import SOCKET_NAME
from jvpn.observability.admin import ADMIN_SOCKET
from jvpn.supervisor.programs import noted_pin_dir, pinned_program, remove_pins


class StillRunning(Exception):
    """Processes of this gateway live; says which and what to do."""


def clean(run_dir: Path | None, usual_pin_dir: Path | None) -> list[str]:
    """Remove the leftovers of the gateway with this `run_dir`, and XDP programs of ours that nobody owns.

    None: no gateway in particular. Returns one line for each thing removed, or left and why. Raises StillRunning,
    having touched nothing, and OSError when something cannot be removed.
    """
    said: list[str] = []
    ours = None
    if run_dir is not None and usual_pin_dir is not None:
        _refuse_while_running(run_dir)
        pin_dir = noted_pin_dir(run_dir, usual_pin_dir)
        ours = _program_or_none(pin_dir)
        said += _detach(ours, pin_dir.parent)
        said += [f"unpinned {path}" for path in remove_pins(pin_dir, run_dir)]
        for name in (SOCKET_NAME, succession.SOCKET_NAME, ADMIN_SOCKET):
            path = run_dir / name
            if path.exists():
                path.unlink()
                said.append(f"removed the socket {path}")
    else:
        said += _detach(None, Path("/sys/fs/bpf/jvpn"))
    return said


def _refuse_while_running(run_dir: Path) -> None:
    supervisor = _listener(run_dir / ADMIN_SOCKET, socket.SOCK_STREAM)
    if supervisor is not None:
        raise StillRunning(f"the gateway of {run_dir} is running (pid {supervisor}); stop it first")
    holder = _listener(run_dir / SOCKET_NAME, socket.SOCK_SEQPACKET)
    if holder is not None:
        raise StillRunning(
            f"the data plane of {run_dir} is running without its supervisor (holder {holder}): start 'jvpn server' to "
            f"take it over with its sessions, or end it with 'kill {holder}' and clean again"
        )


def _listener(path: Path, kind: socket.SocketKind) -> int | None:
    """Who answers at a Unix socket."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid


def _detach(ours: int | None, pins: Path) -> list[str]:
    """Take our program, and those of ours whose owner is gone, from the interfaces of this network namespace."""
    said = []
    pinned = {} if not pins.is_dir() else {_program_or_none(entry): entry.name for entry in pins.iterdir()}
    for interface, attached in xdp.everywhere().items():
        if attached.program_name != xdp.PROGRAM_NAME:
            continue
        what = f"XDP program {attached.program_name} (id {attached.program_id}) on {interface}"
        if attached.program_id != ours:
            if attached.program_id in pinned:
                said.append(
                    f"left the {what}: it is gateway {pinned[attached.program_id]}'s; name its file with -c"
                )
                continue
            owner = _holds_program(attached.program_id)
            if owner is not None:
                said.append(f"left the {what}: process {owner} has it open")
                continue
        xdp.detach(interface)
        said.append(f"detached the {what}")
    return said


def _program_or_none(pin_dir: Path) -> int | None:
    if not is_bpffs(pin_dir):
        return None
    try:
        return pinned_program(pin_dir)
    except OSError:
        return None


def _holds_program(program_id: int) -> int | None:
    """A process with a descriptor of that program (proc(5), fdinfo)."""
    wanted = f"prog_id:\t{program_id}\n"
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            for descriptor in os.listdir(f"/proc/{entry}/fdinfo"):
                if wanted in Path(f"/proc/{entry}/fdinfo/{descriptor}").read_text():
                    return int(entry)
        except OSError:  # it ended meanwhile
            continue
    return None
