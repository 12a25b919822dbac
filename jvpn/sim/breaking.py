"""Faults of processes, machines, clocks and the store, and what operators wish. See faults.py."""

from jvpn.session.machine import Reason
from jvpn.sim.faults import Stage, Undo, fault
from jvpn.sim.policies import draw_policy
from jvpn.store.base import StoreError
from jvpn.supervisor.policies import MODES, PolicySet

START_AGAIN_MS = 500

# Processes


@fault(1.5, (20, 2_000))
def worker_killed(stage: Stage) -> Undo | None:
    """A worker of the gateway dies; the holder seats another."""
    gateway = stage.gateway
    slot = stage.draw.choice(gateway.slots)
    if not gateway.host_up or not gateway.workers[slot].alive:
        return None
    gateway.kill_worker(slot)
    killed = gateway.workers[slot]
    stage.say(f"{gateway.name}'s worker {slot} is killed")
    return lambda: None if gateway.workers[slot] is not killed else void(gateway.seat_worker(slot))


@fault(1.5, (50, 4_000))
def supervisor_killed(stage: Stage) -> Undo | None:
    gateway = stage.gateway
    if gateway.core is None:
        return None
    gateway.kill_supervisor()
    stage.say(f"{gateway.name}'s supervisor is killed")
    boots = gateway.boots

    def start() -> None:
        if gateway.boots == boots and gateway.host_up and gateway.core is None:
            start_again(stage, gateway.start_supervisor)

    return start


@fault(1, (200, 6_000))
def gateway_restarts(stage: Stage) -> Undo | None:
    """The gateway's data plane dies with everything, or the whole host: then its clock begins anew."""
    gateway = stage.gateway
    alone = gateway.cluster is None
    if not gateway.host_up or (alone and (gateway.store.broken or not gateway.context.narrator.durable)):
        # Of what the store was not given nothing is left: keys of a rekey among it (docs/simulator.md).
        return None
    host = stage.draw.random() < 0.5
    gateway.kill_host()
    stage.say(f"{gateway.name}'s host restarts" if host else f"{gateway.name}'s holder is killed")

    def undo() -> None:
        if host:
            gateway.clock.reboot()
        start_again(stage, gateway.boot)

    return undo


def start_again(stage: Stage, start: Undo) -> None:
    """A gateway whose store cannot be read does not start; its service manager tries again."""
    try:
        start()
    except StoreError:
        stage.gateway.kill_supervisor()
        stage.world.agenda.later(START_AGAIN_MS, lambda: _again(stage, start))


def _again(stage: Stage, start: Undo) -> None:
    if stage.gateway.core is None:
        start_again(stage, start)


@fault(1, (100, 4_000))
def agent_killed(stage: Stage) -> Undo | None:
    client = stage.world.client
    if client.core is None:
        return None
    client.kill()
    stage.say("the agent is killed")
    return lambda: client.start() if client.core is None else None


@fault(1, (50, 1_000))
def client_worker_killed(stage: Stage) -> Undo | None:
    client = stage.world.client
    if not client.up:
        return None
    client.kill_worker()
    killed = client.worker
    stage.say("the client's worker is killed")
    return lambda: client.seat_worker() if client.worker is killed else None


@fault(1.5, (200, 10_000))
def suspend(stage: Stage) -> Undo | None:
    """The client's machine sleeps."""
    client = stage.world.client
    if not client.up:
        return None
    client.sleep()
    stage.say("the client's machine sleeps")
    return client.wake


# Clocks, wishes


@fault(1, (1, 2))
def clock_jumps(stage: Stage) -> None:
    """Somebody sets the wall clock of one machine."""
    machine = stage.draw.choice(("gateway", "client"))
    by_s = stage.draw.choice((-86_400, -3_600, -5, 5, 3_600, 86_400))
    clock = stage.gateway.clock if machine == "gateway" else stage.world.client.clock
    clock.skew_ms += by_s * 1_000
    stage.say(f"the {machine}'s wall clock jumps by {by_s} s")


@fault(1, (1, 2))
def switch_asked(stage: Stage) -> None:
    """An operator wants another path: at the client, or at the gateway."""
    world = stage.world
    core = world.client.core
    if stage.draw.random() < 0.5:
        if core is not None and not world.client.asleep:
            core.switch(world.client.plans[stage.fault.uplink].name, world.client.clock.now_ns)
            world.client.touched = True
        stage.say(f"the client's operator wants uplink {stage.fault.uplink}")
        return
    gateway = stage.gateway
    if gateway.core is not None:
        for session in list(gateway.context.sessions.values()):
            gateway.core.switch(
                session, stage.draw.choice((Reason.OPERATOR_SWITCH, Reason.NODE_DRAIN)), gateway.clock.now_ms
            )
        gateway.touched = True
    stage.say("the gateway's operator wants another path")


@fault(0.5, (1, 2))
def terminated(stage: Stage) -> None:
    """The gateway's operator ends the session."""
    gateway = stage.gateway
    if gateway.core is not None:
        for session in list(gateway.context.sessions.values()):
            gateway.core.terminate(session, Reason.OPERATOR_TERMINATED, gateway.clock.now_ms)
        gateway.touched = True
    stage.say("the gateway's operator ends the session")


@fault(1, (1, 2))
def policy_changed(stage: Stage) -> None:
    """The policy file says something else, and the gateway is told to read it: for all sessions, or for new ones."""
    world, gateway, mode = stage.world, stage.gateway, stage.draw.choice(MODES)
    gateway.policy = new = draw_policy(stage.draw, gateway.policy.kem)
    world.longest_window_ms = max(world.longest_window_ms, new.recovery_window_ms)
    world.longest_resend_ms = max(world.longest_resend_ms, new.resend_window_ms)
    stage.say(f"another policy, {mode}")
    if gateway.core is None:
        return
    assigned = dict.fromkeys(gateway.context.peers.peers, (new.name, ()))
    found = PolicySet(new.name, {new.name: new}, {}, assigned, mode)
    gateway.core.apply_policies(found, mode, "an operator", gateway.clock.now_ms)
    gateway.touched = True


@fault(0.5, (500, 8_000))
def store_broken(stage: Stage) -> Undo:
    """The store fails every call, as on a full disk."""
    store = stage.gateway.store
    store.broken = True
    stage.say("the store fails")

    def undo() -> None:
        store.broken = False

    return undo


def void(_value: object) -> None:
    return
