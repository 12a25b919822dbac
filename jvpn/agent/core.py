"""ClientCore: the client's decisions without sockets or clocks, with the verbs of the gateway's core.

    worker_report(report, now_ns)          what the worker forwarded or measured
    link_event(device, up, now_ns)         netlink's news of an uplink
    get_timer() / handle_timer(now_ns)     deadlines
    effects()                              what is to be done now, in order

It shakes hands until a session stands, keeps that session over whatever uplinks there are, and starts over with a new
handshake only after the session has ended explicitly. Times are CLOCK_BOOTTIME nanoseconds.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jvpn.agent.damping import Damping
from jvpn.agent.effects import ClearRecord, Effect, SendDatagram, SessionOver
from jvpn.agent.handshaking import Handshaking, Identity, back_off_ms
from jvpn.agent.narrator import ClientNarrator
from jvpn.agent.paths import NS, Uplink
from jvpn.agent.session import ClientSession
from jvpn.agent.worker_side import FIRST_RECORD
from jvpn.policy.model import Policy
from jvpn.protocol.constants import PacketType
from jvpn.protocol.handshake import HandshakeError
from jvpn.protocol.keys import SessionSecrets
from jvpn.protocol.reattach import Cause
from jvpn.protocol.wire import Header, WireError
from jvpn.session.machine import Reason
from workers import commands
from workers.page import Activity

#: The gateway could not keep its side of a handshake that it had answered; it may another time.
_NOT_BORN = frozenset({Reason.HANDSHAKE_FAIL, Reason.HANDSHAKE_TIMEOUT})
#: Ends after which a new handshake follows by itself; the others were somebody's wish.
_AGAIN = _NOT_BORN | {
    Reason.SESSION_TTL_EXPIRED,
    Reason.TRANSPORT_LOSS_TTL_EXPIRED,
    Reason.RECOVERY_WINDOW_EXCEEDED,
    Reason.OWNERSHIP_CONFLICT,
    Reason.ADDRESS_WITHDRAWN,
}
CONFIRM_TIMEOUT_MS = 5_000


@dataclass(frozen=True, slots=True)
class Shell:
    """What the core cannot know by itself: randomness, wall clock, the shared page.

    `act` carries out the effects there are at that moment, in the middle of a call; a shell may as well do that after.
    `note_keys` is told of the keys of each phase in each epoch.
    """

    random_bytes: Callable[[int], bytes]
    wall_us: Callable[[], int]
    activity: Callable[[int], Activity]
    act: Callable[[], None] = lambda: None
    note_keys: Callable[[SessionSecrets, int], None] = lambda _secrets, _epoch: None


class ClientCore:
    def __init__(
        self,
        identity: Identity,
        uplinks: list[Uplink],
        policy: Policy,
        narrator: ClientNarrator,
        shell: Shell,
        last_timestamp_us: int,
        now_ns: int,
    ) -> None:
        self.uplinks = uplinks
        self.counters: Counter[str] = Counter()
        self.session: ClientSession | None = None
        self.handshakes_done = 0
        self._identity = identity
        self._policy = policy
        self._narrator = narrator
        self._shell = shell
        self._effects: list[Effect] = []
        self._last_seq = 0
        self._handshaking = self._new_handshake(last_timestamp_us, now_ns // NS)
        self._confirm_by_ms = 0
        self._gave_up = False
        self._dampings: dict[str, Damping] = {}
        #: What the last session's policy asked for a new handshake over, and the cause of that change.
        self._anew: tuple[Uplink | None, Cause | None] = (None, None)
        #: Handshakes in a row that the gateway answered and then took back.
        self._taken_back = 0
        self._farewells: list[tuple[int, SendDatagram]] = []
        self.stopped = False

    def effects(self) -> list[Effect]:
        """What is to be done, in order; the list is the caller's from now on."""
        due, self._effects = self._effects, []
        return due

    def _new_handshake(self, last_timestamp_us: int, now_ms: int, first: Uplink | None = None) -> Handshaking:
        shell = self._shell
        return Handshaking(
            self._identity, self.uplinks, last_timestamp_us, shell.random_bytes, shell.wall_us, now_ms, first
        )

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    # What happened

    def worker_report(self, report: commands.Report, now_ns: int) -> None:
        if isinstance(report, commands.Datagram):
            self._on_datagram(report, now_ns)
        elif isinstance(report, commands.ProbeAnswered) and self.session is not None:
            self.session.on_probe(report, now_ns // NS, now_ns)
        elif isinstance(report, commands.MtuAnswered) and self.session is not None:
            self.session.mtu_probing.on_answer(report, now_ns)
        elif isinstance(report, commands.Done):
            if report.error:
                self.counters["worker_refused"] += 1
            if self.session is not None:
                self.session.switching.on_done(report, now_ns // NS)
        self._settle(now_ns // NS)

    def _on_datagram(self, report: commands.Datagram, now_ns: int) -> None:
        try:
            header = Header.decode(report.data)
            if header.type is PacketType.HANDSHAKE_RESPONSE:
                self._on_response(report, now_ns)
            elif header.type is PacketType.COOKIE:
                if self.session is not None:
                    raise HandshakeError("answered")
                self._effects += self._handshaking.receive_cookie(report.data)
            elif self.session is None:
                raise WireError("unknown_id")
            else:
                self.session.receive(header.type, report.data, report.socket, now_ns // NS, report.remote)
        except (WireError, HandshakeError) as error:
            self.counters[error.reason] += 1

    def _on_response(self, report: commands.Datagram, now_ns: int) -> None:
        if self.session is not None:
            raise HandshakeError("answered")
        result = self._handshaking.receive_response(report.data)
        if result.kem < self._identity.kem:
            # A weaker session than configured is never a fallback.
            self.counters["kem_refused"] += 1
            note = (
                "the gateway's policy offers no post-quantum keys and this client's `kem` asks for them; "
                "set kem in that policy, or kem: none here"
            )
            self._effects.append(SessionOver("HANDSHAKE_FAIL", again=False, note=note))
            self.stopped = True
            return
        uplink = self._handshaking.uplink
        assert uplink is not None, "a response to an INIT that was sent over no uplink"
        for other in self.uplinks:
            # The endpoint that answered is known to be good: the others take it too, where they can.
            if uplink.remote in other.remotes:
                other.remote = uplink.remote
        self._effects.append(ClearRecord(FIRST_RECORD))
        self.session = ClientSession(
            result,
            self.uplinks,
            uplink,
            self._policy,
            self._narrator,
            self._shell.activity,
            self._shell.random_bytes,
            self._seq,
            self._do,
            self._shell.act,
            self._shell.note_keys,
            now_ns // NS,
            self._identity.policy_name,
        )
        if self._anew[0] is uplink and self._anew[1] is not None:
            # The handshake was asked for by a change of path, which has come about by it.
            self.session.choosing.bound(uplink, self._anew[1])
        self._confirm_by_ms = now_ns // NS + CONFIRM_TIMEOUT_MS
        self.handshakes_done += 1
        self.session.handle_timer(now_ns // NS, now_ns)

    def link_event(self, device: str, up: bool, now_ns: int) -> None:
        """Netlink says that a device's link came or went, and with it all ways over it."""
        self.ways_event([uplink for uplink in self.uplinks if uplink.name == device], up, now_ns)

    def ways_event(self, ways: Iterable[Uplink], up: bool, now_ns: int) -> None:
        """These ways out can be used, or cannot any more."""
        changed = [uplink for uplink in ways if uplink.link_up != up]
        for uplink in changed:
            # All of them first: who has to leave one must not be sent to another.
            uplink.link_up = up
        self._damp({uplink.name for uplink in changed}, up, now_ns // NS)
        for uplink in changed:
            session = self.session
            if session is not None and not session.configured and session.paths.active == uplink.number:
                # There is nothing to move yet: what was begun there is begun anew elsewhere.
                self._give_up(session, now_ns // NS)
            elif session is not None:
                session.switching.on_link(uplink, up, now_ns // NS)
            elif up:
                self._handshaking.hurry(now_ns // NS)
        self._settle(now_ns // NS)

    def _damp(self, devices: Iterable[str], up: bool, now_ms: int) -> None:
        """A device that comes and goes is trusted less; one of several ways over it that goes says nothing of it."""
        for name in devices:
            ways = [uplink for uplink in self.uplinks if uplink.name == name]
            damping = self._dampings.setdefault(name, Damping())
            if not up and not any(way.link_up for way in ways):
                damping.lost(now_ms)
                self.counters["links_lost"] += 1
            for way in ways:
                way.damped_until_ms = damping.until_ms

    def woke(self, now_ns: int) -> None:
        """The machine has slept. Deadlines went on meanwhile; all else is tried at once, as after a link event."""
        self.counters["sleeps"] += 1
        if self.session is None:
            self._handshaking.hurry(now_ns // NS)
        else:
            self.session.switching.on_wake(now_ns // NS)
        self._settle(now_ns // NS)

    def path_event(self, uplink: Uplink, now_ns: int) -> None:
        """An address or a route of an uplink that has a link changed: what failed may work now."""
        if not uplink.link_up:
            return
        if self.session is None:
            self._handshaking.hurry(now_ns // NS)
        else:
            self.session.switching.on_path_event(uplink, now_ns // NS)
        self._settle(now_ns // NS)

    def reroute(self, uplink: Uplink, now_ns: int) -> None:
        """The gateway is to be reached at another of its endpoints (`uplink.remote`, set already) from now on."""
        if self.session is not None:
            self.session.switching.reroute(uplink, now_ns // NS)

    def worker_replaced(self) -> None:
        """The shell has started another data worker: tell it everything."""
        if self.session is not None:
            self.session.worker.replaced()

    @property
    def unanswered(self) -> int:
        """INITs or REQUESTs sent since the gateway last answered one; 0 while a path is bound."""
        if self.session is None:
            return self._handshaking.tries
        attempt = self.session.requester.attempt
        return 0 if attempt is None else attempt.tries

    def switch(self, device: str, now_ns: int) -> bool:
        """The operator wants another uplink. False when there is none of that name or no session that could move."""
        session = self.session
        if session is None:
            return False
        active = session.paths.active_path
        if active is not None and active.uplink.name == device:
            return False
        ways = [path.uplink for path in session.paths.candidates(now_ns // NS) if path.uplink.name == device]
        ways += [uplink for uplink in self.uplinks if uplink.name == device]
        return bool(ways) and session.choosing.switch(ways[0], Cause.OPERATOR_SWITCH, now_ns // NS)

    def stop(self, now_ns: int) -> None:
        """End the session, telling the gateway; no handshake follows."""
        self.stopped = True
        if self.session is not None:
            self.session.end(Reason.PEER_CLOSED, now_ns // NS, tell=True)
        self._settle(now_ns // NS)

    # Time

    @property
    def closing_ms(self) -> int | None:
        """When the next CLOSE of a session that is over is to go, None when all have gone."""
        return min((at_ms for at_ms, _datagram in self._farewells), default=None)

    def get_timer(self) -> float:
        """When `handle_timer` is due, CLOCK_BOOTTIME milliseconds."""
        closing_ms = self.closing_ms
        if closing_ms is not None and self.stopped:
            return closing_ms
        due_ms = self._handshaking.get_timer() if self.session is None else self.session.get_timer()
        return due_ms if closing_ms is None else min(due_ms, closing_ms)

    def _say_farewells(self, now_ms: int) -> None:
        self._effects += [datagram for at_ms, datagram in self._farewells if at_ms <= now_ms]
        self._farewells = [later for later in self._farewells if later[0] > now_ms]

    def handle_timer(self, now_ns: int) -> None:
        now_ms = now_ns // NS
        self._say_farewells(now_ms)
        if self.session is None:
            if not self.stopped:
                self._effects += self._handshaking.handle_timer(now_ms)
            return
        if not self.session.configured and now_ms >= self._confirm_by_ms:
            self._give_up(self.session, now_ms)
        else:
            self.session.handle_timer(now_ms, now_ns)
        self._settle(now_ms)

    def _give_up(self, session: ClientSession, now_ms: int) -> None:
        """No CONFIG came. The gateway's STATE may have: then there is a session that has to be closed."""
        confirmed = not session.view.allows(Reason.HANDSHAKE_TIMEOUT)
        reason = Reason.PEER_CLOSED if confirmed else Reason.HANDSHAKE_TIMEOUT
        session.end(reason, now_ms, tell=confirmed)
        self._gave_up = True

    def _settle(self, now_ms: int) -> None:
        """A session that ended makes room; whether a new handshake follows depends on why."""
        session = self.session
        if session is None or session.ended is None:
            return
        wait_ms = self._wait_ms(session)
        wanted = (
            session.ended in _AGAIN or self._gave_up or session.was_reset or session.anew_over is not None
        )
        again = wanted and not self.stopped
        self._gave_up = False
        note = "no gateway that answers knows it any more" if session.was_reset else ""
        if session.anew_over is not None:
            note = f"its policy asks for a new handshake over {session.anew_over.name}"
        self._effects.append(SessionOver(session.ended.value, again, note))
        self._farewells += session.farewells
        self._say_farewells(now_ms)
        self.session = None
        self._anew = (session.anew_over, session.anew_by)
        last_us = self._handshaking.last_timestamp_us
        self._handshaking = self._new_handshake(last_us, now_ms + wait_ms, session.anew_over)
        self.stopped = self.stopped or not again

    def _wait_ms(self, session: ClientSession) -> int:
        """How long to leave a gateway alone that took a handshake back: its answer came at once, and would again."""
        if self._gave_up or session.ended not in _NOT_BORN:
            self._taken_back = 0
            return 0
        self._taken_back += 1
        return back_off_ms(self._taken_back - 1)
