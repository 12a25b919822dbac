"""One way to the gateway: a UDP socket of its own, what is known of its round trip, and its challenge.

An independent client, made from docs/protocol.md alone; imports nothing of jvpn. Times are seconds of one clock.
"""

import contextlib
import socket

#: linux/in.h: "don't fragment" on all that is sent.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
CHALLENGE_VALID_S = 60.0
UNANSWERED_WHEN_DEAD = 3


class Path:
    """A source socket towards one endpoint; `index` is the one that it uses in the session, if any yet."""

    def __init__(
        self, name: str, source: str, device: str | None, gateway: tuple[str, int], probed: bool
    ) -> None:
        self.name = name
        self.gateway = gateway
        self.probed = probed
        self.index: int | None = None
        self.was_active = False
        self._challenge = b""
        self._challenge_at = 0.0
        self._srtt: float | None = None
        self._rttvar = 0.0
        self.outstanding: dict[int, float] = {}
        self.last_probe_at = float("-inf")
        self.answered_probe_sent_at = float("-inf")
        self.last_data_at = float("-inf")
        self.socket = self._open(source, device)

    def _open(self, source: str, device: str | None) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if device:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        made.bind((source, 0))
        made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        made.setblocking(False)
        return made

    def send(self, datagram: bytes) -> None:
        """What the kernel refuses is lost, as on any path."""
        with contextlib.suppress(OSError):
            self.socket.sendto(datagram, self.gateway)

    def receive(self) -> bytes | None:
        with contextlib.suppress(OSError):
            datagram, source = self.socket.recvfrom(65535)
            return datagram if source == self.gateway else b""
        return None

    def rebind(self, source: str, device: str | None) -> None:
        """Another source port, as a NAT makes one; the challenge was for the old one."""
        self.forget_challenge()
        self.socket.close()
        self.socket = self._open(source, device)

    def keep_challenge(self, challenge: bytes, now: float) -> None:
        self._challenge, self._challenge_at = challenge, now

    def forget_challenge(self) -> None:
        self._challenge = b""

    def challenge(self, now: float) -> bytes | None:
        """The newest one, while the path is validated."""
        fresh = self._challenge and now - self._challenge_at < CHALLENGE_VALID_S
        return self._challenge if fresh else None

    def probe_sent(self, timestamp: int, now: float) -> None:
        self.outstanding[timestamp] = self.last_probe_at = now
        while len(self.outstanding) > 64:
            del self.outstanding[next(iter(self.outstanding))]

    def probe_answered(self, timestamp: int, now: float) -> bool:
        """False when no such PROBE is outstanding. Answers also clear what was sent before."""
        sent = self.outstanding.get(timestamp)
        if sent is None:
            return False
        self.answered_probe_sent_at = max(sent, self.answered_probe_sent_at)
        self.outstanding = {t: at for t, at in self.outstanding.items() if at > sent}
        rtt = now - sent
        if self._srtt is None:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        return True

    def repeat_after(self) -> float:
        """Seconds to wait for an answer: max(50 ms, srtt + 4 · rttvar)."""
        return max(0.05, (self._srtt or 0.0) + 4 * self._rttvar)

    def has_something_to_prove(self) -> bool:
        return bool(self.outstanding) or self.last_data_at > self.answered_probe_sent_at

    def is_dead(self, now: float, probe_interval_s: float) -> bool:
        waited = [now - at for at in self.outstanding.values() if now - at > self.repeat_after()]
        return len(waited) >= UNANSWERED_WHEN_DEAD and max(waited) >= 3 * probe_interval_s
