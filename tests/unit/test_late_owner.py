"""What the simulator's judge makes of an owner that does not know yet that it was overtaken."""

from dataclasses import replace

import pytest
from test_store import RECORD

from jvpn.lab.link_model import LinkParams
from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.observability.sink import MemorySink
from jvpn.policy.model import Policy
from jvpn.session.machine import Origin, State, pack_version
from jvpn.sim.checks import Checks
from jvpn.sim.cluster import Cluster
from jvpn.sim.violation import Violation
from jvpn.sim.world import UplinkSetup, World
from jvpn.supervisor.effects import ClaimSession, ForgetSession, SaveSession
from jvpn.supervisor.store_desk import Batch

HERS = replace(RECORD, owner_node="gw0")
HIS = replace(RECORD, owner_node="gw1", state_version=pack_version(2, 1))


def told(sink: MemorySink, count: int, epoch: int, source: State, to: State, reason: str) -> None:
    sink.emit(
        StateChange(
            ts_ms=1,
            node_id="gw",
            origin=Origin.GATEWAY,
            session_id=RECORD.session_id.hex(),
            state_version=pack_version(epoch, count),
            reason_code=reason,
            from_=source,
            to=to,
            bindings=int(to is State.ATTACHED),
            details={},
        )
    )


def acquired(sink: MemorySink, epoch: int, last_version: int | None) -> None:
    sink.emit(
        OwnershipEvent(
            ts_ms=1,
            node_id="gw",
            origin=Origin.GATEWAY,
            session_id=RECORD.session_id.hex(),
            state_version=pack_version(epoch, 0),
            reason_code="HANDSHAKE_OK" if last_version is None else "TAKEN_OVER",
            action="acquired",
            last_version=last_version,
        )
    )


@pytest.fixture
def overtaken() -> tuple[World, Checks]:
    """gw1 has taken gw0's session over, ended it and had it forgotten; gw0 has heard nothing of that."""
    link = UplinkSetup(LinkParams(), LinkParams())
    world = World(1, Policy.default(), [link], deliver_up=len, deliver_down=len, nodes=2)
    cluster, checks = world.cluster, Checks(world)
    assert isinstance(cluster, Cluster)
    first, second = (node.sink for node in world.gateways)
    cluster.serve(Batch(writes=[SaveSession(HERS, 1, lambda _kept, _ms: None)]), "gw0")
    acquired(first, 1, None)
    told(first, 1, 1, State.BIRTH, State.ATTACHED, "HANDSHAKE_OK")
    claim = ClaimSession(HIS, HERS.state_version, "gw0", False, lambda _ours, _ms: None)
    assert cluster.serve(Batch(writes=[claim]), "gw1").written == [True]
    acquired(second, 2, HERS.state_version)
    told(second, 1, 2, State.RECOVERING, State.ATTACHED, "REATTACH_OK")
    told(second, 2, 2, State.ATTACHED, State.TERMINATED, "SUPERSEDED")
    cluster.serve(Batch(writes=[ForgetSession(HIS.session_id, HIS.state_version)]), "gw1")
    assert cluster.load(RECORD.session_id) is None
    checks()
    return world, checks


def test_what_it_tells_is_not_held_against_it(overtaken: tuple[World, Checks]) -> None:
    world, checks = overtaken
    sink = world.gateways[0].sink
    told(sink, 2, 1, State.ATTACHED, State.RECOVERING, "TRANSPORT_DEAD")
    told(sink, 3, 1, State.RECOVERING, State.TERMINATED, "RECOVERY_WINDOW_EXCEEDED")
    checks()


def test_what_the_last_owner_tells_after_the_end_is(overtaken: tuple[World, Checks]) -> None:
    world, checks = overtaken
    told(world.gateways[1].sink, 3, 2, State.ATTACHED, State.TERMINATED, "SUPERSEDED")
    with pytest.raises(Violation, match="AFTER_END"):
        checks()
