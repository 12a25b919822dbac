"""Values of the CONTROL frames: CONFIG, HEALTH, STATE, CLOSE, SWITCH (docs/protocol.md, "CONTROL")."""

import struct

import msgspec

from jvpn.protocol.wire import WireError

_HEALTH = struct.Struct(">QBBHIIII")
_STATE = struct.Struct(">QBB")
#: A flag of HEALTH.
_LIMITED = 1

#: States are numbered on the wire in the order of the session table: BIRTH 0 … TERMINATED 5.
STATES = 6


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """CONFIG, as JSON: what the gateway gives a client. Unknown fields are ignored, so that later ones can be added.

    `addresses` are inner prefixes of the client, `routes` the inner prefixes behind the gateway, `tickets` and
    `reset_token` base64 (empty where the gateway gives none), `policy` the policy snapshot.
    """

    addresses: list[str]
    routes: list[str]
    mtu: int
    policy: msgspec.Raw
    dns: list[str] = []
    tickets: dict[str, str] = {}
    reset_token: str = ""


class Health(msgspec.Struct, frozen=True):
    """HEALTH, client → gateway: what the client measured and which quality state it proposes (0: none).

    loss in parts per million, times in microseconds; 0xFFFFFFFF: not measured. `state_version` is the newest that
    the client has seen. `limited`: the switch that would help is not allowed yet, which is why DEGRADED is proposed.
    """

    state_version: int
    proposed: int = 0
    loss_ppm: int = 0
    rtt_us: int = 0
    rtt_p95_us: int = 0
    jitter_us: int = 0
    limited: bool = False

    def encode(self) -> bytes:
        return _HEALTH.pack(
            self.state_version,
            self.proposed,
            _LIMITED if self.limited else 0,
            0,
            self.loss_ppm,
            self.rtt_us,
            self.rtt_p95_us,
            self.jitter_us,
        )

    @classmethod
    def decode(cls, value: bytes) -> "Health":
        if len(value) != _HEALTH.size:
            raise WireError("bad_control")
        version, proposed, flags, _zero, loss_ppm, *times_us = _HEALTH.unpack(value)
        if proposed >= STATES:
            raise WireError("bad_control")
        rtt_us, rtt_p95_us, jitter_us = times_us
        return cls(version, proposed, loss_ppm, rtt_us, rtt_p95_us, jitter_us, bool(flags & _LIMITED))


class State(msgspec.Struct, frozen=True):
    """STATE, gateway → client: the session's state as the gateway counts it."""

    state_version: int
    state: int
    reason: str

    def encode(self) -> bytes:
        reason = self.reason.encode("ascii")
        return _STATE.pack(self.state_version, self.state, len(reason)) + reason

    @classmethod
    def decode(cls, value: bytes) -> "State":
        if len(value) < _STATE.size:
            raise WireError("bad_control")
        version, number, size = _STATE.unpack_from(value)
        if number >= STATES or len(value) != _STATE.size + size:
            raise WireError("bad_control")
        return cls(version, number, _ascii(value[_STATE.size :]))


def decode_reason(value: bytes) -> str:
    """The reason code of a CLOSE or SWITCH."""
    if not 1 <= len(value) <= 64:
        raise WireError("bad_control")
    return _ascii(value)


def raw_json(text: str | bytes) -> msgspec.Raw:
    """JSON that is a part of a CONFIG already."""
    return msgspec.Raw(text.encode() if isinstance(text, str) else text)


def encode_config(config: Config) -> bytes:
    return msgspec.json.encode(config)


def decode_config(value: bytes) -> Config:
    try:
        return msgspec.json.decode(value, type=Config)
    except msgspec.MsgspecError as error:
        raise WireError("bad_control") from error


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise WireError("bad_control") from error
