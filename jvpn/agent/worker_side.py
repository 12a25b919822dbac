"""What the client tells its data worker: the session, its indexes, its active path, probes."""

from collections.abc import Callable

from jvpn.agent.effects import ClearRecord, Effect, TellWorker
from jvpn.agent.paths import NS, ClientPath, PathTable
from jvpn.agent.rekeying import ClientRekeying
from jvpn.protocol import keys
from jvpn.protocol.constants import Direction
from jvpn.protocol.key_limits import KEY_LIMITS
from jvpn.protocol.keys import SessionSecrets
from workers import commands

#: The shared page of a client has one record.
RECORD = 0


class WorkerSide:
    """The session as its worker has it. `epoch` is the one whose data keys the worker gets."""

    def __init__(
        self,
        session_id: bytes,
        epoch: int,
        paths: PathTable,
        rekeying: ClientRekeying,
        seq: Callable[[], int],
        do: Callable[[Effect], None],
    ) -> None:
        self._session_id = session_id
        self._epoch = epoch
        self._paths = paths
        self._rekeying = rekeying
        self._seq = seq
        self._do = do
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
        self._do(TellWorker(self._add_command()))

    def remove(self) -> None:
        if self.given:
            self._do(TellWorker(commands.RemoveSession(self._seq(), RECORD)))

    def replaced(self) -> None:
        """A new worker serves in place of one that died: under a higher generation, so that no nonce repeats."""
        self._generation += 1
        if self.given:
            self.add()

    def enter_epoch(self, epoch: int) -> None:
        """The worker forgets the session and gets it anew: the new owner's counters begin at zero."""
        self._epoch = epoch
        self.remove()
        self._do(ClearRecord(RECORD))
        self.add()

    def _phase_keys(self, secrets: SessionSecrets) -> commands.PhaseKeys:
        return commands.PhaseKeys(
            secrets.phase_number,
            keys.data_key(secrets, Direction.CLIENT_TO_GATEWAY, self._epoch),
            keys.data_key(secrets, Direction.GATEWAY_TO_CLIENT, self._epoch),
        )

    def _add_command(self) -> commands.AddSession:
        active = self._paths.active_path
        suite = self._rekeying.secrets.suite.number
        limits = KEY_LIMITS[suite]
        return commands.AddSession(
            seq=self._seq(),
            record=RECORD,
            session_id=self._session_id,
            suite=suite,
            generation=self._generation,
            phases=[self._phase_keys(secrets) for secrets in self._rekeying.phases()],
            allowed_sources=["0.0.0.0/0", "::/0"],
            routes=["0.0.0.0/0", "::/0"],
            indexes=self._installed(),
            binding=None if active is None else active.worker_binding(),
            resend_window_ms=self._paths.policy.resend_window_ms,
            resend_bytes=self._paths.policy.resend_bytes,
            send_until=self._sent_before + limits.stop_sent,
            forged_until=self._forged_before + limits.forged,
        )

    def _installed(self) -> list[commands.InstalledIndex]:
        known = self._paths.left | {path.index: path.steering_id for path in self._paths.paths.values()}
        return [commands.InstalledIndex(index, known[index]) for index in sorted(known)]

    def tell_indexes(self) -> None:
        self._do(TellWorker(commands.InstallIndexes(self._seq(), RECORD, self._installed())))

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
        self._do(
            TellWorker(commands.Rebind(seq, RECORD, binding, draining, until, accept, resend, early=early))
        )
        return seq

    def unbind(self, accept: list[int]) -> int:
        """There is no active path any more; the answer to this command, whose number is returned, has the reports."""
        seq = self._seq()
        self._do(TellWorker(commands.Rebind(seq, RECORD, None, None, 0, accept, report=True)))
        return seq

    def probe(self, path: ClientPath, now_ms: int, now_ns: int) -> None:
        self._last_probe_us = max(now_ns // 1000, self._last_probe_us + 1)
        path.health.on_probe_sent(self._last_probe_us, now_ns)
        probe = commands.SendProbe(self._seq(), RECORD, path.worker_binding(), self._last_probe_us)
        self._do(TellWorker(probe))
