"""The client at a real gateway: what goes through the tunnel, what is left behind, devices and names that change."""

import ipaddress
import json
import os
import shlex
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from client_lab import BEYOND, BEYOND6, PORT, ClientLab
from streams import TcpEcho

from jvpn.agent.resolver import direct_lookup
from jvpn.lab.capture import Capture
from jvpn.lab.links import SERVICE_IP, SERVICE_IP6, Network, direct_links, uplinks
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER, GATEWAY_INNER6, JVPN, wait_for
from jvpn.observability.admin import AdminError, ask
from jvpn.observability.verify import audit_file

STRICT = Path(__file__).parents[2] / "policies" / "strict.yaml"


@pytest.fixture
def here(lab: Lab, tmp_path: Path) -> Iterator[ClientLab]:
    """Uplinks A and B, plain veth."""
    with ClientLab(direct_links(lab, "AB"), tmp_path) as made:
        yield made


def only_default_routes(network: Network[Any]) -> None:
    """As at home: a default route over each uplink, and nothing that says where the gateway is."""
    network.gateway.ip(f"addr add {BEYOND}/32 dev lo", f"addr add {BEYOND6}/128 dev lo nodad")
    for link in network:
        device, metric = link.client_device, 100 * link.number
        network.client.ip(
            f"route del {SERVICE_IP}/32 dev {device} metric {metric}",
            f"route del {SERVICE_IP6}/128 dev {device} metric {metric}",
            f"route add default via {link.gateway_ip} dev {device} metric {metric}",
            f"route add default via {link.gateway_ip6} dev {device} metric {metric}",
        )


def captures(network: Network[Any], expression: str) -> list[Capture]:
    return [Capture(network.client, link.client_device, expression) for link in network]


# What goes through the tunnel


@pytest.mark.parametrize("endpoint", [f"{SERVICE_IP}:{PORT}", f"[{SERVICE_IP6}]:{PORT}"], ids=["v4", "v6"])
def test_a_full_tunnel_takes_everything_but_its_own_datagrams(here: ClientLab, endpoint: str) -> None:
    only_default_routes(here.network)
    here.write_gateway()
    here.write_client([endpoint], routes="full")
    here.start()
    seen = captures(here.network, f"host {BEYOND} or host {BEYOND6}")
    assert here.ping(BEYOND)
    assert here.ping(BEYOND6)
    wait_for("both uplinks", lambda: here.validated("upA", "upB"))
    # By now every datagram of the client has had the chance to go astray; now those of the other uplink.
    done = here.jvpn("switch", "upB", "--run-dir", str(here.work / "client"))
    assert done.returncode == 0, done.stderr
    assert here.ping(BEYOND)
    assert here.ping(BEYOND6)
    assert [capture.stop() for capture in seen] == [[], []]


def test_a_split_tunnel_takes_its_prefixes_alone(here: ClientLab) -> None:
    only_default_routes(here.network)
    here.write_gateway()
    here.write_client(routes=[f"{BEYOND}/32", f"{GATEWAY_INNER6}/128"])
    here.start()
    through = Capture(here.network.client, "jvpn0", "icmp or icmp6")
    beside = Capture(here.network.client, "upA", f"icmp or (icmp6 and host {BEYOND6})")
    for address in (BEYOND, GATEWAY_INNER6, SERVICE_IP, BEYOND6):
        assert here.ping(address)
    inner, outer = through.stop(), beside.stop()
    assert len(inner) == 2 * 2 * 3, "three echoes and their replies for each of two"
    assert len(outer) == 2 * 2 * 3


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_remains_of_a_client(here: ClientLab, end: signal.Signals) -> None:
    only_default_routes(here.network)
    here.resolv_conf.write_text("search example.net\nnameserver 192.0.2.53\n")
    before = here.network_state()
    here.write_gateway(dns=[GATEWAY_INNER, GATEWAY_INNER6])
    config = here.write_client(routes="full")
    here.start()
    wait_for("the name servers", lambda: GATEWAY_INNER in here.resolv_conf.read_text())
    during = here.network_state()
    assert all(before[part] != during[part] for part in ("-4 addr", "-6 addr", "-4 route", "-6 route"))
    assert "search example.net" in during["resolv.conf"]
    here.client.process.send_signal(end)
    here.client.process.wait(20)
    if end is signal.SIGKILL:
        wait_for("the end of its worker", lambda: here.network_state()["links"] == before["links"])
        assert here.network_state()["resolv.conf"] == during["resolv.conf"], "nobody was there to put it back"
        down = here.jvpn("down", "-c", str(config), "--json")
        assert json.loads(down.stdout) == {"pid": None, "stopped": False, "name_servers_restored": True}
    assert here.network_state() == before
    assert not (here.work / "client-state" / "dns.json").exists()


def test_the_next_start_puts_back_what_a_killed_client_left(here: ClientLab) -> None:
    here.resolv_conf.write_text("nameserver 192.0.2.53\n")
    here.write_gateway(dns=[GATEWAY_INNER])
    here.write_client()
    here.start()
    wait_for("the name servers", lambda: GATEWAY_INNER in here.resolv_conf.read_text())
    os.kill(here.client.process.pid, signal.SIGKILL)
    here.client.process.wait(20)
    here.write_client(dns="off")
    here.start_client()
    wait_for("a session", here.attached)
    assert here.resolv_conf.read_text() == "nameserver 192.0.2.53\n"


# Restarts


def test_a_restarted_client_supersedes_its_session(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client()
    here.start()
    first = here.status()["session"]
    os.kill(here.client.process.pid, signal.SIGKILL)
    here.client.process.wait(20)
    here.start_client()
    wait_for("a session", here.attached)
    assert here.status()["session"] != first
    assert here.ping(GATEWAY_INNER)
    events = [json.loads(line) for line in here.gateway.event_lines()]
    ends = [e["reason_code"] for e in events if e["event"] == "STATE_CHANGE" and e["to"] == "TERMINATED"]
    assert ends == ["SUPERSEDED"]
    assert [s["session_id"] for s in here.gateway.ask("sessions")] == [here.status()["session"]]


def test_a_client_lives_through_a_restart_of_its_gateway(here: ClientLab) -> None:
    here.write_gateway(policy={"transport_loss_ttl_ms": 3_000, "recovery_window_ms": 2_000})
    here.write_client()
    here.start()
    here.gateway.stop()
    pid = here.client.process.pid
    wait_for(
        "that the client knows", lambda: here.status().get("active") is None or not here.attached(), 30.0
    )
    here.start_gateway()
    wait_for("a session again", lambda: here.attached() and here.ping(GATEWAY_INNER, 1), 60.0)
    assert here.client.process.poll() is None
    assert here.client.process.pid == pid


def worker_of(here: ClientLab) -> int:
    agent = here.client.process.pid
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    (worker,) = (p for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes())
    return int(worker)


def test_a_killed_worker_costs_neither_the_session_nor_its_streams(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client()
    here.start()
    session, first = here.status()["session"], worker_of(here)
    capture = Capture(here.network.client, "upA", f"udp dst port {PORT}", snap_bytes=62)
    with TcpEcho(here.network.client, here.network.gateway, GATEWAY_INNER) as stream:
        stream.goes_on()
        os.kill(first, signal.SIGKILL)
        wait_for("another worker", lambda: "another goes on" in here.client.log.read_text())
        stream.goes_on(50)
    # Ethernet, IPv4 and UDP take 42 bytes; then type at 0, steering id at 4, counter at 12.
    headers = [frame.data[42:62] for frame in capture.stop() if frame.outgoing]
    data = [header[4:20] for header in headers if header[0] == 0x20]
    assert len(data) > 50
    assert len(set(data)) == len(data), "a nonce was used twice"
    assert here.status()["session"] == session
    assert worker_of(here) != first
    assert os.getpriority(os.PRIO_PROCESS, worker_of(here)) == 0


# Endpoints


def test_an_endpoint_that_is_silent_is_passed_over(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client(["203.0.113.99:51820", f"{SERVICE_IP}:{PORT}"])
    for link in here.network:
        here.network.client.ip(f"route add 203.0.113.99/32 via {link.gateway_ip} metric {link.number}")
    here.start()
    wait_for("both uplinks by the endpoint that answered", lambda: here.validated("upA", "upB"))
    assert {here.path(device)["source"] for device in ("upA", "upB")} == {f"{SERVICE_IP}:{PORT}"}


def test_each_uplink_takes_the_endpoint_of_its_address_family(here: ClientLab) -> None:
    client = here.network.client
    client.ip("addr flush dev upB to 0.0.0.0/0", "addr flush dev upA to ::/0 scope global")
    here.write_gateway()
    here.write_client([f"[{SERVICE_IP6}]:{PORT}", f"{SERVICE_IP}:{PORT}"])
    here.start()
    wait_for("both uplinks", lambda: here.validated("upA", "upB"))
    sources = {device: here.path(device)["source"] for device in ("upA", "upB")}
    assert sources == {"upA": f"{SERVICE_IP}:{PORT}", "upB": f"[{SERVICE_IP6}]:{PORT}"}
    here.network["A"].down()
    wait_for("the session over IPv6", lambda: here.status()["active"] == "upB" and here.attached())
    assert here.ping(GATEWAY_INNER)


def test_an_address_of_the_gateway_that_dies_is_left_for_the_other_over_the_same_uplink(
    here: ClientLab,
) -> None:
    here.network["B"].down()
    # No traffic: the death shows when the path is probed.
    here.write_gateway(policy={"idle_probe_interval_ms": 1_000})
    here.write_client([f"{SERVICE_IP}:{PORT}", f"[{SERVICE_IP6}]:{PORT}"])
    here.start()

    def on_device() -> dict[str, Any]:
        return {path["source"]: path for path in here.status()["paths"] if path["device"] == "upA"}

    wait_for("both addresses", lambda: [p["validated"] for p in on_device().values()] == [True, True])
    session = here.status()["session"]
    (active,) = (source for source, path in on_device().items() if path["state"] == "active")
    dead = f"{SERVICE_IP}/32" if SERVICE_IP in active else f"{SERVICE_IP6}/128"
    here.network.gateway.ip(f"addr del {dead} dev lo")
    wait_for(
        "the other address",
        lambda: any(p["state"] == "active" and s != active for s, p in on_device().items()),
    )
    assert here.ping(GATEWAY_INNER)
    assert here.status()["session"] == session


def test_an_uplink_that_loses_its_address_is_left_and_used_again_when_it_has_one(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client()
    here.start()
    wait_for("both uplinks", lambda: here.validated("upA", "upB"))
    session, link = here.status()["session"], here.network["A"]
    here.network.client.ip("addr flush dev upA to 0.0.0.0/0")
    wait_for("the other uplink", lambda: here.status()["active"] == "upB" and here.attached())
    here.network.client.ip(
        f"addr add {link.spare_ip}/24 dev upA", f"route add {SERVICE_IP}/32 via {link.gateway_ip} metric 100"
    )
    wait_for("the first again, as preferred", lambda: here.status()["active"] == "upA" and here.attached())
    assert here.status()["session"] == session
    assert here.ping(GATEWAY_INNER)


def hosts_says(here: ClientLab, address: str) -> None:
    (here.work / "hosts").write_text(f"127.0.0.1 localhost\n{address} vpn.test\n")


def test_a_gateway_that_moved_is_found_by_its_name(here: ClientLab) -> None:
    """The hosts file stands for the name servers: the client's mount namespace has one of its own."""
    here.write_gateway()
    config = here.write_client([f"vpn.test:{PORT}"])
    here.start_gateway()
    for link in here.network:
        here.network.client.ip(f"route add 203.0.113.99/32 via {link.gateway_ip} metric {link.number}")
    hosts_says(here, "203.0.113.99")
    mount = f"mount --bind {here.work}/hosts /etc/hosts"
    command = f"{mount} && exec {shlex.join(JVPN)} client -c {config}"
    process = here.network.client.popen(["unshare", "--mount", "sh", "-c", command])
    with Capture(here.network.client, "upA", "host 203.0.113.99") as capture:
        capture.wait_for(lambda frame: frame.outgoing, timeout_s=30.0)
    hosts_says(here, SERVICE_IP)
    wait_for("the session at the new address", lambda: status_of(here).get("state") == "ATTACHED", 60.0)
    assert {path["source"] for path in status_of(here)["paths"]} == {f"{SERVICE_IP}:{PORT}"}
    process.terminate()
    assert process.wait(20) == 0


def status_of(here: ClientLab) -> dict[str, Any]:
    """Of a client that the test has started its own way; empty when it does not answer."""
    try:
        status: dict[str, Any] = ask(here.work / "client", {"command": "status"})
    except AdminError:
        return {}
    return status


def serve_names(opened: socket.socket, answers: dict[int, str]) -> None:
    """A name server for one name: one question for each type of address, then it ends."""
    opened.settimeout(20)
    for _ in answers:
        query, client = opened.recvfrom(512)
        (kind,) = struct.unpack_from(">H", query, len(query) - 4)
        data = ipaddress.ip_address(answers[kind]).packed
        record = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data
        header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        opened.sendto(header + query[12:] + record, client)


def test_names_are_asked_for_beside_the_tunnel(here: ClientLab) -> None:
    only_default_routes(here.network)
    here.write_gateway(dns=[GATEWAY_INNER])
    here.write_client(routes="full")
    here.start()
    server = here.network.gateway.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((SERVICE_IP, 53))
    thread = threading.Thread(target=serve_names, args=(server, {1: "192.0.2.1", 28: "2001:db8::1"}))
    thread.start()
    capture = Capture(here.network.client, "upB", f"udp port 53 and host {SERVICE_IP}")
    found = here.network.client.call(lambda: direct_lookup("vpn.test", [SERVICE_IP], ["upB"]))
    thread.join()
    server.close()
    assert found[0] == ["2001:db8::1", "192.0.2.1"]
    assert len(capture.stop()) == 4, "two questions, two answers"


# Devices that come and go


def plug_in(network: Network[Any], name: str, index: int) -> None:
    network.client.ip(
        f"link add up{name} index {index} type veth peer name net{name} netns {network.gateway.name}"
    )
    network[name].address()


def test_a_modem_may_come_late_go_and_come_back(lab: Lab, tmp_path: Path) -> None:
    network = direct_links(lab, "ABC")
    network.client.ip("link del upC")
    with ClientLab(network, tmp_path) as here:
        here.write_gateway(policy={"switch_cooldown_ms": 0})
        here.write_client()
        here.start()
        session = here.status()["session"]
        assert here.path("upC")["state"] == "dead"
        for index in (301, 302):
            plug_in(network, "C", index)
            wait_for("the modem as a candidate", lambda: here.validated("upA", "upB", "upC"))
            done = here.jvpn("switch", "upC", "--json", "--run-dir", str(tmp_path / "client"))
            assert json.loads(done.stdout)["switched"], done.stderr
            with Capture(network.client, "upC", f"udp port {PORT}") as capture:
                assert here.ping(GATEWAY_INNER)
                capture.wait_for(lambda frame: frame.outgoing and len(frame.data) > 100)
            network.client.ip("link del upC")
            wait_for("another uplink", lambda: here.status()["active"] == "upA" and here.attached())
            assert here.ping(GATEWAY_INNER)
        assert here.status()["session"] == session
        assert here.client.process.poll() is None


def test_three_uplinks_carry_one_session_whichever_two_fail(lab: Lab, tmp_path: Path) -> None:
    network = uplinks(lab, "ABC", rtt_ms=6)
    with ClientLab(network, tmp_path) as here:
        here.write_gateway()
        here.write_client()
        here.start()
        session = here.status()["session"]
        for survivor in "ABC":
            wait_for("all three", lambda: here.validated("upA", "upB", "upC"))
            for link in network:
                if link.name != survivor:
                    link.down()
            wait_for(f"{survivor} alone", lambda s=survivor: here.status()["active"] == f"up{s}")  # type: ignore[misc]
            assert here.ping(GATEWAY_INNER)
            for link in network:
                if link.name != survivor:
                    link.up()
        assert here.status()["session"] == session


def test_any_device_with_a_default_route_becomes_an_uplink(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client(uplinks="auto")
    here.start_gateway()
    here.start_client()
    assert here.status()["paths"] == []
    for link, device in zip(here.network, ("upA", "upB"), strict=True):
        here.network.client.ip(
            f"route add default via {link.gateway_ip} dev {device} metric {100 * link.number}"
        )
        wait_for(f"the session over {device}", lambda d=device: here.validated(d))  # type: ignore[misc]
    assert here.ping(GATEWAY_INNER)


# Commands


def test_up_down_switch_and_terminate(here: ClientLab) -> None:
    here.write_gateway(policy={"switch_cooldown_ms": 60_000})
    config = here.write_client()
    run_dir = str(here.work / "client")
    here.start_gateway()
    up = here.jvpn("up", "-c", str(config), "--wait", "--json")
    assert up.returncode == 0, up.stderr
    status = json.loads(up.stdout)
    assert status["state"] == "ATTACHED"
    again = here.jvpn("up", "-c", str(config))
    assert again.returncode == 1
    assert "runs already" in again.stderr
    second = here.jvpn("client", "-c", str(config))
    assert second.returncode == 1
    assert "runs already" in second.stdout
    wait_for("the other uplink", lambda: any(p["validated"] for p in status_of(here)["paths"][1:]))
    assert here.jvpn("switch", "upB", "--run-dir", run_dir).returncode == 0
    limited = here.jvpn("switch", "upA", "--run-dir", run_dir)
    assert limited.returncode == 1
    assert "SWITCH_RATE_LIMITED" in limited.stderr
    refused = here.jvpn("switch", "nosuch0", "--run-dir", run_dir)
    assert (refused.returncode, "upA, upB" in refused.stderr) == (1, True)
    assert here.ping(GATEWAY_INNER)
    down = here.jvpn("down", "-c", str(config), "--json")
    assert down.returncode == 0, down.stderr
    assert json.loads(down.stdout)["stopped"]
    assert not (here.work / "client" / "client.pid").exists()
    assert here.gateway.ask("sessions") == []
    assert here.jvpn("down", "-c", str(config)).stdout == "no client was running\n"


def test_under_the_strict_policy_another_network_means_another_session(here: ClientLab) -> None:
    # Sooner back on the network that is preferred, and sooner sure of it; the rest as it is.
    windows = {"switch_cooldown_ms": 500, "stability_window_ms": 500, "idle_probe_interval_ms": 1_000}
    here.write_gateway(policy=yaml.safe_load(STRICT.read_text()) | windows)
    here.write_client()
    here.start()
    sessions = [here.status()["session"]]

    def anew_over(device: str) -> bool:
        status = here.status()
        another = status.get("session") not in (None, *sessions)
        return another and status["active"] == device and here.attached()

    with TcpEcho(here.network.client, here.network.gateway, GATEWAY_INNER) as stream:
        for change, device in ((here.network["A"].down, "upB"), (here.network["A"].up, "upA")):
            change()
            wait_for(f"a new session over {device}", lambda wanted=device: anew_over(wanted))  # type: ignore[misc]
            sessions.append(here.status()["session"])
            assert [row["session_id"] for row in here.gateway.ask("sessions")] == sessions[-1:]
            stream.goes_on()
    assert here.client.log.read_text().count("its policy asks for a new handshake over") == 2
    assert (here.client.stop(), here.gateway.stop()) == (0, 0)
    ends = [
        (event["session_id"], event["reason_code"])
        for event in map(json.loads, here.gateway.event_lines())
        if event["event"] == "STATE_CHANGE" and event["to"] == "TERMINATED"
    ]
    assert ends == list(zip(sessions, ["SUPERSEDED", "SUPERSEDED", "PEER_CLOSED"], strict=True))
    assert [audit_file(node.events) for node in (here.gateway, here.client)] == [[], []]


def test_a_client_moves_and_ends_when_its_gateway_says_so(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client()
    here.start()
    session, run_dir = here.status()["session"], str(here.work / "gateway")
    left = here.status()["active"]
    moved = here.jvpn("switch", session[:8], "--run-dir", run_dir)
    assert moved.returncode == 0, moved.stderr
    wait_for("the client on its other uplink", lambda: here.status()["active"] not in (None, left))
    assert here.status()["session"] == session
    assert here.ping(GATEWAY_INNER)
    wrong = here.jvpn("terminate", "zz", "--run-dir", run_dir)
    assert (wrong.returncode, "no session begins with" in wrong.stderr) == (1, True)
    done = here.jvpn("terminate", session[:8], "--json", "--run-dir", run_dir)
    assert json.loads(done.stdout) == {"terminated": session}
    assert here.client.process.wait(20) == 3
    assert "OPERATOR_TERMINATED" in here.client.log.read_text()


def test_recovery_does_not_wait_behind_bulk_traffic(here: ClientLab) -> None:
    here.write_gateway()
    here.write_client()
    here.start()
    assert os.getpriority(os.PRIO_PROCESS, here.client.process.pid) == -10
    assert os.getpriority(os.PRIO_PROCESS, worker_of(here)) == 0
