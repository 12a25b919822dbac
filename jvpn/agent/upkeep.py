"""What a session of the client does when time passes: proves its keys, probes, reads what moved, keeps deadlines."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from jvpn.agent.paths import NS, ClientPath
from jvpn.policy.decisions import left_out
from jvpn.policy.probe_budget import ProbeBudget, candidate_interval_ms
from jvpn.protocol.addresses import is_ipv4
from jvpn.protocol.handshake import Kem
from jvpn.protocol.reattach import Cause
from jvpn.session.machine import Reason, State
from workers.page import Activity

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession

CONFIRM_REPEAT_MS = 100
#: How often the page is read for traffic while a path is active: the grain of "DATA was sent".
ACTIVITY_TICK_MS = 20
#: DATA that came lately and found no path: somebody is waiting.
TRAFFIC_WAITS_MS = 1_000


class Upkeep:
    """A part of its session. Times are CLOCK_BOOTTIME ms, but for names that end in `_ns`."""

    def __init__(self, session: "ClientSession", activity: Callable[[int], Activity], now_ms: int) -> None:
        self._session = session
        self._paths = session.paths
        self._requester = session.requester
        self._activity = activity
        self._budget = ProbeBudget(session.policy, now_ms * NS)
        self._next_confirm_ms = now_ms
        self._next_tick_ms = now_ms
        self._last_sent_ns = self.last_received_ns = 0
        self._handled_ns = now_ms * NS

    def enter_epoch(self) -> None:
        """The page begins anew with the keys of another epoch."""
        self._last_sent_ns = self.last_received_ns = 0

    def follow(self, now_ms: int) -> None:
        """The session's policy is another one."""
        self._budget.follow(self._session.policy, now_ms * NS)

    def received_ms(self) -> int:
        """When the worker last took authenticated DATA."""
        return self._activity(self._session.worker.record).received_ns // NS

    def get_timer(self) -> float:
        session = self._session
        if not session.configured:
            return self._next_confirm_ms
        due: list[float | None] = [self._next_tick_ms, self._requester.get_timer()]
        due += [
            session.ttl.next_deadline_ms(),
            session.rekeying.get_timer(),
            session.owners.get_timer(),
            session.leaving.get_timer(),
            session.worker.get_timer(),
        ]
        if self._paths.active is not None:
            due.append(session.channel.get_timer())
        due += [self._probe_due_ns(path) / NS for path in self._probed()]
        return min(at for at in due if at is not None)

    def _probe_due_ns(self, path: ClientPath) -> int:
        """Only the active path has a verdict to wait for; a candidate's, once over, would be due for ever."""
        if path is self._paths.active_path:
            return path.health.get_timer()
        return max(path.health.next_probe_at(self._handled_ns), self._budget.ready_ns(ipv6=_over_ipv6(path)))

    def _probed(self) -> list[ClientPath]:
        """What the policy leaves out is not probed either, unless the session is on it: its bytes may be dear."""
        active = self._paths.active_path
        return [
            p
            for p in self._paths.paths.values()
            if p.uplink.link_up and (p is active or not self._left_out(p))
        ]

    def _left_out(self, path: ClientPath) -> bool:
        uplink = path.uplink
        return bool(left_out(self._session.policy, "udp", uplink.name, uplink.network, uplink.cost))

    def handle_timer(self, now_ms: int, now_ns: int) -> None:
        session = self._session
        self._handled_ns = now_ns
        self._expire(now_ms)
        session.owners.handle_timer(now_ms)
        session.leaving.handle_timer(now_ms)
        session.worker.handle_timer(now_ms)
        if session.ended is not None:
            return
        if not session.configured:
            if now_ms >= self._next_confirm_ms:
                self._next_confirm_ms = now_ms + CONFIRM_REPEAT_MS
                self._confirm(now_ms)
            return
        if session.rekeying.handle_timer(now_ms, session.packets()):
            session.worker.add()
        self._read_activity(now_ms)
        active = self._paths.active_path
        if active is not None and active.health.dead(now_ns):
            session.switching.lose(Cause.TRANSPORT_DEAD, now_ms)
        self._probe(now_ms, now_ns)
        session.switching.request(now_ms)
        session.mtu_probing.handle_timer(now_ns, self._last_sent_ns)
        due = session.channel.get_timer()
        if due is not None and due <= now_ms:
            session.flush(now_ms)
        session.deciding.look(now_ms)

    def _probe(self, now_ms: int, now_ns: int) -> None:
        """The active path whenever its rule says so, candidates within their budget."""
        active, probed = self._paths.active_path, self._probed()
        candidates = [path for path in probed if path is not active]
        for path in candidates:
            interval_ms = candidate_interval_ms(self._session.policy, len(candidates), ipv6=_over_ipv6(path))
            path.health.pace(interval_ms * NS)
        for path in probed:
            if path.health.next_probe_at(now_ns) > now_ns:
                continue
            if path is active or self._budget.take(now_ns, ipv6=_over_ipv6(path)):
                self._session.worker.probe(path, now_ms, now_ns)

    def _confirm(self, now_ms: int) -> None:
        """Prove the keys until CONFIG comes: by the first rekey where there is a KEM, else by any CONTROL."""
        session = self._session
        if session.rekeying.kem is Kem.MLKEM768 and session.rekeying.secrets.phase_number == 0:
            session.rekeying.begin(now_ms)
            session.flush(now_ms)
        else:
            session.send_health(now_ms)

    def _read_activity(self, now_ms: int) -> None:
        if now_ms < self._next_tick_ms:
            return
        self._next_tick_ms = now_ms + ACTIVITY_TICK_MS
        active, seen = self._paths.active_path, self._activity(self._session.worker.record)
        if active is None:
            if now_ms - seen.sent_ns // NS < TRAFFIC_WAITS_MS:
                self._requester.traffic_waits(now_ms)
            return
        if seen.sent_ns > self._last_sent_ns:
            active.health.on_data_sent(min(seen.sent_ns, now_ms * NS))
        if seen.received_ns > self.last_received_ns:
            active.health.on_data_received(min(seen.received_ns, now_ms * NS))
        self._last_sent_ns, self.last_received_ns = seen.sent_ns, seen.received_ns

    def _expire(self, now_ms: int) -> None:
        session = self._session
        terminates = session.policy.on_recovery_window_exceeded == "terminate"
        fired = session.ttl.fired(session.view.state, session.view.active_bindings, now_ms, terminates)
        if fired is None:
            return
        if fired.reason is Reason.RECOVERY_WINDOW_EXCEEDED:
            session.deciding.window_over(now_ms)
        # Both ends of a recovery window are in the table: where the policy names one, that is the one meant.
        if fired.to is State.TERMINATED or (fired.to is None and fired.reason is not Reason.REATTACH_FAIL):
            session.end(fired.reason, now_ms, tell=True)
            return
        attempt = None
        if fired.reason is Reason.REATTACH_FAIL:
            attempt, self._requester.attempt = self._requester.attempt, None
            session.worker.expect_nobody()
            if attempt is not None and attempt.asked:
                version = session.view.state_version
                session.narrator.result(attempt.number, "abandoned", "RECOVERY_WINDOW_EXCEEDED", version)
            session.deciding.refused(0, now_ms)
        session.view.apply(fired.reason, now_ms, fired.to)
        session.clocks(now_ms)
        if attempt is not None:
            session.leaving.go_on(attempt, now_ms)


def _over_ipv6(path: ClientPath) -> bool:
    return not is_ipv4(path.uplink.remote.address)
