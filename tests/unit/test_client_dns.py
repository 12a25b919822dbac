"""Name servers and names: resolv.conf written and put back, tools called, answers read, and nothing lost in a crash."""

import json
import os
import select
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from jvpn.agent import dns, dns_query
from jvpn.agent.dns import Dns, DnsThread
from jvpn.agent.plan import DnsPlan
from jvpn.agent.resolv_conf import MARK, ResolvConf
from jvpn.agent.resolver import Resolver
from jvpn.protocol import addresses
from workers.commands import Endpoint

BEFORE = "search example.net\noptions edns0\nnameserver 192.0.2.53\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(BEFORE)
    path.chmod(0o640)
    return path


def by_file(conf: Path) -> Dns:
    return Dns(DnsPlan("file", conf), conf.parent / "state", "jvpn0")


# resolv.conf


def test_name_servers_are_replaced_and_search_domains_stay(conf: Path):
    assert by_file(conf).apply(["10.8.0.1", "fd00:8::1"]) == "file"
    lines = conf.read_text().splitlines()
    assert lines == [
        MARK,
        "nameserver 10.8.0.1",
        "nameserver fd00:8::1",
        "search example.net",
        "options edns0",
    ]


def test_another_process_puts_back_what_was_there(conf: Path):
    by_file(conf).apply(["10.8.0.1"])
    by_file(conf).apply(["10.8.0.9"])
    assert by_file(conf).restore()
    assert conf.read_text() == BEFORE
    assert conf.stat().st_mode & 0o777 == 0o640
    assert not by_file(conf).restore(), "there is nothing left to put back"


def test_a_symbolic_link_comes_back_as_one(tmp_path: Path):
    target, link = tmp_path / "managed.conf", tmp_path / "resolv.conf"
    target.write_text(BEFORE)
    link.symlink_to("managed.conf")
    by_file(link).apply(["10.8.0.1"])
    assert target.read_text() == BEFORE
    assert by_file(link).restore()
    assert os.readlink(link) == "managed.conf"


def test_a_file_that_was_not_there_goes_again(tmp_path: Path):
    conf = tmp_path / "resolv.conf"
    by_file(conf).apply(["10.8.0.1"])
    assert conf.exists()
    by_file(conf).restore()
    assert not conf.exists()


def test_what_somebody_else_wrote_meanwhile_is_left_to_them(conf: Path):
    by_file(conf).apply(["10.8.0.1"])
    conf.write_text("nameserver 198.51.100.53\n")
    assert by_file(conf).restore()
    assert conf.read_text() == "nameserver 198.51.100.53\n"


def test_name_servers_outside_are_those_from_before(conf: Path):
    assert by_file(conf).servers_outside() == ["192.0.2.53"]
    by_file(conf).apply(["10.8.0.1"])
    assert by_file(conf).servers_outside() == ["192.0.2.53"]


def test_names_of_servers_that_are_none_are_passed_over():
    text = "nameserver 192.0.2.1\nnameserver x\n# nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\n"
    assert ResolvConf.servers_in(text) == ["192.0.2.1", "fe80::1"]


def test_a_record_that_cannot_be_read_harms_nobody(conf: Path):
    (conf.parent / "state").mkdir()
    (conf.parent / "state" / dns.RECORD_NAME).write_text("{")
    assert not by_file(conf).restore()
    assert conf.read_text() == BEFORE


# Tools


class Tools:
    """Records what is run; commands that begin with one of `broken` fail."""

    def __init__(self, *broken: str) -> None:
        self.ran: list[tuple[list[str], str]] = []
        self._broken = broken

    def __call__(self, command: list[str], text: str) -> None:
        self.ran.append((command, text))
        if command[0] in self._broken:
            raise OSError(f"{command[0]} is broken")


def test_resolvconf_is_told_and_told_again(conf: Path):
    tools = Tools()
    managed = Dns(DnsPlan("resolvconf", conf), conf.parent, "jvpn0", tools)
    assert managed.apply(["10.8.0.1"]) == "resolvconf"
    assert managed.restore()
    assert tools.ran == [
        (["resolvconf", "-a", "jvpn0.jvpn"], "nameserver 10.8.0.1\n"),
        (["resolvconf", "-d", "jvpn0.jvpn"], ""),
    ]
    assert conf.read_text() == BEFORE


def test_resolved_takes_every_name(conf: Path):
    tools = Tools()
    assert Dns(DnsPlan("resolved", conf), conf.parent, "jvpn0", tools).apply(["10.8.0.1"]) == "resolved"
    assert [command for command, _text in tools.ran] == [
        ["resolvectl", "dns", "jvpn0", "10.8.0.1"],
        ["resolvectl", "domain", "jvpn0", "~."],
    ]


def test_a_tool_that_fails_gives_way_to_the_next(conf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dns, "available", lambda _mode: ["resolved", "resolvconf", "file"])
    managed = Dns(DnsPlan("auto", conf), conf.parent / "state", "jvpn0", Tools("resolvectl", "resolvconf"))
    assert managed.apply(["10.8.0.1"]) == "file"
    managed.restore()
    assert conf.read_text() == BEFORE


def test_off_changes_nothing(conf: Path):
    assert Dns(DnsPlan("off", conf), conf.parent, "jvpn0").apply(["10.8.0.1"]) == "off"
    assert conf.read_text() == BEFORE


def test_the_thread_uses_addresses_alone_and_cleans_up(conf: Path):
    said: list[str] = []
    thread = DnsThread(by_file(conf), said.append)
    thread.use(["10.8.0.1", "not an address\nnameserver 192.0.2.66"])
    thread.close()
    assert conf.read_text() == BEFORE
    assert said == ["name servers: 10.8.0.1 (by file)"]


# Queries


def answer_to(query: bytes, *records: tuple[int, bytes], flags: int = 0x8180) -> bytes:
    body = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data for kind, data in records)
    return query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + query[12:] + body


QUERY = dns_query.encode_query("vpn.example.net", dns_query.TYPE_A, 0x1234)
A = ip_address("192.0.2.7").packed


def test_a_query_is_as_rfc_1035_draws_it():
    head = bytes.fromhex("1234 0100 0001 0000 0000 0000")
    assert head + b"\x03vpn\x07example\x03net\x00" + b"\x00\x01\x00\x01" == QUERY


def test_addresses_are_found_behind_an_alias():
    alias = (5, b"\x03www\xc0\x10")
    assert dns_query.decode_answer(QUERY, answer_to(QUERY, alias, (1, A))) == [("192.0.2.7", 60)]


def test_an_answer_without_addresses_is_empty():
    assert dns_query.decode_answer(QUERY, answer_to(QUERY)) == []


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        QUERY[:11],
        answer_to(b"\x99\x99" + QUERY[2:], (1, A)),
        answer_to(dns_query.encode_query("other.example.net", 1, 0x1234), (1, A)),
        answer_to(QUERY, (1, A))[:-3],
        answer_to(QUERY, (1, A))[:-12],
        answer_to(QUERY, flags=0x8183),
        answer_to(QUERY, (1, A), flags=0x8380),
        answer_to(QUERY, (1, A), flags=0x0100),
    ],
)
def test_a_broken_answer_is_an_error_and_nothing_else(broken: bytes):
    with pytest.raises(dns_query.DnsError):
        dns_query.decode_answer(QUERY, broken)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".net", ".".join(["x" * 60] * 5)])
def test_what_is_no_name_is_not_asked_for(name: str):
    with pytest.raises(dns_query.DnsError):
        dns_query.encode_query(name, dns_query.TYPE_A, 1)


# The resolver


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(addresses.to_bytes(address), port)


class Names:
    """A name service whose answers a test changes; counts what it is asked."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.direct_asked: list[tuple[str, ...]] = []

    def system(self, host: str) -> list[str]:
        if host not in self.answers:
            raise OSError("no such name")
        return self.answers[host]

    def direct(self, host: str, servers: Sequence[str], devices: Sequence[str]) -> tuple[list[str], int]:
        self.direct_asked.append((host, *servers, *devices))
        return self.system(f"direct {host}"), 120


def resolver(names: Names, *endpoints: tuple[str, int]) -> Resolver:
    return Resolver(endpoints, lambda: ["192.0.2.53"], names.system, names.direct)


def answered(asking: Resolver) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    assert select.select([asking.fileno()], [], [], 20)[0], "no answer"
    answer = asking.take()
    assert answer is not None
    return answer.remotes, answer.problems


def test_addresses_are_known_without_asking():
    asking = resolver(Names({}), ("192.0.2.1", 1), ("2001:db8::1", 2))
    assert asking.known() == (endpoint("192.0.2.1", 1), endpoint("2001:db8::1", 2))
    asking.ask([])
    assert not asking.asking


def test_names_become_addresses_in_the_order_of_the_endpoints():
    names = Names({"a.test": ["192.0.2.1", "2001:db8::1"]})
    asking = resolver(names, ("198.51.100.1", 1), ("a.test", 2), ("gone.test", 3))
    asking.ask([])
    remotes, problems = answered(asking)
    assert remotes == (endpoint("198.51.100.1", 1), endpoint("192.0.2.1", 2), endpoint("2001:db8::1", 2))
    assert problems == ("gone.test: no such name",)
    asking.close()


def test_a_name_that_fails_keeps_its_last_addresses():
    names = Names({"a.test": ["192.0.2.1"]})
    asking = resolver(names, ("a.test", 2))
    asking.ask([])
    answered(asking)
    names.answers = {}
    asking.ask([])
    assert answered(asking) == ((endpoint("192.0.2.1", 2),), ("a.test: no such name",))
    asking.close()


def test_beside_a_tunnel_the_name_servers_are_asked_first_and_the_system_last():
    names = Names({"direct a.test": ["192.0.2.9"], "a.test": ["10.8.0.7"], "b.test": ["192.0.2.8"]})
    asking = resolver(names, ("a.test", 1), ("b.test", 1))
    asking.ask(["up-a", "up-b"])
    remotes, problems = answered(asking)
    assert remotes == (endpoint("192.0.2.9", 1), endpoint("192.0.2.8", 1))
    assert problems == ()
    assert names.direct_asked[0] == ("a.test", "192.0.2.53", "up-a", "up-b")
    asking.close()


def test_the_record_says_what_to_put_back_before_anything_is_changed(conf: Path):
    seen: list[object] = []

    class Watching(Tools):
        def __call__(self, command: list[str], text: str) -> None:
            seen.append(json.loads((conf.parent / dns.RECORD_NAME).read_text()))

    Dns(DnsPlan("resolvconf", conf), conf.parent, "jvpn0", Watching()).apply(["10.8.0.1"])
    assert seen == [{"way": "resolvconf", "device": "jvpn0"}]
