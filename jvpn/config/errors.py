"""What a broken configuration raises."""

from jvpn.policy.source import SourceError


class ConfigError(SourceError):
    """A configuration that cannot be used: file, line, field, problem and remedy in one line."""
