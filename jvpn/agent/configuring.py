"""CONFIG at the client: what the gateway gives a session, taken over at each copy, put in force at the first."""

import base64
from typing import TYPE_CHECKING

from jvpn.agent.effects import ConfigureTunnel
from jvpn.policy.model import Policy, PolicyError
from jvpn.protocol import messages
from jvpn.protocol.constants import TICKET_SIZE
from jvpn.protocol.wire import WireError

if TYPE_CHECKING:
    from jvpn.agent.session import ClientSession


class Configuring:
    """A part of its session, which is `configured` from the first CONFIG on."""

    def __init__(self, session: "ClientSession") -> None:
        self._session = session
        self._tunnel: ConfigureTunnel | None = None

    def on_config(self, config: messages.Config, now_ms: int) -> None:
        """Raises WireError when it makes no sense."""
        session = self._session
        try:
            session.policy = session.paths.policy = Policy.from_wire(bytes(config.policy))
        except PolicyError as error:
            raise WireError("bad_control") from error
        session.narrator.policy_version = f"{session.policy.name}@{session.policy.version}"
        self._take_tickets(config)
        tunnel = ConfigureTunnel(tuple(config.addresses), tuple(config.routes), config.mtu, tuple(config.dns))
        if tunnel != self._tunnel:
            self._tunnel = tunnel
            session.do(tunnel)
        if session.configured:
            return
        session.configured = True
        session.schedule_rekey(now_ms)
        session.worker.add()
        for uplink in session.paths.uplinks:
            if uplink.number not in session.paths.paths:
                session.paths.open(uplink, now_ms)
        session.worker.tell_indexes()

    def _take_tickets(self, config: messages.Config) -> None:
        """Raises WireError when one is no ticket; nothing has changed then."""
        try:
            tickets = {int(n): base64.b64decode(text, validate=True) for n, text in config.tickets.items()}
            token = base64.b64decode(config.reset_token, validate=True)
        except ValueError as error:
            raise WireError("bad_control") from error
        if any(len(ticket) != TICKET_SIZE for ticket in tickets.values()):
            raise WireError("bad_control")
        self._session.requester.tickets, self._session.owners.token = tickets, token
