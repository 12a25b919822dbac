"""Every number a worker counts, by its place in its slot of the shared page.

Places are never reused for another meaning: readers of another version may look at the same page. `*_packets` are
inner packets, `datagrams_*` outer ones; every name from NO_SESSION on is a reason why something went no further.
"""

from enum import IntEnum


class Counter(IntEnum):
    # What went through.
    DELIVERED_PACKETS = 0
    DELIVERED_BYTES = 1
    SENT_PACKETS = 2
    SENT_BYTES = 3
    DATAGRAMS_RECEIVED = 4
    DATAGRAMS_SENT = 5
    TUN_READS = 6
    TUN_WRITES = 7
    UDP_READS = 8
    UDP_WRITES = 9
    PROBES_SENT = 10
    PROBES_ANSWERED = 11
    PROBE_ACKS = 12
    SOURCE_CHANGES = 13
    FORWARDED = 14
    RESENT_RECEIVED = 15
    RESENT_SENT = 16
    HELD_DELIVERED = 17
    FRAGMENTED_PACKETS = 18
    REASSEMBLED_PACKETS = 19

    # From the TUN: dropped datagrams or, before the cut, superpackets.
    NO_SESSION = 32
    NO_PATH = 33
    BAD_TUN_PACKET = 34
    TUN_READ_ERROR = 35
    SEND_FULL = 36
    SEND_TOO_BIG = 37
    SEND_ERROR = 38
    ANSWERED_TOO_BIG = 39
    SENT_CROWDED_OUT = 40
    SENT_FENCED = 41

    # From the network: dropped datagrams. The first five are wire.WireError's reasons.
    TRUNCATED = 48
    UNKNOWN_TYPE = 49
    BAD_VERSION = 50
    RESERVED_BITS = 51
    BAD_LENGTH = 52
    UNKNOWN_ID = 53
    UNKNOWN_PHASE = 54
    NOT_BOUND = 55
    WRONG_SOURCE = 56
    BAD_TAG = 57
    REPLAYED = 58
    BAD_OFFLOAD = 59
    BAD_INNER = 60
    INNER_SOURCE = 61
    BAD_RESENT = 63
    BAD_PATH = 64
    PROBE_LIMITED = 65
    TUN_WRITE_ERROR = 66
    UDP_READ_ERROR = 67
    BAD_FRAGMENT = 68
    FRAGMENT_INCOMPLETE = 69
    RECEIVED_CROWDED_OUT = 70
    RECEIVED_FENCED = 71

    # Between the worker and its supervisor.
    CHANNEL_FULL = 80
    BAD_COMMAND = 81
