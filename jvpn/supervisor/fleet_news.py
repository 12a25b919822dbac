"""What a member of a fleet has heard, brought to the gateway core."""

from typing import assert_never

from jvpn.store.etcd_watch import Announced, Asked, Everything, Owned
from jvpn.supervisor.fleet_member import FleetMember
from jvpn.supervisor.other_nodes import OtherNodes


def bring(member: FleetMember, others: OtherNodes, node_id: str, now_ms: int) -> None:
    """All that has come. The fence, where it waits for that, moves when all that it casts doubt on was looked up."""
    for change in member.news():
        match change:
            case Everything():
                others.alive(change.nodes)
                others.all_owners({i: owned.owner for i, owned in change.owners.items()})
                for asked in change.asked:
                    _ask(others, asked, node_id, now_ms)
                if member.behind:
                    others.when_settled(member.caught_up, member.renew)
            case Announced():
                others.announced(change.node_id, change.about)
            case Owned():
                if change.lost_by(node_id):
                    others.doubt([change.session_id])
            case Asked():
                _ask(others, change, node_id, now_ms)
            case _:
                assert_never(change)


def _ask(others: OtherNodes, asked: Asked, node_id: str, now_ms: int) -> None:
    if asked.node_id == node_id:
        others.asked_for(asked.session_id, asked.asker, asked.attempt, now_ms)
