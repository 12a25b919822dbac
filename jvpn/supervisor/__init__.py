"""The gateway process that decides: handshakes, reattach, session table, steering, events."""
