"""Peers from Debian's archive, unpacked into a folder of their own: nothing on the system changes but apt's lists.

wireguard-go with its offloads stands in bookworm-backports, which a machine may not have among its sources. Where the
archive is, and which key signs it, is read from the machine's own configuration. strongSwan is bookworm's own.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path("/etc/apt")
STABLE = "bookworm"
BACKPORTS = "bookworm-backports"
#: The daemon, the tool that speaks to it, and the plugins: ciphers from OpenSSL, ESP in user space.
STRONGSWAN = [
    "strongswan-charon", "strongswan-libcharon", "strongswan-swanctl", "libstrongswan",
    "libstrongswan-standard-plugins", "libstrongswan-extra-plugins", "libcharon-extra-plugins",
]  # fmt: skip


class NoPeer(Exception):
    """A peer cannot be had; says why and what to do."""


@dataclass(frozen=True)
class Archive:
    uri: str
    signed_by: str


def archive() -> Archive:
    """The Debian archive that this machine uses. Raises NoPeer."""
    for file in sorted((SOURCES / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.+)$", stanza, re.MULTILINE))
            if "bookworm" in fields.get("Suites", "").split():
                return Archive(fields["URIs"].split()[0], fields.get("Signed-By", ""))
    lists = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.list"))]
    for line in (line for file in lists if file.exists() for line in file.read_text().splitlines()):
        found = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+bookworm\s", line)
        if found:
            signed = re.search(r"signed-by=(\S+)", found[1] or "")
            return Archive(found[2], signed[1] if signed else "")
    raise NoPeer("no source of Debian bookworm in /etc/apt: the peers come from its archive")


def wireguard_go(folder: Path) -> Path:
    """The program, from backports, unpacked into `folder` unless it is there. Raises NoPeer."""
    program = folder / "usr" / "bin" / "wireguard-go"
    if not program.exists():
        _unpack(folder, BACKPORTS, ["wireguard-go"])
    return program


def strongswan(folder: Path) -> Path:
    """`folder`, with strongSwan unpacked into it unless it is there. Raises NoPeer.

    Its plugins are looked for in /usr/lib/ipsec, wherever the programs are; of the libraries beyond libc it loads
    those of OpenSSL, libcap and systemd, which Debian's base has.
    """
    if not (folder / "usr" / "lib" / "ipsec" / "plugins" / "libstrongswan-kernel-libipsec.so").exists():
        _unpack(folder, STABLE, STRONGSWAN)
    return folder


def _unpack(folder: Path, suite: str, names: list[str]) -> None:
    source = archive()
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        (work / "lists" / "partial").mkdir(parents=True)
        option = f"[signed-by={source.signed_by}] " if source.signed_by else ""
        (work / "peers.list").write_text(f"deb {option}{source.uri} {suite} main\n")
        apt = [
            "apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={work}/peers.list",
            "-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={work}/lists", "-o", "APT::Sandbox::User=root",
        ]  # fmt: skip
        _run([*apt, "update"], work)
        _run([*apt, "download", *(f"{name}/{suite}" for name in names)], work)
        packages = {name: next(work.glob(f"{name}_*.deb"), None) for name in names}
        folder.mkdir(parents=True, exist_ok=True)
        for name, package in packages.items():
            if package is None:
                raise NoPeer(f"{suite} has no {name}")
            _run(["dpkg-deb", "--extract", str(package), str(folder)], work)


def installed(command: str, package: str) -> str:
    """The path of `command`, installing Debian's `package` where it is missing. Raises NoPeer."""
    if shutil.which(command) is None:
        _run(["apt-get", "-qq", "install", "--yes", "--no-install-recommends", package], Path("/"))
    found = shutil.which(command)
    if found is None:
        raise NoPeer(f"{package} brought no {command}")
    return found


def _run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(
        arguments,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise NoPeer(f"{' '.join(arguments[:1])} failed: {words[-1] if words else done.returncode}")
