"""What a node of a fleet tells the others of itself: the value of its key in etcd, which lives as long as its lease."""

import msgspec


class NodeAbout(msgspec.Struct, frozen=True, kw_only=True):
    """`advertise`: endpoints that lead clients to the node ("198.51.100.7:51820"), best first. `return_addresses`: next
    hops for traffic to its clients, at most one of each address family. `draining`: its sessions are to go elsewhere,
    so others take them without waiting for its end. `pool`: what tells pools of inner addresses apart. `instance`: what
    tells gateways of one name apart, the same for each supervisor of one data plane; "" for one that does not say."""

    advertise: tuple[str, ...] = ()
    return_addresses: tuple[str, ...] = ()
    draining: bool = False
    pool: str = ""
    instance: str = ""

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


def understood(value: bytes) -> NodeAbout:
    """What a node's key says; nothing, where no node of ours has written it: a node lives all the same."""
    try:
        return msgspec.json.decode(value, type=NodeAbout)
    except msgspec.MsgspecError:
        return NodeAbout()
