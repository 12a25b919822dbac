"""Whether scripts would take their arguments, said without running any: for who is going to run them later.

`python -m vagrant.traffic.examine` reads on stdin a JSON list of [kind, name, [argument, …]], with the kind "fault" or
"attack", and prints a list of as many texts: what is wrong, or nothing.
"""

import argparse
import importlib
import json
import sys
from typing import NoReturn

from vagrant.traffic.script import add_common


class _Wrong(Exception):
    """What a parser would have said before it ended the process."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Wrong(message)


def wrong_with(kind: str, name: str, argv: list[str]) -> str:
    """What is wrong with the arguments of a script, empty where nothing is. Raises ImportError for none."""
    module = importlib.import_module(f"vagrant.traffic.{kind}s.{name}")
    parser = _Parser(add_help=False, allow_abbrev=False)
    module.arguments(parser)
    add_common(parser)
    try:
        _, more = parser.parse_known_args(argv)
    except _Wrong as wrong:
        return str(wrong)
    unknown = [word for word in more if word.startswith("--")] or more
    return f"unknown: {', '.join(unknown)}" if unknown else ""


if __name__ == "__main__":
    print(json.dumps([wrong_with(*asked) for asked in json.load(sys.stdin)]))
