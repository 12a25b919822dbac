"""Which endpoint is tried over which uplink and when: order and back-off of the handshake, address families."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from jvpn.agent.effects import SendDatagram
from jvpn.agent.handshaking import Handshaking, Identity
from jvpn.agent.paths import Uplink
from jvpn.agent.pidfile import AlreadyRunning, PidFile, clear, running_pid
from jvpn.agent.uplinks import Uplinks
from jvpn.cli import build_parser
from jvpn.config import ConfigError, parse_client, parse_gateway
from jvpn.protocol import addresses
from jvpn.protocol.suites import suite, x25519_public
from workers.commands import Endpoint

KEY = "MVEDTJdwSlhEm2XniODk4fTCgoLPN6wwHRIWGqvlkm0="
IDENTITY = Identity(suite(1), b"\x01" * 32, x25519_public(b"\x02" * 32), bytes(32), "default")


def endpoint(address: str) -> Endpoint:
    return Endpoint(addresses.to_bytes(address), 51820)


V4, V4_B, V6 = endpoint("192.0.2.1"), endpoint("192.0.2.2"), endpoint("2001:db8::1")


def handshaking(*uplinks: Uplink) -> Handshaking:
    return Handshaking(IDENTITY, list(uplinks), 0, os.urandom, lambda: 1_000_000, 0)


def sent(shaking: Handshaking, until_ms: int) -> list[tuple[int, int, Endpoint]]:
    """(when, uplink, endpoint) of every INIT until then, when nothing is ever answered."""
    found = []
    while (now_ms := shaking.get_timer()) <= until_ms:
        for effect in shaking.handle_timer(now_ms):
            if isinstance(effect, SendDatagram):
                found.append((now_ms, effect.uplink, effect.remote))
    return found


# The handshake


def test_every_uplinks_first_endpoint_comes_before_any_second():
    a = Uplink(0, "a", 100, V4, remotes=(V4, V4_B))
    b = Uplink(1, "b", 200, V6, remotes=(V6, V4, V4_B))
    tried = [(uplink, remote) for _at, uplink, remote in sent(handshaking(a, b), 1_400)]
    assert tried == [(1, V6), (0, V4), (1, V4), (0, V4_B), (1, V4_B)]


def test_an_uplink_without_a_link_is_not_tried_and_one_is_tried_at_once_when_it_comes():
    a, b = Uplink(0, "a", 200, V4, link_up=False), Uplink(1, "b", 100, V4)
    shaking = handshaking(a, b)
    assert {uplink for _at, uplink, _remote in sent(shaking, 3_000)} == {1}
    a.link_up = True
    shaking.hurry(3_000)
    assert sent(shaking, 3_000) == [(3_000, 0, V4)]


def test_without_any_link_nothing_is_sent_and_no_time_stamp_used():
    shaking = handshaking(Uplink(0, "a", 100, V4, link_up=False))
    assert sent(shaking, 60_000) == []
    assert shaking.last_timestamp_us == 0


def test_a_gateway_that_is_away_is_asked_seldom():
    a = Uplink(0, "a", 100, V4, remotes=(V4, V6))
    b = Uplink(1, "b", 100, V4, remotes=(V4, V6))
    times = [at for at, _uplink, _remote in sent(handshaking(a, b), 600_000)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps), "never faster than before"
    assert gaps[-1] == 5_000


# Endpoints by address family


def test_an_uplink_reaches_the_endpoints_of_its_address_families():
    uplinks = Uplinks([("nosuch0", 100)], lambda _number, _socket: None)
    (port,) = uplinks.ports
    uplinks.remotes = (V6, V4, V4_B)
    port.link = True
    for own, reached in [
        ({"10.0.0.2"}, (V4, V4_B)),
        ({"fd00::2"}, (V6,)),
        ({"10.0.0.2", "fd00::2"}, (V6, V4, V4_B)),
    ]:
        port.addresses = frozenset(own)
        assert uplinks.settle(port) == [(port.uplink, True)]
        assert port.uplink.remotes == reached
        assert port.uplink.remote in reached
    port.addresses = frozenset()
    assert uplinks.settle(port) == [(port.uplink, False)]


def test_the_endpoint_in_use_stays_while_it_can_be_reached():
    uplinks = Uplinks([("nosuch0", 100)], lambda _number, _socket: None)
    (port,) = uplinks.ports
    uplinks.remotes, port.link, port.addresses = (V4,), True, frozenset({"10.0.0.2", "fd00::2"})
    uplinks.settle(port)
    uplinks.remotes = (V6, V4_B)
    assert uplinks.settle(port, port.uplink) == [(port.uplink, True)]
    assert port.uplink.remote == V4, "the name changed, the path works"
    port.addresses = frozenset({"fd00::2"})
    uplinks.settle(port, port.uplink)
    assert port.uplink.remote == V6, "without its address family it does not"


def test_a_silent_endpoint_gives_way_to_the_next_and_comes_round_again():
    uplinks = Uplinks([("nosuch0", 100)], lambda _number, _socket: None)
    (port,) = uplinks.ports
    uplinks.remotes, port.link, port.addresses = (V4, V4_B), True, frozenset({"10.0.0.2"})
    uplinks.settle(port)
    seen = [port.uplink.remote]
    for _ in range(2):
        assert uplinks.turn(port.uplink)
        seen.append(port.uplink.remote)
    assert seen == [V4, V4_B, V4]
    uplinks.remotes = (V4,)
    uplinks.settle(port)
    assert not uplinks.turn(port.uplink)


def test_a_device_that_does_not_exist_is_an_uplink_without_a_link():
    attached: list[int] = []
    uplinks = Uplinks([("nosuch0", 100)], lambda number, _socket: attached.append(number))
    uplinks.refresh(uplinks.ports[0])
    assert not uplinks.ports[0].link
    assert (uplinks.sockets(), attached) == ({}, [])


# One client to a run directory


def test_a_second_client_is_told_of_the_first(tmp_path: Path):
    first = PidFile(tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        PidFile(tmp_path)
    first.close()
    assert running_pid(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_killed_client_left_stops_nobody(tmp_path: Path):
    (tmp_path / "client.pid").write_text("4711\n")
    assert running_pid(tmp_path) is None
    PidFile(tmp_path).close()


# Configuration


def client_text(**changes: object) -> str:
    fields: dict[str, object] = {
        "private_key_file": "node.key",
        "gateway": {"public_key": KEY, "endpoints": ["192.0.2.1:51820"]},
    }
    return json.dumps(fields | changes)


def gateway_text(**changes: object) -> str:
    fields: dict[str, object] = {
        "node_id": "gw-1",
        "listen": ["[::]:51820"],
        "tun": {"addresses": ["10.8.0.1/24"]},
        "private_key_file": "node.key",
    }
    return json.dumps(fields | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node.key").write_text(KEY + "\n")
    (tmp_path / "node.key").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "mode", "file"),
    [
        ({}, "auto", "/etc/resolv.conf"),
        ({"dns": "off"}, "off", "/etc/resolv.conf"),
        ({"dns": {"mode": "file", "resolv_conf": "/run/r.conf"}}, "file", "/run/r.conf"),
        ({"dns": {"resolv_conf": "r.conf"}}, "auto", "FOLDER/r.conf"),
    ],
)
def test_how_name_servers_are_used(folder: Path, written: dict[str, object], mode: str, file: str):
    read = parse_client(client_text(**written), "c.yaml", folder).dns
    assert (read.mode, str(read.resolv_conf)) == (mode, file.replace("FOLDER", str(folder)))


@pytest.mark.parametrize("written", ["on", {"mode": "systemd"}, {"file": "/etc/resolv.conf"}])
def test_a_wrong_way_to_use_them_is_an_error(folder: Path, written: object):
    with pytest.raises(ConfigError, match="dns"):
        parse_client(client_text(dns=written), "c.yaml", folder)


def test_a_gateway_names_its_name_servers(folder: Path):
    assert parse_gateway(gateway_text(), "g.yaml", folder).dns == ()
    read = parse_gateway(gateway_text(dns=["10.8.0.1", "FD00:8::1"]), "g.yaml", folder)
    assert read.dns == ("10.8.0.1", "fd00:8::1")
    with pytest.raises(ConfigError, match=r"dns\[0\]"):
        parse_gateway(gateway_text(dns=["10.8.0.0/24"]), "g.yaml", folder)


def test_commands_take_their_arguments():
    for command in (["up", "--wait"], ["down"], ["switch", "wlan0"], ["terminate", "abcd"]):
        assert callable(build_parser().parse_args(command).run)


def test_what_a_killed_client_left_is_cleared_and_a_running_ones_files_stay(tmp_path: Path):
    (tmp_path / "client.pid").write_text("1\n")
    (tmp_path / "admin.sock").touch()
    clear(tmp_path, "admin.sock")
    assert list(tmp_path.iterdir()) == []
    clear(tmp_path / "nowhere", "admin.sock")
    running = PidFile(tmp_path)
    (tmp_path / "admin.sock").touch()
    clear(tmp_path, "admin.sock")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.sock", "client.pid"]
    running.close()
