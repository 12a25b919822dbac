"""Routes of a fleet in a real kernel: put, replaced, taken, and put again when something else has taken them."""

from collections.abc import Callable, Iterator

import pytest

from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import wait_for
from jvpn.store.etcd_watch import Announced, Everything, Owned, Ownership
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.kernel_routes import ROUTE_PROTOCOL, KernelRoutes
from jvpn.supervisor.return_routes import ReturnRoutes

HOP, HOP6, OTHER = "192.0.2.2", "2001:db8::2", "192.0.2.3"
FOREIGN = ["10.1.0.0/16 via 192.0.2.2 metric 20", "10.8.0.2 via 192.0.2.3 metric 100", "10.8.0.7 dev lan"]


class Host:
    """A gateway's machine: one link, its addresses, routes of others."""

    def __init__(self, lab: Lab) -> None:
        self.inside = lab.namespace("gw")
        self.inside.ip("link add lan type veth peer name wire", "link set wire up", "link set lan up")
        self.inside.ip("addr add 192.0.2.1/24 dev lan", "addr add 2001:db8::1/64 dev lan nodad")
        self.inside.ip(*(f"route add {route}" for route in FOREIGN))
        self.said: list[str] = []
        self.routes = ReturnRoutes("gw1", self.said.append)
        self.now_s = 0.0

    def owners(self, **prefixes: str) -> None:
        """What there is of sessions: the prefixes of the node with that name, separated by spaces."""
        nodes = {"gw2": NodeAbout(return_addresses=(HOP, HOP6)), "gw3": NodeAbout(return_addresses=(OTHER,))}
        owners = {
            f"{node}{prefix}".encode(): Ownership(node, 1, (prefix,), 1)
            for node, texts in prefixes.items()
            for prefix in texts.split()
        }
        self.routes.apply(Everything(owners, nodes))

    def tend(self, later_s: float = 0.0) -> None:
        self.now_s += later_s
        self.inside.call(lambda: self.routes.tend(self.now_s))

    def ours(self) -> list[str]:
        return self.shown(f"proto {ROUTE_PROTOCOL}")

    def shown(self, which: str) -> list[str]:
        both = [
            self.inside.run(["ip", family, "route", "show", *which.split()]).stdout for family in ("-4", "-6")
        ]
        return sorted(" ".join(line.split()[:3]) for line in "".join(both).splitlines())


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    made = Host(lab)
    yield made
    made.routes.close()


def test_routes_are_put_replaced_and_taken_and_those_of_others_stay(host: Host) -> None:
    theirs = host.shown("proto boot")
    host.tend()
    assert host.ours() == []
    host.owners(gw2="10.8.0.2 192.168.7.0/24 fd00:8::2 fd00:7::/64")
    host.tend()
    expected = [
        f"10.8.0.2 via {HOP}",
        f"192.168.7.0/24 via {HOP}",
        f"fd00:7::/64 via {HOP6}",
        f"fd00:8::2 via {HOP6}",
    ]
    assert host.ours() == expected
    assert host.routes.routes_installed == 4
    host.routes.apply(Owned(b"gw210.8.0.2", None, Ownership("gw3", 2, ("10.8.0.2",), 1), 2))
    host.tend()
    assert host.ours() == [f"10.8.0.2 via {OTHER}", *expected[1:]]
    host.owners(gw1="10.8.0.2", gw2="fd00:8::2")
    host.tend()
    assert host.ours() == [f"fd00:8::2 via {HOP6}"]
    host.inside.call(host.routes.remove)
    assert host.ours() == []
    assert host.shown("proto boot") == theirs
    assert (host.routes.route_errors, host.said) == (0, [])


def test_what_a_former_process_left_is_used_or_taken_at_the_start(host: Host) -> None:
    def leave() -> None:
        former = KernelRoutes()
        assert former.apply({"10.8.0.2": HOP, "10.8.0.3": HOP, "fd00:8::4": HOP6}) == {}
        former.close()

    host.inside.call(leave)
    # As long as nothing is known, what is there is not judged.
    host.tend()
    assert len(host.ours()) == 3
    host.owners(gw2="10.8.0.3", gw3="10.8.0.2")
    host.tend()
    assert host.ours() == [f"10.8.0.2 via {OTHER}", f"10.8.0.3 via {HOP}"]


def test_routes_that_went_with_a_link_or_by_anothers_hand_come_back(host: Host) -> None:
    host.owners(gw2="10.8.0.2 fd00:8::2")
    host.tend()
    before = host.ours()
    host.inside.ip("link set lan down")
    assert host.ours() == []
    host.inside.ip("link set lan up", "addr replace 2001:db8::1/64 dev lan nodad")

    def back() -> bool:
        host.tend(later_s=3)
        return host.ours() == before

    wait_for("the routes", back)
    host.inside.ip(f"route flush proto {ROUTE_PROTOCOL}")
    assert host.ours() == before[1:]
    host.tend(later_s=600)
    assert host.ours() == before


def test_a_next_hop_that_is_not_reached_directly_is_said_once_and_tried_again(host: Host) -> None:
    host.owners(gw2="10.8.0.2", gw9="10.8.0.9 10.8.0.10")
    host.tend()
    host.routes.apply(Announced("gw9", NodeAbout(return_addresses=("203.0.113.9",)), 2))
    host.tend()
    host.tend(later_s=3)
    assert host.ours() == [f"10.8.0.2 via {HOP}"]
    (said,) = host.said
    assert "gw9" in said
    assert "203.0.113.9" in said
    assert "fleet.return_addresses" in said
    assert host.routes.routes_installed == 1
    assert host.routes.route_errors >= 2
    host.inside.ip("addr add 203.0.113.1/24 dev lan")

    def back() -> bool:
        host.tend(later_s=3)
        return len(host.ours()) == 3

    wait_for("the routes", back)
    assert "again" in host.said[1]
    assert host.routes.routes_installed == 3


def test_a_node_that_names_no_address_is_said_once(host: Host) -> None:
    host.owners(gw3="10.8.0.3 fd00:8::3")
    host.tend()
    host.tend(later_s=600)
    assert host.ours() == [f"10.8.0.3 via {OTHER}"]
    (said,) = host.said
    assert "gw3" in said
    assert "IPv6" in said


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", "::/0", "nonsense", "10.8.0.2/33", "10.8.0.2/x"])
def test_what_is_no_route_to_a_client_is_refused_and_takes_nothing_down(host: Host, prefix: str) -> None:
    host.owners(gw2=f"10.8.0.3 {prefix} 10.8.0.4")
    host.tend()
    assert host.ours() == [f"10.8.0.3 via {HOP}", f"10.8.0.4 via {HOP}"]
    assert host.routes.route_errors == 1


@pytest.fixture
def kernel(lab: Lab) -> Iterator[tuple[Namespace, Callable[[], KernelRoutes]]]:
    inside = lab.namespace("many")
    inside.ip(
        "link add lan type veth peer name wire",
        "link set wire up",
        "link set lan up",
        "addr add 192.0.2.1/24 dev lan",
    )
    made: list[KernelRoutes] = []

    def opened() -> KernelRoutes:
        made.append(inside.call(KernelRoutes))
        return made[-1]

    yield inside, opened
    for one in made:
        one.close()


def test_thousands_at_once_with_refusals_among_them(
    kernel: tuple[Namespace, Callable[[], KernelRoutes]],
) -> None:
    _, opened = kernel
    routes = opened()
    wanted = {f"10.{n >> 8}.{n & 255}.2": HOP for n in range(5_000)}
    wrong = {f"11.{n >> 8}.{n & 255}.2": "203.0.113.9" for n in range(1_000)}
    mixed = dict(sorted({**wanted, **wrong}.items(), key=lambda item: item[0][::-1]))
    assert routes.apply(mixed).keys() == wrong.keys()
    assert routes.installed() == wanted
    # Twice is the same, and so is taking what is not there.
    assert routes.apply(wanted) == {}
    assert routes.apply(dict.fromkeys([*wanted, *wrong])) == {}
    assert routes.installed() == {}
