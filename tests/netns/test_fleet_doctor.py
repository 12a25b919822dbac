"""`jvpn doctor` on the machine of a gateway that is one of a fleet."""

from pathlib import Path

from jvpn.cli import checks_fleet
from jvpn.config import load_gateway
from jvpn.config.keys import format_key
from jvpn.lab.namespaces import Lab, Namespace


def found(inside: Namespace, folder: Path, fleet: str) -> dict[str, str]:
    """The level of each check."""
    for name, data in (("gw.key", format_key(b"k" * 32).encode()), ("fleet.key", b"f" * 32)):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    path = folder / "gateway.yaml"
    path.write_text(
        'node_id: gw1\nlisten: ["[::]:51820"]\ntun: {addresses: [10.8.0.1/24]}\nprivate_key_file: gw.key\n'
        f"fleet: {{key_file: fleet.key, {fleet}}}\n"
    )
    config = load_gateway(path)
    return {check.name: check.level for check in inside.call(lambda: checks_fleet.fleet(config))}


def test_each_thing_that_return_traffic_needs_is_looked_at(lab: Lab, tmp_path: Path) -> None:
    inside = lab.namespace("gw")
    inside.ip("link add lan type veth peer name wire", "link set wire up", "link set lan up")
    inside.ip("addr add 192.0.2.11/24 dev lan")
    for name in ("all", "lan"):
        inside.sysctl({f"net.ipv4.conf.{name}.{what}": 1 for what in ("rp_filter", "send_redirects")})
    inside.sysctl({"net.ipv4.ip_forward": 0})
    bad = found(inside, tmp_path, 'etcd: ["http://192.0.2.99:1"], return_addresses: [192.0.2.11]')
    assert bad == {
        "etcd": "problem",
        "etcd's links": "warning",
        "advertise": "warning",
        "return address v4": "ok",
        "rp_filter lan": "warning",
        "send_redirects lan": "warning",
        "fleet forwarding v4": "warning",
    }
    inside.sysctl({"net.ipv4.ip_forward": 1})
    for name in ("all", "lan"):
        inside.sysctl({f"net.ipv4.conf.{name}.{what}": 0 for what in ("rp_filter", "send_redirects")})
    good = 'etcd: ["https://127.0.0.1:1"], advertise: ["198.51.100.7:51820"]'
    assert found(inside, tmp_path, f"{good}, return_addresses: [192.0.2.11]") == {
        "etcd": "problem",
        "advertise": "ok",
        "return address v4": "ok",
    }
    assert (
        found(inside, tmp_path, f"{good}, return_addresses: [192.0.2.12]")["return address v4"] == "warning"
    )
    assert found(inside, tmp_path, good)["return address v4"] == "warning"
