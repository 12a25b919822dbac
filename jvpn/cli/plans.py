"""From checked configuration to the plans that the processes take."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from jvpn.agent.handshaking import Identity
from jvpn.agent.netlinks import default_route_devices
from jvpn.agent.process import ClientPlan, UplinkPlan
from jvpn.config import ClientConfig, ConfigError, GatewayConfig, load_policies
from jvpn.policy.model import Policy
from jvpn.protocol import addresses
from jvpn.protocol.handshake import Kem
from jvpn.protocol.suites import suite
from jvpn.supervisor.peers import Peer
from jvpn.supervisor.process import GatewayPlan

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
    )


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


def client_plan(config: ClientConfig, filename: str) -> ClientPlan:
    """Raises ConfigError when no uplink is there or the gateway's name cannot be resolved."""
    remote = _resolve(config, filename)
    if config.uplinks is None:
        devices = [device for device in default_route_devices() if device != config.tun_name]
        uplinks = [UplinkPlan(device, 100, remote) for device in devices]
    else:
        uplinks = [UplinkPlan(uplink.device, uplink.preference, remote) for uplink in config.uplinks]
    if not uplinks:
        remedy = "list the devices under uplinks"
        raise ConfigError(filename, 0, "uplinks", "no device has a default route", remedy)
    key = config.gateway.public_key
    kem = Kem.MLKEM768 if config.kem == "mlkem768" else Kem.NONE
    identity = Identity(suite(config.suite), config.private_key, key, config.gateway.psk, config.policy, kem)
    return ClientPlan(
        node_id=socket.gethostname(),
        identity=identity,
        uplinks=uplinks,
        policy=Policy.default(),
        tun_name=config.tun_name,
        routes=_routes(config),
        run_dir=config.run_dir,
        events_path=config.events,
        state_path=config.state_dir / "handshake-timestamp",
    )


def _resolve(config: ClientConfig, filename: str) -> tuple[str, int]:
    """The first of the gateway's endpoints that has an address."""
    problems = []
    for end in config.gateway.endpoints:
        try:
            found = socket.getaddrinfo(end.host, end.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            problems.append(f"{end.host}: {error.strerror or error}")
            continue
        return str(found[0][4][0]), end.port
    remedy = "check the name, or write an address"
    raise ConfigError(filename, 0, "gateway.endpoints", "; ".join(problems), remedy)


def _routes(config: ClientConfig) -> list[str] | None:
    """None: what the gateway's CONFIG names."""
    if config.routes.mode == "full":
        # Two halves of each family: they win over the default route and leave it in place.
        return ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]
    return [str(prefix) for prefix in config.routes.prefixes] or None
