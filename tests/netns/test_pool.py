"""Two clients without addresses of their own: they reach each other, and keep what they were given over restarts."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from client_lab import ClientLab

from jvpn.lab.links import direct_links
from jvpn.lab.namespaces import Lab, Namespace
from jvpn.lab.running import GATEWAY_INNER, Node, keygen, wait_for
from jvpn.observability.admin import AdminError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]

PATIENCE_S = 60
#: The gateway's address towards the second client.
NEAR, FAR = "10.209.1.1", "10.209.1.2"


def second_host(lab: Lab, gateway: Namespace) -> Namespace:
    """Another machine, with a link of its own to the gateway."""
    host = lab.namespace("second")
    host.ip(
        "link set lo up",
        f"link add upZ type veth peer name netZ netns {gateway.name}",
        f"addr add {FAR}/24 dev upZ",
        "link set upZ up",
    )
    gateway.ip(f"addr add {NEAR}/24 dev netZ", "link set netZ up")
    return host


def second_config(here: ClientLab) -> Path:
    config = yaml.safe_load((here.work / "client.yaml").read_text())
    folder = here.work / "second"
    config |= {
        "private_key_file": "second.key",
        "uplinks": [{"device": "upZ"}],
        "dns": "off",
        "state_dir": str(here.work / "second-state"),
        "run_dir": str(folder),
        "events": str(folder / "events.jsonl"),
    }
    config["gateway"]["endpoints"] = [f"{NEAR}:{config['gateway']['endpoints'][0].rpartition(':')[2]}"]
    path = here.work / "second.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def given(here: ClientLab) -> dict[str, list[str]]:
    """What peers have out of the pool, as an operator sees it."""
    shown: list[dict[str, Any]] = here.gateway.ask("peers")
    return {peer["name"]: peer["pool_addresses"] for peer in shown}


def reaches(source: Namespace, address: str) -> bool:
    return source.run(["ping", "-c", "2", "-i", "0.1", "-W", "2", address], check=False).returncode == 0


def on_tun(host: Namespace, addresses: list[str]) -> bool:
    shown = host.run(["ip", "-o", "addr", "show", "dev", "jvpn0"], check=False).stdout
    return all(f" {address}/" in shown for address in addresses)


def test_clients_out_of_the_pool_reach_each_other_and_keep_their_addresses(lab: Lab, tmp_path: Path) -> None:
    network = direct_links(lab, "A")
    with ClientLab(network, tmp_path) as here:
        gateway, first, second = network.gateway, network.client, second_host(lab, network.gateway)
        gateway.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        tablet = keygen(here.work / "second.key")
        here.write_gateway(
            pool=["10.8.0.0/24", "fd00:8::/64"],
            peers=[
                {"name": "laptop", "public_key": here.client_key},
                {"name": "tablet", "public_key": tablet},
            ],
        )
        here.write_client()
        here.start_gateway()
        assert given(here) == {"laptop": [], "tablet": []}
        here.start_client()
        folder = here.work / "second"
        other = Node(second, "client", second_config(here), folder, folder / "events.jsonl")

        def up() -> bool:
            try:
                mine = given(here)
                # The gateway's word too: clients may not have noticed yet that it was away.
                standing = [session["state"] for session in here.gateway.ask("sessions")]
                if standing != ["ATTACHED", "ATTACHED"]:
                    return False
                ready = here.attached() and other.running() and other.status().get("state") == "ATTACHED"
                return ready and on_tun(first, mine["laptop"]) and on_tun(second, mine["tablet"])
            except AdminError:
                return False

        try:
            wait_for("both sessions", up, PATIENCE_S)
            before = given(here)
            assert all(len(addresses) == 2 for addresses in before.values())
            assert len({address for addresses in before.values() for address in addresses}) == 4
            for address in (GATEWAY_INNER, *before["tablet"]):
                assert reaches(first, address)
            assert all(reaches(second, address) for address in before["laptop"])

            assert here.gateway.stop() == 0
            here.start_gateway()
            wait_for("both sessions of the gateway that was started again", up, PATIENCE_S)
            assert given(here) == before
            wait_for("the first to reach the second", lambda: reaches(first, before["tablet"][0]), PATIENCE_S)
            wait_for(
                "the second to reach the first", lambda: reaches(second, before["laptop"][1]), PATIENCE_S
            )

            assert here.client.stop() == 0
            wait_for("the end of its session", lambda: len(here.gateway.ask("sessions")) == 1, PATIENCE_S)
            run_dir = ("--run-dir", str(here.work / "gateway"))
            refused = here.jvpn("peer", "release-address", "tablet", *run_dir)
            assert (refused.returncode, "has a session" in refused.stderr) == (1, True)
            done = here.jvpn("peer", "release-address", "laptop", *run_dir)
            assert done.stdout == f"laptop has given back {', '.join(before['laptop'])}\n"
            assert given(here) == {"laptop": [], "tablet": before["tablet"]}
        finally:
            other.stop()
