"""What the client tells its data worker: the session, its indexes, its active path, probes.

The worker has the session in one record of the shared page. While it moves to another node without a break it has it in
both records: in one with the keys of the epoch in force, in the other with those of the next, so that the new owner's
first DATA is delivered, even if it is ahead of the ACK; from the bind on the old record only receives what is still
under way on the index that was left, until that has drained.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jvpn.agent.effects import ClearRecord, Effect, TellWorker
from jvpn.agent.paths import NS, ClientPath, PathTable
from jvpn.agent.rekeying import ClientRekeying
from jvpn.protocol import keys
from jvpn.protocol.constants import Direction
from jvpn.protocol.key_limits import KEY_LIMITS
from jvpn.protocol.keys import SessionSecrets
from workers import commands

#: Of the client's shared page: one for the epoch in force, one for the epoch before or after it.
RECORDS = 2
#: A new session begins here.
FIRST_RECORD = 0


@dataclass(slots=True)
class _Ahead:
    """The next epoch as the worker has it already; `path`: where its owner-to-be is asked, None when nobody is."""

    record: int
    path: ClientPath | None
    #: The index of `path` that the worker was told of.
    index: int = -1


@dataclass(slots=True)
class _Drained:
    """What the worker has of the epoch before: `index` receives until `until_ms`."""

    record: int
    index: int
    until_ms: int
    told: bool = False


class WorkerSide:
    """The session as its worker has it. `epoch` is the one whose data keys the worker gets; its record is `record`."""

    def __init__(
        self,
        session_id: bytes,
        epoch: int,
        paths: PathTable,
        rekeying: ClientRekeying,
        seq: Callable[[], int],
        do: Callable[[Effect], None],
    ) -> None:
        self.record = FIRST_RECORD
        self._session_id = session_id
        self._epoch = epoch
        self._paths = paths
        self._rekeying = rekeying
        self._seq = seq
        self._do = do
        self._ahead: _Ahead | None = None
        self._drained: _Drained | None = None
        #: Of the data counters: one for each worker that has served this session.
        self._generation = 0
        self._last_probe_us = 0
        self._sent_before = self._forged_before = 0
        self.given = False

    def begin_phase(self, sent: int, forged: int) -> None:
        """The keys that the next command brings are new: of what the page has counted, this was under others."""
        self._sent_before, self._forged_before = sent, forged

    def add(self) -> None:
        """Give the worker the whole session, or what has changed of it."""
        self.given = True
        self._tell(self._add_command())
        if self._ahead is not None:
            self._tell(self._add_ahead(self._ahead))
            self._expect(self._ahead)

    def remove(self) -> None:
        """The session is over."""
        if self.given:
            self._forget_others()
            self._tell(commands.RemoveSession(self._seq(), self.record))

    def replaced(self) -> None:
        """A new worker serves in place of one that died: under a higher generation, so that no nonce repeats."""
        self._generation += 1
        self._drained = None
        if self.given:
            self.add()

    # Two epochs

    def expect_next(self, path: ClientPath) -> None:
        """The session is asked for at another node over `path`: its DATA there, in the next epoch, is delivered."""
        ahead = self._ahead
        if ahead is not None and ahead.path is path and ahead.index == path.index:
            return
        self.finish_draining()
        begins = ahead is None
        if ahead is None:
            ahead = self._ahead = _Ahead(1 - self.record, path)
            self._do(ClearRecord(ahead.record))
        ahead.path, ahead.index = path, path.index
        # One steering id leads to one record: the other has to let go of it first.
        self._install(self.record, self._installed())
        if begins:
            self._tell(self._add_ahead(ahead))
        else:
            self._install(ahead.record, self._installed_ahead(ahead))
        self._expect(ahead)

    def expect_nobody(self) -> None:
        """The session stays where it is: all its paths are of the epoch in force again."""
        ahead = self._ahead
        if ahead is not None and ahead.path is not None:
            # It keeps its record and its keys: in another record their counters would begin anew.
            ahead.path, ahead.index = None, -1
            self._install(ahead.record, [])
            self.tell_indexes()

    def enter_epoch(self, epoch: int, draining: tuple[int, int] | None) -> None:
        """The keys are those of `epoch` from now on. `draining`: the index that was left, and until when it receives,
        ms. Where that epoch was not expected, the worker forgets the session and gets it anew, and nothing drains."""
        ahead, expected = self._ahead, epoch == self._epoch + 1
        self._epoch = epoch
        if ahead is None or not expected:
            self._forget_others()
            self._tell(commands.RemoveSession(self._seq(), self.record))
            self._do(ClearRecord(self.record))
            self.add()
            return
        old, self.record, self._ahead = self.record, ahead.record, None
        if draining is None:
            self._tell(commands.RemoveSession(self._seq(), old))
        else:
            index, until_ms = draining
            self._drained = _Drained(old, index, until_ms)
            self._install(old, [commands.InstalledIndex(index, self._steering_ids()[index])])
        self.tell_indexes()

    def get_timer(self) -> int | None:
        """When `handle_timer` is due, ms."""
        return None if self._drained is None else self._drained.until_ms

    def handle_timer(self, now_ms: int) -> None:
        if self._drained is not None and now_ms >= self._drained.until_ms:
            self.finish_draining()

    def finish_draining(self) -> None:
        """What the worker has of the epoch before goes, if there is any."""
        drained, self._drained = self._drained, None
        if drained is not None:
            self._tell(commands.RemoveSession(self._seq(), drained.record))

    def _forget_others(self) -> None:
        """What the worker has of other epochs goes."""
        self.finish_draining()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._tell(commands.RemoveSession(self._seq(), ahead.record))

    def _expect(self, ahead: _Ahead) -> None:
        if ahead.path is not None:
            # Where it is to come from is said as where something might go: nothing does, the other record has the TUN.
            early = ahead.path.worker_binding()
            self._tell(commands.Rebind(self._seq(), ahead.record, None, None, 0, [ahead.index], early=early))

    # Commands

    def _tell(self, command: commands.Command) -> None:
        self._do(TellWorker(command))

    def _phase_keys(self, secrets: SessionSecrets, epoch: int) -> commands.PhaseKeys:
        return commands.PhaseKeys(
            secrets.phase_number,
            keys.data_key(secrets, Direction.CLIENT_TO_GATEWAY, epoch),
            keys.data_key(secrets, Direction.GATEWAY_TO_CLIENT, epoch),
        )

    def _add_command(self) -> commands.AddSession:
        active = self._paths.active_path
        return self._session(
            self.record,
            self._epoch,
            self._installed(),
            None if active is None else active.worker_binding(),
            self._sent_before,
            self._forged_before,
        )

    def _add_ahead(self, ahead: _Ahead) -> commands.AddSession:
        return self._session(ahead.record, self._epoch + 1, self._installed_ahead(ahead), None, 0, 0)

    def _session(
        self,
        record: int,
        epoch: int,
        indexes: list[commands.InstalledIndex],
        binding: commands.Binding | None,
        sent_before: int,
        forged_before: int,
    ) -> commands.AddSession:
        suite = self._rekeying.secrets.suite.number
        limits = KEY_LIMITS[suite]
        return commands.AddSession(
            seq=self._seq(),
            record=record,
            session_id=self._session_id,
            suite=suite,
            generation=self._generation,
            phases=[self._phase_keys(secrets, epoch) for secrets in self._rekeying.phases()],
            allowed_sources=["0.0.0.0/0", "::/0"],
            routes=["0.0.0.0/0", "::/0"],
            indexes=indexes,
            binding=binding,
            resend_window_ms=self._paths.policy.resend_window_ms,
            resend_bytes=self._paths.policy.resend_bytes,
            send_until=sent_before + limits.stop_sent,
            forged_until=forged_before + limits.forged,
        )

    def _installed(self) -> list[commands.InstalledIndex]:
        """All indexes, but for those that are the other record's."""
        known = self._steering_ids()
        if self._ahead is not None:
            known.pop(self._ahead.index, None)
        if self._drained is not None:
            known.pop(self._drained.index, None)
        return [commands.InstalledIndex(index, known[index]) for index in sorted(known)]

    def _installed_ahead(self, ahead: _Ahead) -> list[commands.InstalledIndex]:
        return [] if ahead.path is None else [commands.InstalledIndex(ahead.index, ahead.path.steering_id)]

    def _steering_ids(self) -> dict[int, bytes]:
        """Of all indexes, whichever record they are in."""
        return self._paths.left | {path.index: path.steering_id for path in self._paths.paths.values()}

    def _install(self, record: int, indexes: list[commands.InstalledIndex]) -> None:
        self._tell(commands.InstallIndexes(self._seq(), record, indexes))

    def tell_indexes(self) -> None:
        self._install(self.record, self._installed())

    def rebind(
        self,
        accept: list[int],
        draining: int | None = None,
        drain_ms: int = 0,
        *,
        resend: list[commands.IndexReport] | None = None,
        early: commands.Binding | None = None,
    ) -> int:
        """Tell the worker the active path, if there is one; returns the command's number."""
        self.tell_indexes()
        active = self._paths.active_path
        binding = None if active is None else active.worker_binding()
        seq, until = self._seq(), drain_ms * NS
        self._tell(commands.Rebind(seq, self.record, binding, draining, until, accept, resend, early=early))
        drained = self._drained
        if drained is not None and not drained.told:
            # Only now: until the other record is bound, what comes from the TUN goes out by this one.
            drained.told = True
            until = drained.until_ms * NS
            self._tell(commands.Rebind(self._seq(), drained.record, None, drained.index, until, []))
        return seq

    def unbind(self, accept: list[int]) -> int:
        """There is no active path any more; the answer to this command, whose number is returned, has the reports."""
        seq = self._seq()
        self._tell(commands.Rebind(seq, self.record, None, None, 0, accept, report=True))
        return seq

    def probe(self, path: ClientPath, now_ms: int, now_ns: int) -> None:
        self._last_probe_us = max(now_ns // 1000, self._last_probe_us + 1)
        path.health.on_probe_sent(self._last_probe_us, now_ns)
        ahead = self._ahead
        record = ahead.record if ahead is not None and ahead.index == path.index else self.record
        self._tell(commands.SendProbe(self._seq(), record, path.worker_binding(), self._last_probe_us))
