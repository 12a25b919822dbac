"""Where the lab's data lies in a checkout: scenarios and scripts, which an installed package does not have."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SCENARIOS: Final = ROOT / "vagrant" / "scenarios"
SCRIPTS: Final = ROOT / "vagrant" / "traffic"
