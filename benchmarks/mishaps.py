"""What befalls a tunnel in a trial, and how it is undone.

`strike` and `mend` act on a network and return when the change is in force. The link that is struck is the active one,
and the other is there to take over unless a fault says otherwise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from contestants import Contestant
from stage import Stage

from jvpn.lab.faults import EmulatedLink

PORTS = range(20_000, 60_000)
AFTER_CHANGE_S = 1.5


@dataclass
class Scene:
    """One trial's stage: the struck link and the other one. `first`: nothing has been prepared here yet."""

    stage: Stage
    contestant: Contestant
    struck: EmulatedLink
    other: EmulatedLink
    number: int
    first: bool


Act = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    """No preparation, or none to undo."""


@dataclass(frozen=True)
class Mishap:
    """`alone`: nothing is there to take over. `hold_s`: the fault lasts that long, and silence counts from its end.
    `watch_s`: it is watched for that long. With neither it lasts until the stream flows again, at most `limit_s`."""

    strike: Act
    mend: Act
    prepare: Act = nothing
    alone: bool = False
    hold_s: float = 0.0
    watch_s: float = 0.0
    limit_s: float = 6.0


def _without_other(scene: Scene) -> None:
    scene.stage.links((scene.other, False))


def _cold(scene: Scene) -> None:
    scene.stage.links((scene.other, True), (scene.struck, False))


def _down(scene: Scene) -> None:
    scene.stage.links((scene.struck, False))


def _up(scene: Scene) -> None:
    scene.stage.links((scene.struck, True))


def _heal(scene: Scene) -> None:
    scene.struck.heal()
    scene.contestant.forget(scene.struck)


def _nat_on(scene: Scene) -> None:
    if scene.first:
        for link in (scene.struck, scene.other):
            scene.stage.network.nat.enable(link, port=PORTS[(scene.number * 7) % len(PORTS)])
        # That is a new mapping too, and jvpn's gateway tells a client of such a change once a second.
        time.sleep(AFTER_CHANGE_S)
        scene.contestant.behind_nat()


def _nat_rebind(scene: Scene) -> None:
    scene.stage.network.nat.rebind(scene.struck, port=PORTS[(scene.number * 7 + 3) % len(PORTS)])


MISHAPS: dict[str, Mishap] = {
    "link_down": Mishap(_down, _up),
    "link_down_cold": Mishap(_cold, _up, prepare=_without_other, alone=True),
    "cable": Mishap(lambda s: s.struck.carrier_down(), lambda s: s.struck.carrier_up()),
    "blackhole": Mishap(lambda s: s.struck.blackhole(), _heal),
    "blackhole_up": Mishap(lambda s: s.struck.blackhole("up"), _heal),
    "blackhole_down": Mishap(lambda s: s.struck.blackhole("down"), _heal),
    "nat_rebind": Mishap(_nat_rebind, nothing, prepare=_nat_on, alone=True),
    "loss_30": Mishap(lambda s: s.struck.impair(loss=0.3), _heal, watch_s=4.0),
    "path_return": Mishap(
        lambda s: s.struck.blackhole(),
        lambda s: s.struck.heal(),
        prepare=_without_other,
        alone=True,
        hold_s=5.0,
    ),
    "path_return_link": Mishap(_down, _up, prepare=_without_other, alone=True, hold_s=5.0),
    "voluntary": Mishap(lambda s: s.contestant.switch(), lambda s: s.contestant.switch_back()),
}
