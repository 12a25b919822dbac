"""What one batch wants of one session in etcd: the last word on it, and who waits for what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jvpn.session.pool import InnerPool
from jvpn.session.record import SessionRecord
from jvpn.session.version import MAX_VERSION
from jvpn.store.base import Birth, StoreError


class Answer:
    """Whether a claim was granted: as a truth value, and only once its batch is kept; StoreError until then."""

    def __init__(self) -> None:
        self.granted: bool | None = None

    def __bool__(self) -> bool:
        if self.granted is None:
            raise StoreError("whether a session was claimed is not known before its batch is kept")
        return self.granted


@dataclass(slots=True)
class Wish:
    """What is behind a session that is born with addresses out of a pool; `held`, by version, is known at last."""

    client_public: bytes
    timestamp_us: int
    pool: InnerPool
    answer: Birth
    held: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Word:
    """The last word on one session. `record` is None where it is forgotten."""

    record: SessionRecord | None
    #: False where this batch has forgotten it before: then nobody can have taken it over.
    guarded: bool = True
    #: Of a session that is kept already: one that has ended meanwhile is not to come back by a late save.
    update: bool = False
    #: Version and owner that a claim has seen.
    seen: tuple[int, str] | None = None
    #: Whether the claim counts only if that owner's lease has ended.
    owner_gone: bool = False
    #: Whether a claim gives it to another node in the epoch that it is in.
    given: bool = False
    #: Claims of this session: granted where the first comparison says so.
    answers: list[Answer] = field(default_factory=list)
    #: The version of what is forgotten.
    ended_at: int = MAX_VERSION
    #: Saved after it was claimed: kept whatever becomes of the claim, unless another node took it over.
    saved_after: bool = False
    birth: Wish | None = None

    @property
    def only_saved(self) -> bool:
        return self.seen is None and self.record is not None and self.birth is None

    @property
    def written(self) -> tuple[int, str] | None:
        return None if self.record is None else (self.record.state_version, self.record.owner_node)
