"""JVP/1: wire format, handshake, keys, replay windows. Sans-I/O: time and randomness are arguments."""
