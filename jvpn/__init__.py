"""Jumping VPN: the session is the anchor, transports come and go."""

from jvpn import compiled

__version__ = "0.1.0"

# Here, because no module that may be compiled is imported before this package.
compiled.use()
