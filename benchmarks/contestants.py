"""Who recovers, side by side: each system with what the trials ask of it beyond a tunnel.

jvpn uses both uplinks by itself. The others know one endpoint and go where the kernel's routes lead: uplink A, and B
while A's route is gone. With `follow` a script pings over A and changes the route when three pings in a row fail.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import debian
from strongswan import CHILD, CONNECTION, Strongswan
from systems import Jvpn, OpenVpn, System, WireguardGo

from jvpn.lab.faults import EmulatedLink
from jvpn.lab.links import Network
from jvpn.lab.namespaces import LabError
from jvpn.lab.running import wait_for
from jvpn.observability.admin import AdminError

Seen = dict[str, float | str]
POLICIES = Path(__file__).parents[1] / "policies"

#: What one writes in ten minutes. A ping a second over the first uplink; three unanswered, and the second takes over.
#: And wireguard-go asks for its route anew only when one changes: a link that goes says nothing of that, so this does.
FOLLOW = """
ip -o monitor link | while read -r line; do
    case $line in *upA*DOWN*) ip route replace {service}/32 via {gateway} dev upB metric 200 ;; esac
done &
lost=0
while :; do
    if ping -q -c 1 -W 1 -I upA {service} >/dev/null 2>&1; then
        lost=0
        ip route del {service}/32 via {gateway} dev upB metric 50 2>/dev/null
        sleep 1
    else
        lost=$((lost + 1))
        [ $lost -lt 3 ] || ip route replace {service}/32 via {gateway} dev upB metric 50
        sleep 0.2
    fi
done
"""


class Contestant(Protocol):
    """`active` is the uplink that DATA goes out on, `ready` whether a trial may begin: B can take over.

    `behind_nat` is called when a NAT has been put before the client.
    """

    name: str
    system: System

    def start(self, network: Network[Any], work: Path) -> None: ...

    def stop(self) -> None: ...

    def active(self) -> str: ...

    def ready(self, *, alone: bool) -> bool: ...

    def forget(self, link: EmulatedLink) -> None: ...

    def behind_nat(self) -> None: ...

    def switch(self) -> None: ...

    def switch_back(self) -> None: ...

    def handshakes(self) -> int: ...

    def notes(self, t0_ms: int) -> Seen: ...


class JvpnContestant:
    """`switches_a_minute` lets trials of voluntary switches follow each other faster than the default policy would."""

    name = "jvpn"

    def __init__(self, switches_a_minute: int = 0) -> None:
        policy = ""
        if switches_a_minute:
            default = (POLICIES / "default.yaml").read_text()
            policy = default.replace(
                "max_switches_per_minute: 8", f"max_switches_per_minute: {switches_a_minute}"
            )
        self.system: System = Jvpn(policy=policy)

    def start(self, network: Network[Any], work: Path) -> None:
        self._network = network
        self.system.start(network, work)
        assert isinstance(self.system, Jvpn)
        self._tunnel = self.system.tunnel

    def stop(self) -> None:
        self.system.stop()

    def active(self) -> str:
        return self._tunnel.active_link()

    def ready(self, *, alone: bool) -> bool:
        """`alone`: there is nothing to take over."""
        links = [link.name for link in self._network]
        try:
            status = self._tunnel.client.status()
            return status["state"] == "ATTACHED" and (alone or self._tunnel.validated(*links))
        except (AdminError, LabError):
            return False

    def forget(self, link: EmulatedLink) -> None:
        """Trials follow each other within seconds and the client remembers losses for ten: a link that comes anew is
        a path without a history."""
        if self.active() != link.name:
            link.carrier_down()
            time.sleep(0.1)  # or its first probe would go while it is down, and be remembered as lost
            link.carrier_up()

    def behind_nat(self) -> None:
        """It finds out for itself."""

    def switch(self) -> None:
        other = next(link for link in self._network if link.name != self.active())
        self._tunnel.client.ask("switch", device=other.client_device)

    def switch_back(self) -> None:
        """Nothing to do: the next trial begins where this one ended."""

    def handshakes(self) -> int:
        return int(self._tunnel.gateway.status()["counters"].get("handshakes", 0))

    def notes(self, t0_ms: int) -> Seen:
        """What the client's own event stream says of the first switch since `t0_ms` (wall clock)."""
        for line in reversed(self._tunnel.client.event_lines()):
            event = json.loads(line)
            if event["ts_ms"] < t0_ms:
                break
            if event["event"] == "TRANSPORT_SWITCH":
                shown = {
                    key: event[key] for key in ("detect_ms", "reattach_ms") if event.get(key) is not None
                }
                return {**shown, "cause": event["reason_code"]}
        return {}


class Routed:
    """A system that goes where the kernel's routes lead."""

    def __init__(
        self, name: str, system: System, handshakes: Callable[["Routed"], int], *, follow: bool = False
    ) -> None:
        self.name = name
        self.system = system
        self._handshakes = handshakes
        self._follow = follow
        self._script: subprocess.Popen[bytes] | None = None

    def start(self, network: Network[Any], work: Path) -> None:
        self.network, self.work = network, work
        self.system.start(network, work)
        if self._follow:
            text = FOLLOW.format(service=network.service_ip, gateway=network["B"].gateway_ip)
            self._script = network.client.popen(["sh", "-c", text])

    def stop(self) -> None:
        if self._script is not None:
            os.killpg(self._script.pid, signal.SIGKILL)
            self._script.wait()
        self.system.stop()

    def active(self) -> str:
        shown = json.loads(
            self.network.client.run(["ip", "-j", "route", "get", self.network.service_ip]).stdout
        )
        return str(shown[0]["dev"]).removeprefix("up")

    def ready(self, *, alone: bool) -> bool:
        return self.active() == "A"

    def forget(self, link: EmulatedLink) -> None:
        """They remember nothing of a path."""

    def behind_nat(self) -> None:
        """Nothing to do for those that answer where the last packet came from."""

    def _preferred(self, verb: str) -> None:
        b = self.network["B"]
        self.network.client.ip(
            f"route {verb} {self.network.service_ip}/32 via {b.gateway_ip} dev {b.client_device} metric 50"
        )

    def switch(self) -> None:
        self._preferred("replace")

    def switch_back(self) -> None:
        self._preferred("del")

    def handshakes(self) -> int:
        return self._handshakes(self)

    def notes(self, t0_ms: int) -> Seen:
        return {}


class Mobike(Routed):
    """strongSwan: follows the routes itself, some time after they have changed."""

    def __init__(self, name: str, folder: Path, *, follow: bool = False) -> None:
        self._swan = Strongswan(folder)
        super().__init__(name, self._swan, _ike_handshakes, follow=follow)

    def ready(self, *, alone: bool) -> bool:
        """Only once IKE has followed the routes back too, with the one IKE_SA."""
        if not super().ready(alone=alone):
            return False
        shown = self._swan.ask("client", "--list-sas")
        return re.findall(r"local .* @ ([0-9.]+)\[", shown) == [self.network["A"].client_ip]

    def behind_nat(self) -> None:
        """Connect anew, and let IKE see its mapping before there is traffic: it looks for a NAT when it connects, asks
        after the mapping only where nothing has arrived for a while, and takes the first for the one it always had."""
        swan = self._swan
        swan.ask("client", "--terminate", "--ike", CONNECTION, "--force")
        seen = swan.natted_answers()
        swan.ask("client", "--initiate", "--ike", CONNECTION)
        wait_for("strongSwan to see its mapping", lambda: swan.natted_answers() > seen)
        swan.ask("client", "--initiate", "--child", CHILD)


def _wireguard_handshake(contestant: Routed) -> int:
    """Seconds since 1970 of the newest one: another value is another handshake."""
    assert isinstance(contestant.system, WireguardGo)
    shown = contestant.network.client.run(
        ["wg", "show", contestant.system.device, "latest-handshakes"]
    ).stdout
    return int(shown.split()[-1])


def _openvpn_handshakes(contestant: Routed) -> int:
    return (contestant.work / "server.log").read_text().count("Control Channel: TLS")


def _ike_handshakes(contestant: Routed) -> int:
    """IKE_SAs: a CHILD_SA that is made anew within one is none."""
    assert isinstance(contestant.system, Strongswan)
    return contestant.system.handshakes()


def contestants(peers: Path) -> dict[str, Callable[[], Contestant]]:
    """By name. Raises debian.NoPeer when one cannot be had."""
    program = debian.wireguard_go(peers)
    debian.installed("wg", "wireguard-tools")
    debian.installed("openvpn", "openvpn")
    swan = debian.strongswan(peers)
    return {
        "jvpn": JvpnContestant,
        "wireguard-go": lambda: Routed("wireguard-go", WireguardGo(program), _wireguard_handshake),
        "wireguard-go+script": lambda: Routed(
            "wireguard-go+script", WireguardGo(program), _wireguard_handshake, follow=True
        ),
        "openvpn": lambda: Routed("openvpn", OpenVpn(floats=True), _openvpn_handshakes),
        "strongswan": lambda: Mobike("strongswan", swan),
        "strongswan+script": lambda: Mobike("strongswan+script", swan, follow=True),
    }
