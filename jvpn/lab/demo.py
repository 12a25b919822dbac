"""The main job, shown: a TCP transfer through the tunnel survives a dead uplink and then a silent one.

Everything is real: namespaces, kernel interfaces, the steering program, two workers, iperf3. It prints what happens
while it happens, then the session's timeline, and writes demo.json. Exit status 0 only when every claim held.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jvpn.lab.gauge import GaugeResult, StreamGauge
from jvpn.lab.iperf import Interval, Iperf, IperfResult
from jvpn.lab.links import two_uplinks
from jvpn.lab.namespaces import Lab, LabError
from jvpn.lab.running import GATEWAY_INNER, JVPN, Tunnel, wait_for
from jvpn.observability.admin import AdminError
from jvpn.observability.verify import audit_file

RTT_MS = 20
SECONDS = 16
BEFORE_FAULT_S = 3.0
AFTER_FAULT_S = 3.0
LINK_DOWN_BOUND_MS = RTT_MS + 50
BLACKHOLE_BOUND_MS = 400
NS = 1_000_000_000
BAR_GBIT_S = 0.1
PREFIX = "jvpn-demo-"
PINS = Path("/sys/fs/bpf/jvpn")


def say(text: str = "") -> None:
    print(text, flush=True)


class Show:
    """Prints a line for each interval of the transfer, with what client and gateway say at that moment."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def interval(self, seen: Interval) -> None:
        try:
            client, session = self._tunnel.client.status(), self._tunnel.session()
        except (LabError, AdminError, OSError, RuntimeError):
            return
        version = session["state_version"]
        bar = "▇" * min(40, round(seen.gbit_s / BAR_GBIT_S))
        say(
            f"  {seen.end_s:5.1f} s  {seen.gbit_s:5.2f} Gbit/s  {session['state']:<10} "
            f"v{version >> 40}.{version & (1 << 40) - 1:<3} {client['active'] or '-':<5} {bar}"
        )


@dataclass(slots=True)
class Faults:
    """When each fault struck and until when its effect is looked for, CLOCK_MONOTONIC nanoseconds."""

    link_down: tuple[int, int] = (0, 0)
    blackhole: tuple[int, int] = (0, 0)
    said: list[str] = field(default_factory=list)


def strike(tunnel: Tunnel) -> Faults:
    """Uplink in use goes down, comes back as a candidate; then the other one, now in use, goes silent."""
    faults = Faults()
    network = tunnel.network
    time.sleep(BEFORE_FAULT_S)
    first = tunnel.active_link()
    start = time.monotonic_ns()
    say(f"  --- uplink {first}: link down")
    network[first].down()
    time.sleep(AFTER_FAULT_S)
    faults.link_down = (start, time.monotonic_ns())
    say(f"  --- uplink {first}: link up again")
    network[first].up()
    wait_for(f"uplink {first} as a candidate", lambda: tunnel.validated(first))
    time.sleep(1.0)
    second = tunnel.active_link()
    start = time.monotonic_ns()
    say(f"  --- uplink {second}: silent (blackhole, both directions)")
    network[second].blackhole()
    time.sleep(AFTER_FAULT_S)
    faults.blackhole = (start, time.monotonic_ns())
    return faults


def idle_rtt_ms(tunnel: Tunnel) -> float:
    """Median round trip of ten pings through the idle tunnel."""
    out = tunnel.network.client.run(["ping", "-c", "10", "-i", "0.1", GATEWAY_INNER]).stdout
    times = sorted(float(line.split("time=")[1].split()[0]) for line in out.splitlines() if "time=" in line)
    return times[len(times) // 2]


def transfer(tunnel: Tunnel) -> tuple[Faults, GaugeResult, IperfResult]:
    client, gateway = tunnel.network.client, tunnel.network.gateway
    run = Iperf(client, gateway, GATEWAY_INNER, seconds=SECONDS, on_interval=Show(tunnel).interval)
    with StreamGauge(client, gateway, GATEWAY_INNER) as gauge:
        run.start()
        faults = strike(tunnel)
        result = run.wait()
        return faults, gauge.stop(), result


def worse(gaps: dict[str, float]) -> float:
    return round(max(gaps.values()), 1)


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(tunnel: Tunnel) -> dict[str, Any]:
    """Run the scenario and put everything that it showed into one dictionary."""
    rtt_ms = idle_rtt_ms(tunnel)
    before = tunnel.session()
    status = tunnel.gateway.status()
    faults, gauge, iperf = transfer(tunnel)
    after = tunnel.session()
    changes = [
        event
        for event in events_of(tunnel.gateway.events)
        if event["event"] == "STATE_CHANGE" and event["session_id"] == before["session_id"]
    ]
    count = [event["state_version"] & (1 << 40) - 1 for event in changes]
    findings = [str(found) for node in (tunnel.gateway, tunnel.client) for found in audit_file(node.events)]
    return {
        "rtt_ms": round(rtt_ms, 1),
        "link_down_gap_ms": worse(gauge.longest_silence_ms(*faults.link_down)),
        "blackhole_gap_ms": worse(gauge.longest_silence_ms(*faults.blackhole)),
        "link_down_gap_by_direction_ms": gauge.longest_silence_ms(*faults.link_down),
        "blackhole_gap_by_direction_ms": gauge.longest_silence_ms(*faults.blackhole),
        "new_handshakes": tunnel.gateway.status()["counters"].get("handshakes", 0) - 1,
        "session_id_before": before["session_id"],
        "session_id_after": after["session_id"],
        "versions_gapless": count == list(range(1, len(count) + 1)),
        "audit_findings": findings,
        "tcp_alive": iperf.alive(faults.blackhole[0] + NS),
        "tcp_error": iperf.error,
        "tcp_retransmits": iperf.retransmits,
        "gbit_s": round(iperf.gbit_s, 3),
        "xdp_mode": status["xdp_mode"],
        "workers": len(status["workers"]),
        "transitions": [
            {
                "version": event["state_version"] & (1 << 40) - 1,
                "from": event["from"],
                "to": event["to"],
                "reason_code": event["reason_code"],
                "ts_ms": event["ts_ms"],
            }
            for event in changes
        ],
    }


def claims(seen: dict[str, Any]) -> list[tuple[str, bool]]:
    """Everything the demo promises, and whether it held."""
    reasons = [step["reason_code"] for step in seen["transitions"]]
    return [
        ("the TCP stream lived through both faults", seen["tcp_alive"]),
        ("same SessionID before and after", seen["session_id_before"] == seen["session_id_after"]),
        ("no new handshake", seen["new_handshakes"] == 0),
        ("state versions without a gap", seen["versions_gapless"]),
        ("the auditor finds nothing in either event stream", not seen["audit_findings"]),
        ("two switches, each with a reason", reasons.count("REATTACH_OK") == 2),
        (
            f"link down: silent {seen['link_down_gap_ms']} ms, at most {LINK_DOWN_BOUND_MS}",
            seen["link_down_gap_ms"] <= LINK_DOWN_BOUND_MS,
        ),
        (
            f"blackhole: silent {seen['blackhole_gap_ms']} ms, at most {BLACKHOLE_BOUND_MS}",
            seen["blackhole_gap_ms"] <= BLACKHOLE_BOUND_MS,
        ),
        ("steering program in native mode on every interface", set(seen["xdp_mode"].values()) == {"native"}),
        ("two workers", seen["workers"] == 2),
    ]


def timeline(tunnel: Tunnel) -> None:
    width = str(shutil.get_terminal_size((100, 24)).columns)
    files = ["--events", str(tunnel.gateway.events), "--events", str(tunnel.client.events)]
    subprocess.run([*JVPN, "timeline", "--width", width, *files], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, default=Path("demo.json"), metavar="FILE", help="result (default %(default)s)"
    )
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("the demo makes network namespaces: run it as root", file=sys.stderr)
        return 1
    args.json.unlink(missing_ok=True)
    sweep()
    try:
        return show(args.json)
    except KeyboardInterrupt:
        say("\ninterrupted; everything it made is gone")
        return 130


def sweep() -> None:
    """Remove what a demo that was killed left: its folder with keys, and its pins."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(PINS / f"gw-{folder.name[-24:]}", ignore_errors=True)


def show(result: Path) -> int:
    """Run it, say what held, write `result`; the exit status."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as work, Lab("jvpn-demo") as lab:
        say(f"two namespaces, uplinks A and B, {RTT_MS} ms round trip each")
        network = two_uplinks(lab, rtt_ms=RTT_MS)
        with Tunnel(network, Path(work)) as tunnel:
            say("".join(f"  {line}\n" for line in tunnel.gateway.log.read_text().splitlines()).rstrip())
            wait_for("both uplinks to be validated", lambda: tunnel.validated("A", "B"))
            say(f"session {tunnel.session()['session_id']} is up; TCP transfer of {SECONDS} s through it")
            seen = measure(tunnel)
            say()
            timeline(tunnel)
    say()
    results = claims(seen)
    for text, held in results:
        say(f"  {'ok    ' if held else 'FAILED'}  {text}")
    for finding in seen["audit_findings"]:
        say(f"          {finding}")
    passed = all(held for _text, held in results)
    seen["passed"] = passed
    result.write_text(json.dumps(seen, indent=2) + "\n")
    say(f"\n{seen['gbit_s']} Gbit/s on average, faults included; figures in {result}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
