"""What a session durably is, its bindings, its clocks, and how a reattach request is judged."""

from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest

from jvpn.protocol.constants import Transport
from jvpn.session.bucket import BIND_RATE, DATAGRAM_RATE, Rate, TokenBucket
from jvpn.session.errors import LocalProtocolError
from jvpn.session.machine import LOSS_CAUSES, VOLUNTARY_CAUSES, Machine, Reason, State, pack_version
from jvpn.session.ownership import (
    Code,
    Kind,
    NodeFacts,
    PolicyFacts,
    RequestFacts,
    SessionFacts,
    Violation,
    entry_reason,
    judge,
)
from jvpn.session.record import Binding, Bindings, SessionRecord, drain_window_ms
from jvpn.session.ttl import Fired, Instant, TtlClock, revive

R, S = Reason, State
BOOT, OTHER_BOOT = "boot-a", "boot-b"

RECORD = SessionRecord(
    session_id=b"s" * 16,
    client_public=b"p" * 32,
    policy_name="mobile",
    policy_version="3",
    owner_node="a",
    state=S.ATTACHED,
    state_version=pack_version(4, 9),
    secrets=b"very secret",
    inner_v4="10.77.0.2",
    inner_v6="fd00::2",
    created_wall_ms=1_000,
    expires_wall_ms=101_000,
    expires_boot_ms=500_000,
    boot_id=BOOT,
    stored_wall_ms=50_000,
)


class TestRecord:
    def test_it_knows_its_epoch_and_cannot_be_changed(self) -> None:
        assert RECORD.epoch == 4
        with pytest.raises(FrozenInstanceError):
            RECORD.owner_node = "b"  # type: ignore[misc]

    def test_it_shows_no_secret(self) -> None:
        shown = f"{RECORD} {RECORD!r}"
        assert "secret" not in shown
        assert "10.77" not in shown
        assert RECORD.session_id.hex() in shown

    @pytest.mark.parametrize(
        "wrong",
        [
            {"session_id": b"short"},
            {"client_public": b"p" * 31},
            {"owner_node": ""},
            {"expires_wall_ms": 1_000},
            {"state_version": 2**64},
        ],
    )
    def test_wrong_fields_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r".+"):
            replace(RECORD, **wrong)  # type: ignore[arg-type]


def binding(index: int, port: int = 4000, transport: Transport = Transport.UDP) -> Binding:
    return Binding(index, ("198.51.100.7", port), ("192.0.2.1", 443), transport, 0)


class TestBindings:
    def test_a_voluntary_switch_drains_the_old_one_for_its_time(self) -> None:
        bound = Bindings().bind(binding(0), 0, None).bind(binding(1, 5000), 100, 250)
        assert (bound.count, bound.active, bound.draining) == (1, binding(1, 5000), binding(0))
        assert bound.expire(349) is bound
        assert bound.expire(350) == Bindings(active=binding(1, 5000))

    def test_after_a_death_nothing_drains(self) -> None:
        bound = Bindings(active=binding(0)).drop()
        assert bound == Bindings()
        assert bound.count == 0
        assert bound.bind(binding(1), 100, None).draining is None
        assert Bindings(active=binding(0)).bind(binding(1), 100, None).draining is None

    def test_only_the_latest_drains(self) -> None:
        bound = Bindings(active=binding(0)).bind(binding(1), 0, 1000).bind(binding(2), 10, 1000)
        assert (bound.active, bound.draining, bound.drain_until_ms) == (binding(2), binding(1), 1010)

    def test_one_index_has_one_role(self) -> None:
        bound = Bindings(active=binding(3)).bind(binding(3, 5000), 0, 250)
        assert (bound.active, bound.draining) == (binding(3, 5000), None)

    @pytest.mark.parametrize(("new", "drain_ms"), [(binding(0), 250), (binding(1), 0), (binding(1), -5)])
    def test_what_is_refused_changes_nothing(self, new: Binding, drain_ms: int) -> None:
        bound = Bindings(active=binding(0))
        with pytest.raises(LocalProtocolError):
            bound.bind(new, 0, drain_ms)
        assert bound == Bindings(active=binding(0))

    def test_data_comes_on_the_active_and_for_a_while_on_the_draining_from_its_own_source(self) -> None:
        bound = Bindings(active=binding(0)).bind(binding(1, 5000), 100, 250)
        old, new = binding(0).source, binding(1, 5000).source
        accepted = {
            (index, source, now)
            for index, source, now in product((0, 1, 2), (old, new), (101, 350))
            if bound.accepts_data(index, source, now)
        }
        assert accepted == {(1, new, 101), (1, new, 350), (0, old, 101)}

    def test_the_drain_window_covers_the_slower_path(self) -> None:
        assert drain_window_ms(250, 20.0, 40.0) == 250
        assert drain_window_ms(250, 300.0, 40.0) == 600


class TestBucket:
    def test_burst_then_rate(self) -> None:
        bucket = TokenBucket(BIND_RATE)
        assert [bucket.take(0) for _ in range(6)] == [True] * 5 + [False]
        assert bucket.wait_ms(0) == 500
        assert not bucket.take(499)
        assert bucket.take(500)
        assert not bucket.take(500)

    def test_many_small_steps_add_up_to_the_rate(self) -> None:
        bucket = TokenBucket(DATAGRAM_RATE)
        taken = sum(bucket.take(now) for now in range(10_001))
        assert taken == 20 + 400

    @pytest.mark.parametrize("per_s", [1, 5, 10, 20, 40, 100])
    def test_a_token_is_whole_in_its_time_however_finely_that_is_cut(self, per_s: int) -> None:
        bucket, tenths = TokenBucket(Rate(per_s, 1)), 10_000 // per_s
        assert bucket.take(0)
        assert not any(bucket.take(tenth / 10) for tenth in range(1, tenths))
        assert bucket.take(tenths / 10)

    def test_it_never_holds_more_than_its_burst(self) -> None:
        bucket = TokenBucket(Rate(2, 5))
        bucket.take(0)
        assert sum(bucket.take(3_600_000) for _ in range(10)) == 5

    def test_a_clock_that_steps_back_gives_nothing(self) -> None:
        bucket = TokenBucket(Rate(1, 1))
        assert bucket.take(10_000)
        assert not bucket.take(0)
        assert not bucket.take(10_999)
        assert bucket.take(11_000)

    def test_waiting_as_long_as_it_says_suffices(self) -> None:
        bucket = TokenBucket(Rate(3, 1))
        assert bucket.take(0)
        wait = bucket.wait_ms(100)
        assert bucket.take(100 + wait)

    @pytest.mark.parametrize("rate", [Rate(0, 5), Rate(-1, 5), Rate(1, 0)])
    def test_rates_that_are_none(self, rate: Rate) -> None:
        with pytest.raises(ValueError, match="bucket"):
            TokenBucket(rate)


TTL, WINDOW = 600, 80


def entered(clock: TtlClock, state: State, bindings: int, now_ms: int) -> TtlClock:
    return clock.entered(state, bindings, now_ms, TTL, WINDOW)


class TestTtlClock:
    FRESH = TtlClock(session_deadline_ms=10_000)

    def test_the_loss_ttl_runs_from_the_loss_through_whatever_states(self) -> None:
        clock = entered(self.FRESH, S.RECOVERING, 0, 100)
        assert (clock.loss_deadline_ms, clock.window_deadline_ms) == (700, 180)
        clock = entered(clock, S.DEGRADED, 0, 180)
        assert (clock.loss_deadline_ms, clock.window_deadline_ms) == (700, None)
        clock = entered(clock, S.RECOVERING, 0, 300)
        assert (clock.loss_deadline_ms, clock.window_deadline_ms) == (700, 380)
        assert entered(clock, S.ATTACHED, 1, 350) == self.FRESH

    def test_a_kept_path_that_dies_in_recovering_starts_the_loss_ttl_then(self) -> None:
        clock = entered(self.FRESH, S.RECOVERING, 1, 100)
        assert clock.loss_deadline_ms is None
        clock = entered(clock, S.RECOVERING, 0, 150)
        assert (clock.loss_deadline_ms, clock.window_deadline_ms) == (750, 180)

    def test_the_end_stops_both(self) -> None:
        clock = entered(entered(self.FRESH, S.RECOVERING, 0, 100), S.TERMINATED, 0, 110)
        assert clock == self.FRESH
        assert clock.fired(S.TERMINATED, 0, 99_999, False) is None

    @pytest.mark.parametrize(
        ("state", "bindings", "now_ms", "terminates", "fired"),
        [
            (S.RECOVERING, 0, 179, False, None),
            (S.RECOVERING, 0, 180, False, Fired(R.RECOVERY_WINDOW_EXCEEDED, S.DEGRADED)),
            (S.RECOVERING, 0, 180, True, Fired(R.RECOVERY_WINDOW_EXCEEDED, S.TERMINATED)),
            (S.RECOVERING, 1, 180, True, Fired(R.REATTACH_FAIL)),
            (S.DEGRADED, 0, 699, False, None),
            (S.DEGRADED, 0, 700, False, Fired(R.TRANSPORT_LOSS_TTL_EXPIRED)),
            (S.RECOVERING, 0, 700, False, Fired(R.TRANSPORT_LOSS_TTL_EXPIRED)),
            (S.DEGRADED, 0, 10_000, False, Fired(R.SESSION_TTL_EXPIRED)),
            (S.ATTACHED, 1, 9_999, False, None),
            (S.ATTACHED, 1, 10_000, False, Fired(R.SESSION_TTL_EXPIRED)),
        ],
    )
    def test_what_fires(
        self, state: State, bindings: int, now_ms: int, terminates: bool, fired: Fired | None
    ) -> None:
        clock = TtlClock(session_deadline_ms=10_000, loss_deadline_ms=700, window_deadline_ms=180)
        assert clock.fired(state, bindings, now_ms, terminates) == fired

    def test_the_next_deadline_is_the_nearest_and_something_fires_there(self) -> None:
        clock = entered(self.FRESH, S.RECOVERING, 0, 100)
        now_ms, state, machine = 0, S.RECOVERING, Machine.open_epoch(pack_version(1, 1), S.ATTACHED, 0)
        while not machine.terminated:
            assert clock.next_deadline_ms() > now_ms
            now_ms = clock.next_deadline_ms()
            assert clock.fired(state, 0, now_ms - 1, False) is None
            fired = clock.fired(state, 0, now_ms, False)
            assert fired is not None
            state = machine.apply(fired.reason, now_ms, fired.to).to
            clock = entered(clock, state, machine.active_bindings, now_ms)
        assert now_ms == 700


def at(wall_ms: int, boot_ms: int, boot_id: str = BOOT) -> Instant:
    return Instant(wall_ms, boot_ms, boot_id)


class TestRevival:
    def revived(self, heartbeat: Instant, now: Instant) -> TtlClock | Reason:
        return revive(RECORD, heartbeat, now, 10_000, 800)

    def test_within_a_boot_the_wall_clock_does_not_matter(self) -> None:
        for wall_ms in (0, 60_000, 10**12):
            clock = self.revived(at(55_000, 400_000), at(wall_ms, 403_000))
            assert clock == TtlClock(500_000, 410_000, 403_800)

    def test_across_boots_wall_time_counts(self) -> None:
        clock = self.revived(at(55_000, 400_000), at(61_000, 2_000, OTHER_BOOT))
        assert clock == TtlClock(2_000 + 40_000, 2_000 + 4_000, 2_800)

    @pytest.mark.parametrize(
        ("heartbeat", "now", "reason"),
        [
            (at(55_000, 499_999), at(0, 500_000), R.SESSION_TTL_EXPIRED),
            (at(55_000, 400_000), at(0, 410_000), R.TRANSPORT_LOSS_TTL_EXPIRED),
            (at(100_000, 0), at(101_000, 5, OTHER_BOOT), R.SESSION_TTL_EXPIRED),
            (at(55_000, 0), at(65_000, 5, OTHER_BOOT), R.TRANSPORT_LOSS_TTL_EXPIRED),
            (at(49_000, 0), at(49_999, 5, OTHER_BOOT), R.SESSION_TTL_EXPIRED),
        ],
        ids=[
            "lifetime",
            "silence",
            "lifetime-other-boot",
            "silence-other-boot",
            "wall-clock-behind-the-record",
        ],
    )
    def test_what_stays_dead(self, heartbeat: Instant, now: Instant, reason: Reason) -> None:
        assert self.revived(heartbeat, now) is reason

    def test_a_heartbeat_from_the_near_future_lengthens_nothing(self) -> None:
        clock = self.revived(at(62_000, 0), at(61_000, 2_000, OTHER_BOOT))
        assert isinstance(clock, TtlClock)
        assert clock.loss_deadline_ms == 12_000


NODE = NodeFacts("a")
VERSION = pack_version(4, 9)
SESSION = SessionFacts(
    state=S.ATTACHED,
    version=VERSION,
    bindings=1,
    owner_node="a",
    last_bound_attempt=20,
    bound_in_epoch=True,
    session_deadline_ms=10_000,
)
GOOD = RequestFacts(
    admitted=True,
    known=True,
    proven=True,
    challenged=True,
    attempt=21,
    version=VERSION,
    cause=R.TRANSPORT_DEAD,
)
LIMITED = PolicyFacts(Code.SWITCH_RATE_LIMITED, 1310)


class TestJudge:
    def test_a_good_request_binds(self) -> None:
        verdict = judge(GOOD, SESSION, NODE, 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.BIND, Code.REATTACH_OK)
        assert verdict.enter is R.TRANSPORT_DEAD
        assert verdict.security_event is None

    def test_the_checks_come_in_order(self) -> None:
        """A request that fails every check is told of the first; mended one by one, of the next."""
        request = RequestFacts(
            admitted=False, known=False, proven=False, challenged=False, attempt=19,
            version=pack_version(4, 10), cause=R.QUALITY_SWITCH,
        )  # fmt: skip
        session = SESSION._replace(owner_node="b", session_deadline_ms=0)
        node, policy, seen = NODE, LIMITED, []

        def look() -> None:
            seen.append((v := judge(request, session, node, 100, policy)).kind + " " + v.reason_code)

        look()
        for change in (
            {"admitted": True}, {"known": True}, {"proven": True}, {"attempt": 21}, {"challenged": True},
        ):  # fmt: skip
            request = request._replace(**change)
            look()
        session = session._replace(owner_node="a")
        look()
        request = request._replace(version=VERSION)
        look()
        session = session._replace(session_deadline_ms=10_000)
        look()
        policy = PolicyFacts()
        look()
        assert seen == [
            "drop RATE_LIMITED",
            "drop UNKNOWN_SESSION",
            "drop BAD_PROOF",
            "drop STALE_ATTEMPT",
            "pending CHALLENGE_REQUIRED",
            "fail NOT_OWNER",
            "fail VERSION_CONFLICT",
            "fail SESSION_TTL_EXPIRED",
            "fail SWITCH_RATE_LIMITED",
            "bind REATTACH_OK",
        ]

    def test_no_session_is_an_unknown_one(self) -> None:
        assert judge(GOOD, None, NODE, 0).reason_code is Code.UNKNOWN_SESSION

    def test_a_replay_is_logged_and_never_counts(self) -> None:
        verdict = judge(GOOD._replace(attempt=19), SESSION, NODE, 0)
        assert (verdict.kind, verdict.security_event) == (Kind.DROP, Violation.STALE_ATTEMPT)
        assert not verdict.counts_against_session

    @pytest.mark.parametrize("challenged", [True, False])
    def test_the_bound_attempt_gets_the_same_answer(self, challenged: bool) -> None:
        request = GOOD._replace(attempt=20, challenged=challenged)
        assert judge(request, SESSION, NODE, 0).kind is Kind.SAME_ACK

    @pytest.mark.parametrize("attempt", [1, 20, 21])
    @pytest.mark.parametrize("challenged", [True, False])
    def test_after_a_takeover_the_challenge_is_the_freshness(self, attempt: int, challenged: bool) -> None:
        session = SESSION._replace(state=S.RECOVERING, bindings=0, bound_in_epoch=False)
        verdict = judge(GOOD._replace(attempt=attempt, challenged=challenged), session, NODE, 0)
        assert verdict.kind is (Kind.BIND if challenged else Kind.PENDING)
        assert verdict.security_event is None

    @pytest.mark.parametrize("version", [0, pack_version(3, 99), pack_version(4, 0), VERSION])
    def test_a_lost_ack_strands_nobody(self, version: int) -> None:
        assert judge(GOOD._replace(version=version), SESSION, NODE, 0).kind is Kind.BIND

    def test_a_count_ahead_of_ours_counts_against_the_key_holder(self) -> None:
        verdict = judge(GOOD._replace(version=VERSION + 1), SESSION, NODE, 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.VERSION_CONFLICT)
        assert (verdict.security_event, verdict.counts_against_session) == (Violation.VERSION_CONFLICT, True)

    def test_an_epoch_ahead_of_ours_makes_the_node_doubt_itself(self) -> None:
        verdict = judge(GOOD._replace(version=pack_version(5, 0)), SESSION, NODE, 0)
        assert (verdict.kind, verdict.reason_code, verdict.check_fence) == (Kind.FAIL, Code.NOT_OWNER, True)
        assert not verdict.counts_against_session

    def test_a_fenced_node_binds_nothing(self) -> None:
        verdict = judge(GOOD, SESSION, NodeFacts("a", fenced=True), 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.NOT_OWNER)

    def test_a_fenced_node_does_not_say_again_that_it_has_bound(self) -> None:
        again, fenced = GOOD._replace(attempt=SESSION.last_bound_attempt), NodeFacts("a", fenced=True)
        assert judge(again, SESSION, NODE, 0).kind is Kind.SAME_ACK
        verdict = judge(again, SESSION, fenced, 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.NOT_OWNER)
        assert judge(again._replace(challenged=False), SESSION, fenced, 0).kind is Kind.PENDING

    @pytest.mark.parametrize(
        ("session", "reason"),
        [
            (SESSION._replace(session_deadline_ms=100), R.SESSION_TTL_EXPIRED),
            (
                SESSION._replace(state=S.DEGRADED, bindings=0, loss_deadline_ms=100),
                R.TRANSPORT_LOSS_TTL_EXPIRED,
            ),
            (
                SESSION._replace(state=S.DEGRADED, bindings=0, session_deadline_ms=1, loss_deadline_ms=1),
                R.SESSION_TTL_EXPIRED,
            ),
        ],
    )
    def test_a_session_that_is_over_is_ended_not_bound(self, session: SessionFacts, reason: Reason) -> None:
        verdict = judge(GOOD, session, NODE, 100)
        assert (verdict.kind, verdict.reason_code.value, verdict.terminate) == (
            Kind.FAIL,
            reason.value,
            reason,
        )

    @pytest.mark.parametrize("attempt", [20, 21])
    def test_nothing_revives_a_terminated_session(self, attempt: int) -> None:
        verdict = judge(
            GOOD._replace(attempt=attempt), SESSION._replace(state=S.TERMINATED, bindings=0), NODE, 0
        )
        assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.SESSION_OVER)

    def test_birth_takes_no_request(self) -> None:
        verdict = judge(GOOD, SESSION._replace(state=S.BIRTH, bindings=0), NODE, 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.DROP, Code.NOT_ATTACHED)

    @pytest.mark.parametrize("cause", sorted(VOLUNTARY_CAUSES | LOSS_CAUSES))
    def test_switch_limits_hold_wishes_back_and_never_a_recovery(self, cause: Reason) -> None:
        verdict = judge(GOOD._replace(cause=cause), SESSION, NODE, 0, LIMITED)
        if cause in LOSS_CAUSES:
            assert verdict.kind is Kind.BIND
        else:
            assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.SWITCH_RATE_LIMITED)
            assert (verdict.denied_switch, verdict.retry_after_ms) == (True, 1310)

    def test_the_bucket_of_binds_holds_everybody_back(self) -> None:
        verdict = judge(GOOD, SESSION, NODE, 0, PolicyFacts(Code.RATE_LIMITED, 500))
        assert (verdict.kind, verdict.reason_code, verdict.retry_after_ms) == (
            Kind.FAIL,
            Code.RATE_LIMITED,
            500,
        )
        assert not verdict.denied_switch

    @pytest.mark.parametrize("cause", sorted(set(Reason) - VOLUNTARY_CAUSES - LOSS_CAUSES))
    def test_a_cause_no_client_has(self, cause: Reason) -> None:
        verdict = judge(GOOD._replace(cause=cause), SESSION, NODE, 0)
        assert (verdict.kind, verdict.reason_code) == (Kind.FAIL, Code.ILLEGAL_CAUSE)
        assert verdict.counts_against_session


@pytest.mark.parametrize("cause", sorted(VOLUNTARY_CAUSES | LOSS_CAUSES))
@pytest.mark.parametrize(
    ("state", "bindings"),
    [
        (S.ATTACHED, 1),
        (S.VOLATILE, 1),
        (S.RECOVERING, 0),
        (S.RECOVERING, 1),
        (S.DEGRADED, 0),
        (S.DEGRADED, 1),
    ],
)
def test_whatever_is_judged_a_bind_is_a_walk_along_the_table(
    state: State, bindings: int, cause: Reason
) -> None:
    machine = Machine.adopt(state, VERSION, bindings, 0)
    enter = entry_reason(state, bindings, cause)
    if enter is not None:
        machine.apply(enter, 0)
    assert machine.apply(R.REATTACH_OK, 0).to is S.ATTACHED
