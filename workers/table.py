"""All sessions of a worker: by steering id, by record, by inner destination; changed only by commands.

A command that cannot be carried out raises TableError and has changed nothing.
"""

from collections import OrderedDict
from hashlib import blake2s
from typing import Final

from jvpn.protocol.constants import Role
from workers.bulk import Bulk
from workers.commands import (
    AddSession,
    Binding,
    InstalledIndex,
    InstallIndexes,
    Rebind,
    SendMtuProbe,
    SendProbe,
    SetPathMtu,
)
from workers.held import Held
from workers.kept import Pool
from workers.keys import Phase, Warm
from workers.page import Page
from workers.paths import PathEntry, SendPath
from workers.routes import PrefixMap
from workers.sessions import MORE_EARLY, Session
from workers.udp import UdpSocket, pktinfo, socket_address

#: Send keys of removed sessions whose counters must not start again.
RETIRED_KEYS: Final = 16_384


class TableError(ValueError):
    """A command that does not fit what the worker knows; the text says why."""


class SessionTable:
    """`gateway`: many sessions, DATA only from bound sources; else a client's one session. While that moves to another
    node it has two records, one for each epoch; what comes from the TUN goes to the one that was bound last."""

    def __init__(self, page: Page, *, gateway: bool, bulk: Bulk | None = None) -> None:
        self.page = page
        self.gateway = gateway
        self.by_id: dict[bytes, PathEntry] = {}
        self.by_record: dict[int, Session] = {}
        self.sockets: dict[int, UdpSocket] = {}
        self.pool = Pool()
        self.held = Held()
        self._fence = page.fence()
        self._routes: PrefixMap[Session] = PrefixMap()
        self._warm = Warm(bulk=bulk)
        self._only: Session | None = None
        #: Digest of a removed session's send key → generation it was used under.
        self._retired: OrderedDict[bytes, int] = OrderedDict()

    def fenced(self, now_ns: int) -> bool:
        """Whether this gateway's sessions may be another's by now."""
        fence = self._fence[0]
        return 0 < fence <= now_ns

    def route(self, destination: bytes) -> Session | None:
        """The session that an inner destination (4 or 16 bytes) belongs to; all of a client's go to one."""
        return self._only if self._only is not None else self._routes.lookup(destination)

    # Commands

    def add(self, command: AddSession) -> Session:
        session = self.by_record.get(command.record)
        if session is not None and session.session_id != command.session_id:
            raise TableError(f"record {command.record} holds another session: remove that first")
        if not 0 <= command.record < self.page.capacity:
            raise TableError(f"record {command.record} is outside the shared page")
        if session is not None and command.generation < session.generation:
            raise TableError(f"generation {command.generation} is below {session.generation}")
        if not self.gateway and any(s.session_id != command.session_id for s in self.by_record.values()):
            raise TableError("a client's worker has one session: remove the old one first")
        if not command.phases:
            raise TableError("no keys")
        allowed: PrefixMap[bool] = PrefixMap()
        try:
            phases = self._phases(session, command)
            for prefix in command.allowed_sources:
                allowed.add(prefix, True)
            for prefix in command.routes:
                PrefixMap[bool]().add(prefix, True)
        except ValueError as error:
            raise TableError(str(error)) from error
        self._check_indexes(session, command.indexes, command.binding)
        self._check_binding(session, command.binding)
        if session is None and any(
            self._retired.get(_digest(keys.send_key), -1) >= command.generation for keys in command.phases
        ):
            raise TableError("these keys were in use here under this generation: raise it first")

        begins_anew = session is None or command.generation > session.generation
        before = _phases_of(session) if session is not None else set()
        if session is None:
            session = self.by_record[command.record] = Session(command, self.page, self.pool)
            if not self.gateway and self._only is None:
                self._only = session
        elif begins_anew:
            session.raise_generation(command.generation)
        if begins_anew and not self.gateway:
            # An agent outlives its workers, so it knows every index that any of them can have sent on. On the others a
            # generation would be needless, and tell an observer of two networks that the same client uses both.
            session.unused_above = max((item.index for item in command.indexes), default=-1)
        for old in before.difference(phases):
            old.discard()
        session.phase = phases[-1]
        session.receive = {phase.nibble: phase for phase in phases}
        session.send_until, session.forged_until = command.send_until, command.forged_until
        session.allowed = allowed
        session.keep(command.resend_window_ms, command.resend_bytes)
        self._set_routes(session, command.routes)
        self._set_indexes(session, command.indexes)
        self._bind(session, command.binding)
        return session

    def install(self, command: InstallIndexes) -> None:
        session = self._session(command.record)
        active = session.path
        keep = Binding(active.index, active.socket.number, active.local, active.local) if active else None
        self._check_indexes(session, command.indexes, keep)
        self._set_indexes(session, command.indexes)

    def rebind(self, command: Rebind) -> Session:
        session = self._session(command.record)
        if command.binding is not None and command.binding.index not in session.entries:
            raise TableError(f"index {command.binding.index} is not installed")
        self._check_binding(session, command.binding)
        if command.early is not None and command.early.index not in session.entries:
            raise TableError(f"index {command.early.index} is not installed")
        self._check_binding(session, command.early)
        if any(len(report.missing) != 32 for report in command.resend or ()):
            raise TableError("a report has 32 bytes of what is missing")
        if command.draining is not None and (
            command.binding is not None and command.draining == command.binding.index
        ):
            raise TableError("an index cannot be active and draining")
        self._bind(session, command.binding)
        if command.binding is None:
            session.early = None if command.early is None else self._send_path(session, command.early)
            session.early_left = max(session.early_left, MORE_EARLY)
        for entry in session.entries.values():
            entry.accepted = entry.index in command.accept
            if entry.index == command.draining:
                entry.role = Role.DRAINING
                entry.drain_until_ns = command.drain_until_ns
            elif entry.role is Role.DRAINING:
                entry.role = Role.INSTALLED
        return session

    def remove(self, record: int) -> None:
        """Forget a session; one that is not there is no error."""
        session = self.by_record.pop(record, None)
        if session is None:
            return
        self._set_routes(session, [])
        self._set_indexes(session, [])
        session.forget()
        self.held.forget(session)
        for phase in _phases_of(session):
            phase.discard()
            self._retired[_digest(phase.keys.send_key)] = session.generation
        while len(self._retired) > RETIRED_KEYS:
            self._retired.popitem(last=False)
        if self._only is session:
            self._only = None

    def set_path_mtu(self, command: SetPathMtu) -> None:
        path = self._session(command.record).path
        if path is not None and path.index == command.index:
            path.limit(command.mtu, command.settled)

    def probe_path(self, command: SendProbe | SendMtuProbe) -> tuple[PathEntry, UdpSocket]:
        """Where a PROBE goes out; its remote may send DATA to a client from now on."""
        session = self._session(command.record)
        entry = session.entries.get(command.path.index)
        if entry is None:
            raise TableError(f"index {command.path.index} is not installed")
        self._check_binding(session, command.path)
        if not self.gateway:
            session.remember_gateway(socket_address(command.path.remote.address, command.path.remote.port))
        return entry, self.sockets[command.path.socket]

    # Checks, which change nothing

    def _session(self, record: int) -> Session:
        session = self.by_record.get(record)
        if session is None:
            raise TableError(f"no session in record {record}")
        return session

    def _phases(self, session: Session | None, command: AddSession) -> list[Phase]:
        known = list(session.receive.values()) if session else []
        phases = []
        for keys in command.phases:
            same = [phase for phase in known if phase.matches(command.suite, keys)]
            phases.append(same[0] if same else Phase(command.suite, keys, self._warm))
        if len({phase.nibble for phase in phases}) != len(phases):
            raise TableError("two phases with the same header nibble")
        return phases

    def _check_indexes(
        self, session: Session | None, indexes: list[InstalledIndex], binding: Binding | None
    ) -> None:
        ids = [item.steering_id for item in indexes]
        numbers = [item.index for item in indexes]
        if len(set(ids)) != len(ids) or len(set(numbers)) != len(numbers):
            raise TableError("an index or steering id stands twice in the list")
        for item in indexes:
            if len(item.steering_id) != 8 or not 0 <= item.index < 1 << 32:
                raise TableError("a steering id has 8 bytes, an index 32 bits")
            other = self.by_id.get(item.steering_id)
            if other is not None and (other.session is not session or other.index != item.index):
                raise TableError(f"the steering id of index {item.index} is already in use")
            known = session.entries.get(item.index) if session else None
            if known is not None and known.steering_id != item.steering_id:
                raise TableError(f"index {item.index} has another steering id already")
        if binding is not None and binding.index not in numbers:
            raise TableError(f"index {binding.index} is bound but not installed")

    def _check_binding(self, session: Session | None, binding: Binding | None) -> None:
        if binding is None:
            return
        if binding.socket not in self.sockets:
            raise TableError(f"socket {binding.socket} is not attached")
        if len(binding.remote.address) != 16 or len(binding.local.address) != 16:
            raise TableError("an address has 16 bytes")
        if session is not None and not session.may_send_on(binding.index):
            raise TableError(f"index {binding.index} is too old: its counters are forgotten")

    # Changes, which cannot fail

    def _set_routes(self, session: Session, routes: list[str]) -> None:
        for prefix in session.routes:
            if prefix not in routes:
                self._routes.discard(prefix, session)
        for prefix in routes:
            self._routes.add(prefix, session)
        session.routes = routes

    def _set_indexes(self, session: Session, indexes: list[InstalledIndex]) -> None:
        wanted = {item.index: item.steering_id for item in indexes}
        for index in [index for index in session.entries if index not in wanted]:
            del self.by_id[session.entries.pop(index).steering_id]
        for index, steering_id in wanted.items():
            if index not in session.entries:
                entry = session.entries[index] = PathEntry(session, index, steering_id)
                self.by_id[steering_id] = entry

    def _bind(self, session: Session, binding: Binding | None) -> None:
        for entry in session.entries.values():
            if entry.role is Role.ACTIVE:
                entry.role = Role.INSTALLED
        if binding is None:
            session.bind(None)
            return
        if not self.gateway:
            self._only = session
        entry = session.entries[binding.index]
        entry.role = Role.ACTIVE
        entry.remote = socket_address(binding.remote.address, binding.remote.port)
        before, path = session.path, self._send_path(session, binding)
        if before is not None and (before.entry, before.destination) == (entry, path.destination):
            path.mtu, path.settled = before.mtu, before.settled
        session.bind(path)

    def _send_path(self, session: Session, binding: Binding) -> SendPath:
        remote = socket_address(binding.remote.address, binding.remote.port)
        if not self.gateway:
            session.remember_gateway(remote)
        entry = session.entries[binding.index]
        path = SendPath(entry, self.sockets[binding.socket], binding.local, remote)
        path.ancillary = pktinfo(binding.local.address)
        path.limit(binding.mtu, binding.settled)
        return path


def _phases_of(session: Session) -> set[Phase]:
    """All that hold keys: one that was forged too often is not heard any more, but may still be spoken."""
    return {*session.receive.values(), session.phase}


def _digest(key: bytes) -> bytes:
    return blake2s(key, digest_size=16).digest()
