"""Jumping VPN: the session is the anchor, transports come and go."""

__version__ = "0.1.0"
