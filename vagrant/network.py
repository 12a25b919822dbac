"""Give this machine of the lab its interfaces' names, addresses and routes, from topology.json; again at each boot.

``python3 -m vagrant.network NAME`` as root. Interfaces are found by their MAC addresses, whatever the box calls them.
Runs with the machine's own interpreter and nothing but its library.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_TCP_BUFFERS = "4096 262144 67108864"
SETTINGS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/tcp_rmem": _TCP_BUFFERS,
    "net/ipv4/tcp_wmem": _TCP_BUFFERS,
}
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
#: Of each interface. Uplinks go down and come back: they keep their IPv6 addresses and have them at once.
OF_INTERFACE = {
    "net/ipv4/conf/{}/rp_filter": "0",
    "net/ipv6/conf/{}/accept_ra": "0",
    "net/ipv6/conf/{}/accept_dad": "0",
    "net/ipv6/conf/{}/keep_addr_on_down": "1",
}


SUPERPACKETS = ("tso", "gso", "tx-udp-segmentation")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def device_of(mac: str) -> str:
    for device in Path("/sys/class/net").iterdir():
        if (device / "address").read_text().strip() == mac:
            return device.name
    sys.exit(
        f"vagrant.network: no interface has the address {mac}: the machine was not made by this Vagrantfile"
    )


def pass_frames_singly(device: str) -> None:
    """What a line does to frames it does to each, so none of them travels as one of a superpacket."""
    off = [word for feature in SUPERPACKETS for word in (feature, "off")]
    subprocess.run(
        ["ethtool", "-K", device, *off], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def write(settings: dict[str, str]) -> None:
    for key, value in settings.items():
        (Path("/proc/sys") / key).write_text(value)


def set_up(name: str, interface: dict[str, Any]) -> None:
    device = device_of(interface["mac"])
    if device != name:
        ip(f"link set {device} down")
        ip(f"link set {device} name {name}")
    write({key.format(name): value for key, value in OF_INTERFACE.items()})
    if interface["network"].startswith("up"):
        pass_frames_singly(name)
    ip(f"link set {name} up")
    for address in interface["addresses"]:
        prefix, _, flags = address.partition(" ")
        ip(f"address replace {prefix} dev {name} {flags}")


def main(machine: str) -> None:
    topology = json.loads((HERE / "topology.json").read_text())
    if machine not in topology:
        sys.exit(f"vagrant.network: no machine {machine}; there are {', '.join(topology)}")
    write(SETTINGS)
    if machine == "router":
        write(FORWARDING)
    for name, interface in topology[machine]["interfaces"].items():
        set_up(name, interface)
    for route in topology[machine]["routes"]:
        ip(f"route replace {route}")


if __name__ == "__main__":
    main(sys.argv[1])
