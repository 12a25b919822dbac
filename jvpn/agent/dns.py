"""The gateway's name servers while the tunnel stands, and what was there before when it ends, also after a crash.

Three ways, the first that the system has: systemd-resolved (resolvectl(1)), resolvconf(8), the resolv.conf file itself.
What was done is written to the state directory before it is done, so that whoever comes after a crash (the next start,
`jvpn down`) can take it back.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from jvpn.agent.plan import DnsPlan
from jvpn.agent.resolv_conf import ResolvConf

RECORD_NAME: Final = "dns.json"
TOOL_TIMEOUT_S: Final = 5.0
_RESOLVED: Final = Path("/run/systemd/resolve")

Run = Callable[[list[str], str], None]


def run_tool(command: list[str], text: str) -> None:
    """Run `command` with `text` on its standard input. Raises OSError when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not end in {TOOL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")


def available(mode: str) -> list[str]:
    """The ways to try, best first."""
    if mode != "auto":
        return [] if mode == "off" else [mode]
    found = []
    if shutil.which("resolvectl") and _RESOLVED.is_dir():
        found.append("resolved")
    if shutil.which("resolvconf"):
        found.append("resolvconf")
    return [*found, "file"]


class Dns:
    """Name servers by one of the ways. `apply` and `restore` may take seconds; both raise OSError."""

    def __init__(self, plan: DnsPlan, state_dir: Path, device: str, run: Run = run_tool) -> None:
        self._plan = plan
        self._record = state_dir / RECORD_NAME
        self._device = device
        self._run = run

    def apply(self, servers: Sequence[str]) -> str:
        """Use these name servers for every name; returns the way that worked, "off" when there is none to take."""
        problems = []
        for way in available(self._plan.mode):
            try:
                self._apply(way, servers)
            except OSError as error:
                problems.append(str(error))
                continue
            return way
        if problems:
            raise OSError("; ".join(problems))
        return "off"

    def _apply(self, way: str, servers: Sequence[str]) -> None:
        device = self._device
        if way == "resolved":
            # It forgets a link's settings with the link: nothing to take back.
            self._run(["resolvectl", "dns", device, *servers], "")
            self._run(["resolvectl", "domain", device, "~."], "")
        elif way == "resolvconf":
            self._write_record({"way": way, "device": device})
            text = "".join(f"nameserver {server}\n" for server in servers)
            self._run(["resolvconf", "-a", f"{device}.jvpn"], text)
        else:
            file = ResolvConf(self._plan.resolv_conf)
            before = file.read()
            if before.ours:
                file.write(servers)
                return
            self._write_record({"way": way, "path": str(file.path), "before": before.to_json()})
            file.write(servers)

    def restore(self) -> bool:
        """Put back what was there before `apply`, whichever process did that. False when there was nothing to do."""
        record = self._read_record()
        if record is None:
            return False
        if record.get("way") == "resolvconf":
            self._run(["resolvconf", "-d", f"{record['device']}.jvpn"], "")
        elif record.get("way") == "file":
            ResolvConf(Path(record["path"])).put_back(record["before"])
        self._record.unlink(missing_ok=True)
        return True

    def servers_outside(self) -> list[str]:
        """Name servers that do not depend on the tunnel, as far as this machine knows any."""
        record = self._read_record()
        now = ResolvConf(self._plan.resolv_conf).read()
        if now.ours and record is not None and "before" in record:
            return ResolvConf.servers_in(record["before"]["text"])
        found = ResolvConf.servers_in(now.text)
        if any(ip_address(server).is_loopback for server in found):
            with contextlib.suppress(OSError):
                # What the stub of systemd-resolved asks itself.
                found = ResolvConf.servers_in((_RESOLVED / "resolv.conf").read_text()) or found
        return found

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def _write_record(self, record: dict[str, Any]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        new = self._record.with_name(RECORD_NAME + ".new")
        with new.open("w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._record)


class DnsThread:
    """`Dns` in a thread of its own: its tools take their time and the session does not wait for them."""

    def __init__(self, dns: Dns, say: Callable[[str], None]) -> None:
        self._dns = dns
        self._say = say
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="jvpn-dns")
        self._servers: tuple[str, ...] = ()

    def use(self, servers: Sequence[str]) -> None:
        """Use these from now on; none: as it was before."""
        wanted = tuple(str(ip_address(server)) for server in servers if _is_address(server))
        if wanted != self._servers:
            self._servers = wanted
            self._executor.submit(self._apply, wanted)

    def _apply(self, servers: tuple[str, ...]) -> None:
        try:
            if not servers:
                self._dns.restore()
                return
            way = self._dns.apply(servers)
            if way != "off":
                self._say(f"name servers: {', '.join(servers)} (by {way})")
        except (OSError, ValueError, KeyError) as error:
            self._say(f"name servers could not be set: {error}")

    def close(self) -> None:
        """Put back what was before."""
        self.use(())
        self._executor.shutdown(wait=True)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
