"""Random bytes in small pieces: the kernel is asked for a block of them, not for each nonce and salt.

A call of the kernel costs more than the bytes, and Python gives the interpreter away meanwhile: a thread that writes
events would take its turn in the middle of a reattach. Whoever forks must not go on with a pool of its parent's.
What is as long as a key comes from the kernel each time: a used one is not to lie about in a block.
"""

import os
from typing import Final

BLOCK_BYTES: Final = 4096
#: The longest salt, nonce or session id.
MOST_BYTES: Final = 16


class RandomPool:
    """`take(n)`: n bytes that the kernel gave and nobody else gets."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > MOST_BYTES:
            return os.urandom(size)
        end = self._at + size
        if end > len(self._block):
            self._block, end = os.urandom(BLOCK_BYTES), size
        taken = self._block[end - size : end]
        self._at = end
        return taken
