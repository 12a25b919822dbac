"""Clients without addresses of their own: sessions whose inner addresses come out of the pool."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from core_pair import CLIENT_KEY, CorePair, every_pair_is_sound
from test_adoption import restart as restart_supervisor
from test_store_addresses import end, give, key_of, pool_of

from jvpn.cli import build_parser, peer
from jvpn.cli.peer import peer_text, peers_text
from jvpn.observability.admin import AdminError
from jvpn.observability.events import OwnershipEvent, StateChange
from jvpn.observability.snapshot import PeerSnapshot
from jvpn.protocol.suites import x25519_public
from jvpn.session.machine import Reason
from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.admin import GatewayAdmin
from jvpn.supervisor.fleet import Fleet
from jvpn.supervisor.store_desk import DirectDesk

__all__ = ["every_pair_is_sound"]

PUBLIC = x25519_public(CLIENT_KEY)
BOTH = pool_of("10.8.0.0/24", "fd00:8::/64", without=("10.8.0.1/32",))
#: .1 to .6
SMALL = pool_of("10.8.0.0/29")


def attached(pool: InnerPool = BOTH) -> CorePair:
    return CorePair(pool=pool).attach()


def anew(pair: CorePair) -> CorePair:
    """The client is started again, and shakes hands."""
    pair.client_worker.table.remove(0)
    pair.client = pair.new_client()
    return pair.attach()


def admin(pair: CorePair) -> GatewayAdmin:
    gateway: Any = SimpleNamespace(core=pair.gateway, desk=DirectDesk(pair.store))
    return GatewayAdmin(gateway)


def shown(pair: CorePair) -> PeerSnapshot:
    answer: Any = admin(pair).handle({"command": "peers", "peer": "laptop"})
    return answer[0]


def carried(pair: CorePair) -> None:
    """Traffic to and from the session's addresses, both ways."""
    assert pair.data_up(b"up" * 40)
    assert pair.data_down(b"down" * 40)
    before = len(pair.client_worker.delivered)
    pair.advance(50)
    assert len(pair.client_worker.delivered) == before + 1


def full(pair: CorePair) -> list[int]:
    """Others get what is free of a small pool, and have sessions."""
    others = list(range(1, 8))
    return [n for n in others if give(pair.store, n, pool=SMALL) is not None]


def test_a_session_has_an_address_of_each_family_wherever_it_is_asked_for() -> None:
    pair = attached()
    (kept,) = pair.store.sessions()
    prefixes = (f"{kept.inner_v4}/32", f"{kept.inner_v6}/128")
    assert kept.inner_v4 in BOTH
    assert kept.inner_v6 in BOTH
    assert pair.live.prefixes == prefixes
    assert pair.configured[-1].addresses == prefixes
    assert pair.steered.prefixes == dict.fromkeys(prefixes, pair.live.slot)
    add = pair.live.add_command(1)
    assert (tuple(add.allowed_sources), tuple(add.routes)) == (prefixes, prefixes)
    assert pair.store.inner_addresses() == {PUBLIC: (kept.inner_v4, kept.inner_v6)}
    carried(pair)


def test_later_records_of_the_session_have_its_addresses() -> None:
    pair = attached()
    prefixes = pair.live.prefixes
    pair.link(0, up=False)
    pair.wait_for(lambda: pair.version > 2 and pair.attached)
    pair.advance(2_000)
    (kept,) = pair.store.sessions()
    assert kept.state_version > 1
    assert (f"{kept.inner_v4}/32", f"{kept.inner_v6}/128") == prefixes


def test_a_client_has_its_addresses_again_in_its_next_session() -> None:
    pair = attached()
    first = pair.live.prefixes
    assert anew(pair).live.prefixes == first
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.advance(1_000)
    assert pair.steered.prefixes == {}
    assert anew(pair).live.prefixes == first
    assert pair.steered.prefixes == dict.fromkeys(first, pair.live.slot)


def test_a_supervisor_that_takes_over_knows_the_addresses() -> None:
    pair = attached()
    first, session = pair.live.prefixes, pair.live.session_id
    assert str(restart_supervisor(pair, records=pair.store.sessions())) == "1 sessions adopted, 0 ended"
    pair.advance(1_000)
    assert pair.live.session_id == session
    assert pair.live.prefixes == pair.configured[-1].addresses == first
    assert pair.steered.prefixes == dict.fromkeys(first, pair.live.slot)
    carried(pair)


def test_a_restarted_host_gives_the_session_its_addresses_back() -> None:
    pair = attached()
    first, session = pair.live.prefixes, pair.live.session_id
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached)
    assert pair.live.session_id == session
    assert pair.live.prefixes == first
    assert pair.steered.prefixes == dict.fromkeys(first, pair.live.slot)
    carried(pair)


def test_without_a_free_address_a_handshake_is_refused_and_said_once() -> None:
    pair = CorePair(pool=SMALL)
    others = full(pair)
    assert len(others) == 6
    pair.advance(20_000)
    assert pair.context.counters["pool_exhausted"] > 1
    assert pair.context.sessions == pair.context.confirming == {}
    assert pair.steered.prefixes == {}
    assert len(pair.context.free_records) == pair.capacity
    assert {record.client_public for record in pair.store.sessions()} == {key_of(n) for n in others}
    (said,) = pair.context.worker_errors
    assert "peer laptop gets no inner address" in said
    (told, *_more) = pair.events(StateChange)
    assert (told.reason_code, told.details["why"]) == (
        "HANDSHAKE_FAIL",
        "no inner address is left in the pool",
    )
    end(pair.store, others[3])
    pair.wait_for(lambda: pair.attached)
    assert pair.live.prefixes == (f"{pair.store.inner_addresses()[PUBLIC][0]}/32",)
    assert key_of(others[3]) not in pair.store.inner_addresses()


def idle_client(pair: CorePair, **changes: Any) -> SessionRecord:
    """A stored session of another client, as the pair's own one is."""
    (own,) = pair.store.sessions()
    return replace(own, **{"session_id": b"of another one..", "client_public": key_of(9)} | changes)


def days_ago(pair: CorePair) -> dict[str, Any]:
    """As a client left it whose session was over a day ago."""
    day_ms = 86_400_000
    then_ms = pair.wall_ms() - 2 * day_ms
    times = {"created_wall_ms": then_ms, "stored_wall_ms": then_ms, "expires_wall_ms": then_ms + day_ms}
    return {**times, "boot_id": "an earlier one"}


ALONE = pool_of("10.8.0.0/30", without=("10.8.0.1/32",))


def in_place_of(pair: CorePair, record: SessionRecord) -> CorePair:
    """The only address is the other client's, and the pair's client, whose session ended, is started again."""
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert pair.store.bear(record, 1, ALONE).record is not None
    pair.client_worker.table.remove(0)
    pair.client = pair.new_client()
    return pair


def test_the_address_of_a_client_that_never_came_back_is_found() -> None:
    pair = attached(ALONE)
    lost = idle_client(pair, **days_ago(pair))
    in_place_of(pair, lost).attach()
    assert pair.context.counters["pool_exhausted"] == 1
    assert set(pair.store.inner_addresses()) == {PUBLIC}
    assert pair.store.load(lost.session_id) is None


@pytest.mark.parametrize("why", ["its time is not over", "its owner lives", "nobody knows who lives"])
def test_only_sessions_that_are_over_and_nobodys_lose_their_address(why: str) -> None:
    pair = attached(ALONE)
    over = {} if why == "its time is not over" else days_ago(pair) | {"owner_node": "gw2"}
    kept = idle_client(pair, **over)
    in_place_of(pair, kept)
    if why == "its owner lives":
        pair.context.fleet = Fleet("gw")
        pair.context.fleet.nodes = {"gw": NodeAbout(), "gw2": NodeAbout()}
    pair.advance(10_000)
    assert pair.context.counters["pool_exhausted"] > 1
    assert set(pair.store.inner_addresses()) == {key_of(9)}
    assert pair.store.load(kept.session_id) is not None


def test_the_address_of_a_dead_nodes_session_is_found_when_it_is_over() -> None:
    pair = attached(ALONE)
    in_place_of(pair, idle_client(pair, **days_ago(pair), owner_node="gw2"))
    pair.context.fleet = Fleet("gw")
    pair.context.fleet.nodes = {"gw": NodeAbout()}
    pair.attach()
    assert set(pair.store.inner_addresses()) == {PUBLIC}


def test_an_operator_releases_what_a_session_that_is_over_keeps() -> None:
    pair = attached(ALONE)
    own = replace(pair.store.sessions()[0], **days_ago(pair))
    given = list(shown(pair).pool_addresses)
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    pair.store.save(own, 0)
    answer: Any = admin(pair).handle({"command": "release-address", "peer": "laptop"})
    assert answer == {"peer": "laptop", "released": given}
    assert pair.store.sessions() == []


def test_a_store_that_fails_gives_no_address() -> None:
    pair = CorePair(pool=BOTH)
    pair.store.broken = True
    pair.advance(10_000)
    assert pair.context.counters["store_errors"] > 0
    assert pair.context.counters["pool_exhausted"] == 0
    assert pair.context.sessions == pair.context.confirming == {}
    assert pair.steered.prefixes == {}
    pair.store.broken = False
    pair.attach()


ELSEWHERE = pool_of("10.8.0.192/26", without=("10.8.0.255/32",))


@pytest.fixture
def withdrawn() -> CorePair:
    """The gateway's pool is another one from its next start on."""
    pair = attached(pool_of("10.8.0.0/28"))
    pair.pool = ELSEWHERE
    return pair


def test_a_session_whose_address_left_the_pool_is_not_brought_back(withdrawn: CorePair) -> None:
    pair, first = withdrawn, withdrawn.live
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: pair.attached and pair.live.session_id != first.session_id)
    assert pair.context.counters["address_withdrawn"] > 0
    assert [(over.reason, over.again) for over in pair.over] == [("ADDRESS_WITHDRAWN", True)]
    (told,) = [event for event in pair.events(OwnershipEvent) if event.action == "released"]
    assert (told.session_id, told.reason_code) == (first.hex_id, "ADDRESS_WITHDRAWN")
    (inner,) = pair.store.inner_addresses()[PUBLIC]
    assert inner in ELSEWHERE
    assert pair.live.prefixes == pair.configured[-1].addresses == (f"{inner}/32",)


def test_a_session_whose_address_left_the_pool_ends_at_a_restart(withdrawn: CorePair) -> None:
    pair, first = withdrawn, withdrawn.live
    pair.context.facts = replace(pair.context.facts, pool=ELSEWHERE)
    adopted = restart_supervisor(pair, records=pair.store.sessions())
    assert adopted.ended == [f"{first.hex_id}: its inner address is not its client's any more"]
    assert not set(first.prefixes) & set(pair.steered.prefixes)
    pair.wait_for(lambda: pair.attached)
    assert [(over.reason, over.again) for over in pair.over] == [("ADDRESS_WITHDRAWN", True)]
    (prefix,) = pair.live.prefixes
    assert prefix.partition("/")[0] in ELSEWHERE
    assert pair.steered.prefixes == {prefix: pair.live.slot}


def test_an_address_from_the_configuration_is_not_kept_as_one_of_the_pool() -> None:
    """The peer had 10.8.0.2 of its own; without that it is the pool's, for whoever comes."""
    pair = CorePair().attach()
    first = pair.live
    pair.context.facts = replace(pair.context.facts, pool=SMALL)
    laptop = pair.context.peers.peers[PUBLIC]
    pair.context.peers.peers[PUBLIC] = replace(laptop, addresses=())
    adopted = restart_supervisor(pair, records=pair.store.sessions())
    assert adopted.ended == [f"{first.hex_id}: its inner address is not its client's any more"]
    pair.wait_for(lambda: pair.attached)
    (inner,) = pair.store.inner_addresses()[PUBLIC]
    assert pair.live.prefixes == (f"{inner}/32",)


def test_a_peer_is_shown_with_what_it_has_out_of_the_pool() -> None:
    pair = CorePair(pool=BOTH)
    assert shown(pair).pool_addresses == []
    pair.attach()
    given = [prefix.partition("/")[0] for prefix in pair.live.prefixes]
    assert (shown(pair).addresses, shown(pair).pool_addresses) == ([], given)
    pair.store.broken = True
    assert shown(pair).pool_addresses == given
    pair.store.broken = False
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert shown(pair).pool_addresses == given
    snapshot: dict[str, Any] = {name: getattr(shown(pair), name) for name in PeerSnapshot.__struct_fields__}
    assert f"addresses       {given[0]}, {given[1]} (out of the pool)" in peer_text(snapshot, 0)
    assert given[0] in peers_text([snapshot])
    assert "none yet" in peer_text(snapshot | {"pool_addresses": []}, 0)
    assert peers_text([snapshot | {"pool_addresses": []}])


def test_an_address_is_given_back_when_no_session_has_it() -> None:
    pair = attached()
    given = [prefix.partition("/")[0] for prefix in pair.live.prefixes]
    asked = {"command": "release-address", "peer": "laptop"}
    with pytest.raises(AdminError, match="laptop has a session"):
        admin(pair).handle(asked)
    assert shown(pair).pool_addresses == given
    pair.gateway.terminate(pair.live, Reason.OPERATOR_TERMINATED, pair.now_ms)
    pair.settle()
    assert admin(pair).handle(asked) == {"peer": "laptop", "released": given}
    assert admin(pair).handle(asked) == {"peer": "laptop", "released": []}
    assert shown(pair).pool_addresses == []
    pair.store.broken = True
    with pytest.raises(AdminError, match="try again"):
        admin(pair).handle(asked)
    with pytest.raises(AdminError, match="in the configuration"):
        admin(CorePair().attach()).handle(asked)


def test_release_address_says_what_was_given_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(
        [{"peer": "laptop", "released": ["10.8.0.7", "fd00::7"]}, {"peer": "laptop", "released": []}]
    )
    monkeypatch.setattr(peer, "ask", lambda _run_dir, _request: next(answers))
    args = build_parser().parse_args(["peer", "release-address", "laptop"])
    assert (args.run(args), args.run(args)) == (0, 0)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "laptop has given back 10.8.0.7, fd00::7"
    assert second == "laptop had no address out of the pool"
