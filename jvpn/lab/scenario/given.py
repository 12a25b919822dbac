"""What only the nodes of a run know and an attack has to be told: keys of sessions, a gateway's public key and address.

A step asks for them by whose they are: `keylog: client`, `public_key: gw1`, `gateway: gw2`. Who is asked for its keys
is started with `--keylog`; the script gets a copy of what has been written by then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from jvpn.lab.backends.topology import GATEWAYS, PORT, outer
from jvpn.lab.namespaces import LabError
from jvpn.lab.scenario import scripts
from jvpn.lab.scenario.configs import KEYLOG_FILE
from jvpn.lab.scenario.model import Step
from jvpn.lab.scenario.run import Run

KEYLOG, PUBLIC_KEY = "keylog", "public_key"
#: Parameters that a node's name may stand in, for where clients reach it.
ENDS: Final = ("gateway", "owner")


def filled_in(run: Run, step: Step) -> Step:
    """The step with a file, a key and addresses in place of the names. LabError when there is no node of that name."""
    parameters = dict(step.parameters)
    if KEYLOG in parameters:
        parameters[KEYLOG] = _copied(run, step, str(parameters[KEYLOG]))
    if PUBLIC_KEY in parameters:
        run.machine(str(parameters[PUBLIC_KEY]))
        parameters[PUBLIC_KEY] = run.nodes.public_key
    return located(replace(step, parameters=parameters))


def located(step: Step) -> Step:
    """The step with addresses in place of nodes' names."""
    ends = {
        end: f"{outer(step.parameters[end])}:{PORT}" for end in ENDS if step.parameters.get(end) in GATEWAYS
    }
    return replace(step, parameters={**step.parameters, **ends})


def _copied(run: Run, step: Step, who: str) -> str:
    """The path of the copy, on the machine of the step's script."""
    there = run.machine(who)
    keys = there.read(there.folder / KEYLOG_FILE)
    if not keys:
        raise LabError(f"{who} has written no keys yet: let the attack begin when there is a session")
    machine = run.machine(scripts.where(step))
    copy = machine.folder / f"{who}-{KEYLOG_FILE}"
    machine.write(copy, keys, 0o600)
    return str(copy)
