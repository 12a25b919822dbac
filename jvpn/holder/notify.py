"""A word to the service manager (sd_notify(3)): a datagram to the socket that NOTIFY_SOCKET names, if any does."""

import os
import socket


def ready() -> None:
    """Say that this process serves now. What it starts from here on is not to speak for it."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # A leading @ stands for the zero byte of an abstract address.
        manager.sendto(b"READY=1", address.replace("@", "\0", 1) if address[0] == "@" else address)
