"""Where bcc finds kernel headers.

The three programs use stable definitions only (uapi, Ethernet, IP, UDP), so the headers of another kernel version
serve too when those of the running one are not to be had. Debian splits a kernel's headers into a `-common` tree
and one per flavour; bcc wants one tree, so both are laid over each other with symlinks.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

CACHE: Final = Path("/var/cache/jvpn")
_SOURCES: Final = Path("/usr/src")


def find(cache_dir: Path = CACHE, sources: Path = _SOURCES, release: str | None = None) -> Path | None:
    """The tree for BCC_KERNEL_SOURCE, or None when no headers are installed.

    The running kernel's come first, else the newest installed. `cache_dir` receives the merged tree.
    Raises OSError when that cannot be written.
    """
    release = release or os.uname().release
    built = Path("/lib/modules") / release / "build"
    if sources == _SOURCES and _complete([built]):
        return built
    for flavour in _installed(sources, release):
        layers = [flavour, *_common(flavour)]
        if _complete(layers):
            return _merged(layers, cache_dir) if len(layers) > 1 else flavour
    return None


def _common(flavour: Path) -> list[Path]:
    """The tree that a kernel's flavours share, if there is one; a flavour's name may have a dash: "cloud-amd64"."""
    words = flavour.name.split("-")
    trees = (flavour.with_name("-".join([*words[:n], "common"])) for n in range(len(words) - 1, 0, -1))
    return [tree for tree in trees if tree.is_dir()][:1]


def remedy() -> str:
    """What to install, for a person."""
    return (
        "install the running kernel's headers (apt-get install linux-headers-$(uname -r)), or, when the archive has "
        "none for it, any: apt-get install --no-install-recommends linux-headers-amd64 (linux-headers-arm64)"
    )


def _installed(sources: Path, release: str) -> list[Path]:
    """Trees of whole kernels, the running one's first, then the newest."""
    trees = [p for p in sources.glob("linux-headers-*") if not p.name.endswith("-common") and p.is_dir()]

    def rank(tree: Path) -> tuple[bool, list[int]]:
        return tree.name == f"linux-headers-{release}", [int(n) for n in re.findall(r"\d+", tree.name)]

    return sorted(trees, key=rank, reverse=True)


def _complete(layers: list[Path]) -> bool:
    needed = ("include/linux/kconfig.h", "include/uapi/linux/bpf.h", "include/generated/autoconf.h")
    return all(any((layer / name).is_file() for layer in layers) for name in needed)


def _merged(layers: list[Path], cache_dir: Path) -> Path:
    """Lay `layers` over each other, the first uppermost. Finished trees appear by rename, so a second process that
    builds the same one at once does no harm."""
    tree = cache_dir / f"kernel-headers-{layers[0].name.removeprefix('linux-headers-')}"
    if _complete([tree]):
        return tree
    cache_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{tree.name}.", dir=cache_dir))
    try:
        building.chmod(0o755)
        _overlay(building, layers)
        if tree.is_dir():  # left by packages that have gone since: its links lead nowhere
            shutil.rmtree(tree)
        building.rename(tree)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not _complete([tree]):
            raise
    return tree


def _overlay(target: Path, layers: list[Path]) -> None:
    for name in sorted({entry.name for layer in layers for entry in layer.iterdir()}):
        holders = [layer / name for layer in layers if (layer / name).exists()]
        if len(holders) > 1 and all(holder.is_dir() for holder in holders):
            (target / name).mkdir()
            _overlay(target / name, holders)
        elif holders:
            (target / name).symlink_to(holders[0].resolve())
