"""The two wires of the throughput measurements: a plain veth pair, and one whose gateway end runs native XDP."""

import contextlib
from collections.abc import Iterator
from functools import partial

from bcc import BPF

from jvpn.holder import xdp
from jvpn.holder.loader import kernel_headers
from jvpn.lab.faults import DirectLink
from jvpn.lab.links import Network, direct_links
from jvpn.lab.namespaces import Lab

WIRES = ("gso", "xdp")
_PASS = "#include <uapi/linux/bpf.h>\nint bench_pass(struct xdp_md *ctx) { return XDP_PASS; }"


@contextlib.contextmanager
def wire(kind: str) -> Iterator[Network[DirectLink]]:
    """A network of its own; `xdp` is prepared as native XDP on a veth needs it (jvpn.lab.links)."""
    with Lab("bench") as lab:
        yield direct_links(lab, native_xdp=kind == "xdp")


def attach_passing(network: Network[DirectLink]) -> BPF:
    """A native program on the gateway's end that passes everything: what a peer has to bear on the XDP wire.

    It stays attached until the namespace is gone.
    """
    kernel_headers()
    program = BPF(text=_PASS)
    function = program.load_func("bench_pass", BPF.XDP)
    for link in network:
        network.gateway.call(partial(xdp.attach, link.gateway_device, function.fd, "native"))
    return program
