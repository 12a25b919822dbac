"""Steps that happen to a gateway's interfaces, and to what it may do with them."""

from __future__ import annotations

from typing import Final

from jvpn.lab.backends.topology import further_addresses, roles, routes
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import OneOf, step

#: Where an interface is while it is away: a network namespace of its own, held by this process.
AWAY: Final = "away"


def _xdp_off(run: Run, at: Step) -> None:
    machine = run.machine(at.parameters["gateway"])
    machine.run(["ip", "link", "set", machine.device(at.parameters["device"]), "xdp", "off"])


@step("foreign-xdp", undo=_xdp_off, gateway="gw1", device="out", mode=OneOf(("native", "generic")))
def foreign_xdp(run: Run, at: Step) -> None:
    """Somebody else's XDP program takes the gateway's interface; a `stop` takes it away."""
    machine = run.machine(at.parameters["gateway"])
    device = machine.device(at.parameters["device"])
    machine.run([*machine.python, "-m", "jvpn.lab.foreign_xdp", device, at.parameters["mode"]])


def _appear(run: Run, at: Step) -> None:
    name, role = at.parameters["gateway"], at.parameters["device"]
    machine, topology = run.machine(name), run.scenario.topology
    device, holder = machine.device(role), run.kept.pop(f"{AWAY} from {name}")
    machine.run(["sh", "-c", f"nsenter --net=/proc/{holder}/ns/net ip link set {device} netns $$"])
    run.nodes.attended[name].signal("SIGKILL", name=AWAY)
    for address in (roles(name, topology)[role], *further_addresses(name, role)):
        prefix, *flags = address.split()
        machine.run(["ip", "addr", "replace", prefix, "dev", device, *flags])
    machine.run(["ip", "link", "set", device, "up"])
    devices = {each: machine.device(each) for each in roles(name, topology)}
    for route in routes(name, topology, devices):
        machine.run(["ip", "route", "replace", *route.split()])


@step("interface-vanishes", undo=_appear, gateway="gw1", device="out")
def interface_vanishes(run: Run, at: Step) -> None:
    """The gateway's interface is gone, with its addresses and routes, as when its driver is unloaded; a `stop` gives it
    back with both."""
    name = at.parameters["gateway"]
    machine, attended = run.machine(name), run.nodes.attended[name]
    device = machine.device(at.parameters["device"])
    holder = attended.start(AWAY, ["unshare", "--net", "sleep", "infinity"], machine.folder / "away.log")
    own = machine.run(["readlink", "/proc/self/ns/net"]).stdout
    run.nodes.wait_for(
        "a namespace to move the interface to",
        lambda: machine.run(["readlink", f"/proc/{holder}/ns/net"], check=False).stdout not in (b"", own),
    )
    machine.run(["ip", "link", "set", device, "netns", str(holder)])
    run.kept[f"{AWAY} from {name}"] = holder


def _hidden(*folders: str) -> tuple[str, ...]:
    """Before a command: for it and what it starts these folders are empty."""
    mounts = "; ".join(f"mount -t tmpfs none {folder}" for folder in folders)
    return ("unshare", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "-")


#: By what a gateway is to miss: what goes before its command.
_WITHOUT: Final = {
    "bpf": ("setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"),
    # Programs that were compiled earlier too.
    "headers": _hidden("/usr/src", "/var/cache"),
    "bcc": _hidden("/usr/lib/python3/dist-packages/bcc"),
}


@step("start-gateway-without", gateway="gw1", missing=OneOf(tuple(_WITHOUT), given=True))
def start_gateway_without(run: Run, at: Step) -> None:
    """`jvpn server` again, on a machine that has no kernel headers or no bcc for it, or does not let it use BPF."""
    run.nodes.start_gateway(at.parameters["gateway"], *_WITHOUT[at.parameters["missing"]])
