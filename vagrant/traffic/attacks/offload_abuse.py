"""Abused offloads. With --keylog: authentic DATA of the session whose offload headers and inner packets are wrong in
every way that there is. Without: frames for the gateway, with a steering id of the session, whose marks for
segmentation and checksum (PACKET_VNET_HDR, packet(7)) tell lies about what is in them.

Must hold while it runs: what is wrong is dropped and counted. No process dies or grows, nothing with a source that is
not the session's own reaches the gateway's kernel, and the session goes on.

Authentic DATA needs counters: every eighth ahead of the client's own is taken, so that when the client comes there one
datagram of eight is taken for a replay, and no window moves beyond what it sends.
"""

import argparse
import sys
import time
from typing import Final

from jvpn.protocol.constants import PacketType
from vagrant.traffic import jvp
from vagrant.traffic.attacks.means import options
from vagrant.traffic.attacks.means.learned import AGAIN_S, PATIENCE_S, SHOWING
from vagrant.traffic.attacks.means.marks import MarkedFrames
from vagrant.traffic.attacks.means.offloads import abusive
from vagrant.traffic.attacks.means.place import LOOK_S, Pace, Place, paced
from vagrant.traffic.jvp import JVP, JVPData
from vagrant.traffic.script import Failed, Run, main

#: How far ahead of the client counters are taken, of which so many; replay windows have 8192.
NEAREST: Final = 4_000
FARTHEST: Final = 8_000
STRIDE: Final = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, rate=500)
    options.add_keylog(parser)


def work(run: Run) -> None:
    log = options.keylog(run.options)
    jvp.use_keylog(log)
    with Place(run) as place:
        run.in_force()
        if log is None:
            marked(place)
        else:
            authentic(place)


def authentic(place: Place) -> None:
    """Authentic DATA with abusive plaintexts, on the path in use."""
    run, pace = place.run, Pace(place.run)
    shown, looked, counter = opened(place, None), time.monotonic(), 0
    while shown is not None and run.wait(LOOK_S) and not pace.over:
        header, source = shown
        counter = max(counter, header.counter + NEAREST)
        while counter + STRIDE < header.counter + FARTHEST and pace.go():
            counter += STRIDE
            what, plaintext = abusive(place.dice, header[JVPData].payload)
            made = JVP(phase=header.phase, steering_id=header.steering_id, counter=counter)
            place.send(bytes(made / JVPData(sealing=header[JVPData].sealing) / plaintext), source)
            run.counters[what] += 1
        if time.monotonic() - looked > AGAIN_S:
            shown, looked = opened(place, PATIENCE_S) or shown, time.monotonic()


def opened(place: Place, patience_s: float | None) -> tuple[JVP, tuple[str, int]] | None:
    """The client's next DATA, opened, with its source. Raises Failed when the key log does not open it."""
    seen = place.learn(PacketType.DATA, patience_s=patience_s)
    if seen is None:
        return None
    packet = JVP(seen.data)
    if JVPData in packet and packet[JVPData].sealing is None:
        # A rekey has come since it was read.
        jvp.use_keylog(options.keylog(place.run.options))
        packet = JVP(seen.data)
    if JVPData not in packet or packet[JVPData].sealing is None:
        raise Failed("the key log does not open what passes: is it of this session, and of its newest phase?")
    return packet, seen.source


def marked(place: Place) -> None:
    """Frames with abusive marks, with the header of what passes."""
    run = place.run
    shown, looked = place.learn(*SHOWING), time.monotonic()
    frames = MarkedFrames(place.way_out, place.gateway)
    try:
        for size in paced(run, 16) if shown else ():
            if time.monotonic() - looked > AGAIN_S:
                shown, looked = place.learn(*SHOWING, patience_s=PATIENCE_S) or shown, time.monotonic()
            assert shown is not None
            for _ in range(size):
                gone = frames.send(place.dice, shown)
                run.counters["refused" if gone is None else "sent"] += 1
                run.counters["sent_bytes"] += gone or 0
    finally:
        frames.close()


if __name__ == "__main__":
    sys.exit(main("attack", "offload_abuse", __doc__, arguments, work, options.check))
