"""The client's paths: one for each way out, active or candidate, each on an index of its own.

An index is never used for two networks: a path that was left, or whose link changed, comes back on a fresh one, so that
nobody can link the old network to the new by its steering id. Only when the gateway has not answered on any of the
indexes that it has given tickets for does the client go on with the highest: then linkability is lost, not the session.
It ends as soon as there are tickets for newer ones, whoever had the shared one first. No path is on an index without a
ticket for long: by nothing else does a node that has begun anew, or another one, find the session, and one that has
fallen behind the others is not installed at its owner either.
"""

from collections.abc import Container
from dataclasses import dataclass, field

from jvpn.policy.decisions import Candidate, ranked
from jvpn.policy.health import PathHealth
from jvpn.policy.model import Policy
from jvpn.policy.pmtud import PathMtu
from jvpn.policy.quality import Quality
from jvpn.protocol.addresses import is_ipv4
from jvpn.protocol.keys import SessionSecrets, steering_id
from workers.commands import Binding, Endpoint

#: A path is validated while the client holds a challenge for it younger than this.
CHALLENGE_LIFE_MS = 60_000
LEFT_KEPT = 4
NS = 1_000_000
_LOCAL_ANY = Endpoint(bytes(16), 0)


@dataclass(slots=True)
class Uplink:
    """A way out of this machine: a device, and the gateway's endpoint `remote` that it leads to.

    A device may have several, each to other endpoints, so that each is a candidate of its own: `rank` counts them, and
    `socket` names the socket that they share (-1: it is called like `number`). `remotes` are the gateway's endpoints
    that this one may lead to, best first; `link_up`: it has a link, and at least one of them. `sources` are the
    addresses that it sends from, at most one of each family.
    """

    number: int
    name: str
    preference: int
    remote: Endpoint
    link_up: bool = True
    remotes: tuple[Endpoint, ...] = ()
    sources: tuple[bytes, ...] = ()
    socket: int = -1
    rank: int = 0
    #: What its owner says of it: how dear it is, and which network it leads to.
    cost: int = 0
    network: str = ""
    #: Its device came and went too often: until then it is no choice while there is another.
    damped_until_ms: int = 0

    def __post_init__(self) -> None:
        if self.socket < 0:
            self.socket = self.number

    @property
    def local(self) -> Endpoint:
        """Where what goes to `remote` comes from; zero when that is the kernel's choice."""
        return self.local_for(self.remote)

    def local_for(self, remote: Endpoint) -> Endpoint:
        ipv4 = is_ipv4(remote.address)
        return next((Endpoint(own, 0) for own in self.sources if is_ipv4(own) is ipv4), _LOCAL_ANY)


@dataclass(slots=True)
class ClientPath:
    """One uplink's path in one session. `local`, where it sends from, is its own: nothing of it may go out under
    another address, by which an observer of both networks could link them."""

    uplink: Uplink
    local: Endpoint
    index: int
    steering_id: bytes
    health: PathHealth
    mtu: PathMtu
    challenge: bytes = b""
    challenge_ms: int = 0
    #: The last challenge of this uplink's path before, and when it came.
    before: tuple[bytes, int] = (b"", 0)
    bound_us: int = 0
    #: Another path has, or had, its index too: there was no fresh one.
    shared: bool = False
    last_probe_us: int = 0
    #: Whether it leads to the session's owner: nobody else answers a PROBE, though anybody may a REQUEST.
    probe_answered: bool = False
    quality: Quality = field(default_factory=Quality)

    def validated(self, now_ms: int) -> bool:
        return bool(self.challenge) and now_ms - self.challenge_ms < CHALLENGE_LIFE_MS

    @property
    def patience_ms(self) -> float | None:
        """How long an answer may take, srtt + 4·rttvar; None before the first measured one."""
        srtt_ns = self.health.srtt_ns
        return None if srtt_ns is None else (srtt_ns + 4 * self.health.rttvar_ns) / NS

    def worker_binding(self) -> Binding:
        return Binding(
            self.index,
            self.uplink.socket,
            self.local,
            self.uplink.remote,
            self.mtu.confirmed,
            self.mtu.settled,
        )

    @property
    def id(self) -> str:
        """What decisions and their records call it."""
        return f"{self.uplink.name}/{self.uplink.number}"

    def candidate(self, now_ms: int) -> Candidate:
        """The path as decisions see it. A path that owes answers is at least as slow as they are late."""
        now_ns = now_ms * NS
        seen, signals = self.health.snapshot(now_ns), self.health.signals(now_ns)
        measured = signals.latency_ms is not None
        latency_ms = (
            signals.latency_ms if measured else max(_known(seen.latency_ms, seen.p95_ms), default=None)
        )
        answering = seen.answering and not seen.dead and self.validated(now_ms)
        return Candidate(
            id=self.id,
            transport="udp",
            preference=self.uplink.preference,
            cost=self.uplink.cost,
            device=self.uplink.name,
            network=self.uplink.network,
            up=self.uplink.link_up,
            answering=answering,
            dead=seen.dead,
            broken=self.quality.broken,
            loss=seen.loss if signals.loss is None else signals.loss,
            latency_ms=None if latency_ms is None else max(latency_ms, seen.silent_ms),
            jitter_ms=seen.jitter_ms if signals.jitter_ms is None else signals.jitter_ms,
            steady_since_ms=seen.steady_since_ms if answering else None,
            measured=measured,
        )

    def keep_challenge(self, challenge: bytes, now_ms: int) -> None:
        self.challenge, self.challenge_ms = challenge, now_ms


@dataclass(slots=True)
class PathTable:
    """All paths of a session by uplink number; `active` is the uplink number that DATA goes out on, or None."""

    secrets: SessionSecrets
    policy: Policy
    uplinks: list[Uplink]
    highest_installed: int
    active: int | None = None
    paths: dict[int, ClientPath] = field(default_factory=dict)
    last_index: int = -1
    #: The highest index that the owner has answered on.
    highest_heard: int = 0
    #: What finds the session at a node that does not know it, by index; none before the first CONFIG.
    tickets: dict[int, bytes] = field(default_factory=dict)
    #: Indexes left lately, with their ids: what is still under way on them may be delivered.
    left: dict[int, bytes] = field(default_factory=dict)
    #: REQUESTs sent on each index, whichever uplinks share it: two under one counter would share a nonce.
    _requests: dict[int, int] = field(default_factory=dict)

    def open(self, uplink: Uplink, now_ms: int, *, active: bool = False) -> ClientPath:
        """A fresh path of this uplink; the old one, if there was one, is forgotten."""
        unused = self.last_index < max(self.highest_fresh, 0)
        old = self.paths.get(uplink.number)
        self.last_index = self.last_index + 1 if unused else self.last_index
        if old is not None:
            self._leave(old)
        health = PathHealth(self.policy, now_ms * NS, active=active)
        health.not_steady_before(uplink.damped_until_ms * NS)
        own_id = steering_id(self.secrets, self.last_index)
        path = ClientPath(uplink, uplink.local, self.last_index, own_id, health, PathMtu(now_ms * NS))
        if not unused:
            self._mark_shared(path)
        if old is not None:
            path.before = (old.challenge, old.challenge_ms) if old.challenge else old.before
        self.paths[uplink.number] = path
        return path

    def outnumber(self, index: int, kept: Container[int] = ()) -> bool:
        """Give the candidates that are on an older index one newer than `index`, as far as the gateway has installed
        any, but for those in `kept`: what was lost on an index can go again on newer ones only. Returns whether there
        was one."""
        before = self.last_index
        for number, path in sorted(self.paths.items()):
            if number == self.active or path.index > index or path.index in kept:
                continue
            if self.last_index >= self.highest_fresh:
                break
            self._renumber(path)
        return self.last_index > before

    def renew(self, kept: Container[tuple[int, int]]) -> bool:
        """Give the paths that had to share an index, or whose index is not installed any more, fresh ones, as far as
        there are any by now, but for the active one and those in `kept`, as (uplink number, index): what goes out on
        them has gone out before. Returns whether there was one."""
        renewed = False
        for number, path in sorted(self.paths.items()):
            # One without a link sends nothing, and comes back on a fresh index.
            stays = not path.uplink.link_up or number == self.active or (number, path.index) in kept
            lost = bool(self.tickets) and path.index not in self.tickets
            behind = lost or path.index < self._lowest_installed
            fresh = self.last_index < self.highest_fresh
            if stays or not ((path.shared and fresh) or behind):
                continue
            self._renumber(path)
            renewed = True
        return renewed

    def _renumber(self, path: ClientPath) -> None:
        """Give it a fresh index, or the last one when there is none."""
        fresh = self.last_index < self.highest_fresh
        self._leave(path)
        self.last_index += fresh
        path.index, path.steering_id = self.last_index, steering_id(self.secrets, self.last_index)
        path.shared = False
        if not fresh:
            self._mark_shared(path)

    def _mark_shared(self, path: ClientPath) -> None:
        """Those that have its index already, too: they may not have sent anything on it yet."""
        for other in (path, *self.paths.values()):
            other.shared = other.shared or other.index == path.index

    def _leave(self, path: ClientPath) -> None:
        self.left[path.index] = path.steering_id
        while len(self.left) > LEFT_KEPT:
            del self.left[next(iter(self.left))]

    def take_counter(self, index: int) -> int:
        """The next counter for a REQUEST on `index`, never given out again."""
        counter = self._requests.get(index, 0)
        self._requests[index] = counter + 1
        return counter

    def installed(self, highest: int, index: int) -> None:
        """The owner has answered on `index`, and said that it has installed those up to `highest`."""
        self.highest_installed = max(self.highest_installed, highest)
        self.highest_heard = max(self.highest_heard, index)

    def moved(self) -> None:
        """What the owner before had installed says nothing of another one."""
        self.highest_installed = self.highest_heard = 0

    @property
    def highest_fresh(self) -> int:
        """The highest index that a fresh path may get."""
        return min(self.highest_installed, max(self.tickets, default=self.highest_installed))

    @property
    def _lowest_installed(self) -> int:
        """h − m of the window h − m … h + m + 2, h no index that was not used yet, and none below one that the owner
        has answered on: it tells of the window with its next answer only. Its m may be more than the policy's, for a
        window never narrows."""
        above = max(self.policy.max_candidates + 2, self.highest_installed - self.last_index)
        return max(self.highest_installed - 2 * above, self.highest_heard - above) + 2

    @property
    def active_path(self) -> ClientPath | None:
        return None if self.active is None else self.paths.get(self.active)

    def by_steering_id(self, wanted: bytes, socket: int, remote: Endpoint | None = None) -> ClientPath | None:
        """The path that a datagram from `remote` came on: several may share the last index, but not the endpoint."""
        found = [p for p in self.paths.values() if p.uplink.socket == socket and p.steering_id == wanted]
        return next((path for path in found if path.uplink.remote == remote), found[0] if found else None)

    def by_index(self, index: int, socket: int) -> ClientPath | None:
        found = (p for p in self.paths.values() if p.uplink.socket == socket and p.index == index)
        return next(found, None)

    def candidates(self, now_ms: int, *, without: int | None = None) -> list[ClientPath]:
        """Paths to try, best first, in the total order of `decisions.ranked`."""
        by_id = {path.id: path for number, path in self.paths.items() if number != without}
        order = ranked(self.policy, [path.candidate(now_ms) for path in by_id.values()])
        return [by_id[candidate.id] for candidate in order]


def _known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]
