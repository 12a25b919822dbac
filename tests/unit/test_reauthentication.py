"""`reauthenticate_on`: a session that comes from elsewhere is not bound there; a new handshake is made, and it ends."""

from types import SimpleNamespace
from typing import cast

import pytest
from core_pair import CorePair, Flight, every_pair_is_sound, fast_policy, silent
from forge import Forge
from test_adoption import restart as restart_supervisor

from jvpn.agent.admin import ClientAdmin
from jvpn.agent.process import Agent
from jvpn.observability.admin import AdminError
from jvpn.observability.events import ReattachResult, StateChange, TransportSwitch, TransportSwitchDenied
from jvpn.policy.reauthentication import must_prove_anew
from jvpn.protocol.addresses import to_bytes
from jvpn.protocol.constants import PacketType
from jvpn.protocol.reattach import Cause, Result
from jvpn.session.machine import State, pack_version
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.process import Gateway
from workers.commands import Endpoint

__all__ = ["every_pair_is_sound"]


def at(address: str, port: int = 40_000) -> Endpoint:
    return Endpoint(to_bytes(address), port)


def pair_with(*changes: str) -> CorePair:
    return CorePair(fast_policy(reauthenticate_on=changes)).attach()


# What counts as a change

#: Uplink 0 of the pair, where its handshake comes from, is 10.201.1.2.
SOURCES = [
    ("10.201.1.2", 55_555, (), False),
    ("10.201.1.2", 55_555, ("address", "network"), False),
    ("10.201.1.77", 40_000, ("network",), False),
    ("10.201.1.77", 40_000, ("address",), True),
    ("10.201.1.77", 40_000, ("address", "network"), True),
    ("10.201.2.2", 40_000, ("network",), True),
    ("10.201.2.2", 40_000, (), False),
    ("2001:db8::1", 40_000, ("network",), True),
]


@pytest.mark.parametrize(("address", "port", "changes", "refused"), SOURCES)
@pytest.mark.parametrize("cause", [Cause.TRANSPORT_DEAD, Cause.ADDRESS_CHANGED, Cause.OPERATOR_SWITCH])
def test_a_request_from_elsewhere_is_refused_where_the_policy_says_so(
    address: str, port: int, changes: tuple[str, ...], refused: bool, cause: Cause
) -> None:
    forge = Forge(pair_with(*changes))
    source = at(address, port)
    answers = forge.send(source, 1, 2, forge.challenge(source), cause=cause)
    if not refused:
        assert forge.ack(answers).result is Result.BOUND
        return
    fail = forge.fail(answers)
    assert (fail.reason, fail.state_version) == ("REAUTHENTICATE", pack_version(1, 1))
    # Nothing has moved, and the session goes on where it is.
    assert forge.live.machine.state is State.ATTACHED
    assert forge.live.bindings.active is not None
    assert forge.live.bindings.active.source == ("10.201.1.2", 40_000)
    assert forge.live.security_failures == 0
    denied = forge.pair.events(TransportSwitchDenied)
    assert [event.reason_code for event in denied] == ["REAUTHENTICATE"] * (cause is Cause.OPERATOR_SWITCH)


@pytest.mark.parametrize(
    ("first", "other", "another_network"),
    [
        ("192.0.2.1", "192.0.2.255", False),
        ("192.0.2.1", "192.0.3.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::1", False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", True),
        ("192.0.2.1", "2001:db8::1", True),
        ("", "192.0.2.1", True),
    ],
)
def test_a_network_is_a_prefix_of_24_or_64_bits(first: str, other: str, another_network: bool) -> None:
    assert must_prove_anew(fast_policy(reauthenticate_on=("network",)), first, other) is another_network
    assert must_prove_anew(fast_policy(reauthenticate_on=("address",)), first, other)
    assert not must_prove_anew(fast_policy(), first, other)


def test_nobody_learns_of_the_policy_without_a_challenge() -> None:
    forge = Forge(pair_with("address"))
    source = at("10.201.2.2")
    assert forge.ack(forge.send(source, 1, 2)).result is Result.PENDING


def test_small_steps_do_not_lead_away() -> None:
    """It is the handshake that counts, not the last bind."""
    forge = Forge(pair_with("network"))
    near = at("10.201.1.200")
    assert forge.ack(forge.send(near, 1, 2, forge.challenge(near))).result is Result.BOUND
    far = at("10.201.2.2")
    assert forge.fail(forge.send(far, 2, 3, forge.challenge(far))).reason == "REAUTHENTICATE"
    home = at("10.201.1.2")
    assert forge.ack(forge.send(home, 3, 4, forge.challenge(home))).result is Result.BOUND


def test_a_supervisor_that_takes_over_knows_where_the_handshake_came_from() -> None:
    pair = pair_with("address")
    forge = Forge(pair)
    restart_supervisor(pair)
    forge.live = pair.live
    far, home = at("10.201.2.2"), at("10.201.1.2", 50_000)
    assert forge.fail(forge.send(far, 1, 2, forge.challenge(far))).reason == "REAUTHENTICATE"
    assert forge.ack(forge.send(home, 2, 3, forge.challenge(home))).result is Result.BOUND


# What the client makes of it


def first_session(pair: CorePair) -> bytes:
    assert pair.client.session is not None
    return pair.client.session.session_id


def ends(pair: CorePair) -> list[tuple[str, str]]:
    """Sessions that the gateway has ended, and why."""
    return [(e.session_id, e.reason_code) for e in pair.events(StateChange) if e.to is State.TERMINATED]


def renewed(pair: CorePair, session_id: bytes, uplink: int) -> bool:
    """Another session stands, and it has the source of this uplink."""
    if not pair.attached or first_session(pair) == session_id:
        return False
    active = pair.live.bindings.active
    return active is not None and to_bytes(active.source[0]) == pair.addresses[uplink].address


def test_a_client_whose_network_dies_shakes_hands_anew_over_the_next() -> None:
    pair = pair_with("network")
    before = first_session(pair)
    pair.link(0, False)
    pair.wait_for(lambda: renewed(pair, before, 1))
    assert [(over.reason, over.again) for over in pair.over] == [("POLICY_TERMINATED", True)]
    assert "new handshake over upB" in pair.over[0].note
    assert ends(pair) == [(before.hex(), "SUPERSEDED")]
    # Not one bind of the old session: no identity has moved.
    assert pair.events(TransportSwitch) == []
    assert {event.result for event in pair.events(ReattachResult)} == {"failed"}
    told = [e.reason_code for e in pair.client_sink.events if isinstance(e, StateChange)]
    assert "POLICY_TERMINATED" in told
    assert pair.data_up(b"u" * 80)
    assert pair.data_down(b"d" * 80)


def test_the_old_session_stands_at_the_gateway_until_the_new_one_is_confirmed() -> None:
    pair = pair_with("network")
    before = first_session(pair)
    deaf = [lambda flight: [] if flight.kind is PacketType.HANDSHAKE_INIT else None]
    pair.rules += deaf
    pair.link(0, False)
    pair.wait_for(lambda: len(pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)) > 3)
    assert (pair.live.session_id, pair.live.machine.state) == (before, State.ATTACHED)
    pair.rules.remove(deaf[0])
    pair.wait_for(lambda: renewed(pair, before, 1))
    assert ends(pair) == [(before.hex(), "SUPERSEDED")]


def test_a_wish_to_be_elsewhere_leads_there_by_a_new_handshake() -> None:
    pair = pair_with("address")
    before = first_session(pair)
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: renewed(pair, before, 1))
    assert len(pair.events(TransportSwitchDenied)) == 1
    inits = pair.of_kind(PacketType.HANDSHAKE_INIT, up=True)
    assert [flight.uplink for flight in inits] == [0, 1]


def test_whoever_waits_for_a_switch_is_told_to_wait_until_the_new_session_stands() -> None:
    pair = pair_with("address")
    before = first_session(pair)
    admin = ClientAdmin(cast(Agent, SimpleNamespace(core=pair.client)))
    assert pair.client.switch("upB", pair.now_ns)
    seen = admin.switching()
    for _ in range(1_000):
        if not seen["in_flight"]:
            break
        pair.advance(1)
        seen = admin.switching()
    assert (seen["active"], seen["configured"], seen["state"]) == ("upB", True, "ATTACHED")
    assert first_session(pair) != before


def test_a_preferred_uplink_that_returns_is_gone_back_to_by_a_new_handshake() -> None:
    pair = CorePair(fast_policy(reauthenticate_on=("network",)))
    pair.client.uplinks[0].preference = 200
    pair.attach()
    first = first_session(pair)
    pair.link(0, False)
    pair.wait_for(lambda: renewed(pair, first, 1))
    second = first_session(pair)
    pair.link(0, True)
    pair.wait_for(lambda: renewed(pair, second, 0))
    assert [reason for _id, reason in ends(pair)] == ["SUPERSEDED", "SUPERSEDED"]
    pair.advance(30_000)
    assert pair.client.handshakes_done == 3


def test_a_path_that_comes_back_in_the_same_network_keeps_its_session() -> None:
    pair = pair_with("address", "network")
    before = first_session(pair)
    pair.rules.append(silent(1))
    pair.link(0, False)
    pair.advance(500)
    pair.link(0, True)
    pair.wait_for(lambda: pair.attached and pair.version > 1)
    assert first_session(pair) == before
    assert pair.client.handshakes_done == 1


def test_a_nat_that_gives_another_port_keeps_the_session_and_another_address_does_not() -> None:
    pair = pair_with("address")
    before = first_session(pair)
    pair.addresses[0] = at("10.201.1.2", 41_111)
    pair.data_up(b"u" * 80)
    pair.wait_for(lambda: pair.attached and pair.version > 1)
    assert first_session(pair) == before
    pair.addresses[0] = at("10.201.1.9", 41_111)
    pair.data_up(b"u" * 80)
    pair.wait_for(lambda: renewed(pair, before, 0))


def test_a_session_of_the_store_that_comes_from_elsewhere_ends_when_the_new_one_is_confirmed() -> None:
    """The new owner takes it over first: so its end is told, and nothing of it is left in the store."""
    pair = pair_with("network")
    before = first_session(pair)
    pair.restart_gateway()
    pair.link(0, False)
    pair.wait_for(lambda: pair.context.sessions and renewed(pair, before, 1))
    assert ends(pair) == [(before.hex(), "SUPERSEDED")]
    assert [record.session_id for record in pair.store.sessions()] == [first_session(pair)]


def test_without_the_policys_wish_a_client_keeps_its_session_over_networks() -> None:
    pair = pair_with()
    before = first_session(pair)
    pair.link(0, False)
    pair.wait_for(lambda: pair.attached and pair.version > 1)
    assert first_session(pair) == before


def test_lost_refusals_and_duplicates_end_in_one_new_session() -> None:
    pair = pair_with("network")
    before = first_session(pair)

    def shaky(flight: Flight) -> list[int]:
        return [[10], [10, 30], []][pair.random.randrange(3)]

    pair.rules.append(shaky)
    pair.link(0, False)
    pair.wait_for(lambda: renewed(pair, before, 1))
    pair.advance(5_000)
    assert len(pair.context.sessions) == 1
    assert len(pair.store.sessions()) == 1


def test_an_operators_choice_holds_over_the_handshake_that_it_needed() -> None:
    pair = CorePair(fast_policy(reauthenticate_on=("network",)))
    pair.client.uplinks[0].preference = 200
    pair.attach()
    before = first_session(pair)
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: renewed(pair, before, 1))
    chosen = first_session(pair)
    pair.advance(30_000)
    assert first_session(pair) == chosen
    pair.link(1, False)
    pair.wait_for(lambda: renewed(pair, chosen, 0))


def test_whoever_waits_at_the_gateway_is_told_of_the_session_in_its_place() -> None:
    pair = pair_with("network")
    before = first_session(pair).hex()
    admin = GatewayAdmin(cast(Gateway, SimpleNamespace(core=pair.gateway)))
    assert pair.client.switch("upB", pair.now_ns)
    pair.wait_for(lambda: renewed(pair, bytes.fromhex(before), 1))
    with pytest.raises(AdminError, match="no session begins with"):
        admin.handle({"command": "switching", "session": before})
    seen = admin.handle({"command": "switching", "session": before, "peer": "laptop"})
    assert isinstance(seen, dict)
    assert (seen["session"], seen["peer"]) == (first_session(pair).hex(), "laptop")
    assert "10.201.2.2" in seen["path"]


def test_every_so_many_hours_a_client_proves_itself_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # An hour of 20 s, because each tick of the agent is played.
    monkeypatch.setattr("jvpn.policy.model.HOUR", 20_000)
    pair = CorePair(fast_policy(reauthenticate_interval_h=3)).attach()
    first = first_session(pair)
    pair.advance(58_000)
    assert first_session(pair) == first
    pair.advance(2_000)
    pair.wait_for(lambda: pair.context.sessions and renewed(pair, first, 0))
    assert ends(pair)[0][0] == first.hex()
    # Whichever end's clock is first, it is the same end.
    assert [(over.reason, over.again) for over in pair.over] == [("SESSION_TTL_EXPIRED", True)]
