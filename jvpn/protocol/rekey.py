"""Rekey: a new phase secret from X25519 and, where the policy wants it, ML-KEM-768 (FIPS 203) beside it.

    REKEY_INIT      phase 4 ‖ kem 1 ‖ X25519 public 32 ‖ encapsulation key 1 184 (kem 1) or nothing
    REKEY_RESPONSE  phase 4 ‖ kem 1 ‖ X25519 public 32 ‖ ciphertext 1 088 (kem 1) or nothing

`phase` is the number of the phase to be made. Both values go whole into its derivation (`keys.next_phase`), so neither
can be changed unnoticed. Randomness is an argument, except for what ML-KEM's encapsulation draws by itself.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from jvpn.protocol.constants import KEY_SIZE
from jvpn.protocol.handshake import Kem
from jvpn.protocol.keys import SessionSecrets, next_phase
from jvpn.protocol.suites import x25519, x25519_public
from jvpn.protocol.wire import WireError

_FIXED = struct.Struct(">IB32s")
ENCAPSULATION_KEY_SIZE: Final = 1184
CIPHERTEXT_SIZE: Final = 1088
KEM_SEED_SIZE: Final = 64
#: Random bytes that `RekeyInitiator` takes.
INITIATOR_RANDOM_SIZE: Final = KEY_SIZE + KEM_SEED_SIZE


class RekeyInitiator:
    """The client's side of one rekey: `init_value` is sent, `finish` takes the answer."""

    def __init__(self, secrets: SessionSecrets, kem: Kem, randomness: bytes) -> None:
        """`randomness`: INITIATOR_RANDOM_SIZE fresh random bytes. Raises ValueError on another length."""
        if len(randomness) != INITIATOR_RANDOM_SIZE:
            raise ValueError(f"a rekey takes {INITIATOR_RANDOM_SIZE} random bytes, not {len(randomness)}")
        self._secrets = secrets
        self._kem = kem
        self._private = randomness[:KEY_SIZE]
        self._decapsulation = None
        encapsulation = b""
        if kem is Kem.MLKEM768:
            self._decapsulation = MLKEM768PrivateKey.from_seed_bytes(randomness[KEY_SIZE:])
            encapsulation = self._decapsulation.public_key().public_bytes_raw()
        self.phase_number = secrets.phase_number + 1
        fixed = _FIXED.pack(self.phase_number, kem, x25519_public(self._private))
        self.init_value = fixed + encapsulation

    def finish(self, response_value: bytes) -> SessionSecrets:
        """The secrets of the new phase. Raises WireError `bad_rekey`; the genuine answer is still taken after that."""
        kem, public, ciphertext = _parse(response_value, self.phase_number, CIPHERTEXT_SIZE)
        if kem is not self._kem:
            raise WireError("bad_rekey")
        try:
            dh = x25519(self._private, public)
        except ValueError as error:
            raise WireError("bad_rekey") from error
        kem_secret = b"" if self._decapsulation is None else self._decapsulation.decapsulate(ciphertext)
        return next_phase(
            self._secrets,
            dh=dh,
            kem_secret=kem_secret,
            rekey_init=self.init_value,
            rekey_response=response_value,
        )


@dataclass(frozen=True, slots=True)
class RekeyAnswer:
    """What the gateway made of a REKEY_INIT: the value to answer with and the secrets of the new phase."""

    response_value: bytes
    secrets: SessionSecrets = field(repr=False)


def answer(secrets: SessionSecrets, kem: Kem, init_value: bytes, private: bytes) -> RekeyAnswer:
    """The gateway's side. `private`: 32 fresh random bytes; `kem`: what the session's policy demands.

    Raises WireError `bad_rekey` for a value that is malformed, of another phase or of another KEM than demanded.
    """
    number = secrets.phase_number + 1
    asked, public, encapsulation = _parse(init_value, number, ENCAPSULATION_KEY_SIZE)
    if asked is not kem:
        raise WireError("bad_rekey")
    try:
        dh = x25519(private, public)
        kem_secret = ciphertext = b""
        if kem is Kem.MLKEM768:
            kem_secret, ciphertext = MLKEM768PublicKey.from_public_bytes(encapsulation).encapsulate()
    except ValueError as error:
        raise WireError("bad_rekey") from error
    response = _FIXED.pack(number, kem, x25519_public(private)) + ciphertext
    made = next_phase(secrets, dh=dh, kem_secret=kem_secret, rekey_init=init_value, rekey_response=response)
    return RekeyAnswer(response, made)


def _parse(value: bytes, number: int, kem_size: int) -> tuple[Kem, bytes, bytes]:
    if len(value) < _FIXED.size:
        raise WireError("bad_rekey")
    phase, kem, public = _FIXED.unpack_from(value)
    rest = value[_FIXED.size :]
    sizes = {int(Kem.NONE): 0, int(Kem.MLKEM768): kem_size}
    if phase != number or sizes.get(kem) != len(rest):
        raise WireError("bad_rekey")
    return Kem(kem), public, rest
