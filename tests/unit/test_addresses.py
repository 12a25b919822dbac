"""Addresses as 16 bytes and back."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpn.protocol import addresses

#: Without those that are IPv4.
IPV6 = st.integers(1 << 48, (1 << 128) - 1).map(ipaddress.IPv6Address)


@given(st.ip_addresses(v=4))
def test_ipv4_is_mapped_and_comes_back_plain(address: ipaddress.IPv4Address) -> None:
    packed = addresses.to_bytes(str(address))
    assert packed == bytes(10) + b"\xff\xff" + address.packed
    assert addresses.is_ipv4(packed)
    assert addresses.to_text(packed) == str(address)
    assert addresses.for_socket(packed) == f"::ffff:{address}"
    assert addresses.to_bytes(addresses.for_socket(packed)) == packed
    assert addresses.split_endpoint(addresses.endpoint_text(packed, 4500)) == (str(address), 4500)


@given(IPV6)
def test_ipv6_comes_back(address: ipaddress.IPv6Address) -> None:
    packed = addresses.to_bytes(str(address))
    assert packed == address.packed
    assert not addresses.is_ipv4(packed)
    assert addresses.to_bytes(addresses.to_text(packed)) == packed
    assert addresses.to_text(packed) == addresses.for_socket(packed)
    host, port = addresses.split_endpoint(addresses.endpoint_text(packed, 65535))
    assert (addresses.to_bytes(host), port) == (packed, 65535)


def test_a_scope_is_left_out() -> None:
    assert addresses.to_bytes("fe80::1%eth0") == addresses.to_bytes("fe80::1")


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "1.2.3.256", "::1::", "10.0.0.1:80", "[::1]"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        addresses.to_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vpn.example.org:51820", ("vpn.example.org", 51820)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    assert addresses.split_endpoint(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:x",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[nonsense]:80",
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        addresses.split_endpoint(text)
