"""A policy that is changed under a living tunnel, as operators do it: the file, then SIGHUP or `jvpn policy apply`."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from client_lab import ClientLab
from streams import TcpEcho

from jvpn.lab.links import direct_links
from jvpn.lab.namespaces import Lab
from jvpn.lab.running import GATEWAY_INNER, wait_for
from jvpn.observability.verify import audit_file


@pytest.fixture
def here(lab: Lab, tmp_path: Path) -> Iterator[ClientLab]:
    """Uplinks A and B, plain veth."""
    with ClientLab(direct_links(lab, "AB"), tmp_path) as made:
        yield made


def audits(path: Path, session: str) -> list[str]:
    """What was told of changes of this session's policy."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [e["result"] for e in events if e.get("check") == "policy" and e["session_id"] == session]


def test_a_strict_change_reaches_both_ends_under_a_living_connection(here: ClientLab) -> None:
    first, second = (
        {"transport_loss_ttl_ms": 300_000},
        {"transport_loss_ttl_ms": 20_000, "probe_interval_ms": 50},
    )
    here.write_gateway(first)
    here.write_client(policy="mobile")
    here.start()
    session, old = here.status()["session"], here.status()["policy"]
    run_dir, file = here.work / "gateway", here.work / "policies" / "default.yaml"
    assert (
        f"{old}, not mobile as asked for"
        in here.jvpn("status", "--run-dir", str(here.work / "client")).stdout
    )
    assert "not mobile as asked for" in here.client.log.read_text()
    with TcpEcho(here.network.client, here.network.gateway, GATEWAY_INNER) as stream:
        stream.goes_on()

        # SIGHUP goes by the configuration: grace.
        file.write_text(yaml.safe_dump(second))
        here.gateway.process.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: "grace: 1 session running" in here.gateway.log.read_text())
        stream.goes_on()
        assert here.status()["policy"] == old

        # A broken file: nobody new, and the running session keeps what it has.
        file.write_text("kem: rsa\n")
        broken = here.jvpn("policy", "apply", "--mode", "strict", "--run-dir", str(run_dir))
        assert broken.returncode == 1
        assert f"{file}:1: kem" in broken.stdout
        stream.goes_on()
        assert here.status()["policy"] == old

        file.write_text(yaml.safe_dump(second))
        done = here.jvpn("policy", "apply", "--mode", "strict", "--run-dir", str(run_dir), "--json")
        assert done.returncode == 0, done.stderr
        assert (json.loads(done.stdout)["changed"], json.loads(done.stdout)["ended"]) == (1, 0)
        wait_for("the client's new policy", lambda: here.status()["policy"] not in (old, ""))
        stream.goes_on()

    new = here.status()["policy"]
    assert here.status()["session"] == session
    assert new in here.jvpn("sessions", "--run-dir", str(run_dir)).stdout
    assert here.client.stop() == 0
    said = here.client.log.read_text()
    assert "session closed, as asked" in said
    assert "session over" not in said
    here.gateway.stop()
    told = f"{old} → {new}"
    assert audits(here.client.events, session) == [told]
    assert [text.partition(", ")[0] for text in audits(here.gateway.events, session)] == [told]
    assert audit_file(here.gateway.events) == audit_file(here.client.events) == []
