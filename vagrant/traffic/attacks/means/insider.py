"""Who holds a session's keys and asks for it from the router's own address, as a second client of the same session."""

from dataclasses import dataclass
from typing import Final

from scapy.packet import Packet

from jvpn.protocol import keys
from jvpn.protocol.constants import Direction, PacketType
from jvpn.protocol.reattach import NO_CHALLENGE, Cause, Result
from vagrant.traffic import jvp
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.place import LOOK_S, Place
from vagrant.traffic.jvp import JVP, JVPReattachRequest
from vagrant.traffic.keylog import Sealing
from vagrant.traffic.plaintexts import JVPAck, JVPFail, JVPRequest
from vagrant.traffic.script import Failed

#: From the client's index that was seen to ours: installed, not in use, and near enough to leave its own installed.
BEYOND: Final = 2
#: Between one REQUEST and the same again while no answer comes.
AGAIN_S: Final = 0.2
TRIES: Final = 25


@dataclass(frozen=True, slots=True)
class Wish:
    """What a REQUEST asks for, beside the index."""

    attempt: int
    version: int = 0
    challenge: bytes = NO_CHALLENGE


class Insider:
    """Made from one opened datagram of the client. Answers come to `place.own` and are counted by what they say."""

    def __init__(self, place: Place, sealing: Sealing, index: int, ticket: bytes = b"") -> None:
        self._place = place
        self._sealing = Sealing(sealing.secrets, 0, Direction.CLIENT_TO_GATEWAY, index)
        self._ticket = ticket
        self._counter = 1 << 40
        self._inbox = place.held
        self._inbox.setblocking(False)

    @property
    def index(self) -> int:
        return self._sealing.index

    def say(self, wish: Wish) -> None:
        """One REQUEST, freshly sealed."""
        self._counter += 1
        header = JVP(
            steering_id=keys.steering_id(self._sealing.secrets, self._sealing.index), counter=self._counter
        )
        request = JVPRequest(
            attempt=wish.attempt,
            path_index=self._sealing.index,
            state_version=wish.version,
            cause=Cause.TRANSPORT_DEAD,
            challenge=wish.challenge,
        )
        sealed = header / JVPReattachRequest(sealing=self._sealing, **self._carried()) / request
        self._place.send(bytes(sealed), self._place.own)

    def _carried(self) -> dict[str, bytes]:
        return {"ticket": self._ticket} if self._ticket else {}

    def asks(self, wish: Wish) -> Packet | None:
        """Say it until it is answered: the ACK or FAIL; None: the run is over. Raises Failed when nothing comes."""
        place = self._place
        for _ in range(TRIES):
            self.say(wish)
            for _ in range(round(AGAIN_S / LOOK_S)):
                if not place.run.wait(LOOK_S):
                    return None
                answer = self.answer(wish.attempt)
                if answer is not None:
                    return answer
        raise Failed(
            f"{place.gateway[0]} does not answer: is the index installed, and the key log of its session?"
        )

    def answer(self, attempt: int) -> Packet | None:
        """An answer to this attempt that has come."""
        counters = self._place.run.counters
        while (data := self._received()) is not None:
            packet = JVP(data)
            for kind in (JVPAck, JVPFail):
                if kind in packet and packet[kind].attempt == attempt:
                    counters[said(packet[kind])] += 1
                    found: Packet = packet[kind]
                    return found
        return None

    def _received(self) -> bytes | None:
        try:
            return self._inbox.recv(65_536)
        except BlockingIOError:
            return None


def said(answer: Packet) -> str:
    """What an answer says, as counters call it: "bound", "pending", or a reason."""
    if isinstance(answer, JVPFail):
        return bytes(answer.reason).decode("ascii", "replace")
    return Result(answer.result).name.lower()


def joining(place: Place, *kinds: PacketType) -> Insider | None:
    """An insider of the session whose client says one of these types next; None: it says none. Raises Failed without
    its keys."""
    shown = opened(place, *kinds)
    if shown is None:
        return None
    sealing = shown[1].sealing
    return Insider(place, sealing, sealing.index + BEYOND)


def opened(place: Place, *kinds: PacketType, patience_s: float | None = None) -> tuple[JVP, Packet] | None:
    """The client's next datagram of these types, opened, and its sealed layer; None: none came. Raises Failed when the
    key log does not open it."""
    seen = place.learn(*kinds, patience_s=patience_s)
    return None if seen is None else opening(place, seen.data)


def opening(place: Place, data: bytes) -> tuple[JVP, Packet]:
    """The same of a datagram that one has; the log is read again when a rekey may have come since."""
    for last in (False, True):
        packet = JVP(data)
        layer = packet.payload
        if getattr(layer, "sealing", None) is not None:
            return packet, layer
        if not last:
            jvp.use_keylog(options.keylog(place.run.options))
    raise Failed("the key log does not open what passes: is it of this session, and of its newest phase?")
