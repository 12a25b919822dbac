"""Scapy shows to its plaintext what a real gateway and client say, of every type, with the key log of either."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dissected import check, read
from every_type import Recording, recorded

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with recorded(tmp_path_factory.mktemp(f"everytype{os.getpid()}")) as made:
        yield made


@pytest.mark.parametrize("end", ["gateway", "client"])
def test_every_type_is_dissected_to_its_plaintext(recording: Recording, end: str, tmp_path: Path) -> None:
    for device, capture in recording.captures.items():
        assert capture.dropped == 0
        capture.save(tmp_path / f"{device}.pcap")
    check(read(sorted(tmp_path.glob("*.pcap")), recording.keylogs[end]))


def test_the_key_log_is_private_and_everybody_who_looks_is_warned(recording: Recording) -> None:
    for end, path in recording.keylogs.items():
        assert path.stat().st_mode & 0o777 == 0o600
        node = recording.lab.gateway if end == "gateway" else recording.lab.client
        assert f"WARNING: the keys of all sessions go to {path}" in node.log.read_text()
    assert str(recording.keylogs["gateway"]) in recording.lab.gateway.status()["keylog"]
    config = str(recording.lab.work / "gateway.yaml")
    doctor = recording.lab.jvpn("doctor", "-c", config, where=recording.lab.network.gateway)
    assert "warning  key log" in doctor.stdout
