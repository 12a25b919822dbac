"""From a gateway's checked configuration to the plans that its processes take."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from jvpn.config import ConfigError, GatewayConfig, load_policies
from jvpn.config.fleet import FleetConfig
from jvpn.policy.model import Policy
from jvpn.protocol import addresses
from jvpn.session.pool import InnerPool
from jvpn.store.etcd_client import EtcdAccess
from jvpn.store.node_about import NodeAbout
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.plan import FleetPlan, GatewayPlan
from jvpn.supervisor.policies import PolicySet

DEFAULT_CONFIG: Final = Path("/etc/jvpn/gateway.yaml")
#: What a running gateway takes up of its configuration.
POLICY_FIELDS: Final = frozenset({"policy", "policies", "policy_dir", "policy_change"})
BPFFS = Path("/sys/fs/bpf/jvpn")


def gateway_plan(config: GatewayConfig, filename: str) -> GatewayPlan:
    """Raises ConfigError for a policy that cannot be used."""
    policies, broken = load_policies(config.policy_dir)
    peers = [
        Peer(
            peer.name,
            peer.public_key,
            tuple(str(prefix) for prefix in peer.addresses),
            _policy(policies, broken, peer.policy, filename),
            peer.psk,
            tuple(_policy(policies, broken, name, filename) for name in peer.policies),
        )
        for peer in config.peers
    ]
    networks = [ipaddress.ip_interface(str(address)).network for address in config.tun_addresses]
    return GatewayPlan(
        node_id=config.node_id,
        listen=[(_listen_address(end.host, filename), end.port) for end in config.listen],
        interfaces=None if config.interfaces is None else list(config.interfaces),
        xdp=config.xdp,
        workers=config.workers or len(os.sched_getaffinity(0)),
        tun_name=config.tun_name,
        addresses=[str(address) for address in config.tun_addresses],
        routes=tuple(str(network) for network in networks),
        private_key=config.private_key,
        peers=peers,
        default_policy=_policy(policies, broken, config.policy, filename),
        suites=frozenset(config.suites),
        store_path=config.store,
        run_dir=config.run_dir,
        events_path=config.events,
        pin_dir=BPFFS / config.node_id,
        capacity=max(64, 4 * len(peers)),
        dns=config.dns,
        pool=config.pool,
        offload=config.offload == "auto",
        fleet=None if config.fleet is None else _fleet(config.fleet, config.pool),
    )


def etcd_access(config: FleetConfig) -> EtcdAccess:
    """How the fleet's etcd is reached, as configured."""
    return EtcdAccess(
        config.etcd,
        ca=config.ca,
        certificate=config.certificate,
        key=config.key,
        user=config.user,
        password=config.password,
    )


def _fleet(config: FleetConfig, pool: InnerPool | None) -> FleetPlan:
    about = NodeAbout(
        advertise=tuple(str(endpoint) for endpoint in config.advertise),
        return_addresses=tuple(str(address) for address in config.return_addresses),
        pool="" if pool is None else pool.fingerprint,
    )
    return FleetPlan(etcd_access(config), config.key_file, config.prefix, config.lease_ttl_ms, about)


def policy_set(config: GatewayConfig, first: GatewayConfig) -> PolicySet:
    """What the files say of policies now; `first` is what the running gateway was started with."""
    policies, broken = load_policies(config.policy_dir)
    return PolicySet(
        default=config.policy,
        policies=policies,
        broken={name: str(error) for name, error in broken.items()},
        assigned={peer.public_key: (peer.policy, peer.policies) for peer in config.peers},
        mode=config.policy_change,
        waiting=_waiting(config, first),
    )


def _waiting(config: GatewayConfig, first: GatewayConfig) -> tuple[str, ...]:
    """Fields that differ and that a running gateway does not take up."""

    def apart(one: GatewayConfig) -> dict[str, object]:
        peers = [replace(peer, policy="", policies=()) for peer in one.peers]
        rest = {f.name: getattr(one, f.name) for f in fields(one)} | {"peers": peers}
        return {name: value for name, value in rest.items() if name not in POLICY_FIELDS}

    now, then = apart(config), apart(first)
    return tuple(name for name in now if now[name] != then[name])


def _policy(policies: dict[str, Policy], broken: Mapping[str, Exception], name: str, filename: str) -> Policy:
    if name in broken:
        raise ConfigError(filename, 0, "policy", str(broken[name]), "mend the policy file")
    if name not in policies:
        raise ConfigError(filename, 0, "policy", f"there is no policy {name}", "name one of policy_dir")
    return policies[name]


def _listen_address(host: str, filename: str) -> str:
    try:
        return addresses.for_socket(addresses.to_bytes(host))
    except ValueError:
        remedy = 'listen on an address of this machine, or on "[::]" for all'
        raise ConfigError(filename, 0, "listen", f"{host!r} is not an address", remedy) from None
