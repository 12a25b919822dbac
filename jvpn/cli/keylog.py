"""The option that has a gateway or client write down the keys of its sessions."""

import argparse
from pathlib import Path


def add_keylog(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keylog",
        type=Path,
        metavar="FILE",
        help="append the keys of all sessions to FILE, for laboratories only: whoever has it reads their traffic",
    )
