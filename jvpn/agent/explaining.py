"""What the policy makes of a running session's paths just now, for `jvpn policy explain`. It looks, no more."""

from typing import TYPE_CHECKING

from jvpn.agent.paths import NS, ClientPath
from jvpn.policy.decisions import Phase
from jvpn.policy.explain import explain
from jvpn.policy.forecast import budget, dead_after_ms
from jvpn.protocol.addresses import is_ipv4

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession


def explained(session: "ClientSession", now_ms: int) -> dict[str, object] | None:
    """None where the session is in no state that has a decision to take."""
    state = session.view.state.name
    if state not in Phase.__members__ or not session.configured:
        return None
    candidates, history = session.deciding.candidates(now_ms), session.deciding.history()
    paths = session.paths.paths.values()
    return {
        "session": session.session_id.hex(),
        "state": state,
        "active": history.active,
        "paths": [_path(session, path, now_ms) for path in paths],
    } | explain(session.policy, candidates, history, now_ms)


def _path(session: "ClientSession", path: ClientPath, now_ms: int) -> dict[str, object]:
    """`dead_after_ms`: how long this path could be dead, if it carried traffic, before that is known; None where its
    round trip is not."""
    health, policy = path.health, session.policy
    loss = health.round_trip_loss(now_ms * NS)
    active = path is session.paths.active_path
    answering = health.answering(now_ms * NS)
    costs = budget(policy, "idle" if active else "candidate" if answering else "lost")
    srtt_ns = health.srtt_ns
    return {
        "id": path.id,
        "active": active,
        "answering": answering,
        "loss": loss,
        "rtt_ms": None if srtt_ns is None else srtt_ns / NS,
        "dead_after_ms": None
        if srtt_ns is None
        else dead_after_ms(policy, loss, srtt_ns / NS, health.rttvar_ns / NS),
        "probe_bytes_per_day": costs.ipv4_bytes if is_ipv4(path.uplink.remote.address) else costs.ipv6_bytes,
    }
