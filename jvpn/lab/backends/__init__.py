"""Where the lab's machines live: network namespaces of this host, or virtual machines."""

from __future__ import annotations

import importlib
from typing import Final, cast

from jvpn.lab.backends.machine import Backend

#: Names for the command line, the usual one first: each a module of this package and its class.
BACKENDS: Final = {"netns": ("netns", "NetnsBackend"), "vagrant": ("vagrant", "VagrantBackend")}


def backend(name: str) -> Backend:
    """One that is not up yet. Only its module is loaded."""
    module, kind = BACKENDS[name]
    return cast(Backend, getattr(importlib.import_module(f"{__name__}.{module}"), kind)())
