"""What stores on disk and in a fleet have in common: the key file, and a record as a row whose secrets are sealed."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jvpn.protocol.suites import hkdf_expand, suite
from jvpn.session.record import SessionRecord
from jvpn.session.table import State

KEY_BYTES = 32
_NONCE_BYTES = 12

#: session_id, client_public, name@version of the policy, owner_node, state, state_version, sealed secrets, inner_v4,
#: inner_v6, created_wall_ms, expires_wall_ms, expires_boot_ms, boot_id, stored_wall_ms, last_bound_attempt.
Row = tuple[
    bytes, bytes, str, str, str, int, bytes, str | None, str | None, int, int, int, str, int, int
]  # fmt: skip

#: Records that are looked at in one call of `expired`.
LOOKED_AT = 256

#: The AEAD that seals the secrets of the session with this id.
AeadOf = Callable[[bytes], AESGCM]


def one_key(key: bytes) -> AeadOf:
    """All records under `key` itself: a store that one node writes."""
    aead = AESGCM(key)
    return lambda _session_id: aead


def key_for_each(key: bytes) -> AeadOf:
    """Each session's records under a key of its own: random nonces of a whole fleet would come to their limit of 2^32
    under one key within days."""
    return lambda session_id: AESGCM(hkdf_expand(suite(1), key, b"jvp1 record" + session_id))


def derived(key: bytes, info: bytes) -> bytes:
    return hkdf_expand(suite(1), key, info)


def fleet_key(key: bytes) -> bytes:
    return derived(key, b"jvp1 fleet")


def row_of(record: SessionRecord, aead_of: AeadOf, random_bytes: Callable[[int], bytes] = os.urandom) -> Row:
    nonce = random_bytes(_NONCE_BYTES)
    sealed = nonce + aead_of(record.session_id).encrypt(nonce, record.secrets, record.session_id)
    return (
        record.session_id,
        record.client_public,
        f"{record.policy_name}@{record.policy_version}",
        record.owner_node,
        record.state._value_,
        record.state_version,
        sealed,
        record.inner_v4,
        record.inner_v6,
        record.created_wall_ms,
        record.expires_wall_ms,
        record.expires_boot_ms,
        record.boot_id,
        record.stored_wall_ms,
        record.last_bound_attempt,
    )


def record_of(row: Row, aead_of: AeadOf) -> SessionRecord | None:
    """None for a row that the key does not open, or that makes no sense."""
    session_id, client_public, policy, owner_node, state, state_version, sealed = row[:7]
    policy_name, _, policy_version = policy.rpartition("@")
    try:
        secrets = aead_of(session_id).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], session_id)
        return SessionRecord(
            session_id,
            client_public,
            policy_name,
            policy_version,
            owner_node,
            State(state),
            state_version,
            secrets,
            *row[7:],
        )
    except (InvalidTag, ValueError):
        return None


def expires_wall_ms(row: Row) -> int:
    return row[10]


def own_key(path: Path) -> bytes:
    """The key in a file of this node's alone; made at the first start. Raises OSError, ValueError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _checked(path, path.read_bytes())
    return _write(descriptor, os.urandom(KEY_BYTES))


def write_key(path: Path, key: bytes) -> None:
    """Raises OSError, also when there is such a file."""
    _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), key)


def _write(descriptor: int, key: bytes) -> bytes:
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def shared_key(path: Path) -> bytes:
    """The key in a file that all nodes of a fleet have. Never made here: each node would make another one.

    Raises OSError, ValueError: not there, not 32 bytes, or readable by others than its owner.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise ValueError(f"{path} has mode {mode:04o}: others can read the fleet's key; chmod 600 {path}")
        return _checked(path, file.read(KEY_BYTES + 1))


def _checked(path: Path, key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} does not hold a key of {KEY_BYTES} bytes")
    return key
