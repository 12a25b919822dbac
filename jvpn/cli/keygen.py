"""`jvpn keygen`: make an X25519 key pair or a preshared key, or show the public key of a private one."""

import argparse
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from jvpn.config.keys import KEY_BYTES, KeyFileError, format_key, read_key_file
from jvpn.protocol.suites import x25519_public


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "keygen",
        help="make a key pair, a preshared key, or show a public key",
        description="Keys are base64 of 32 bytes, the same that WireGuard's tools make and take.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--public", metavar="FILE", type=Path, help="print the public key of a private key file"
    )
    what.add_argument("--psk", action="store_true", help="make a preshared key instead of a key pair")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the secret key to a new file of mode 0600, do not print it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 with one line on standard error. Nothing is ever overwritten."""
    if args.public is not None:
        return _public(args)
    secret = os.urandom(KEY_BYTES) if args.psk else X25519PrivateKey.generate().private_bytes_raw()
    label = "preshared_key" if args.psk else "private_key"
    result = {} if args.psk else {"public_key": format_key(x25519_public(secret))}
    if args.out is None:
        result = {label: format_key(secret), **result}
    else:
        problem = _write_new(args.out, format_key(secret) + "\n")
        if problem:
            return _fail(problem)
        result[f"{label}_file"] = str(args.out)
    _print(result, args)
    return 0


def _public(args: argparse.Namespace) -> int:
    if args.out is not None:
        return _fail("keygen: --public makes no secret to write; leave out --out")
    try:
        private = read_key_file(args.public, f"jvpn keygen --out {args.public}")
    except KeyFileError as error:
        return _fail(f"keygen: {error}")
    _print({"public_key": format_key(x25519_public(private))}, args)
    return 0


def _print(result: dict[str, str], args: argparse.Namespace) -> None:
    """A lone public key is printed bare, so that a script can take it as it is."""
    if args.json:
        print(json.dumps(result))
    elif args.public is not None or (args.out is not None and "public_key" in result):
        print(result["public_key"])
    else:
        for label, value in result.items():
            print(f"{label}: {value}")


def _write_new(path: Path, text: str) -> str:
    """Create `path` with mode 0600 and write it durably; what went wrong, empty if nothing did."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return f"keygen: {path} exists and is left as it is; name another file, or move this one away"
    except OSError as refused:
        return f"keygen: {path} cannot be written ({refused.strerror}); name a file in a directory that you may write"
    try:
        with open(descriptor, "w") as file:
            # The process's umask may take bits away from the owner, too.
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as failed:
        # Half a key is no key.
        path.unlink(missing_ok=True)
        return f"keygen: {path} could not be written ({failed.strerror}); nothing was kept"
    return ""


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1
