"""An independent client, made from docs/protocol.md alone; imports nothing of jvpn."""
