"""From files on disk to configuration values and policies."""

from pathlib import Path
from typing import Final

from jvpn.config.client import ClientConfig, parse_client
from jvpn.config.errors import ConfigError
from jvpn.config.gateway import GatewayConfig, parse_gateway
from jvpn.policy.model import Policy, PolicyError, examine, load
from jvpn.policy.source import SourceError

#: More text than this is no configuration.
MAX_FILE_BYTES: Final = 16 * 2**20


def _text(path: Path, error: type[SourceError], remedy: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as refused:
        raise error(str(path), 0, "", f"cannot be read ({refused.strerror})", remedy) from refused
    if len(data) > MAX_FILE_BYTES:
        raise error(str(path), 0, "", f"is larger than {MAX_FILE_BYTES} bytes", "name the right file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as broken:
        line = data.count(b"\n", 0, broken.start) + 1
        raise error(str(path), line, "", "is not UTF-8 text", "save the file as UTF-8") from broken


def load_gateway(path: Path) -> GatewayConfig:
    """Raises ConfigError."""
    text = _text(path, ConfigError, "copy config/gateway.example.yaml there and adapt it")
    return parse_gateway(text, str(path), path.parent)


def load_client(path: Path) -> ClientConfig:
    """Raises ConfigError."""
    text = _text(path, ConfigError, "copy config/client.example.yaml there and adapt it")
    return parse_client(text, str(path), path.parent)


def read_policy(path: Path) -> tuple[Policy | None, list[PolicyError]]:
    """One policy file, or everything that is wrong with it."""
    try:
        return examine(_text(path, PolicyError, "name a policy file, and make it readable"), str(path))
    except PolicyError as error:
        return None, [error]


def load_policies(directory: Path | None) -> tuple[dict[str, Policy], dict[str, PolicyError]]:
    """Policies by name, and what is wrong with those that are broken, by the name they would have.

    The built-in default stands in only where `directory` is None or has no default.yaml: a broken default.yaml leaves
    no policy "default", because its operator wanted something else.
    """
    policies: dict[str, Policy] = {}
    broken: dict[str, PolicyError] = {}
    for path in sorted(directory.glob("*.yaml")) if directory is not None else ():
        try:
            policies[path.stem] = load(_text(path, PolicyError, "make it readable"), str(path))
        except PolicyError as error:
            broken[path.stem] = error
    if "default" not in broken:
        policies.setdefault("default", Policy.default())
    return policies, broken
