"""resolv.conf(5), where nobody else manages it: written with a mark, put back only while the mark is still there."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

MARK: Final = "# Written by jvpn while its tunnel is up; what was here before comes back with: jvpn down"
#: glibc reads no more.
MAX_SERVERS: Final = 3
_KEPT: Final = ("search", "domain", "options")


@dataclass(frozen=True, slots=True)
class Content:
    """`link`: where it points, when it is a symbolic link. `exists` False: there was none."""

    exists: bool
    text: str
    mode: int
    link: str | None

    @property
    def ours(self) -> bool:
        return self.text.startswith(MARK)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ResolvConf:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Content:
        link = os.readlink(self.path) if self.path.is_symlink() else None
        try:
            return Content(True, self.path.read_text(), self.path.stat().st_mode & 0o7777, link)
        except FileNotFoundError:
            return Content(link is not None, "", 0o644, link)

    @staticmethod
    def servers_in(text: str) -> list[str]:
        found = []
        for words in map(str.split, text.splitlines()):
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(str(ip_address(words[1].partition("%")[0])))
        return found

    def write(self, servers: Sequence[str]) -> None:
        """Name servers in place of those there; search domains and options stay. Raises OSError."""
        kept = [
            line for line in self.read().text.splitlines() if line.split()[:1] and line.split()[0] in _KEPT
        ]
        lines = [MARK, *(f"nameserver {server}" for server in servers[:MAX_SERVERS]), *kept]
        self._replace("\n".join(lines) + "\n", 0o644)

    def put_back(self, before: dict[str, Any]) -> None:
        """As it was, unless somebody else has written it since: then theirs is the newer truth. Raises OSError."""
        if self.path.exists() and not self.read().ours:
            return
        if before["link"] is not None:
            new = self._beside()
            new.unlink(missing_ok=True)
            new.symlink_to(before["link"])
            new.replace(self.path)
        elif before["exists"]:
            self._replace(before["text"], before["mode"])
        else:
            self.path.unlink(missing_ok=True)

    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.jvpn")

    def _replace(self, text: str, mode: int) -> None:
        new = self._beside()
        try:
            new.write_text(text)
            new.chmod(mode)
            new.replace(self.path)
        except OSError:
            # A mount point (ip netns exec, containers) cannot be replaced, only written.
            with contextlib.suppress(OSError):
                new.unlink()
            self.path.write_text(text)
