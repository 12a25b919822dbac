"""Key logs: both ends tell of all keys that they make, and what is told is written privately or not at all."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_pair import CorePair, fast_policy
from test_adoption import restart

from jvpn.cli import checks_config
from jvpn.cli.status import client_text, gateway_text
from jvpn.lab.running import wait_for
from jvpn.observability import linefile
from jvpn.observability.keylog import KeyLogFile, open_keylog
from jvpn.protocol.keylog import line
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.suites import suite
from vagrant.traffic.keylog import KeyLog

SECRETS = SessionSecrets(suite(1), b"\x01" * 32, b"\x02" * 32, 3)
LINE = "JVP1 1 7 3 " + "01" * 32 + " " + "02" * 32


def of(keys: list[tuple[SessionSecrets, int]]) -> list[tuple[int, int]]:
    """(epoch, phase) in the order of being told."""
    return [(epoch, secrets.phase_number) for secrets, epoch in keys]


# --- who tells --------------------------------------------------------------------------------------------------------


def test_handshake_rekey_and_takeover_are_told_at_both_ends() -> None:
    pair = CorePair(fast_policy(rekey_interval_ms=10_000))
    pair.attach()
    assert set(of(pair.client_keys)) == set(of(pair.gateway_keys)) == {(1, 0), (1, 1)}
    pair.advance(11_000)
    assert of(pair.client_keys)[-1] == of(pair.gateway_keys)[-1] == (1, 2)
    pair.restart_gateway()
    pair.client_page.write_activity(0, 0, pair.now_ns, 0, 100, 0, 1)
    pair.wait_for(lambda: (2, 2) in of(pair.client_keys))
    assert {(epoch, phase) for epoch, phase in of(pair.gateway_keys) if epoch == 2} >= {(2, 2)}
    assert set(pair.client_keys) <= set(pair.gateway_keys)


def test_an_adopted_session_is_told_again() -> None:
    pair = CorePair(fast_policy())
    pair.attach()
    before = set(pair.gateway_keys)
    pair.gateway_keys.clear()
    restart(pair)
    assert set(pair.gateway_keys) == before


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_line_is_that_of_the_documented_format() -> None:
    assert line(SECRETS, 7) == LINE
    assert len(KeyLog.parse([LINE])) == 1


def test_it_is_appended_to_a_file_of_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for _ in range(2):
        log = KeyLogFile(path)
        log.note(SECRETS, 7)
        log.close(10)
        assert (log.written, log.lost) == (1, 0)
    assert path.read_text() == f"{LINE}\n{LINE}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def readable_by_others(path: Path) -> None:
    path.touch()
    path.chmod(0o640)


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").touch(0o600)
    path.symlink_to(path.parent / "elsewhere")


def somebody_elses(path: Path) -> None:
    path.touch(0o600)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (readable_by_others, "can be read by others"),
        (a_link, "is a symbolic link"),
        (os.mkfifo, "is no regular file"),
        (Path.mkdir, "Is a directory"),
        (somebody_elses, "can be read by others"),
    ],
)
def test_no_other_file_will_do(made: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    if made is somebody_elses and os.geteuid() != 0:
        pytest.skip("gives a file away: needs root")
    path = tmp_path / "keys"
    made(path)
    with pytest.raises(OSError, match=f"the key log {path}: {why}"):
        KeyLogFile(path)
    assert list(tmp_path.rglob("*")) != []
    assert not any(found.is_file() and found.read_bytes() for found in tmp_path.rglob("*"))


def test_nothing_is_written_where_somebody_put_another_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    log = KeyLogFile(path)
    path.unlink()
    readable_by_others(path)
    log.note(SECRETS, 7)
    log.close(10)
    assert (log.written, log.lost) == (0, 1)
    assert "1 lost" in log.warning
    assert path.read_bytes() == b""


def test_a_disk_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    write = os.write

    def slow(fd: int, data: Any) -> int:
        answers.wait()
        return write(fd, data)

    monkeypatch.setattr(linefile.os, "write", slow)
    log = KeyLogFile(tmp_path / "keys", capacity=4)
    for _ in range(100):
        log.note(SECRETS, 7)
    assert log.lost >= 95
    answers.set()
    log.close(10)
    assert log.lost + log.written == 100
    assert wait_for("the lines", lambda: (tmp_path / "keys").read_text() == f"{LINE}\n" * log.written)


# --- who is warned ----------------------------------------------------------------------------------------------------


def test_whoever_looks_is_warned(tmp_path: Path) -> None:
    said: list[str] = []
    log = open_keylog(tmp_path / "keys", said.append)
    assert log is not None
    log.close(10)
    assert said == [f"WARNING: {log.warning}"]
    assert open_keylog(None, said.append) is None
    assert str(tmp_path / "keys") in log.warning
    (check,) = checks_config.key_log({"keylog": log.warning})
    assert (check.level, check.found) == ("warning", log.warning)
    assert checks_config.key_log({"keylog": ""}) == checks_config.key_log(None) == []


@pytest.mark.parametrize("text", [gateway_text, client_text])
def test_status_begins_with_the_warning(text: Callable[[dict[str, Any]], str]) -> None:
    gateway = {
        "node_id": "g", "version": "1", "uptime_ms": 1, "listeners": [], "steering": "", "xdp_mode": {},
        "sessions": 0, "policy": "p", "workers": [],
    }  # fmt: skip
    client = {
        "session": None,
        "state": "BIRTH",
        "state_version": 0,
        "active": None,
        "policy": "",
        "paths": [],
    }
    answer: dict[str, Any] = gateway | client | {"offload": "", "asked_policy": "", "counters": {}}
    assert text(answer | {"keylog": "they can be read"}).startswith("WARNING   they can be read\n")
    assert "WARNING" not in text(answer | {"keylog": ""})
