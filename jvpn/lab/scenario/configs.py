"""The configuration files of a scenario's gateways and client, as a user would write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from jvpn.config.keys import KEY_BYTES, format_key
from jvpn.lab.backends.topology import (
    CLIENT_INNER,
    CLIENT_INNER6,
    GATEWAY_INNER,
    GATEWAY_INNER6,
    HOST_BEHIND,
    PORT,
    gateway_number,
    outer,
)
from jvpn.lab.scenario.model import Scenario
from jvpn.policy.model import Policy
from jvpn.policy.parameters import BY_NAME
from jvpn.protocol.suites import x25519_public

ETCD_HOSTS: Final = {"gw1": "192.0.2.11", "gw2": "192.0.2.12", "router": "192.0.2.1"}
ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380
#: Times of a policy by which paths are judged, and what covers the judging.
PACE: Final = (
    "probe_interval_ms",
    "loss_window_ms",
    "latency_floor_ms",
    "jitter_floor_ms",
    "resend_window_ms",
)
#: Where a node that is asked for its keys writes them.
KEYLOG_FILE: Final = "session.keys"
#: Beyond that a death would be found later than scenarios wait for it.
MOST_SLOWED: Final = 5.0
_FAMILIES: Final = {"v4": 4, "v6": 6}


@dataclass(frozen=True)
class Secrets:
    """Of one run; fleets have one key for all gateways."""

    gateway: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES), repr=False)
    client: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES), repr=False)
    fleet: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    @property
    def gateway_public(self) -> str:
        return format_key(x25519_public(self.gateway))


def gateway_config(scenario: Scenario, name: str, node_id: str, folder: Path, secrets: Secrets) -> bytes:
    """YAML for `jvpn server` on that gateway."""
    fleet = scenario.topology.gateways > 1
    addresses = [f"{GATEWAY_INNER}/24", *(() if fleet else (f"{GATEWAY_INNER6}/64",))]
    of_client = [f"{CLIENT_INNER}/32", *(() if fleet else (f"{CLIENT_INNER6}/128",))]
    run_dir = folder / "gateway"
    config: dict[str, Any] = {
        "node_id": node_id,
        "listen": [f"[::]:{PORT}"],
        "interfaces": ["out"],
        "workers": 1,
        "tun": {"addresses": addresses},
        "private_key_file": "gateway.key",
        "run_dir": str(run_dir),
        "events": str(run_dir / "events.jsonl"),
        "policy_dir": str(folder / "policies"),
        "peers": [
            {
                "name": "laptop",
                "public_key": format_key(x25519_public(secrets.client)),
                "addresses": of_client,
            }
        ],
    }
    if fleet:
        urls = [f"http://{address}:{ETCD_CLIENT_PORT}" for address in ETCD_HOSTS.values()]
        own = f"192.0.2.{10 + gateway_number(name)}"
        config["fleet"] = {"etcd": urls, "key_file": "fleet.key", "return_addresses": [own]}
    else:
        config["store"] = str(run_dir / "sessions.db")
    return _yaml(config, scenario.gateway)


def policy(scenario: Scenario, time_factor: float = 1.0) -> bytes:
    """YAML of the policy "default". Where machines are *time_factor* times slower, so are those of its times that judge
    how quick a path is, unless the scenario gives them: else a busy machine would be a bad network."""
    factor = min(time_factor, MOST_SLOWED)
    usual = {name: getattr(Policy.default(), name) for name in PACE} if factor > 1 else {}
    slower = {name: min(round(value * factor), int(BY_NAME[name].high)) for name, value in usual.items()}
    return _yaml({"name": "default", **slower}, scenario.policy)


def client_config(scenario: Scenario, folder: Path, devices: Mapping[str, str], secrets: Secrets) -> bytes:
    """YAML for `jvpn client`; *devices*: role → interface name. Of the lab's own are `preferences`, by uplink, and
    `endpoints`, address families in their order."""
    topology = scenario.topology
    given = dict(scenario.client)
    preferences = given.pop("preferences", {})
    families = [_FAMILIES[name] for name in given.pop("endpoints", ["v4"])]
    run_dir = folder / "client"
    config: dict[str, Any] = {
        "private_key_file": "client.key",
        "gateway": {
            "public_key": secrets.gateway_public,
            "endpoints": [
                _endpoint(outer(name, version)) for name in topology.gateway_names for version in families
            ],
        },
        "uplinks": [
            {"device": devices[f"up{name}"], "preference": preferences.get(name, 100)}
            for name in topology.uplinks
        ],
        "dns": {"mode": "off"},
        "state_dir": str(folder / "state"),
        "run_dir": str(run_dir),
        "events": str(run_dir / "events.jsonl"),
    }
    if topology.gateways > 1:
        config["routes"] = ["10.8.0.0/24", f"{HOST_BEHIND}/32"]
    return _yaml(config, given)


def _endpoint(address: str) -> str:
    return f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"


def _yaml(ours: Mapping[str, Any], given: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump({**ours, **given}, sort_keys=False).encode()


def key_file(key: bytes) -> bytes:
    """What is in a private key's file."""
    return f"{format_key(key)}\n".encode()
