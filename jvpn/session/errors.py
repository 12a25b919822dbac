"""Errors of the session core, typed by blame as h11 does."""


class SessionError(Exception):
    """Base of the errors below."""


class LocalProtocolError(SessionError):
    """This side asked for something the rules do not allow: a bug here, never the peer's doing."""


class IllegalTransition(LocalProtocolError):
    """The table has no such row from here. Nothing has changed."""


class VersionExhausted(IllegalTransition):
    """No number is left for this transition; only an end (VERSION_EXHAUSTED) may follow. Nothing has changed."""


class RemoteProtocolError(SessionError):
    """The peer, authenticated, said something that cannot be. Nothing has changed."""


class InvariantBroken(SessionError):
    """An assertion that must hold in production did not: end the session with INVARIANT_VIOLATION."""
