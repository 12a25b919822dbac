"""docs/lab.md names every field of a scenario and everything that an assertion can be about."""

import re

import pytest

from jvpn.lab.places import ROOT
from jvpn.lab.scenario import load
from jvpn.lab.scenario.measures import FAMILIES, nodes, streams
from jvpn.lab.scenario.model import ON, STEP_KINDS, TRAFFIC_KINDS

PAGE = (ROOT / "docs" / "lab.md").read_text()
OF_A_FILE = (
    *(field for field in load.FIELDS if field not in ("gateway", "client")),
    *load.SHAPE_FIELDS,
    *load.TOPOLOGY_FIELDS,
    *STEP_KINDS,
    *TRAFFIC_KINDS,
    *ON,
)
MEASURES = (*streams.OF_GAUGE, *streams.OF_TRANSFER, *nodes.SESSION, *nodes.CLIENT, *nodes.GATEWAY)


@pytest.mark.parametrize("word", sorted({*OF_A_FILE, *MEASURES, *FAMILIES}))
def test_the_page_names_it(word: str) -> None:
    assert re.search(rf"(?<!\w){word}(?!\w)", PAGE)
