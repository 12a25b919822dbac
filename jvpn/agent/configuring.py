"""CONFIG at the client: what the gateway gives a session, taken over at each copy, put in force at the first."""

import base64
from typing import TYPE_CHECKING

from jvpn.agent.effects import ConfigureTunnel, Say
from jvpn.policy.model import Policy, PolicyError
from jvpn.protocol import messages
from jvpn.protocol.constants import TICKET_SIZE
from jvpn.protocol.wire import WireError

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession


def named(policy: Policy) -> str:
    return f"{policy.name}@{policy.version}"


class Configuring:
    """A part of its session, which is `configured` from the first CONFIG on."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._tunnel: ConfigureTunnel | None = None

    def on_config(self, config: messages.Config, now_ms: int) -> None:
        """Raises WireError when it makes no sense."""
        session = self._session
        try:
            policy = Policy.from_wire(bytes(config.policy))
        except PolicyError as error:
            raise WireError("bad_control") from error
        self._take_tickets(config)
        self._take_policy(policy, now_ms)
        tunnel = ConfigureTunnel(tuple(config.addresses), tuple(config.routes), config.mtu, tuple(config.dns))
        if tunnel != self._tunnel:
            self._tunnel = tunnel
            session.do(tunnel)
        if session.configured:
            session.switching.renew()
            return
        self._compare(session.asked_policy)
        session.configured = True
        session.schedule_rekey(now_ms)
        session.worker.add()
        for uplink in session.paths.uplinks:
            if uplink.number not in session.paths.paths and (uplink.link_up or not uplink.rank):
                session.paths.open(uplink, now_ms)
        session.worker.tell_indexes()

    def _compare(self, asked: str) -> None:
        """A client that was given another policy than it asked for is told, once a session."""
        session = self._session
        if not asked or asked == session.policy.name:
            return
        session.narrator.policy_refused(asked, session.view.state_version)
        given = named(session.policy)
        session.do(
            Say(
                f"the gateway gave policy {given}, not {asked} as asked for: it has none of that name, or this client "
                "may not have it; allow it there (policies of this peer), or ask for another here (policy)"
            )
        )

    def _take_policy(self, policy: Policy, now_ms: int) -> None:
        """The session works by `policy` from now on, and tells of it when it did by another before."""
        session, before = self._session, self._session.policy
        if policy == before:
            return
        session.policy = session.paths.policy = policy
        session.narrator.policy_version = f"{policy.name}@{policy.version}"
        session.ttl = session.ttl.moved(
            policy.lifetime_ms - before.lifetime_ms,
            policy.transport_loss_ttl_ms - before.transport_loss_ttl_ms,
            policy.recovery_window_ms - before.recovery_window_ms,
        )
        for path in session.paths.paths.values():
            path.health.follow(policy)
        session.upkeep.follow(now_ms)
        if not session.configured:
            return
        session.narrator.policy_changed(before, policy, session.view.state_version)
        session.do(Say(f"the gateway changed the policy of this session: {named(before)} → {named(policy)}"))
        session.rekeying.schedule(now_ms, policy.rekey_interval_ms, session.packets())
        session.worker.add()

    def _take_tickets(self, config: messages.Config) -> None:
        """Raises WireError when one is no ticket; nothing has changed then."""
        try:
            tickets = {int(n): base64.b64decode(text, validate=True) for n, text in config.tickets.items()}
            token = base64.b64decode(config.reset_token, validate=True)
        except ValueError as error:
            raise WireError("bad_control") from error
        if any(len(ticket) != TICKET_SIZE for ticket in tickets.values()):
            raise WireError("bad_control")
        # Another owner of the session may have installed indexes above these: by its tickets they are found here too.
        paths, highest = self._session.paths, max(tickets, default=-1)
        tickets |= {index: ticket for index, ticket in paths.tickets.items() if index > highest}
        paths.tickets, self._session.owners.token = tickets, token
