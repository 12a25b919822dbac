"""The systems that are measured side by side: each is a tunnel between the two namespaces of a lab network."""

import base64
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import debian
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from jvpn.lab.links import Network
from jvpn.lab.namespaces import Namespace
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, Tunnel, wait_for

MTU = 1400
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
INNER = ("10.9.0.2", "10.9.0.1")
INNER6 = ("fd00:9::2", "fd00:9::1")


class System(Protocol):
    """`cipher` is for people. `server` and `server6` are the far end's inner addresses."""

    name: str
    cipher: str
    server: str
    server6: str

    def start(self, network: Network[Any], work: Path) -> None: ...

    def stop(self) -> None: ...

    def pids(self) -> list[int]: ...


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes so far; one that has ended counts no more."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / CLOCK_TICKS


class Jvpn:
    def __init__(
        self, name: str = "jvpn", suite: int = 1, workers: int = 2, steering: bool = True, policy: str = ""
    ) -> None:
        self.name = name
        self.cipher = "AES-256-GCM" if suite == 1 else "ChaCha20-Poly1305"
        self.server, self.server6 = GATEWAY_INNER, GATEWAY_INNER6
        self._suite = suite
        self._workers = workers
        self._steering = steering
        self._policy = policy
        self._stack = ExitStack()

    def start(self, network: Network[Any], work: Path) -> None:
        xdp = "native" if self._steering else "off"
        self.tunnel = Tunnel(
            network, work, workers=self._workers, xdp=xdp, suite=self._suite, policy=self._policy
        )
        self._network = network
        self._stack.enter_context(self.tunnel)

    def stop(self) -> None:
        self._stack.close()

    def pids(self) -> list[int]:
        """All there is in the two namespaces while no traffic tool runs."""
        return [*self._network.client.pids(), *self._network.gateway.pids()]


class WireguardGo:
    name = "wireguard-go"
    cipher = "ChaCha20-Poly1305"
    server, server6 = INNER[1], INNER6[1]

    def __init__(self, program: Path) -> None:
        self._program = program
        #: The client's device, by which `wg` knows it.
        self.device = ""
        self._ends: list[subprocess.Popen[bytes]] = []

    def start(self, network: Network[Any], work: Path) -> None:
        # Interface names are one space for all namespaces: the control socket is named after them.
        tag = secrets.token_hex(3)
        keys = [X25519PrivateKey.generate() for _ in range(2)]
        self.device = f"wgc{tag}"
        ends = ((network.client, 0, self.device), (network.gateway, 1, f"wgs{tag}"))
        for namespace, number, device in ends:
            self._ends.append(
                namespace.popen(
                    [str(self._program), "-f", device],
                    env={**os.environ, "WG_PROCESS_FOREGROUND": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            control = Path("/var/run/wireguard") / f"{device}.sock"
            wait_for("wireguard-go", control.exists)
            self._configure(namespace, device, number, keys, network.service_ip, work)
            address(namespace, device, number)

    def _configure(
        self,
        namespace: Namespace,
        device: str,
        number: int,
        keys: list[X25519PrivateKey],
        there: str,
        work: Path,
    ) -> None:
        raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        secret = base64.b64encode(keys[number].private_bytes(*raw)).decode()
        public = base64.b64encode(keys[1 - number].public_key().public_bytes_raw()).decode()
        lines = f"[Interface]\nPrivateKey = {secret}\n"
        lines += f"{'ListenPort = 51830' if number else ''}\n[Peer]\nPublicKey = {public}\n"
        lines += f"AllowedIPs = {INNER[1 - number]}/32, {INNER6[1 - number]}/128\n"
        lines += "" if number else f"Endpoint = {there}:51830\n"
        file = work / f"{device}.conf"
        file.write_text(lines)
        file.chmod(0o600)
        namespace.run(["wg", "setconf", device, str(file)])

    def stop(self) -> None:
        end(self._ends)

    def pids(self) -> list[int]:
        return [process.pid for process in self._ends]


class OpenVpn:
    name = "openvpn"
    cipher = "AES-256-GCM"
    server, server6 = INNER[1], INNER6[1]

    def __init__(self, *, floats: bool = False) -> None:
        """`floats`: a server of many clients, which tells them by their peer ids wherever they come from."""
        self.floats = floats
        self._ends: list[subprocess.Popen[bytes]] = []

    def start(self, network: Network[Any], work: Path) -> None:
        marks = [self._identity(work, end) for end in ("client", "server")]
        common = ["openvpn", "--dev-type", "tun", "--dev", "ovpn0", "--tun-mtu", str(MTU), "--mssfix", "0"]
        common += ["--data-ciphers", self.cipher, "--disable-dco", "--txqueuelen", "1000", "--verb", "1"]
        common += ["--sndbuf", "4194304", "--rcvbuf", "4194304", "--auth-nocache"]
        for namespace, number, role in ((network.gateway, 1, "server"), (network.client, 0, "client")):
            words = [*common, "--cert", f"{work}/{role}.crt", "--key", f"{work}/{role}.pem"]
            words += ["--log", f"{work}/{role}.log", "--peer-fingerprint", marks[1 - number]]
            words += self._roles(network)[number]
            self._ends.append(namespace.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for namespace, number in ((network.gateway, 1), (network.client, 0)):
            wait_for("OpenVPN's device", partial(has, namespace, "ovpn0"), 30)
            if not self.floats:
                address(namespace, "ovpn0", number, six_only=True)

    def _roles(self, network: Network[Any]) -> tuple[list[str], list[str]]:
        """What the client's command line has beyond the common words, and what the server's has."""
        client = ["--remote", network.service_ip]
        server = ["--dh", "none", "--local", network.service_ip, "--port", "1194"]
        if self.floats:
            ours = ["--server", "10.9.0.0", "255.255.255.0", "--topology", "subnet"]
            ours += ["--server-ipv6", "fd00:9::/64", "--float", "--keepalive", "10", "60"]
            return [*client, "--client", "--nobind"], [*server, *ours]
        client += ["--tls-client", "--port", "1194", "--ifconfig", *INNER]
        return client, [*server, "--tls-server", "--ifconfig", *INNER[::-1]]

    def _identity(self, work: Path, name: str) -> str:
        """A key and a certificate; returns the fingerprint that the other end knows it by."""
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", f"{work}/{name}.pem", "-out", f"{work}/{name}.crt", "-days", "2", "-subj", f"/CN={name}",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        done = subprocess.run(
            ["openssl", "x509", "-in", f"{work}/{name}.crt", "-noout", "-fingerprint", "-sha256"],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip().partition("=")[2]

    def stop(self) -> None:
        end(self._ends)

    def pids(self) -> list[int]:
        return [process.pid for process in self._ends]


def ready(system: System, client: Namespace) -> None:
    """Wait until the far end answers through the tunnel."""
    wait_for(
        f"{system.name} to answer",
        lambda: _pings(client, system.server) and _pings(client, system.server6),
        40,
    )


def _pings(client: Namespace, address: str) -> bool:
    done = client.popen(
        ["ping", "-c", "1", "-W", "1", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return done.wait(10) == 0


def has(namespace: Namespace, device: str) -> bool:
    shown = namespace.popen(
        ["ip", "link", "show", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return shown.wait(10) == 0


def address(namespace: Namespace, device: str, number: int, *, six_only: bool = False) -> None:
    if not six_only:
        namespace.ip(f"addr add {INNER[number]}/24 dev {device}")
    namespace.ip(f"addr add {INNER6[number]}/64 dev {device} nodad", f"link set {device} mtu {MTU} up")


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 10
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    processes.clear()


def all_systems(folder: Path, *, steering: bool) -> dict[str, Callable[[], System]]:
    """What can be measured here, by name. Raises debian.NoPeer when a peer cannot be had."""
    program = debian.wireguard_go(folder)
    debian.installed("wg", "wireguard-tools")
    debian.installed("openvpn", "openvpn")
    return {
        "jvpn": lambda: Jvpn(steering=steering),
        "jvpn-suite2": lambda: Jvpn("jvpn-suite2", suite=2, steering=steering),
        "wireguard-go": lambda: WireguardGo(program),
        "openvpn": lambda: OpenVpn(),
    }
