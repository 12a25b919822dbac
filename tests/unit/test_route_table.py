"""Which prefixes go to which other gateway: every change of owners and nodes, in any order."""

import random

from jvpn.store.etcd_watch import Announced, Everything, Owned, Ownership
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.fleet_routes import NEW_OWNER_S, OLD_OWNER_S, RouteTable

HOPS = {f"gw{n}": (f"192.0.2.{n}", f"2001:db8::{n}") for n in (1, 2, 3)}
A, B = b"a" * 16, b"b" * 16


def about(*addresses: str) -> NodeAbout:
    return NodeAbout(return_addresses=addresses)


def owner(node: str, *prefixes: str, born: int = 1, version: int = 1) -> Ownership:
    return Ownership(node, version, prefixes, born)


def table(**owners: Ownership) -> RouteTable:
    """Of gw1, with three nodes, and sessions by the letter of their ids."""
    made = RouteTable("gw1")
    nodes = {node: about(*hops) for node, hops in HOPS.items()}
    made.apply(Everything({name.encode() * 16: one for name, one in owners.items()}, nodes))
    return made


def owned(session_id: bytes, now: Ownership | None) -> Owned:
    return Owned(session_id, None, now, 9)


def test_what_others_own_goes_to_them_and_what_is_ours_does_not() -> None:
    made = table(a=owner("gw2", "10.8.0.2", "192.168.7.0/24", "fd00:8::2"), b=owner("gw1", "10.8.0.3"))
    expected = {"10.8.0.2": "192.0.2.2", "192.168.7.0/24": "192.0.2.2", "fd00:8::2": "2001:db8::2"}
    assert made.complete
    assert made.wanted == made.take(0.0) == expected
    assert made.take(0.0) == {}


def test_a_route_follows_the_session() -> None:
    made = table(a=owner("gw1", "10.8.0.2"))
    assert made.take(0.0) == {}
    made.apply(owned(A, owner("gw2", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.2"}
    made.apply(owned(A, owner("gw3", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.3"}
    made.apply(owned(A, owner("gw3", "10.8.0.2", version=2)))
    assert made.take(0.0) == {}
    made.apply(owned(A, owner("gw1", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": None}
    made.apply(owned(A, owner("gw2", "10.8.0.2")))
    made.apply(owned(A, None))
    assert made.take(0.0) == {"10.8.0.2": None}
    assert made.wanted == {}


def draining(node: str) -> Announced:
    return Announced(node, NodeAbout(return_addresses=HOPS[node], draining=True), 3)


def test_a_node_that_drains_leads_traffic_away_when_the_new_owner_takes_it() -> None:
    made = table(a=owner("gw1", "10.8.0.2"))
    made.apply(draining("gw1"))
    made.apply(owned(A, owner("gw2", "10.8.0.2")))
    assert made.take(0.0) == made.take(OLD_OWNER_S - 0.01) == {}
    assert made.held == {"10.8.0.2"}
    assert made.take(OLD_OWNER_S) == {"10.8.0.2": "192.0.2.2"}
    assert made.held == frozenset()


def test_the_new_owner_takes_it_before_that_and_everybody_else_at_once() -> None:
    made = table(a=owner("gw2", "10.8.0.2"), b=owner("gw2", "10.8.0.3"))
    made.take(0.0)
    made.apply(draining("gw2"))
    made.apply(owned(A, owner("gw1", "10.8.0.2")))
    made.apply(owned(B, owner("gw3", "10.8.0.3")))
    assert made.take(0.0) == {"10.8.0.3": "192.0.2.3"}
    assert made.take(NEW_OWNER_S) == {"10.8.0.2": None}
    assert NEW_OWNER_S < OLD_OWNER_S


def test_of_a_node_that_does_not_drain_nothing_is_waited_for() -> None:
    made = table(a=owner("gw2", "10.8.0.2"))
    made.take(0.0)
    made.apply(draining("gw2"))
    made.apply(Announced("gw2", NodeAbout(return_addresses=HOPS["gw2"]), 3))
    made.apply(owned(A, owner("gw1", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": None}
    made.apply(draining("gw1"))
    made.apply(Announced("gw1", None, 3))
    made.apply(owned(A, owner("gw2", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.2"}


def test_a_session_whose_prefixes_change_leaves_no_route_behind() -> None:
    made = table(a=owner("gw2", "10.8.0.2", "fd00:8::2"))
    made.take(0.0)
    made.apply(owned(A, owner("gw2", "10.8.0.9", "fd00:8::2")))
    assert made.take(0.0) == {"10.8.0.2": None, "10.8.0.9": "192.0.2.2"}


def test_of_two_sessions_of_one_client_the_later_one_is_right_whichever_is_written_last() -> None:
    made = table(a=owner("gw2", "10.8.0.2", born=5), b=owner("gw3", "10.8.0.2", born=7))
    assert made.wanted == {"10.8.0.2": "192.0.2.3"}
    made.apply(owned(A, owner("gw2", "10.8.0.2", born=5, version=99)))
    assert made.wanted == {"10.8.0.2": "192.0.2.3"}
    made.apply(owned(A, None))
    assert made.wanted == {"10.8.0.2": "192.0.2.3"}
    # The new one is here, the old one elsewhere, and then it is the new one that ends.
    made = table(a=owner("gw2", "10.8.0.2", born=5), b=owner("gw1", "10.8.0.2", born=7))
    assert made.wanted == {}
    made.apply(owned(B, None))
    assert made.wanted == {"10.8.0.2": "192.0.2.2"}


def test_routes_to_a_dead_node_stay_until_somebody_else_owns_the_session() -> None:
    made = table(a=owner("gw2", "10.8.0.2"))
    made.take(0.0)
    made.apply(Announced("gw2", None, 3))
    assert made.take(0.0) == {}
    # Also after a watch that began anew.
    made.apply(Everything({A: owner("gw2", "10.8.0.2")}, {}))
    assert made.wanted == {"10.8.0.2": "192.0.2.2"}
    made.apply(owned(A, owner("gw3", "10.8.0.2")))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.3"}


def test_a_node_that_moves_takes_its_routes_along() -> None:
    made = table(a=owner("gw2", "10.8.0.2", "fd00:8::2"), b=owner("gw3", "10.8.0.3"))
    made.take(0.0)
    made.apply(Announced("gw2", about("192.0.2.22", "2001:db8::2"), 3))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.22"}
    assert made.nodes_at("192.0.2.22") == ["gw2"]


def test_a_node_without_an_address_of_the_family_is_named() -> None:
    made = table(a=owner("gw2", "10.8.0.2", "fd00:8::2"))
    made.take(0.0)
    assert made.without_hop() == set()
    made.apply(Announced("gw2", about("192.0.2.2", "nonsense"), 3))
    assert made.take(0.0) == {"fd00:8::2": None}
    assert made.without_hop() == {("gw2", 6)}
    made.apply(owned(A, owner("gw1", "10.8.0.2", "fd00:8::2")))
    assert made.without_hop() == set()


def test_a_node_that_nobody_has_heard_of_has_no_routes_until_it_is() -> None:
    made = RouteTable("gw1")
    made.apply(Everything({A: owner("gw9", "10.8.0.2")}, {}))
    assert made.wanted == {}
    assert made.without_hop() == set()
    made.apply(Announced("gw9", about("192.0.2.9"), 3))
    assert made.take(0.0) == {"10.8.0.2": "192.0.2.9"}


def test_everything_again_brings_the_same_as_all_that_was_missed() -> None:
    """Random histories, each told by changes to one table and at once to another."""
    chance = random.Random(6)
    for _ in range(200):
        told, asked = table(), table()
        owners: dict[bytes, Ownership] = {}
        mirror: dict[str, str] = {}
        for step in range(30):
            session_id = bytes([chance.randrange(6)]) * 16
            if session_id in owners and chance.random() < 0.3:
                del owners[session_id]
            else:
                prefixes = chance.sample([f"10.8.0.{n}" for n in range(4)], chance.randrange(3))
                born = owners[session_id].born if session_id in owners else step
                owners[session_id] = owner(chance.choice(sorted(HOPS)), *prefixes, born=born)
            told.apply(owned(session_id, owners.get(session_id)))
            for prefix, hop in told.take(0.0).items():
                mirror.pop(prefix, None)
                mirror |= {} if hop is None else {prefix: hop}
        asked.apply(Everything(dict(owners), {}))
        expected = {}
        for one in sorted(owners.values(), key=lambda one: one.born):
            expected |= dict.fromkeys(one.prefixes, one.owner)
        hops = {prefix: HOPS[node][0] for prefix, node in expected.items() if node != "gw1"}
        assert told.wanted == asked.wanted == mirror == hops
