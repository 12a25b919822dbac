"""From a client's checked configuration to the plan that its process takes; without what only gateways need."""

import socket

from jvpn.agent.handshaking import Identity
from jvpn.agent.plan import ClientPlan, DnsPlan, UplinkPlan
from jvpn.agent.tunnel_config import EVERYTHING
from jvpn.config import ClientConfig
from jvpn.policy.model import Policy
from jvpn.protocol.handshake import Kem
from jvpn.protocol.suites import suite


def client_plan(config: ClientConfig) -> ClientPlan:
    key = config.gateway.public_key
    kem = Kem.MLKEM768 if config.kem == "mlkem768" else Kem.NONE
    identity = Identity(suite(config.suite), config.private_key, key, config.gateway.psk, config.policy, kem)
    return ClientPlan(
        node_id=socket.gethostname(),
        identity=identity,
        endpoints=tuple((end.host, end.port) for end in config.gateway.endpoints),
        uplinks=_uplinks(config),
        policy=Policy.default(),
        tun_name=config.tun_name,
        routes=_routes(config),
        run_dir=config.run_dir,
        state_dir=config.state_dir,
        events_path=config.events,
        dns=DnsPlan(config.dns.mode, config.dns.resolv_conf),
        offload=config.offload == "auto",
    )


def _uplinks(config: ClientConfig) -> tuple[UplinkPlan, ...] | None:
    """None: every device with a default route."""
    if config.uplinks is None:
        return None
    return tuple(UplinkPlan(u.device, u.preference, u.cost, u.network) for u in config.uplinks)


def _routes(config: ClientConfig) -> tuple[str, ...] | None:
    """None: what the gateway's CONFIG names."""
    if config.routes.mode == "full":
        return EVERYTHING
    return tuple(str(prefix) for prefix in config.routes.prefixes) or None
