"""Configuration files: read, checked, and given back as frozen values. Nothing is changed, opened or started here.

`load_gateway(path)`, `load_client(path)` and `load_policies(directory)`; a file that cannot be used raises ConfigError
(PolicyError for a policy), whose text is one line with file, line, field and remedy.
"""

from jvpn.config.client import ClientConfig, parse_client
from jvpn.config.errors import ConfigError
from jvpn.config.fleet import FleetConfig
from jvpn.config.gateway import GatewayConfig, parse_gateway
from jvpn.config.loader import load_client, load_gateway, load_policies
from jvpn.config.peers import PeerConfig

__all__ = [
    "ClientConfig",
    "ConfigError",
    "FleetConfig",
    "GatewayConfig",
    "PeerConfig",
    "load_client",
    "load_gateway",
    "load_policies",
    "parse_client",
    "parse_gateway",
]
