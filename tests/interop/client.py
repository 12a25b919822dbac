"""The client: one session over several paths, in a single loop of sockets and deadlines.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn.
"""

import base64
import select
import time

from . import wire
from .calling import Calling
from .controlling import Stage
from .inner import packet_of
from .path import Path
from .reattaching import PathsEnd
from .session import Session
from .wire import Header, Refused, Type

CONFIRM_S, CONFIRM_REPEAT_S = 5.0, 0.1


class Client(PathsEnd):
    """Owns the sockets of its paths. `deliver` gets every inner packet that comes, `report` every event."""

    def step(self, timeout_s: float, others: list[int] | None = None) -> list[int]:
        """Handles what comes within the time and all that is due; returns those of `others` that are readable."""
        paths = {path.socket.fileno(): path for path in self.paths.values()}
        readable, _, _ = select.select([*paths, *(others or [])], [], [], timeout_s)
        for path in [paths[ready] for ready in readable if ready in paths]:
            while (datagram := path.receive()) is not None:
                self._take(path, datagram)
                self._flush()
        self._tick(time.monotonic())
        self._flush()
        return [ready for ready in readable if ready not in paths]

    def add_path(self, path: Path) -> None:
        self.paths[path.name] = path

    def call(self, path_name: str) -> None:
        """Begins the handshake on this path."""
        self._forget()
        self.active, self._calling, self.stage = self.paths[path_name], Calling(self.identity), Stage.CALLING

    def _take(self, path: Path, datagram: bytes) -> None:
        try:
            header = wire.parse_header(datagram)
            if header.type in (Type.COOKIE, Type.RESPONSE):
                self._take_handshake(path, header, datagram)
            elif self.session is None:
                raise Refused("no session")
            elif header.type in (Type.ACK, Type.FAIL):
                self._take_reply(self.session, path, header, datagram)
            elif header.type in wire.COUNTED_TYPES:
                self._take_counted(self.session, path, header, datagram)
            elif header.type == Type.RESET:
                self._take_reset(header, datagram)
            else:
                raise Refused("not for a client")
        except Refused as refused:
            self.counters[str(refused)] += 1

    def _take_handshake(self, path: Path, header: Header, datagram: bytes) -> None:
        if self._calling is None or path is not self.active:
            raise Refused("no handshake")
        if header.type == Type.COOKIE:
            path.send(self._calling.cookie(datagram))
            self.counters["cookies"] += 1
            return
        self.session, self.kem = self._calling.response(datagram)
        self._calling, self.stage = None, Stage.CONFIRMING
        self.handshakes += 1
        now = time.monotonic()
        self._confirming_since = now
        self.version = self.session.epoch << 40
        self._assign_index(path)
        path.was_active = True
        self.report("handshake", {"session": self.session.session_id.hex(), "epoch": self.session.epoch})
        if self.kem:
            self.rekey()
        else:
            self._health()

    def _take_counted(self, session: Session, path: Path, header: Header, datagram: bytes) -> None:
        if header.type != Type.CONTROL and self.kem and header.phase == 0 and session.phase < 2:
            raise Refused("unknown_phase")
        index, plaintext = session.open(header, datagram)
        if header.type == Type.CONTROL:
            for frame in wire.parse_frames(plaintext):
                self._take_frame(frame)
        elif header.type == Type.PATH:
            self._take_path(path, index, header.counter, plaintext)
        elif not self._takes_data(index):
            raise Refused("not_bound")
        else:
            self._take_data(session, index, header, plaintext)

    def _take_data(self, session: Session, index: int, header: Header, plaintext: bytes) -> None:
        resent = header.type == Type.RESENT
        if header.type == Type.FRAGMENT:
            self.counters["fragments"] += 1
            whole = self._fragments.take(index, header.counter, plaintext)
            if whole is None:
                return
            plaintext, resent = whole
        if resent:
            plaintext = session.open_resent(index, header.counter, plaintext)
            self.counters["resent"] += 1
        self.counters[f"segmentation {plaintext[1] if len(plaintext) > 1 else 0}"] += 1
        self.deliver(packet_of(plaintext))

    def _take_reset(self, header: Header, datagram: bytes) -> None:
        token = base64.b64decode(self.config.get("reset_token", ""))
        ours = self.session is not None and self.session.index_of(header.steering_id) is not None
        if not (self.attempt and ours and token and datagram[20:] == token):
            raise Refused("bad reset")
        active = next(iter(self.attempt.paths)).name
        self._end("PEER_CLOSED")
        self.call(active)

    def _tick(self, now: float) -> None:
        if self.stage == Stage.CALLING and self._calling and self.active and self._calling.due(now):
            self.active.send(self._calling.init(now))
        if self.session is None or self.active is None:
            return
        if self.stage == Stage.CONFIRMING and now - self._confirming_since > CONFIRM_S:
            self.call(self.active.name)
            return
        said = now - self._health_at < CONFIRM_REPEAT_S or self.session.phase < self.kem
        if self.stage == Stage.CONFIRMING and not said:
            self._health()
        self._tick_rekey(self.session, now)
        self._frames += self._outbox.due(now, self.active.repeat_after())
        if self.stage in (Stage.BOUND, Stage.REATTACHING):
            self._tick_paths(now)
