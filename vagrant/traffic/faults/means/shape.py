"""Have uplinks be what a topology says, in the router's netem, until stdin closes; faults come on top of it.

python -m vagrant.traffic.faults.means.shape [--seed N] [--mtu DEVICE=BYTES] '{"rA": {"delay_ms": 10}, …}'

Fields are those of jvpn.lab.link_model.LinkParams, the same for both directions. A line on stdout says that it is in
force.
"""

import argparse
import json
import sys

from jvpn.lab.link_model import LinkParams
from vagrant.traffic.faults.means import ledger, nft
from vagrant.traffic.ours import Refused, guard_device
from vagrant.traffic.script import BAD_ARGUMENTS, FAILED, Failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vagrant.traffic.faults.means.shape", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mtu", action="append", default=[], metavar="DEVICE=BYTES")
    parser.add_argument("uplinks", type=json.loads, metavar="JSON")
    options = parser.parse_args()
    limits = {device: int(size) for device, _, size in (one.partition("=") for one in options.mtu)}
    try:
        for device in {*options.uplinks, *limits}:
            guard_device(device, [])
        hold(
            {device: LinkParams(**fields) for device, fields in options.uplinks.items()}, limits, options.seed
        )
    except (Refused, ValueError) as error:
        print(f"shape: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    except Failed as error:
        print(f"shape: {error}", file=sys.stderr)
        return FAILED
    return 0


def hold(uplinks: dict[str, LinkParams], limits: dict[str, int], seed: int) -> None:
    """Until stdin closes. Raises Failed."""
    wanted = {
        f"{way}/{device}": params
        for device, params in uplinks.items()
        for way in ("up", "down")
        if params != LinkParams(queue_ms=params.queue_ms)
    }
    try:
        with nft.Table([]) as table:
            if limits:
                table.load(
                    [nft.chain("forward", [rule for one in limits.items() for rule in too_large(*one)])]
                )
            ledger.impair(wanted, seed)
            print(json.dumps({"in_force": True}), flush=True)
            sys.stdin.read()
    finally:
        ledger.undo_mine()


def too_large(device: str, size: int) -> list[str]:
    """Packets above *size* bytes vanish, both ways, and nobody is told."""
    return [f'{way} "{device}" meta length > {size} drop' for way in ("iifname", "oifname")]


if __name__ == "__main__":
    sys.exit(main())
