"""strongSwan with MOBIKE (RFC 4555): IKEv2 with a pre-shared key, ESP in UDP by its kernel-libipsec plugin.

The plugin encrypts in user space on a TUN device, so that a kernel without ESP will do. charon's paths are compiled in
(/usr/lib/ipsec for plugins, /run for its pid file): each charon has a mount namespace of its own, in which the unpacked
files lie over /usr/lib and /run is empty.
"""

import re
import secrets
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import debian
from systems import INNER, INNER6, address, end, has

from jvpn.lab.links import Network
from jvpn.lab.running import wait_for

DEVICE = "ipsec0"
CONNECTION = "bench"
CHILD = "inner"
PLUGINS = "random nonce openssl kdf kernel-libipsec kernel-netlink socket-default vici"

MOUNTED = """
mount -t overlay overlay -o "lowerdir=$0/lib:/usr/lib" /usr/lib && mount -t tmpfs tmpfs /run && exec "$@"
"""

#: The client asks a gateway that has been silent for a second, which is the shortest time; the gateway does not: its
#: questions would spare the client its own, and only those find out that a NAT has another mapping.
ASKING = "dpd_delay = 1s"

#: What helps it: after a change of routes it takes the best one, also while the old one still works; what is
#: not answered is asked again each half second. It would give up after a minute: no trial lasts as long. The uplinks
#: alone are paths; the gateway has one address, on its loopback.
DAEMON = """
charon {{
    load = {plugins}
    interfaces_use = {interfaces}
    prefer_best_path = yes
    retransmit_timeout = 0.5
    retransmit_base = 1
    retransmit_tries = 120
    filelog {{
        log {{
            path = {log}
            time_format = %H:%M:%S
            time_add_ms = yes
            flush_line = yes
            default = 1
        }}
    }}
    plugins {{
        vici {{
            socket = unix://{socket}
        }}
    }}
}}
swanctl {{
    load = random openssl
    socket = unix://{socket}
}}
"""

CONNECTIONS = """
connections {{
    {connection} {{
        version = 2
        mobike = yes
        proposals = aes256gcm16-prfsha256-x25519
        keyingtries = 0
        {more}
        local {{
            auth = psk
            id = {here}
        }}
        remote {{
            auth = psk
            id = {there}
        }}
        children {{
            {child} {{
                esp_proposals = aes256gcm16
                local_ts = {local}
                remote_ts = {remote}
                {start}
            }}
        }}
    }}
}}
secrets {{
    ike-bench {{
        secret = {secret}
    }}
}}
"""

ROLES = ("client", "gateway")


class Strongswan:
    name = "strongswan"
    cipher = "AES-256-GCM"
    server, server6 = INNER[1], INNER6[1]

    def __init__(self, folder: Path) -> None:
        """`folder`: where the packages are unpacked."""
        self._programs = folder.absolute() / "usr"
        self._ends: list[subprocess.Popen[bytes]] = []

    def start(self, network: Network[Any], work: Path) -> None:
        """Raises NoPeer where it cannot run at all."""
        self._network, self._work, secret = network, work, secrets.token_hex(32)
        for number, namespace in ((1, network.gateway), (0, network.client)):
            role = ROLES[number]
            self._write(number, network.service_ip, secret)
            self._try(role)
            charon = self._inside(role, "lib/ipsec/charon")
            self._ends.append(namespace.popen(charon, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for("charon to listen", (work / f"{role}.vici").exists)
            wait_for("charon's device", partial(has, namespace, DEVICE))
            address(namespace, DEVICE, number)
            self.ask(role, "--load-all", "--noprompt", "--file", f"{work}/{role}.swanctl")

    def _write(self, number: int, service: str, secret: str) -> None:
        role, work = ROLES[number], self._work
        gateway = role == "gateway"
        (work / f"{role}.strongswan").write_text(
            DAEMON.format(
                plugins=PLUGINS,
                interfaces="lo" if gateway else "upA,upB",
                log=self._log(role),
                socket=work / f"{role}.vici",
            )
        )
        inner = [f"{INNER[n]}/32,{INNER6[n]}/128" for n in (number, 1 - number)]
        file = work / f"{role}.swanctl"
        file.write_text(
            CONNECTIONS.format(
                more=f"local_addrs = {service}" if gateway else f"{ASKING}\n        remote_addrs = {service}",
                connection=CONNECTION,
                child=CHILD,
                here=role,
                there=ROLES[1 - number],
                local=inner[0],
                remote=inner[1],
                start="" if gateway else "start_action = start",
                secret=secret,
            )
        )
        file.chmod(0o600)

    def _try(self, role: str) -> None:
        done = subprocess.run(
            self._inside(role, "lib/ipsec/charon", "--version"), capture_output=True, text=True
        )
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise debian.NoPeer(
                f"strongSwan does not run here: {words[0] if words else done.returncode}. "
                "It needs root, mount namespaces, overlayfs and /dev/net/tun"
            )

    def _inside(self, role: str, program: str, *words: str) -> list[str]:
        """The command line of `program` (below /usr) as this role's."""
        environment = f"STRONGSWAN_CONF={self._work}/{role}.strongswan"
        shell = ["sh", "-c", MOUNTED, str(self._programs)]
        return ["unshare", "--mount", "env", environment, *shell, str(self._programs / program), *words]

    def handshakes(self) -> int:
        """IKE_SAs so far, as the gateway counts them."""
        return len(re.findall(r"IKE_SA .* established between", self._log("gateway").read_text()))

    def natted_answers(self) -> int:
        """Answers that told the client the address it is seen at; those of handshakes are none."""
        return len(re.findall(r"parsed INFORMATIONAL response .*NATD_D_IP", self._log("client").read_text()))

    def _log(self, role: str) -> Path:
        return self._work / f"{role}.charon.log"

    def ask(self, role: str, *words: str) -> str:
        """What swanctl says to these words. LabError when it fails."""
        namespace = self._network.gateway if role == "gateway" else self._network.client
        return namespace.run(self._inside(role, "sbin/swanctl", *words)).stdout

    def stop(self) -> None:
        end(self._ends)

    def pids(self) -> list[int]:
        return [process.pid for process in self._ends]
