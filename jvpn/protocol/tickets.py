"""Tickets and RESET: how a node that knows nothing of a session finds it, or says that it is gone.

    ticket       nonce 12 ‖ AES-256-GCM(fleet key, SessionID 16), AAD = steering_id                        44 bytes
    reset token  first 16 bytes of HMAC-SHA256(fleet key, "reset" ‖ SessionID)
    RESET        header ‖ reset token                                                                     36 bytes

A client carries a ticket for each installed index, and some for later ones, and knows its token; both are opaque to it.
All nodes of a fleet share the fleet key, 32 bytes.
"""

import hmac
from functools import lru_cache

from cryptography.exceptions import InvalidTag

from jvpn.protocol.constants import HEADER_SIZE, NONCE_SIZE, TICKET_SIZE, PacketType
from jvpn.protocol.suites import Aead, suite
from jvpn.protocol.wire import Header

TOKEN_SIZE = 16
NO_TICKET = bytes(TICKET_SIZE)


@lru_cache(maxsize=4)
def _under(fleet_key: bytes) -> Aead:
    """A node has one fleet key, and a REQUEST takes a ticket for each index: the cipher is made ready once."""
    return suite(1).aead(fleet_key)


def seal_ticket(fleet_key: bytes, steering_id: bytes, session_id: bytes, nonce: bytes) -> bytes:
    """`nonce`: 12 fresh random bytes."""
    return nonce + _under(fleet_key).encrypt(nonce, session_id, steering_id)


def open_ticket(fleet_key: bytes, steering_id: bytes, ticket: bytes) -> bytes | None:
    """The SessionID; None for a ticket that is not ours or belongs to another steering id."""
    if len(ticket) != TICKET_SIZE:
        return None
    try:
        return _under(fleet_key).decrypt(ticket[:NONCE_SIZE], ticket[NONCE_SIZE:], steering_id)
    except InvalidTag:
        return None


def ticket_of(request: bytes) -> bytes:
    """The ticket that a REATTACH_REQUEST carries; zeros when the client has none."""
    return request[HEADER_SIZE : HEADER_SIZE + TICKET_SIZE]


def reset_token(fleet_key: bytes, session_id: bytes) -> bytes:
    return suite(1).hmac(fleet_key, b"reset" + session_id)[:TOKEN_SIZE]


def reset_datagram(steering_id: bytes, token: bytes) -> bytes:
    """RESET, the answer to a REQUEST on `steering_id` whose session no longer exists."""
    return Header(PacketType.RESET, steering_id).encode() + token


def is_reset(datagram: bytes, token: bytes) -> bool:
    """Whether a RESET (whose header has been checked) shows the session's token."""
    return len(token) == TOKEN_SIZE and hmac.compare_digest(datagram[HEADER_SIZE:], token)
