"""The client probes how long packets may be on its active path, and tells its worker; the probes tell the gateway."""

from collections.abc import Callable

from jvpn.agent.effects import Effect, TellWorker
from jvpn.agent.paths import ClientPath, PathTable
from workers import commands

#: DATA within the last so many ns: a hole in the path would hurt now.
BUSY_NS = 2_000_000_000


class MtuProbing:
    """Drives the PathMtu of whichever path is active, which `record()` has.

    `handle_timer` is to be called about every 20 ms.
    """

    def __init__(
        self,
        record: Callable[[], int],
        paths: PathTable,
        seq: Callable[[], int],
        do: Callable[[Effect], None],
    ) -> None:
        self._record = record
        self._paths = paths
        self._seq = seq
        self._do = do
        self._last_id = 0

    def handle_timer(self, now_ns: int, last_sent_ns: int) -> None:
        """Send what is due. `last_sent_ns`: when the worker last sent DATA."""
        path = self._paths.active_path
        if path is None or path.mtu.next_probe_at(now_ns - last_sent_ns < BUSY_NS) > now_ns:
            return
        before = path.mtu.confirmed, path.mtu.settled
        self._last_id = max(now_ns // 1000, self._last_id + 1)
        patience_ns = (path.health.srtt_ns or 0) + 4 * path.health.rttvar_ns
        size = path.mtu.on_timer(self._last_id, now_ns, patience_ns)
        if (path.mtu.confirmed, path.mtu.settled) != before:
            self._tell(path)
        probe = commands.SendMtuProbe(self._seq(), self._record(), path.worker_binding(), size, self._last_id)
        self._do(TellWorker(probe))

    def on_answer(self, report: commands.MtuAnswered, now_ns: int) -> None:
        path = self._paths.by_index(report.index, report.socket)
        if path is None or path is not self._paths.active_path:
            return
        if path.mtu.on_answer(report.timestamp_us, now_ns):
            self._tell(path)
            self.handle_timer(now_ns, now_ns - BUSY_NS)

    def _tell(self, path: ClientPath) -> None:
        found = path.mtu
        self._do(
            TellWorker(
                commands.SetPathMtu(self._seq(), self._record(), path.index, found.confirmed, found.settled)
            )
        )
