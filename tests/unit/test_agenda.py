"""The heap of deadlines: earliest first, the newest word counts, and what is over leaves nothing behind."""

from typing import cast

from jvpn.supervisor.agenda import Agenda
from jvpn.supervisor.live_session import LiveSession


def session() -> LiveSession:
    """The agenda asks nothing of a session but to be itself."""
    return cast(LiveSession, object())


def test_the_earliest_comes_first() -> None:
    agenda, late, early = Agenda(), session(), session()
    agenda.put(late, 20)
    agenda.put(early, 10)
    assert agenda.next_ms() == 10
    assert agenda.take(30, 9) == [early, late]
    assert agenda.next_ms() is None


def test_only_what_is_due_is_taken() -> None:
    agenda, one, two = Agenda(), session(), session()
    agenda.put(one, 10)
    agenda.put(two, 11)
    assert agenda.take(10, 9) == [one]
    assert agenda.next_ms() == 11


def test_many_that_are_due_are_taken_in_parts() -> None:
    agenda, sessions = Agenda(), [session() for _ in range(5)]
    for at_ms, one in enumerate(sessions):
        agenda.put(one, at_ms)
    assert agenda.take(10, 3) == sessions[:3]
    assert agenda.next_ms() == 3
    assert agenda.take(10, 3) == sessions[3:]
    assert agenda.next_ms() is None


def test_a_new_deadline_replaces_the_old_in_both_directions() -> None:
    agenda, one = Agenda(), session()
    agenda.put(one, 10)
    agenda.put(one, 50)
    assert agenda.take(20, 9) == []
    assert agenda.next_ms() == 50
    agenda.put(one, 30)
    assert agenda.take(30, 9) == [one]
    assert agenda.take(60, 9) == []


def test_a_session_that_is_forgotten_never_comes() -> None:
    agenda, one, two = Agenda(), session(), session()
    agenda.put(one, 10)
    agenda.put(two, 20)
    agenda.forget(one)
    agenda.forget(session())
    assert agenda.take(100, 9) == [two]


def test_changed_deadlines_do_not_pile_up() -> None:
    agenda, one = Agenda(), session()
    for due_ms in range(10_000):
        agenda.put(one, due_ms)
    assert len(agenda._heap) < 200
    assert agenda.take(10_000, 9) == [one]
