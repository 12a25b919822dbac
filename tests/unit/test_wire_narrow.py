"""Bounds of the inner packet that lie between two tests: when senders are told of a path's size, how far headers go."""

import struct

import pytest
from lossless_pair import LossyPair
from test_narrow_path import NOW, df, narrow

from jvpn.protocol.offload import OffloadError, check


def test_while_the_size_of_a_path_is_not_certain_no_sender_is_told() -> None:
    pair = LossyPair()
    narrow(pair, settled=False)
    pair.client.tun.pending.append(bytes(10) + df(True, 1, 1400))
    pair.settle(NOW)
    assert pair.client.tun.written == []
    assert pair.gateway.numbers() == [1]
    narrow(pair, settled=True)
    pair.client.tun.pending.append(bytes(10) + df(True, 2, 1400))
    pair.settle(NOW)
    assert len(pair.client.tun.written) == 1
    assert pair.gateway.numbers() == [1]


def extended(count: int) -> bytes:
    """A DATA plaintext of kind NONE: IPv6 with `count` destination headers, then an unknown protocol."""
    headers = b"".join(bytes((60 if n < count - 1 else 99, 0)) + bytes(6) for n in range(count))
    return bytes(8) + struct.pack(">IHBB", 6 << 28, len(headers), 60, 64) + bytes(32) + headers


def test_at_most_eight_extension_headers_are_followed() -> None:
    check(extended(8))
    with pytest.raises(OffloadError, match="bad_inner"):
        check(extended(9))
