"""The loader as a process: what it pins, what it says when something is missing, and whose headers it finds."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_support import loaded_pins, remove_pins, run_loader, steering, workspace

from jvpn.holder import bpf_syscall as bpf
from jvpn.holder import headers, loader
from jvpn.protocol.constants import Role
from jvpn.supervisor.steering import NoSteering, Steering

__all__ = ["steering"]

SOURCES = Path(__file__).resolve().parents[2] / "bpf"
REQUIRED = {
    "amd64": ["include/generated/autoconf.h", "arch/x86/include/generated/asm/x.h"],
    "common": ["include/linux/kconfig.h", "include/uapi/linux/bpf.h", "arch/x86/include/asm/y.h"],
}


@pytest.fixture
def pins() -> Iterator[Path]:
    loaded_pins()  # skips where nothing can be loaded
    directory = workspace() / f"loader-{os.urandom(4).hex()}"
    yield directory
    remove_pins(directory)


@pytest.mark.netns
def test_pins_everything_and_says_so(pins: Path) -> None:
    status, report = run_loader("--pin-dir", str(pins), "--capacity", "1000")
    assert status == 0
    assert Path(report["pin_dir"]) == pins
    for name in loader.PROGRAMS:
        fd = bpf.obj_get(pins / name)
        assert bpf.prog_info(fd)[::2] == (report["programs"][name], name)
        os.close(fd)
    for name in loader.MAPS:
        fd = bpf.obj_get(pins / name)
        assert bpf.map_info(fd).id == report["maps"][name]
        os.close(fd)
    fd = bpf.obj_get(pins / "ids")
    assert bpf.map_info(fd).max_entries == 1000
    os.close(fd)


@pytest.mark.netns
def test_stale_pins_are_replaced(pins: Path) -> None:
    _, first = run_loader("--pin-dir", str(pins), "--capacity", "10")
    (pins / "ids_next").unlink(missing_ok=True)
    _, second = run_loader("--pin-dir", str(pins), "--capacity", "20")
    fd = bpf.obj_get(pins / "ids")
    assert bpf.map_info(fd).id == second["maps"]["ids"] != first["maps"]["ids"]
    os.close(fd)
    names = {path.name for path in pins.iterdir()} - {"maps.debug", "progs.debug"}
    assert names == {*loader.PROGRAMS, *loader.MAPS}


@pytest.mark.netns
def test_what_was_compiled_serves_the_next_start_too(pins: Path) -> None:
    capacity = "4096"
    _, asked = run_loader("--pin-dir", str(pins), "--capacity", capacity, "--compile")
    _, again = run_loader("--pin-dir", str(pins), "--capacity", capacity)
    assert (asked["compiled"], again["compiled"]) == (True, False)
    for name in loader.MAPS:
        kept, made = (bpf.obj_get(folder / name) for folder in (pins, loaded_pins()))
        assert bpf.map_shape(kept) == bpf.map_shape(made), name
        assert bpf.map_info(kept).id == again["maps"][name] != asked["maps"][name]
        os.close(kept)
        os.close(made)
    for name in loader.PROGRAMS:
        fd = bpf.obj_get(pins / name)
        assert bpf.prog_info(fd).id == again["programs"][name] != asked["programs"][name]
        os.close(fd)


@pytest.mark.netns
def test_a_failed_load_leaves_the_old_pins(pins: Path, tmp_path: Path) -> None:
    _, first = run_loader("--pin-dir", str(pins), "--capacity", "10")
    shutil.copytree(SOURCES, tmp_path / "bpf")
    with (tmp_path / "bpf" / "steer.c").open("a") as source:
        source.write("\nint broken( {\n")
    status, report = run_loader("--pin-dir", str(pins), "--source-dir", str(tmp_path / "bpf"))
    assert status == loader.EXIT_STATUS["compile"]
    assert report["stage"] == "compile"
    assert "bpf/steer.c" in report["error"], "LLVM's message names the file"
    fd = bpf.obj_get(pins / "jvp_steer")
    assert bpf.prog_info(fd).id == first["programs"]["jvp_steer"]
    os.close(fd)


@pytest.mark.netns
def test_what_the_verifier_refuses(pins: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "bpf")
    steer = tmp_path / "bpf" / "steer.c"
    guard = "(datagram.length < JVP_HEADER_SIZE || !take(&cursor, JVP_HEADER_SIZE))"
    assert guard in steer.read_text()
    steer.write_text(steer.read_text().replace(guard, "datagram.length < JVP_HEADER_SIZE"))
    status, report = run_loader("--pin-dir", str(pins), "--source-dir", str(tmp_path / "bpf"))
    assert status == loader.EXIT_STATUS["verify"]
    assert "invalid access to packet" in report["error"]
    assert len(report["error"]) < 3000, "the verifier's last words, not all of them"
    assert not pins.exists()


@pytest.mark.netns
def test_missing_sources(pins: Path, tmp_path: Path) -> None:
    status, report = run_loader("--pin-dir", str(pins), "--source-dir", str(tmp_path))
    assert status == loader.EXIT_STATUS["compile"]
    assert "--source-dir" in report["remedy"]


@pytest.mark.netns
def test_steering_without_pins_says_which(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path / "ids")):
        Steering(tmp_path)


@pytest.mark.netns
def test_a_new_supervisor_finds_what_the_old_one_wrote(steering: Steering) -> None:
    steering.put_id(b"12345678", 2, Role.INSTALLED)
    steering.put_prefix("10.77.0.2/32", 2)
    with Steering(loaded_pins()) as adopting:
        assert adopting.steering_ids() == [b"12345678"]
        assert adopting.prefixes() == ["10.77.0.2/32"]
        assert adopting.remove_id(b"12345678")
        assert not adopting.remove_id(b"12345678")
    assert steering.steering_ids() == []


@pytest.mark.netns
def test_a_full_map_says_so_and_still_replaces(pins: Path) -> None:
    run_loader("--pin-dir", str(pins), "--capacity", "4")
    with Steering(pins) as small:

        def fill() -> None:
            for n in range(1000):
                small.put_id(n.to_bytes(8, "big"), 2, Role.INSTALLED)

        with pytest.raises(OSError, match=r"steering map 'ids'.*full"):
            fill()
        present = small.steering_ids()
        small.put_id(present[0], 3, Role.ACTIVE, bytes(16), 1)
        assert sorted(small.steering_ids()) == sorted(present)


def test_no_steering_answers_every_verb() -> None:
    nothing = NoSteering()
    nothing.put_id(b"12345678", 2, Role.ACTIVE, bytes(16), 1)
    nothing.put_prefix("10.77.0.2/32", 2)
    assert (nothing.available, nothing.counters(), nothing.steering_ids(), nothing.prefixes()) == (
        False,
        {},
        [],
        [],
    )


# --- headers ------------------------------------------------------------------------------------------------------


def install(sources: Path, version: str, parts: tuple[str, ...] = ("amd64", "common")) -> None:
    for part in parts:
        for name in REQUIRED[part]:
            path = sources / f"linux-headers-{version}-{part}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(version)


def test_debian_trees_are_laid_over_each_other(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-56")
    tree = headers.find(tmp_path / "cache", tmp_path / "src", "6.1.0-56-amd64")
    assert tree == tmp_path / "cache" / "kernel-headers-6.1.0-56-amd64"
    for name in (*REQUIRED["amd64"], *REQUIRED["common"]):
        assert (tree / name).read_text() == "6.1.0-56", name
    assert headers.find(tmp_path / "cache", tmp_path / "src", "6.1.0-56-amd64") == tree, "the second time too"


def test_a_flavour_whose_name_has_a_dash_shares_the_same_tree(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-56")
    (tmp_path / "src" / "linux-headers-6.1.0-56-amd64").rename(
        tmp_path / "src" / "linux-headers-6.1.0-56-cloud-amd64"
    )
    tree = headers.find(tmp_path / "cache", tmp_path / "src", "6.1.0-56-cloud-amd64")
    assert tree is not None
    for name in (*REQUIRED["amd64"], *REQUIRED["common"]):
        assert (tree / name).read_text() == "6.1.0-56", name


def test_the_running_kernels_come_first_then_the_newest(tmp_path: Path) -> None:
    for version in ("6.1.0-9", "6.1.0-10", "5.10.0-30"):
        install(tmp_path / "src", version)
    for release, chosen in (("5.10.0-30-amd64", "5.10.0-30"), ("6.18.44", "6.1.0-10")):
        tree = headers.find(tmp_path / "cache", tmp_path / "src", release)
        assert tree is not None
        assert tree.name == f"kernel-headers-{chosen}-amd64"


def test_a_tree_whose_packages_were_removed_is_built_anew(tmp_path: Path) -> None:
    install(tmp_path / "src", "6.1.0-56")
    headers.find(tmp_path / "cache", tmp_path / "src", "x")
    shutil.move(tmp_path / "src", tmp_path / "moved")
    tree = headers.find(tmp_path / "cache", tmp_path / "moved", "x")
    assert tree is not None
    assert (tree / "include/linux/kconfig.h").is_file()


def test_no_headers_or_half_of_them(tmp_path: Path) -> None:
    assert headers.find(tmp_path / "cache", tmp_path / "src", "x") is None
    install(tmp_path / "src", "6.1.0-56", ("amd64",))
    assert headers.find(tmp_path / "cache", tmp_path / "src", "x") is None
    assert "linux-headers-" in headers.remedy()
