"""What the compiler left: loaded as it was made, and taken from a file only where nobody else can have written it."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from jvpn.holder import bpf_image, bpf_syscall
from jvpn.holder.bpf_image import Image, Program
from jvpn.holder.bpf_syscall import MapShape

SOCKET_FILTER, ARRAY, HASH = 1, 2, 1
MAPS = (MapShape("one", ARRAY, 4, 8, 1, 0), MapShape("two", HASH, 8, 32, 4, 0))


def instruction(operation: int, target: int = 0, source: int = 0, constant: int = 0) -> bytes:
    return struct.pack("=BBhi", operation, source << 4 | target, 0, constant)


EXIT = instruction(0x95)


def returns(value: int) -> bytes:
    return instruction(0xB7, 0, 0, value)


def refers(constant: int) -> bytes:
    """r1 = map; the second half is zero."""
    return instruction(0x18, 1, 1, constant) + bytes(8)


IMAGE = Image(MAPS, (Program("first", SOCKET_FILTER, refers(1) + refers(0) + returns(7) + EXIT),))


@pytest.fixture
def loaded() -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    programs, maps = bpf_image.load(IMAGE)
    yield programs, maps
    for descriptor in (*programs.values(), *maps.values()):
        os.close(descriptor)


def test_maps_and_programs_are_what_the_image_says(loaded: tuple[dict[str, int], dict[str, int]]) -> None:
    programs, maps = loaded
    assert [bpf_syscall.map_shape(descriptor) for descriptor in maps.values()] == list(MAPS)
    assert bpf_syscall.prog_info(programs["first"])[1:] == (SOCKET_FILTER, "first")
    assert bpf_syscall.prog_test_run(programs["first"], bytes(64)).verdict == 7


def test_descriptors_become_places_among_the_maps(loaded: tuple[dict[str, int], dict[str, int]]) -> None:
    _programs, maps = loaded
    # A constant that looks like a reference, where none can stand, and one that is none.
    number = instruction(0x18, 2, 0, maps["one"]) + bytes(8)
    code = refers(maps["two"]) + number + refers(maps["one"]) + returns(7) + EXIT
    made = bpf_image.of(maps, {"first": (SOCKET_FILTER, code)})
    assert made.maps == MAPS
    assert made.programs[0].code == refers(1) + number + refers(0) + returns(7) + EXIT
    with pytest.raises(ValueError, match="byte 0 refers to a map that is not known"):
        bpf_image.of({"one": maps["one"]}, {"first": (SOCKET_FILTER, code)})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads BPF programs")
@pytest.mark.parametrize(
    ("code", "says"),
    [(instruction(0xBF, 0, 5) + EXIT, "R5 !read_ok"), (refers(2) + returns(7) + EXIT, "not known")],
)
def test_what_is_refused_leaves_nothing_open(code: bytes, says: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises((OSError, ValueError), match=says):
        bpf_image.load(Image(MAPS, (IMAGE.programs[0], Program("other", SOCKET_FILTER, code))))
    assert os.listdir("/proc/self/fd") == before


def test_what_is_kept_is_found_again_under_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert bpf_image.kept(folder, "aa") is None
    bpf_image.keep(folder, "aa", IMAGE)
    assert bpf_image.kept(folder, "aa") == IMAGE
    assert bpf_image.kept(folder, "ab") is None
    (left,) = folder.iterdir()
    assert left.stat().st_mode & 0o777 == 0o600


def test_the_oldest_of_many_go(tmp_path: Path) -> None:
    digests = [f"{number:02}" for number in range(bpf_image.KEPT_IMAGES + 3)]
    for number, digest in enumerate(digests):
        bpf_image.keep(tmp_path, digest, IMAGE)
        os.utime(tmp_path / f"programs-{digest}", (number, number))
    # The newest has pushed one out before it was made old.
    found = [digest for digest in digests if bpf_image.kept(tmp_path, digest)]
    assert found == digests[3:]
    (tmp_path / "another").touch()
    bpf_image.keep(tmp_path, "new", IMAGE)
    assert (tmp_path / "another").exists()


@pytest.mark.parametrize("what", ["link", "group", "others", "torn", "other content"])
def test_what_somebody_else_may_have_written_or_nobody_can_read_is_not_taken(
    tmp_path: Path, what: str
) -> None:
    bpf_image.keep(tmp_path, "aa", IMAGE)
    path = tmp_path / "programs-aa"
    if what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "torn":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "other content":
        path.write_bytes(b"\x92\x01\x02")
    else:
        path.chmod(0o620 if what == "group" else 0o602)
    assert bpf_image.kept(tmp_path, "aa") is None
    bpf_image.keep(tmp_path, "aa", IMAGE)
    assert bpf_image.kept(tmp_path, "aa") == IMAGE


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: needs root")
def test_what_belongs_to_others_is_not_taken(tmp_path: Path) -> None:
    bpf_image.keep(tmp_path, "aa", IMAGE)
    os.chown(tmp_path / "programs-aa", 54_321, -1)
    assert bpf_image.kept(tmp_path, "aa") is None


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bpf_image.keep(tmp_path / "file" / "cache", "aa", IMAGE)
    assert bpf_image.kept(tmp_path / "file" / "cache", "aa") is None
