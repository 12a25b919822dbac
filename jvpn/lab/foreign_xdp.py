"""An XDP program of somebody else, which lets everything pass.

`python -m jvpn.lab.foreign_xdp DEVICE [native|generic]` attaches it; it stays on the interface when this ends.
`ip link set DEVICE xdp off` takes it away.
"""

import os
import sys
from typing import Final

from jvpn.holder import bpf_syscall, xdp

NAME: Final = "somebody_elses"
_PROG_TYPE_XDP: Final = 6
#: r0 = XDP_PASS; exit
_PASS_ALL: Final = bytes.fromhex("b7000000020000009500000000000000")


def load() -> int:
    """Its descriptor. OSError as bpf(2) has it."""
    return bpf_syscall.prog_load(_PROG_TYPE_XDP, NAME, _PASS_ALL)


def main(device: str, mode: str = "native") -> None:
    descriptor = load()
    try:
        xdp.attach(device, descriptor, mode)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
