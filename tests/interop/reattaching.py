"""The session's paths: probes, deaths, and attempts to have another one bound.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import base64
import time

from . import wire
from .controlling import Attempt, ControlEnd, Stage
from .fragments import Fragments, cut
from .messages import Inbox, Outbox
from .path import Path
from .session import Session
from .wire import Cause, Control, Header, Refused, Type

#: Bytes of an outer IPv4 packet that every path carries; this client never asks for more. And around an inner packet.
PATH_MTU, AROUND_PACKET = 1280, 72
SLOW_AFTER_S, SLOW_REPEAT_S = 3.0, 0.5


class PathsEnd(ControlEnd):
    """Says which path is the active one, and changes it."""

    def send_packet(self, packet: bytes) -> None:
        """One inner packet; dropped while no path is bound."""
        path = self.active
        if self.session is None or path is None or path.index is None or self.stage != Stage.BOUND:
            self.counters["no path"] += 1
            return
        path.last_data_at = time.monotonic()
        plaintext = bytes(8) + packet
        if len(packet) + AROUND_PACKET <= PATH_MTU:
            path.send(self.session.seal(Type.DATA, path.index, plaintext))
            return
        for fragment in cut(plaintext, self._next_packet, PATH_MTU - AROUND_PACKET):
            path.send(self.session.seal(Type.FRAGMENT, path.index, fragment))
        self._next_packet += 1

    def switch(self, path_name: str, cause: Cause) -> None:
        """A wish to have that path bound; of loss, DATA waits for the answer."""
        self._begin_attempt([self.paths[path_name]], cause)

    def _takes_data(self, index: int) -> bool:
        asked = [path.index for path in self.attempt.paths] if self.attempt else []
        active = self.active is not None and self.active.index == index
        return active or index in asked or self._draining.get(index, 0.0) > time.monotonic()

    def _take_path(self, path: Path, index: int, counter: int, plaintext: bytes) -> None:
        ack = wire.parse_probe_ack(plaintext)
        if ack is None:
            return
        now = time.monotonic()
        newest = counter > self._path_counters.get(index, -1)
        probe_at = path.outstanding.get(ack.timestamp, now)
        known = path.probe_answered(ack.timestamp, now) if ack.timestamp else newest
        if not known:
            raise Refused("bad_path")
        self._path_counters[index] = max(counter, self._path_counters.get(index, -1))
        path.keep_challenge(ack.challenge, now)
        self._highest_installed = ack.highest_installed
        self.counters["probe answers"] += 1
        current = path is self.active and path.index == index and probe_at >= self._bound_at
        if current and self.stage == Stage.BOUND and self.attempt is None and ack.flags & 3 != 3:
            cause = Cause.ADDRESS_CHANGED if ack.flags & 1 else Cause.TRANSPORT_DEAD
            self._begin_attempt([path], cause)

    def _assign_index(self, path: Path) -> None:
        """The next index, or for want of one the highest that is installed."""
        path.index = min(self._next_index, self._highest_installed)
        path.was_active = False
        path.outstanding = {}
        self._next_index = path.index + 1
        if self.session is not None:
            self.session.steering_id(path.index)

    def _begin_attempt(self, paths: list[Path], cause: Cause) -> None:
        now = time.monotonic()
        lost = self.active.index if cause.is_loss and self.active is not None else None
        reports = (self.session.report(lost),) if lost is not None and self.session is not None else ()
        self.attempt = Attempt(self._next_attempt, cause, paths, reports, now, now)
        self._next_attempt += 1
        for path in paths:
            if path.index is None or path.was_active:
                self._assign_index(path)
        if cause.is_loss:
            self.stage = Stage.REATTACHING
        self.report("attempt", {"number": self.attempt.number, "cause": cause.name})
        for path in paths:
            self._say_request(path)

    def _say_request(self, path: Path) -> None:
        assert self.attempt is not None
        assert self.session is not None
        assert path.index is not None
        challenge = path.challenge(time.monotonic())
        self.counters["requests validated" if challenge else "requests cold"] += 1
        tickets = self.config.get("tickets", {})
        ticket = base64.b64decode(tickets[str(path.index)]) if str(path.index) in tickets else wire.NO_TICKET
        fields = self.attempt.number, path.index, self.version, self.attempt.cause
        proof = challenge or wire.NO_CHALLENGE
        path.send(self.session.request(*fields, proof, ticket, self.attempt.reports))

    def _take_reply(self, session: Session, path: Path, header: Header, datagram: bytes) -> None:
        if session.index_of(header.steering_id) is None:
            raise Refused("unknown_id")
        plaintext = session.open_reply(datagram)
        if header.type == Type.FAIL:
            self._take_fail(wire.parse_fail(plaintext))
            return
        ack = wire.parse_ack(plaintext)
        if self.attempt is None or ack.attempt != self.attempt.number or ack.version >> 40 < session.epoch:
            raise Refused("another attempt")
        path.keep_challenge(ack.challenge, time.monotonic())
        self._highest_installed = ack.highest_installed
        if not ack.bound:
            self.counters["pending"] += 1
            self.version = max(self.version, ack.version)
            if path.name not in self.attempt.prompted:
                self.attempt.prompted.add(path.name)
                self._say_request(path)
            return
        self._bind(session, ack)

    def _bind(self, session: Session, ack: wire.ReattachAck) -> None:
        assert self.attempt is not None
        cause, self.attempt, now = self.attempt.cause, None, time.monotonic()
        if ack.version >> 40 > session.epoch:
            session.begin_epoch(ack.version >> 40)
            self._outbox, self._inbox, self._path_counters = Outbox(), Inbox(), {}
            self._fragments = Fragments()
            if self._rekey is not None:
                self._frames += self._outbox.reliable(Control.REKEY_INIT, self._rekey.init, now)
        self.version = max(self.version, ack.version)
        bound = next((path for path in self.paths.values() if path.index == ack.bound_index), None)
        if bound is None:
            self._begin_attempt(list(self.paths.values()), Cause.TRANSPORT_DEAD)
            return
        if self.active is not None and self.active.index is not None and not cause.is_loss:
            window_s = max(0.25, self.config["policy"]["drain_window_ms"] / 1000)
            self._draining[self.active.index] = now + window_s
        self.active, self.stage, self._bound_at = bound, Stage.BOUND, now
        bound.was_active, bound.outstanding = True, {}
        self._health()
        fields = {"path": bound.name, "index": bound.index, "cause": cause.name, "epoch": session.epoch}
        self.report("reattached", fields)

    def _take_fail(self, fail: wire.ReattachFail) -> None:
        if self.attempt is None or fail.attempt != self.attempt.number:
            raise Refused("another attempt")
        cause, self.attempt = self.attempt.cause, None
        self.report("refused", {"reason": fail.reason, "retry_after_ms": fail.retry_after_ms})
        if fail.reason in (
            "SESSION_OVER", "SESSION_TTL_EXPIRED", "TRANSPORT_LOSS_TTL_EXPIRED", "ADDRESS_WITHDRAWN",
        ):  # fmt: skip
            self._end(fail.reason)
            return
        if fail.reason == "VERSION_CONFLICT":
            self.version = fail.version
        if cause.is_loss:
            self._retry_at = time.monotonic() + max(0.05, fail.retry_after_ms / 1000), cause

    def _tick_paths(self, now: float) -> None:
        interval_s = self.config["policy"]["probe_interval_ms"] / 1000
        for path in self.paths.values():
            if not path.probed:
                continue
            busy = path is self.active and path.has_something_to_prove()
            if now - path.last_probe_at >= (interval_s if busy else 1.0):
                self._probe(path, now)
        active = self.active
        if self.stage == Stage.BOUND and active and active.is_dead(now, interval_s):
            self.report("path dead", {"path": active.name})
            # Dead in one direction perhaps: what binds it again has to come back over it.
            active.forget_challenge()
            self._begin_attempt(list(self.paths.values()), Cause.TRANSPORT_DEAD)
        if self._retry_at and now >= self._retry_at[0]:
            cause, self._retry_at = self._retry_at[1], None
            self._begin_attempt(list(self.paths.values()), cause)
        if self.attempt:
            self._tick_attempt(self.attempt, now)

    def _tick_attempt(self, attempt: Attempt, now: float) -> None:
        slower = SLOW_REPEAT_S if now - attempt.begun_at > SLOW_AFTER_S else 0.0
        if now - attempt.said_at >= max(slower, *(path.repeat_after() for path in attempt.paths)):
            attempt.said_at = now
            attempt.prompted.clear()
            for path in attempt.paths:
                self._say_request(path)

    def _probe(self, path: Path, now: float) -> None:
        assert self.session is not None
        left = path.was_active and path is not self.active
        if path.index is None or (left and self._draining.get(path.index, 0.0) < now):
            self._assign_index(path)
        assert path.index is not None
        stamp = time.monotonic_ns() // 1000
        path.probe_sent(stamp, now)
        path.send(self.session.seal(Type.PATH, path.index, wire.pack_probe(stamp)))
