"""What a gateway has made, to be taken away in reverse order."""

import sys
from collections.abc import Callable


class Undo:
    """Actions for the end. While `leave_running` is set, a data plane that others may use is not touched."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []
        self.leave_running = False

    def add(self, action: Callable[[], object]) -> None:
        self._actions.append(action)

    def add_unless_left(self, action: Callable[[], object]) -> None:
        """Do this at the end, unless a data plane is to be left running."""
        self.add(lambda: None if self.leave_running else action())

    def run(self) -> None:
        """Everything, the newest first; what fails is said and stops nothing."""
        while self._actions:
            try:
                self._actions.pop()()
            except OSError as error:
                print(f"while stopping: {error}", file=sys.stderr)
