"""Steps that happen to a fleet: its store out of reach or without a leader, nodes hidden, and what routers do then."""

from __future__ import annotations

import json
from typing import Final

from jvpn.lab.backends.topology import ROUTER, gateway_number, outer
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import configs
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.nodes import STORE
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import step

TABLE: Final = "jvpn_lab_cut"


def _reach(run: Run, at: Step) -> None:
    run.machine(at.parameters["gateway"]).run(["nft", "delete", "table", "inet", TABLE])


@step("cut-store", fleet=True, undo=_reach, gateway="gw1")
def cut_store(run: Run, at: Step) -> None:
    """The gateway and the member of etcd beside it hear nothing of the other members, nor these of them; all else
    goes on. A `stop` joins them again."""
    machine = run.machine(at.parameters["gateway"])
    ports = f"{{ {configs.ETCD_CLIENT_PORT}, {configs.ETCD_PEER_PORT} }}"
    lan = f'"{machine.device("lan")}"'
    rules = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -300; "
        f"{way} {lan} tcp dport {ports} drop; {way} {lan} tcp sport {ports} drop; }}\n"
        for hook, way in (("input", "iifname"), ("output", "oifname"))
    )
    machine.run(["nft", "-f", "-"], input=f"table inet {TABLE} {{\n{rules}}}\n".encode())


@step("kill-leader", fleet=True, undo=lambda run, at: run.nodes.start_member(str(run.kept.pop("leader"))))
def kill_leader(run: Run, at: Step) -> None:
    """SIGKILL to the member of the fleet's etcd that leads; a `stop` starts it again."""
    name = _leader(run)
    run.nodes.attended[name].signal("SIGKILL", name=STORE)
    run.kept["leader"] = name


def _leader(run: Run) -> str:
    """The machine whose member leads."""
    urls = ",".join(f"http://{address}:{configs.ETCD_CLIENT_PORT}" for address in configs.ETCD_HOSTS.values())
    asked = ["etcdctl", f"--endpoints={urls}", "endpoint", "status", "--write-out=json"]
    for member in json.loads(run.machine(ROUTER).run(asked).stdout):
        status = member["Status"]
        if status["leader"] == status["header"]["member_id"]:
            host = member["Endpoint"].removeprefix("http://").rpartition(":")[0]
            return next(name for name, address in configs.ETCD_HOSTS.items() if address == host)
    raise LabError("the fleet's etcd has no leader that could be killed")


@step("return-through", gateway=str)
def return_through(run: Run, at: Step) -> None:
    """What is for clients goes to this gateway first, as from a router whose health check of another one has failed."""
    router, number = run.machine(ROUTER), gateway_number(at.parameters["gateway"])
    router.run(
        [
            "ip",
            "route",
            "replace",
            "10.8.0.0/24",
            "via",
            f"192.0.2.{10 + number}",
            "dev",
            router.device("lan"),
        ]
    )


def _show(run: Run, at: Step) -> None:
    run.machine(ROUTER).run(["ip", "route", "del", "blackhole", f"{outer(at.parameters['gateway'])}/32"])


@step("hide-gateway", undo=_show, gateway="gw1")
def hide_gateway(run: Run, at: Step) -> None:
    """What clients send to the gateway is lost without a word; a `stop` lets it through again."""
    run.machine(ROUTER).run(["ip", "route", "add", "blackhole", f"{outer(at.parameters['gateway'])}/32"])
