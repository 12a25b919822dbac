"""The data plane: one process per core that seals, opens and forwards superpackets."""

import os

import jvpn  # noqa: F401 - it decides whether modules of this package come compiled

# numpy brings a linear algebra library that starts threads nobody needs, and what one thread gives up (capabilities)
# the others would keep. It asks this when it is first imported, which is after this package.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
