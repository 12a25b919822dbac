"""Steps that an operator takes, over admin sockets and with signals."""

from __future__ import annotations

from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.nodes import SERVER
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import Within, step


def _session(run: Run, gateway: str) -> str:
    ours = run.nodes.ask(CLIENT, "status")["session"]
    for row in run.nodes.ask(gateway, "sessions"):
        if row["session_id"] == ours:
            return str(ours)
    raise LabError(f"{gateway} does not have the client's session")


@step("switch", on=True)
def switch(run: Run, at: Step) -> None:
    """`jvpn switch` at the client, to that uplink (`on: other`: to the one that is not in use)."""
    run.nodes.ask(CLIENT, "switch", device=run.nodes.devices[f"up{at.on}"], session="")


@step("operator-switch", gateway="gw1")
def operator_switch(run: Run, at: Step) -> None:
    """`jvpn switch` at the gateway: the client is asked to move, where to is its choice."""
    gateway = at.parameters["gateway"]
    run.nodes.ask(gateway, "switch", device="", session=_session(run, gateway))


@step("terminate", gateway="gw1")
def terminate(run: Run, at: Step) -> None:
    """`jvpn terminate` of the client's session."""
    gateway = at.parameters["gateway"]
    run.nodes.ask(gateway, "terminate", session=_session(run, gateway))


@step("reload", gateway="gw1")
def reload(run: Run, at: Step) -> None:
    """SIGHUP to `jvpn server`, as `systemctl reload` sends it: policies are read again."""
    run.nodes.attended[at.parameters["gateway"]].signal("SIGHUP", name=SERVER)


def _undrain(run: Run, at: Step) -> None:
    run.nodes.ask(at.parameters["gateway"], "undrain", node="", by="lab")


@step("drain", fleet=True, gateway="gw1", per_s=Within(1, 100_000, 100), undo=_undrain)
def drain(run: Run, at: Step) -> None:
    """`jvpn drain` of a fleet's node, without waiting until it is empty; a `stop` of it is `--undo`."""
    run.nodes.ask(at.parameters["gateway"], "drain", per_s=at.parameters["per_s"], node="", by="lab")
