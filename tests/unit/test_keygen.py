"""`jvpn keygen` as a user sees it: files, output, exit status."""

import argparse
import base64
import json
import os
import stat
from pathlib import Path

import pytest

from jvpn.cli import keygen
from jvpn.config.keys import parse_key, read_key_file

#: RFC 7748 section 6.1, Alice.
ALICE_PRIVATE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")


def jvpn(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    keygen.add_parser(parser.add_subparsers())
    args = parser.parse_args(["keygen", *arguments])
    status = args.run(args)
    assert isinstance(status, int)
    return status


def public_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert jvpn("--public", str(path)) == 0
    return capsys.readouterr().out.strip()


def test_the_public_key_is_that_of_rfc_7748(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "alice.key"
    path.write_text(base64.b64encode(ALICE_PRIVATE).decode() + "\n")
    path.chmod(0o600)
    assert base64.b64decode(public_of(path, capsys)) == ALICE_PUBLIC


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_private_key_goes_to_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], umask: int
):
    path = tmp_path / "new.key"
    before = os.umask(umask)
    try:
        assert jvpn("--out", str(path)) == 0
    finally:
        os.umask(before)
    printed = capsys.readouterr().out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert printed.strip() == public_of(path, capsys)
    assert path.read_text().strip() not in printed


def test_an_existing_file_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "old.key"
    path.write_text("precious")
    link = tmp_path / "link.key"
    link.symlink_to(tmp_path / "elsewhere")
    for taken in (path, link):
        assert jvpn("--out", str(taken)) == 1
        captured = capsys.readouterr()
        assert str(taken) in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert path.read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert jvpn("--out", str(tmp_path / "no" / "such" / "place")) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_a_file_both_keys_are_printed_on_labelled_lines(capsys: pytest.CaptureFixture[str]):
    keys = []
    for _ in range(2):
        assert jvpn() == 0
        lines = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
        assert set(lines) == {"private_key", "public_key"}
        keys.append(lines)
    assert keys[0] != keys[1]
    assert len(parse_key(keys[0]["private_key"])) == 32


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.key"
    assert jvpn("--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"private_key", "public_key"}
    assert jvpn("--json", "--out", str(path)) == 0
    written = json.loads(capsys.readouterr().out)
    assert set(written) == {"public_key", "private_key_file"}
    assert jvpn("--json", "--public", str(path)) == 0
    assert json.loads(capsys.readouterr().out) == {"public_key": written["public_key"]}


def test_a_preshared_key_is_usable_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.psk"
    assert jvpn("--psk", "--out", str(path)) == 0
    assert capsys.readouterr().out == f"preshared_key_file: {path}\n"
    assert len(read_key_file(path, "")) == 32
    assert jvpn("--psk") == 0
    assert capsys.readouterr().out.startswith("preshared_key: ")


def test_no_public_key_of_what_is_no_private_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.key"
    assert jvpn("--out", str(path)) == 0
    capsys.readouterr()
    path.chmod(0o644)
    assert jvpn("--public", str(path)) == 1
    assert f"chmod 600 {path}" in capsys.readouterr().err
    assert jvpn("--public", str(tmp_path / "absent")) == 1
    assert "jvpn keygen --out" in capsys.readouterr().err
    assert jvpn("--public", str(path), "--out", str(tmp_path / "b")) == 1
    assert not (tmp_path / "b").exists()
