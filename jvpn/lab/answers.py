"""What a process of the lab says on its standard output, a line at a time."""

import subprocess
import threading

from jvpn.lab.namespaces import LabError

#: For who hangs; an emulated machine under load takes half a minute to start an interpreter.
ANSWER_TIMEOUT_S = 120.0


def answer_of(process: subprocess.Popen[bytes], name: str, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
    """Its next line. Raises LabError, with its last words, when it has ended, or says nothing in time and is killed."""
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.daemon = True  # who is interrupted here must not wait for it on the way out
    try:
        watchdog.start()
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
    if not line:
        process.wait()
        words = process.stderr.read().decode(errors="replace").strip()
        raise LabError(f"{name} is gone: {words or 'it gave no answer'}")
    return line
