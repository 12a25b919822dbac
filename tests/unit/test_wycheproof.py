"""Wycheproof's attack vectors, run through the project's own wrappers."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

from jvpn.protocol.suites import hkdf_expand, hkdf_extract, suite, x25519

VECTORS = Path(__file__).parents[2] / "../shared/vectors"


def groups(name: str) -> list[dict[str, Any]]:
    path = VECTORS / f"{name}_test.json"
    if not path.exists():
        pytest.skip("Wycheproof vectors are not beside the checkout")
    found: list[dict[str, Any]] = json.loads(path.read_text())["testGroups"]
    return found


def raw(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize(("name", "number"), [("aes_gcm", 1), ("chacha20_poly1305", 2)])
def test_aead(name: str, number: int) -> None:
    applicable = [g for g in groups(name) if (g["keySize"], g["ivSize"], g["tagSize"]) == (256, 96, 128)]
    verdicts = set()
    for case in (c for g in applicable for c in g["tests"]):
        key, nonce, aad, message, ciphertext, tag = raw(case, "key", "iv", "aad", "msg", "ct", "tag")
        aead = suite(number).aead(key)
        verdicts.add(case["result"])
        if case["result"] == "valid":
            assert aead.encrypt(nonce, message, aad) == ciphertext + tag, case["tcId"]
            assert aead.decrypt(nonce, ciphertext + tag, aad) == message, case["tcId"]
        else:
            with pytest.raises(InvalidTag):
                aead.decrypt(nonce, ciphertext + tag, aad)
    assert verdicts == {"valid", "invalid"}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_no_suite_takes_a_key_of_another_size(number: int, size: int) -> None:
    with pytest.raises(ValueError, match="key"):
        suite(number).aead(bytes(size))


@pytest.mark.parametrize("number", [0, 3, 255])
def test_there_are_two_suites(number: int) -> None:
    with pytest.raises(ValueError, match="suite"):
        suite(number)


def test_hkdf_sha256() -> None:
    verdicts = set()
    for case in (c for g in groups("hkdf_sha256") for c in g["tests"]):
        ikm, salt, info, okm = raw(case, "ikm", "salt", "info", "okm")
        prk = hkdf_extract(suite(1), salt, ikm)
        verdicts.add(case["result"])
        if case["result"] == "valid":
            assert hkdf_expand(suite(1), prk, info, case["size"]) == okm, case["tcId"]
        else:
            with pytest.raises(ValueError, match="HKDF"):
                hkdf_expand(suite(1), prk, info, case["size"])
    assert verdicts == {"valid", "invalid"}


def test_x25519() -> None:
    refused = 0
    for case in (c for g in groups("x25519") for c in g["tests"]):
        public, private, shared = raw(case, "public", "private", "shared")
        if any(shared):
            assert x25519(private, public) == shared, case["tcId"]
        else:
            refused += 1
            with pytest.raises(ValueError):  # noqa: PT011 - the message is the library's
                x25519(private, public)
    assert refused
