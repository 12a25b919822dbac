"""Steps that end and begin processes: workers, supervisors, whole gateways, the client, members of the store."""

from __future__ import annotations

from jvpn.lab.backends.topology import CLIENT
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.nodes import SERVER, STORE
from jvpn.lab.scenario.run import Run
from jvpn.lab.scenario.steps.registry import step


@step("kill-worker", gateway="gw1", busy=True)
def kill_worker(run: Run, at: Step) -> None:
    """SIGKILL to the worker that has sessions (`busy: false`: to one that has none)."""
    gateway, busy = at.parameters["gateway"], at.parameters["busy"]
    workers = run.nodes.ask(gateway, "status")["workers"]
    found = [worker for worker in workers if bool(worker["sessions"]) is busy]
    if not found:
        raise LabError(f"{gateway} has no worker {'with' if busy else 'without'} sessions to be killed")
    run.nodes.attended[gateway].signal("SIGKILL", pid=int(found[0]["pid"]))


@step("kill-supervisor", gateway="gw1")
def kill_supervisor(run: Run, at: Step) -> None:
    """SIGKILL to `jvpn server` alone: its holder and workers stay."""
    run.nodes.attended[at.parameters["gateway"]].signal("SIGKILL", name=SERVER)


@step("start-gateway", gateway="gw1")
def start_gateway(run: Run, at: Step) -> None:
    """`jvpn server` again, where it has ended; does not wait until it answers."""
    run.nodes.start_gateway(at.parameters["gateway"])


@step("stop-gateway", gateway="gw1")
def stop_gateway(run: Run, at: Step) -> None:
    """SIGTERM to `jvpn server`; waits until it has ended."""
    _stop(run, at.parameters["gateway"], SERVER)


@step("crash-gateway", gateway="gw1")
def crash_gateway(run: Run, at: Step) -> None:
    """Every process of the gateway dies at once, as when its host does; its store's member stays."""
    run.nodes.attended[at.parameters["gateway"]].crash(SERVER)


@step("restart-gateway", gateway="gw1")
def restart_gateway(run: Run, at: Step) -> None:
    """As crash-gateway, then `jvpn server` again at once."""
    crash_gateway(run, at)
    run.nodes.start_gateway(at.parameters["gateway"])


@step("kill-client")
def kill_client(run: Run, at: Step) -> None:
    """All of the client's processes die at once."""
    run.nodes.attended[CLIENT].crash(CLIENT)


@step("stop-client")
def stop_client(run: Run, at: Step) -> None:
    """SIGTERM to `jvpn client`, which says goodbye; waits until it has ended."""
    _stop(run, CLIENT, CLIENT)


@step("start-client")
def start_client(run: Run, at: Step) -> None:
    """`jvpn client` again, where it has ended."""
    run.nodes.start_client()


@step("kill-store", fleet=True, machine="router")
def kill_store(run: Run, at: Step) -> None:
    """SIGKILL to the member of the fleet's etcd on that machine."""
    run.nodes.attended[at.parameters["machine"]].signal("SIGKILL", name=STORE)


@step("start-store", fleet=True, machine="router")
def start_store(run: Run, at: Step) -> None:
    """The member again, with the data it had."""
    run.nodes.start_member(at.parameters["machine"])


def _freeze(run: Run, at: Step, signal: str) -> None:
    who = at.parameters["who"]
    run.nodes.attended[who].signal(signal, name=run.nodes.process(who))


@step("freeze", who=str, undo=lambda run, at: _freeze(run, at, "SIGCONT"))
def freeze(run: Run, at: Step) -> None:
    """SIGSTOP to `jvpn server` of a gateway, or to "client"; a `stop` lets it go on."""
    _freeze(run, at, "SIGSTOP")


def _stop(run: Run, machine: str, name: str) -> None:
    attended = run.nodes.attended[machine]
    attended.signal("SIGTERM", name=name)
    run.nodes.wait_for(f"the end of {name} on {machine}", lambda: not attended.running(name))
