"""Steps that happen to a client's network: cables, devices, addresses, and a NAT in front of it."""

from __future__ import annotations

from jvpn.lab.backends.topology import CLIENT, further_addresses, roles, uplink_number, uplink_routes
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import OneOf, Within, step


def _plug_in(run: Run, at: Step) -> None:
    run.backend.carrier(at.on, True)


@step("link-down", on=True, undo=_plug_in)
def link_down(run: Run, at: Step) -> None:
    """The cable of the client's uplink is pulled; a `stop` of it puts it in again."""
    run.backend.carrier(at.on, False)


@step("link-up", on=True)
def link_up(run: Run, at: Step) -> None:
    """The cable is put in again."""
    _plug_in(run, at)


def _device_up(run: Run, at: Step) -> None:
    client, device = run.machine(CLIENT), run.nodes.devices[f"up{at.on}"]
    client.run(["ip", "link", "set", device, "up"])
    # The kernel has removed them with the device.
    for route in uplink_routes(at.on, device, run.scenario.topology):
        client.run(["ip", "route", "replace", *route.split()])


@step("device-down", on=True, undo=_device_up)
def device_down(run: Run, at: Step) -> None:
    """The client's device is switched off, and the kernel removes its routes; a `stop` gives both back."""
    run.machine(CLIENT).run(["ip", "link", "set", run.nodes.devices[f"up{at.on}"], "down"])


@step("device-up", on=True)
def device_up(run: Run, at: Step) -> None:
    """On again, with its routes."""
    _device_up(run, at)


@step("address-lost", on=True, version=OneOf((4, 6)))
def address_lost(run: Run, at: Step) -> None:
    """Every address of that version leaves the client's uplink, as when its network has only the other one now."""
    everything = "0.0.0.0/0" if at.parameters["version"] == 4 else "::/0"
    device = run.nodes.devices[f"up{at.on}"]
    run.machine(CLIENT).run(["ip", "addr", "flush", "dev", device, "to", everything])


@step("address-back", on=True)
def address_back(run: Run, at: Step) -> None:
    """All addresses and routes of the client's uplink again, as they were at first."""
    client, role = run.machine(CLIENT), f"up{at.on}"
    device = run.nodes.devices[role]
    wanted = [roles(CLIENT, run.scenario.topology)[role], *further_addresses(CLIENT, role)]
    for address in wanted:
        prefix, *flags = address.split()
        client.run(["ip", "addr", "replace", prefix, "dev", device, *flags])
    for route in uplink_routes(at.on, device, run.scenario.topology):
        client.run(["ip", "route", "replace", *route.split()])


@step("address-moves", on=True)
def address_moves(run: Run, at: Step) -> None:
    """The client's uplink has another IPv4 address of the same network in place of its own, as after a new lease."""
    number, device = uplink_number(at.on), run.nodes.devices[f"up{at.on}"]
    client = run.machine(CLIENT)
    client.run(["ip", "addr", "flush", "dev", device, "to", f"10.201.{number}.0/24"])
    client.run(["ip", "addr", "add", f"10.201.{number}.102/24", "dev", device])
    for route in uplink_routes(at.on, device, run.scenario.topology):
        client.run(["ip", "route", "replace", *route.split()])


@step("flap", on=True, times=Within(1, 1_000, 10))
def flap(run: Run, at: Step) -> None:
    """The client's device goes down and up again so many times, as fast as commands go; its routes come with it."""
    for _ in range(at.parameters["times"]):
        device_down(run, at)
        _device_up(run, at)
