"""The `fleet` section: what it means, and that a broken one is one line saying where and what to do."""

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from jvpn.config import ConfigError, FleetConfig, load_gateway
from jvpn.config.fields import Endpoint
from jvpn.config.fleet import FLEET_FIELDS
from jvpn.config.keys import format_key

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse"

GATEWAY = """\
node_id: gw-1
listen: ["[::]:51820", "192.0.2.1:4500"]
tun:
  addresses: [10.8.0.1/24, "fd00:8::1/64"]
private_key_file: gw.key
fleet:
  etcd: ["https://10.0.0.1:2379", "https://[2001:db8::2]:2379"]
  key_file: fleet.key
"""
EVERYTHING = """\
  ca: ca.pem
  certificate: node.pem
  key: node.key
  user: jvpn
  password_file: password
  prefix: /site/jvpn
  lease_ttl_ms: 5_000
  return_addresses: [192.0.2.11, "2001:db8::11"]
  advertise: ["198.51.100.7:51820"]
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    def secret(name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)

    secret("gw.key", format_key(bytes([3]) * 32).encode())
    secret("fleet.key", bytes(range(32)))
    secret("short.key", bytes(31))
    secret("password", PASSWORD.encode() + b"\n")
    secret("empty", b"\n")
    for name in ("ca.pem", "node.pem", "node.key"):
        (tmp_path / name).write_text("PEM")
    return tmp_path


def fleet(directory: Path, text: str) -> FleetConfig | None:
    path = directory / "gateway.yaml"
    path.write_text(text)
    return load_gateway(path).fleet


def test_the_least_that_makes_a_fleet(directory: Path):
    config = fleet(directory, GATEWAY)
    assert config == FleetConfig(
        etcd=("https://10.0.0.1:2379", "https://[2001:db8::2]:2379"),
        key_file=directory / "fleet.key",
        prefix="/jvpn",
        lease_ttl_ms=3_000,
        # The wildcard is no address that a client could be sent to.
        advertise=(Endpoint("192.0.2.1", 4500),),
    )
    assert config is not None
    assert config.return_address(4) is None


def test_every_field_can_be_set(directory: Path):
    config = fleet(directory, GATEWAY + EVERYTHING)
    assert config is not None
    assert (config.ca, config.certificate, config.key) == tuple(
        directory / name for name in ("ca.pem", "node.pem", "node.key")
    )
    assert (config.user, config.password) == ("jvpn", PASSWORD)
    assert (config.prefix, config.lease_ttl_ms) == ("/site/jvpn", 5_000)
    assert config.return_address(4) == ip_address("192.0.2.11")
    assert config.return_address(6) == ip_address("2001:db8::11")
    assert config.advertise == (Endpoint("198.51.100.7", 51820),)
    assert PASSWORD not in repr(config)


def test_without_the_section_there_is_no_fleet(directory: Path):
    assert fleet(directory, GATEWAY.partition("fleet:")[0]) is None


def test_every_field_stands_in_the_manual_and_in_the_example():
    manual = (ROOT / "docs/configuration.md").read_text()
    example = (ROOT / "config/gateway.example.yaml").read_text()
    for field in FLEET_FIELDS:
        assert re.search(rf"^\| [^|]*`fleet\.{field}`", manual, re.M), f"{field} is not in the manual"
        assert re.search(rf"^#   {field}:", example, re.M), f"{field} is not in the example"


def test_the_section_of_the_example_is_read(directory: Path):
    example = (ROOT / "config/gateway.example.yaml").read_text()
    section = re.search(r"^# fleet:.*\n((?:#   .*\n)+)", example, re.M)
    assert section is not None
    for name in ("etcd-ca.pem", "etcd-client.pem", "etcd-client.key"):
        (directory / name).write_text("PEM")
    (directory / "etcd.password").write_text(PASSWORD)
    (directory / "etcd.password").chmod(0o600)
    text = GATEWAY.partition("fleet:")[0] + "fleet:\n" + section[1].replace("#   ", "  ")
    config = fleet(directory, text)
    assert config is not None
    assert len(config.etcd) == 3
    assert len(config.return_addresses) == 2


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("fleet:", "store: s.db\nfleet:", "store", "remove store, or fleet"),
        ("  key_file: fleet.key\n", "", "fleet.key_file", "missing"),
        ("fleet.key", "none.key", "fleet.key_file", "head -c 32 /dev/urandom"),
        ("fleet.key", "short.key", "fleet.key_file", "31 bytes instead of 32"),
        ("fleet.key", "ca.pem", "fleet.key_file", "chmod 600"),
        ('"https://10.0.0.1:2379"', '"https://etcd.example.net:2379"', "fleet.etcd[0]", "address"),
        ('"https://10.0.0.1:2379"', '"10.0.0.1:2379"', "fleet.etcd[0]", "https://192.0.2.1:2379"),
        ('"https://10.0.0.1:2379"', '"https://10.0.0.1"', "fleet.etcd[0]", "client port"),
        ('"https://10.0.0.1:2379"', '"https://10.0.0.1:70000"', "fleet.etcd[0]", "client port"),
        ('"https://10.0.0.1:2379"', '"https://u:p@10.0.0.1:2379"', "fleet.etcd[0]", "client port"),
        ('"https://10.0.0.1:2379"', '"https://[2001:db8::2]:2379"', "fleet.etcd[1]", "twice"),
        ("ca: ca.pem", "ca: none.pem", "fleet.ca", "PEM"),
        ("  key: node.key\n", "", "fleet.certificate", "add fleet.key"),
        ("  certificate: node.pem\n", "", "fleet.key", "add fleet.certificate"),
        ("  user: jvpn\n", "", "fleet.password_file", "add fleet.user"),
        ("  password_file: password\n", "", "fleet.password_file", "a user of etcd has a password"),
        ("password_file: password", "password_file: empty", "fleet.password_file", "one line"),
        ("password_file: password", "password_file: ca.pem", "fleet.password_file", "chmod 600"),
        ("/site/jvpn", "jvpn", "fleet.prefix", "/jvpn"),
        ("/site/jvpn", "/jvpn/", "fleet.prefix", "/jvpn"),
        ("5_000", "1_000", "fleet.lease_ttl_ms", "2000"),
        ("5_000", "2_500", "fleet.lease_ttl_ms", "multiple of 1000"),
        ("192.0.2.11", "gw-1", "fleet.return_addresses[0]", "without a router"),
        ("192.0.2.11", "0.0.0.0", "fleet.return_addresses[0]", "without a router"),
        ("192.0.2.11", "127.0.0.1", "fleet.return_addresses[0]", "no other machine"),
        ("192.0.2.11", "10.8.0.1", "fleet.return_addresses[0]", "inside the tunnel"),
        ('"2001:db8::11"', '"fe80::11"', "fleet.return_addresses[1]", "wider scope"),
        ('"2001:db8::11"', "192.0.2.12", "fleet.return_addresses[1]", "one of each version"),
        ('"198.51.100.7:51820"', '"0.0.0.0:51820"', "fleet.advertise[0]", "192.0.2.1:51820"),
        ('"198.51.100.7:51820"', '"gw.example.net:51820"', "fleet.advertise[0]", "address and port"),
    ],
)
def test_a_broken_section(directory: Path, old: str, new: str, field: str, says: str):
    text = GATEWAY + EVERYTHING
    assert text.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        fleet(directory, text.replace(old, new))
    error = caught.value
    assert error.field == field, str(error)
    assert says in str(error)
    assert "\n" not in str(error)
    assert PASSWORD not in str(error)
    assert error.line
