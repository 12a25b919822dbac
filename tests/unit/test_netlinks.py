"""What the kernel's messages about links, addresses and routes are understood as; whole ones and broken ones."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.agent.netlinks import AddressNews, LinkNews, News, RouteNews, understood

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
UP, RUNNING, CARRIER = 1, 0x40, 0x10000
MAIN, LOCAL = 254, 255


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + bytes(-len(body) % 4)


def link(kind: int, flags: int, *, family: int = 0, name: bytes = b"wlan0\0") -> bytes:
    head = struct.pack("=BxHiII", family, 1, 7, flags, 0)
    return message(
        kind, head + attribute(4, struct.pack("=I", 1500)) + attribute(3, name) + attribute(26, bytes(9))
    )


def address(kind: int) -> bytes:
    return message(kind, struct.pack("=BBBBi", socket.AF_INET, 24, 0, 0, 7) + attribute(1, bytes(4)))


def route(*, bits: int = 0, table: int = MAIN, device: bool = True, kind: int = NEWROUTE) -> bytes:
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, bits, 0, 0, table, 3, 0, 1, 0)
    return message(
        kind, head + attribute(5, bytes(4)) + (attribute(4, struct.pack("=i", 7)) if device else b"")
    )


@pytest.mark.parametrize(
    ("data", "news"),
    [
        (link(NEWLINK, UP | RUNNING | CARRIER), [LinkNews("wlan0", 7, True)]),
        (link(NEWLINK, UP), [LinkNews("wlan0", 7, False)]),
        (link(NEWLINK, CARRIER), [LinkNews("wlan0", 7, False)]),
        (link(DELLINK, 0), [LinkNews("wlan0", None, False)]),
        # A port that leaves its bridge is still a device.
        (link(DELLINK, UP | CARRIER, family=7), []),
        (link(NEWLINK, UP | CARRIER, name=b"\0"), []),
        (address(NEWADDR), [AddressNews(7)]),
        (address(DELADDR), [AddressNews(7)]),
        (route(), [RouteNews(7, True)]),
        (route(bits=24), [RouteNews(7, False)]),
        (route(table=LOCAL), []),
        (route(device=False), []),
        (route(kind=DELROUTE), []),
        (
            link(NEWLINK, 0) + address(DELADDR) + route(),
            [LinkNews("wlan0", 7, False), AddressNews(7), RouteNews(7, True)],
        ),
    ],
)  # fmt: skip
def test_each_message_is_what_it_says(data: bytes, news: list[News]) -> None:
    assert list(understood(data)) == news


@given(st.sampled_from([link(NEWLINK, UP), address(NEWADDR), route()]), st.data())
def test_a_message_cut_short_ends_and_raises_nothing(whole: bytes, data: st.DataObject) -> None:
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if cut:
            cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    assert len(list(understood(bytes(cut)))) <= len(whole)
