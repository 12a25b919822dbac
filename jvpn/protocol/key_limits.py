"""How far one AEAD key may be used (RFC 9001, section 6.6 and appendix B), and what of that is made use of."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """`sent`: datagrams sealed under one key; `forged`: datagrams that did not open under one."""

    sent: int
    forged: int

    @property
    def ask_sent(self) -> int:
        """From here on the client is asked for a rekey; it begins one by itself at half the limit."""
        return self.sent // 4 * 3

    @property
    def ask_forged(self) -> int:
        return self.forged // 2

    @property
    def stop_sent(self) -> int:
        """Nothing but PATH is sent from here on: that is not counted, and what is left is enough for it."""
        return self.sent - self.sent // 32


#: By suite number. AES-GCM: 2^28 datagrams of at most 2^11 bytes (B.1.1), 2^52 forgeries (6.6).
#: ChaCha20-Poly1305: more datagrams than a counter's sequence has (6.6), 2^36 forgeries (B.2).
KEY_LIMITS: Final = {1: KeyLimits(1 << 28, 1 << 52), 2: KeyLimits(1 << 48, 1 << 36)}
