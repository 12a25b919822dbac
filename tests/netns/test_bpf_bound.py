"""`bound`, the table in front of the map `ids`: it answers for active ids, and never says what `ids` does not."""

from collections.abc import Iterator

import pytest
from bpf_support import ID, datagram, loaded_pins, steering
from test_bpf_steer import DROP, FAMILIES, PASS, SPORT, Family, T, frame, run

from jvpn.holder import bpf_syscall as bpf
from jvpn.protocol.constants import DATA_KINDS, Role
from jvpn.supervisor.bound_table import PLACES
from jvpn.supervisor.steering import Steering

__all__ = ["steering"]

pytestmark = pytest.mark.netns

UNKNOWN = (DROP, {"drop_unknown_id": 1})
OWNER = (PASS, {"owner_data": 1})
#: One bucket's, and more than it has room for: the first 32 bits choose it.
CROWD = [b"same" + bytes([n]) * 4 for n in range(PLACES + 3)]


@pytest.fixture(params=FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture
def clean(steering: Steering) -> Iterator[Steering]:
    """Ids are taken from both tables afterwards, also where a test took them from one."""
    yield steering
    for steering_id in (ID, *CROWD, bytes(8), bytes(4) + b"rest"):
        steering.remove_id(steering_id)


def bind(steering: Steering, family: Family, steering_id: bytes = ID, role: Role = Role.ACTIVE) -> None:
    steering.put_id(steering_id, 3, role, family.mapped(family.bound), SPORT, drain_until_ns=1)


def forget_in_hash(steering_id: bytes = ID) -> None:
    """Behind the supervisor's back, so that what is answered still comes from `bound`."""
    fd = bpf.obj_get(loaded_pins() / "ids")
    assert bpf.map_delete(fd, steering_id)


def test_it_answers_for_data_and_probes_of_the_bound_source_alone(clean: Steering, family: Family) -> None:
    bind(clean, family)
    forget_in_hash()
    for kind in DATA_KINDS:
        assert run(clean, frame(family, datagram(kind))) == OWNER
    assert run(clean, frame(family, datagram(T.PATH))) == (PASS, {"owner_path": 1})
    for kind in set(T) - DATA_KINDS - {T.PATH, T.HANDSHAKE_INIT, T.REATTACH_REQUEST}:
        assert run(clean, frame(family, datagram(kind))) == UNKNOWN, kind
    assert run(clean, frame(family, datagram(T.DATA), family.other)) == UNKNOWN
    assert run(clean, frame(family, datagram(T.DATA), sport=SPORT + 1)) == UNKNOWN


@pytest.mark.parametrize("role", [Role.PENDING, Role.INSTALLED, Role.DRAINING])
def test_an_id_that_is_not_active_any_more_is_not_in_it(clean: Steering, family: Family, role: Role) -> None:
    bind(clean, family)
    bind(clean, family, role=role)
    forget_in_hash()
    assert run(clean, frame(family, datagram(T.DATA))) == UNKNOWN


def test_a_bind_to_another_source_ends_the_first(clean: Steering, family: Family) -> None:
    bind(clean, family)
    clean.put_id(ID, 3, Role.ACTIVE, family.mapped(family.other), SPORT)
    assert run(clean, frame(family, datagram(T.DATA))) == (PASS, {"owner_sample": 1})
    assert run(clean, frame(family, datagram(T.DATA), family.other)) == OWNER


def test_an_id_leaves_it_before_its_entry_changes(
    clean: Steering, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a supervisor leaves that dies between the two."""
    bind(clean, family)

    def refuse(*_: object) -> None:
        raise OSError(7, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(bpf, "map_update", refuse)
        with pytest.raises(OSError, match="refused"):
            clean.put_id(ID, 4, Role.ACTIVE, family.mapped(family.other), SPORT)
    assert run(clean, frame(family, datagram(T.DATA))) == OWNER, "as `ids` has it still"
    forget_in_hash()
    assert run(clean, frame(family, datagram(T.DATA))) == UNKNOWN
    assert run(clean, frame(family, datagram(T.DATA), family.other)) == UNKNOWN


def test_a_removed_id_is_unknown(clean: Steering, family: Family) -> None:
    bind(clean, family)
    assert clean.remove_id(ID)
    assert run(clean, frame(family, datagram(T.DATA))) == UNKNOWN


def test_what_finds_no_room_has_the_same_fate(clean: Steering, family: Family) -> None:
    for steering_id in CROWD:
        bind(clean, family, steering_id)
    for steering_id in CROWD:
        assert run(clean, frame(family, datagram(T.DATA, steering_id))) == OWNER
        assert run(clean, frame(family, datagram(T.DATA, steering_id), family.other))[1] == {
            "owner_sample": 1
        }


def test_a_free_place_is_nobodys(clean: Steering, family: Family) -> None:
    """The id that says so comes from the network too, and its source from who was there before."""
    bind(clean, family, bytes(4) + b"rest")
    clean.remove_id(bytes(4) + b"rest")
    assert run(clean, frame(family, datagram(T.DATA, bytes(8)))) == UNKNOWN
    bind(clean, family, bytes(8))
    assert run(clean, frame(family, datagram(T.DATA, bytes(8)))) == OWNER, "known to `ids`"


def test_a_new_supervisor_goes_on_with_it(clean: Steering, family: Family) -> None:
    bind(clean, family)
    with Steering(loaded_pins()) as adopting:
        bind(adopting, family, role=Role.DRAINING)
    assert run(clean, frame(family, datagram(T.DATA))) == (DROP, {"drop_drained": 1})
