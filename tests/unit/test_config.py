"""Configuration files: what they mean, and that a broken one is one line saying where and what to do."""

import os
import re
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from jvpn.config import ConfigError, GatewayConfig, load_client, load_gateway, load_policies
from jvpn.config.client import CLIENT_FIELDS, UPLINK_FIELDS, Routes, UplinkConfig
from jvpn.config.fields import Endpoint, parse_endpoint
from jvpn.config.gateway import GATEWAY_FIELDS, XDP_MODES
from jvpn.config.keys import KeyFileError, format_key, parse_key, read_key_file
from jvpn.config.peers import PEER_FIELDS
from jvpn.policy.model import Policy
from jvpn.session.pool import text_of

ROOT = Path(__file__).parents[2]
KEY_A, KEY_B, KEY_C = (format_key(bytes([n]) * 32) for n in (1, 2, 3))

GATEWAY = f"""\
node_id: gw-1
listen: ["[::]:51820", "192.0.2.1:4500"]
tun:
  addresses: [10.8.0.1/24, "fd00:8::1/64"]
private_key_file: gw.key
peers:
  - name: alice
    public_key: {KEY_A}
    addresses: [10.8.0.2/32, "fd00:8::2/128"]
  - name: site
    public_key: {KEY_B}
    psk_file: site.psk
    addresses: [10.8.0.3/32, 192.168.7.0/24]
"""

CLIENT = f"""\
private_key_file: gw.key
gateway:
  public_key: {KEY_A}
  endpoints: ["vpn.example.net:51820", "[2001:db8::1]:443"]
uplinks:
  - device: upA
    preference: 200
  - device: upB
    metered: yes
"""


def key_file(path: Path, key: str = KEY_C, mode: int = 0o600) -> Path:
    path.write_text(key + "\n")
    path.chmod(mode)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    key_file(tmp_path / "gw.key")
    key_file(tmp_path / "site.psk", KEY_B)
    return tmp_path


def gateway(directory: Path, text: str):
    path = directory / "gateway.yaml"
    path.write_text(text)
    return load_gateway(path)


def client(directory: Path, text: str):
    path = directory / "client.yaml"
    path.write_text(text)
    return load_client(path)


def refused(load, directory: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    error = caught.value
    assert "\n" not in str(error)
    assert error.remedy
    assert str(error).startswith(f"{error.file}:{error.line}: " if error.line else f"{error.file}: ")
    return error


# --- what a good file means ---------------------------------------------------------------------------


def test_a_gateway_file_and_its_defaults(directory: Path):
    config = gateway(directory, GATEWAY)
    assert config.node_id == "gw-1"
    assert config.listen == (Endpoint("::", 51820), Endpoint("192.0.2.1", 4500))
    assert (config.interfaces, config.xdp, config.workers) == (None, "auto", None)
    assert config.tun_name == "jvpn0"
    assert config.tun_addresses == (ip_interface("10.8.0.1/24"), ip_interface("fd00:8::1/64"))
    assert config.private_key == bytes([3]) * 32
    assert config.private_key_file == directory / "gw.key"
    assert config.suites == (1, 2)
    assert (config.policy, config.policy_dir) == ("default", None)
    assert config.store == Path("/var/lib/jvpn/sessions.db")
    assert config.run_dir == Path("/run/jvpn")
    assert config.events == Path("/var/log/jvpn/events.jsonl")
    alice, site = config.peers
    assert (alice.name, alice.psk, alice.policy) == ("alice", bytes(32), "default")
    assert alice.addresses == (ip_network("10.8.0.2/32"), ip_network("fd00:8::2/128"))
    assert site.psk == bytes([2]) * 32
    assert config.peer_by_key(bytes([2]) * 32) is site
    assert config.peer_by_key(bytes([9]) * 32) is None


def test_every_gateway_field_can_be_set(directory: Path):
    (directory / "policies").mkdir()
    for name in ("calm", "strict"):
        (directory / "policies" / f"{name}.yaml").write_text("loss_floor: 0.3\n")
    text = GATEWAY.replace("tun:\n", "tun:\n  name: tun7\n").replace(
        "name: alice\n", "name: alice\n    policy: strict\n    policies: []\n"
    )
    config = gateway(
        directory,
        text
        + "interfaces: [eth0, eth1]\nxdp: off\nworkers: 3\nsuites: [2]\npolicy: calm\n"
        + "policies: [strict]\npolicy_dir: policies\n"
        + "store: state/s.db\nrun_dir: /tmp/run\nevents: none\n",
    )
    assert (config.interfaces, config.xdp, config.workers, config.suites) == (
        ("eth0", "eth1"),
        "off",
        3,
        (2,),
    )
    assert config.tun_name == "tun7"
    assert config.policy_dir == directory / "policies"
    assert [peer.policy for peer in config.peers] == ["strict", "calm"]
    assert [peer.policies for peer in config.peers] == [(), ("strict",)]
    assert (config.store, config.run_dir, config.events) == (directory / "state/s.db", Path("/tmp/run"), None)


def test_offload_is_auto_or_the_word_off(directory: Path):
    for text in ("", "offload: auto\n", "offload: off\n"):
        wanted = "off" if "off\n" in text else "auto"
        assert gateway(directory, GATEWAY + text).offload == wanted
        assert client(directory, CLIENT + text).offload == wanted


@pytest.mark.parametrize("mode", XDP_MODES)
def test_xdp_off_is_a_word_and_not_false(directory: Path, mode: str):
    assert gateway(directory, GATEWAY + f"xdp: {mode}\n").xdp == mode


def test_a_client_file_and_its_defaults(directory: Path):
    config = client(directory, CLIENT)
    assert config.gateway.public_key == bytes([1]) * 32
    assert config.gateway.endpoints == (Endpoint("vpn.example.net", 51820), Endpoint("2001:db8::1", 443))
    assert config.gateway.psk == bytes(32)
    assert config.uplinks == (UplinkConfig("upA", 200, 0, False), UplinkConfig("upB", 100, 100, True))
    assert config.routes == Routes("split", ())
    assert (config.tun_name, config.policy, config.suite) == ("jvpn0", "", 1)
    assert config.state_dir == Path("/var/lib/jvpn")


def test_every_client_field_can_be_set(directory: Path):
    text = CLIENT.split("uplinks:")[0].replace("gateway:\n", "gateway:\n  psk_file: site.psk\n")
    config = client(
        directory,
        text
        + "uplinks: auto\nroutes: full\ntun: {name: tun1}\npolicy: mobile\nsuite: 2\n"
        + "state_dir: st\nrun_dir: run\nevents: log/e.jsonl\n",
    )
    assert config.gateway.psk == bytes([2]) * 32
    assert config.uplinks is None
    assert config.routes == Routes("full", ())
    assert (config.tun_name, config.policy, config.suite) == ("tun1", "mobile", 2)
    assert (config.state_dir, config.run_dir) == (directory / "st", directory / "run")
    assert config.events == directory / "log/e.jsonl"
    prefixes = client(directory, text + 'routes: [10.0.0.0/8, "fd00::/8"]\n').routes
    assert prefixes == Routes("split", (ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


def test_secrets_do_not_show_when_a_configuration_is_printed(directory: Path):
    for config in (gateway(directory, GATEWAY), client(directory, CLIENT)):
        assert repr(bytes([3]) * 32) not in repr(config)
        assert "private_key=" not in repr(config)
        assert "psk=" not in repr(config)


def test_the_examples_work_once_their_keys_exist(tmp_path: Path):
    for name in ("gateway", "client"):
        key_file(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.yaml").write_text((ROOT / f"config/{name}.example.yaml").read_text())
    assert [peer.name for peer in load_gateway(tmp_path / "gateway.yaml").peers] == ["alice", "branch-office"]
    assert len(load_client(tmp_path / "client.yaml").gateway.endpoints) == 2


@pytest.mark.parametrize(
    ("name", "fields"), [("gateway", GATEWAY_FIELDS + PEER_FIELDS), ("client", CLIENT_FIELDS + UPLINK_FIELDS)]
)
def test_every_field_stands_in_the_manual_and_in_the_example(name: str, fields: tuple[str, ...]):
    manual = (ROOT / "docs/configuration.md").read_text()
    example = (ROOT / f"config/{name}.example.yaml").read_text()
    for field in fields:
        assert re.search(rf"^\| `({field}|{field}\.[a-z_]+)` \|", manual, re.M), (
            f"{field} is not in the manual"
        )
        if field not in ("cost", "metered"):
            assert re.search(rf"(^|[ #-]){field}:", example, re.M), f"{field} is not in the example"


def pool_texts(config: GatewayConfig) -> list[tuple[str, str]]:
    assert config.pool is not None
    return [
        (text_of(family.version, first), text_of(family.version, last))
        for family in config.pool.families
        for first, last in family.ranges
    ]


def test_a_pool_is_what_nobody_else_has(directory: Path):
    """The gateway's own, network and broadcast addresses and those of peers are not in it."""
    without = GATEWAY.replace("    addresses: [10.8.0.3/32, 192.168.7.0/24]\n", "")
    config = gateway(directory, without + 'pool: [10.8.0.0/24, "fd00:8::/64"]\n')
    assert config.peers[1].addresses == ()
    assert pool_texts(config) == [
        ("10.8.0.3", "10.8.0.254"),
        ("fd00:8::3", "fd00:8::ffff:ffff:ffff:ffff"),
    ]
    config = gateway(directory, GATEWAY + "pool: [10.8.0.0/29]\n")
    assert pool_texts(config) == [("10.8.0.4", "10.8.0.6")]
    config = gateway(directory, GATEWAY + "pool: [10.8.0.252/30]\n")
    assert pool_texts(config) == [("10.8.0.253", "10.8.0.254")]
    assert gateway(directory, GATEWAY).pool is None


# --- what a broken file says --------------------------------------------------------------------------


def with_line(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("node_id: gw-1", "node_idd: gw-1", 1, "node_idd", "did you mean node_id?"),
        ("node_id: gw-1\n", "", 1, "node_id", "missing"),
        ("node_id: gw-1", "node_id: 'gw 1'", 1, "node_id", "letters"),
        ('listen: ["[::]:51820", "192.0.2.1:4500"]', "listen: []", 2, "listen", "51820"),
        ('listen: ["[::]:51820", "192.0.2.1:4500"]', "listen: 51820", 2, "listen", "not a list"),
        ('"192.0.2.1:4500"', '"[::]:51820"', 2, "listen[1]", "twice"),
        ('"192.0.2.1:4500"', '"vpn.example.net:1"', 2, "listen[1]", "address and port"),
        ('"192.0.2.1:4500"', '"192.0.2.1:70000"', 2, "listen[1]", "address and port"),
        ('"192.0.2.1:4500"', '"192.0.2.1"', 2, "listen[1]", "address and port"),
        ("10.8.0.1/24", "10.8.0.1", 4, "tun.addresses[0]", "prefix length"),
        ("10.8.0.1/24", "10.8.0.0/24", 4, "tun.addresses[0]", "10.8.0.1/24"),
        ("10.8.0.1/24", "10.8.0.1/33", 4, "tun.addresses[0]", "prefix length"),
        ('"fd00:8::1/64"', "10.8.0.9/16", 4, "tun.addresses[1]", "overlaps"),
        ("gw.key", "none.key", 5, "private_key_file", "jvpn keygen --out"),
        ("    public_key: " + KEY_A, "    public_key: tooshort", 8, "peers[0].public_key", "jvpn keygen"),
        (KEY_B, KEY_A, 11, "peers[1].public_key", "peer alice has the same public_key"),
        ("name: site", "name: alice", 10, "peers[1].name", "peer alice has the same name"),
        ("10.8.0.3/32", "10.8.0.2/32", 13, "peers[1].addresses[0]", "peer alice has 10.8.0.2/32 already"),
        ("10.8.0.3/32", "10.8.0.0/29", 13, "peers[1].addresses[0]", "already"),
        ("10.8.0.3/32", "10.8.0.1/32", 13, "peers[1].addresses[0]", "the gateway has 10.8.0.1/32 already"),
        ("192.168.7.0/24", "192.168.7.9/24", 13, "peers[1].addresses[1]", "192.168.7.9/32 or 192.168.7.0/24"),
        ("192.168.7.0/24", "0.0.0.0/0", 13, "peers[1].addresses[1]", "already"),
        ("site.psk", "no.psk", 12, "peers[1].psk_file", "jvpn keygen --psk --out"),
        ("    psk_file: site.psk", "    policy: strict", 12, "peers[1].policy", "policy_dir"),
        ("name: site", "name: [site]", 10, "peers[1].name", "quotes"),
        ("peers:", "workers: 0\npeers:", 6, "workers", "1"),
        ("peers:", "workers: many\npeers:", 6, "workers", "whole number"),
        ("peers:", "xdp: nativ\npeers:", 6, "xdp", "auto, native, generic, off"),
        ("peers:", "suites: [3]\npeers:", 6, "suites[0]", "2"),
        ("peers:", "interfaces: []\npeers:", 6, "interfaces", "auto"),
        ("peers:", "interfaces: [a/b]\npeers:", 6, "interfaces[0]", "ip -brief link"),
        ("peers:", "policy: strict\npeers:", 6, "policy", "policy_dir"),
        ("peers:", "policy: ../x\npeers:", 6, "policy", "a-z"),
        ("peers:", "policies: [default, strict]\npeers:", 6, "policies[1]", "policy_dir"),
        ("peers:", "policies: [default, default]\npeers:", 6, "policies[1]", "given twice"),
        ("    addresses: [10.8.0.3/32, 192.168.7.0/24]\n", "", 10, "peers[1].addresses", "there is no pool"),
        ("peers:", "pool: []\npeers:", 6, "pool", "[10.8.0.0/24]"),
        ("peers:", "pool: [10.9.0.0/24]\npeers:", 6, "pool[0]", "not part of a network of tun.addresses"),
        ("peers:", "pool: [10.0.0.0/8]\npeers:", 6, "pool[0]", "not part of a network of tun.addresses"),
        ("peers:", "pool: [10.8.0.0/25, 10.8.0.128/25]\npeers:", 6, "pool[1]", "same address family"),
        ("peers:", "pool: [10.8.0.2/31]\npeers:", 6, "pool[0]", "have all of 10.8.0.2/31"),
        ("peers:", "pool: [10.8.0.2]\npeers:", 6, "pool[0]", "a prefix"),
        ("    psk_file: site.psk", "    policies: [strict]", 12, "peers[1].policies[0]", "policy_dir"),
        ("peers:", "policy_dir: nowhere\npeers:", 0, "policy", "there are: none"),
        ("peers:", "\tpeers:", 6, "", "not valid YAML"),
    ],
)
def test_a_broken_gateway_file(directory: Path, old: str, new: str, line: int, field: str, says: str):
    error = refused(gateway, directory, with_line(GATEWAY, old, new))
    assert (error.line, error.field) == (line, field), str(error)
    assert says in str(error)


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("  public_key: " + KEY_A + "\n", "", 3, "gateway.public_key", "missing"),
        ('"vpn.example.net:51820"', "vpn.example.net", 4, "gateway.endpoints[0]", "host and port"),
        ('"vpn.example.net:51820"', '"2001:db8::1:51820"', 4, "gateway.endpoints[0]", "host and port"),
        ('"vpn.example.net:51820"', '"[192.0.2.1]:51820"', 4, "gateway.endpoints[0]", "host and port"),
        ('"vpn.example.net:51820"', '"192.0.2.999:51820"', 4, "gateway.endpoints[0]", "host and port"),
        ('"vpn.example.net:51820"', '"[2001:db8:0::1]:443"', 4, "gateway.endpoints[1]", "twice"),
        ("device: upB", "device: upA", 8, "uplinks[1].device", "twice"),
        ("device: upB", "device: jvpn0", 8, "uplinks[1].device", "tunnel itself"),
        ("device: upB", "devise: upB", 8, "uplinks[1].devise", "did you mean device?"),
        ("device: upB", "device: a_name_that_is_too_long", 8, "uplinks[1].device", "15"),
        ("preference: 200", "preference: -1", 7, "uplinks[0].preference", "0"),
        ("metered: yes", "metered: maybe", 9, "uplinks[1].metered", "true or false"),
        ("uplinks:", "routes: some\nuplinks:", 5, "routes", "split, full"),
        ("uplinks:", "routes: [10.0.0.1/8]\nuplinks:", 5, "routes[0]", "10.0.0.0/8"),
        ("uplinks:", "suite: 3\nuplinks:", 5, "suite", "2"),
        ("uplinks:", "tun: jvpn1\nuplinks:", 5, "tun", "name: value"),
    ],
)
def test_a_broken_client_file(directory: Path, old: str, new: str, line: int, field: str, says: str):
    error = refused(client, directory, with_line(CLIENT, old, new))
    assert (error.line, error.field) == (line, field), str(error)
    assert says in str(error)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_key_files_open_to_others_are_refused_with_the_command_that_mends_them(directory: Path, mode: int):
    (directory / "gw.key").chmod(mode)
    error = refused(gateway, directory, GATEWAY)
    assert (error.line, error.field) == (5, "private_key_file")
    assert f"chmod 600 {directory / 'gw.key'}" in error.remedy
    (directory / "gw.key").chmod(0o400)
    assert gateway(directory, GATEWAY)
    (directory / "site.psk").chmod(mode)
    assert refused(gateway, directory, GATEWAY).field == "peers[1].psk_file"


def test_no_error_repeats_a_key(directory: Path):
    secret = KEY_C[:-2]
    key_file(directory / "gw.key", secret)
    assert secret not in str(refused(gateway, directory, GATEWAY))
    key_file(directory / "gw.key")
    assert secret not in str(refused(gateway, directory, with_line(GATEWAY, KEY_A, secret)))


def test_what_is_no_key_file(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "dir").mkdir(0o700)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "binary").chmod(0o600)
    for name in ("fifo", "dir", "binary", "absent"):
        with pytest.raises(KeyFileError, match=name):
            read_key_file(tmp_path / name, "jvpn keygen")


@pytest.mark.parametrize(
    "text", ["", "A" * 44, KEY_A[:-1], KEY_A + "AAAA", KEY_A[:-1] + "!", format_key(bytes(32)), "é"]
)
def test_what_is_no_key(text: str):
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        parse_key(text)


@pytest.mark.parametrize("text", ["a:1", "[::1]:65535", "192.0.2.1:9", "ex-ample.net:443"])
def test_endpoints_print_as_they_are_written(text: str):
    assert str(parse_endpoint(text)) == text


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_gateway(tmp_path / "absent.yaml")
    assert "gateway.example.yaml" in str(caught.value)
    (tmp_path / "latin.yaml").write_bytes(b"node_id: gw\n# caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        load_client(tmp_path / "latin.yaml")
    assert (caught.value.line, "UTF-8" in str(caught.value)) == (2, True)


# --- policies -----------------------------------------------------------------------------------------


def test_without_a_directory_there_is_the_built_in_default():
    assert load_policies(None) == ({"default": Policy.default()}, {})


def test_a_broken_policy_does_not_hide_the_others_nor_become_a_default(tmp_path: Path):
    (tmp_path / "good.yaml").write_text("loss_floor: 0.3\n")
    (tmp_path / "default.yaml").write_text("loss_floor: 3\n")
    (tmp_path / "latin.yaml").write_bytes(b"\xe9")
    policies, broken = load_policies(tmp_path)
    assert set(policies) == {"good"}
    assert set(broken) == {"default", "latin"}
    assert broken["default"].line == 1


def test_the_shipped_policies_load_as_a_directory():
    policies, broken = load_policies(ROOT / "policies")
    assert set(policies) >= {"default", "mobile", "satellite", "strict"}
    assert broken == {}
