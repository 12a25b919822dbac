"""`jvpn doctor`: whether a gateway or client can run here, and how well.

It looks and changes nothing. Exit status 0 when it can run, perhaps with warnings, 1 when something prevents it.

With --clean it removes what a gateway that died without stopping has left: its XDP program, its pins, its sockets.
"""

import argparse
import json
import shutil
import textwrap
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from jvpn.cli import checks, checks_config, checks_fleet
from jvpn.cli.checks import Check
from jvpn.cli.client import DEFAULT_CONFIG as CLIENT_CONFIG
from jvpn.cli.plans import BPFFS, gateway_plan
from jvpn.cli.plans import DEFAULT_CONFIG as GATEWAY_CONFIG
from jvpn.config import ClientConfig, ConfigError, GatewayConfig, load_client, load_gateway
from jvpn.policy.source import Source
from jvpn.supervisor import leftovers

STEPS: Final = ("native XDP", "generic XDP", "reuseport program alone", "no BPF, one worker")


@dataclass(slots=True)
class Report:
    """`title` says for what; groups of checks in order; `ladder` is empty for a client."""

    title: str
    groups: dict[str, list[Check]] = field(default_factory=dict)
    ladder: list[tuple[str, str]] = field(default_factory=list)
    expected: str = ""

    def all_checks(self) -> list[Check]:
        return [check for group in self.groups.values() for check in group]

    @property
    def can_run(self) -> bool:
        return not any(check.level == "problem" for check in self.all_checks())


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "doctor", help="whether it can run here, and how well", description=__doc__
    )
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="a gateway's or a client's")
    parser.add_argument("--deep", action="store_true", help="compile, verify and remove the BPF programs too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--clean", action="store_true", help="remove what a gateway that died has left (XDP, pins, sockets)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.clean:
        return clean(args.config, args.json)
    report = examine(args.config, args.deep)
    print(
        json.dumps(as_json(report), indent=2)
        if args.json
        else as_text(report, shutil.get_terminal_size((110, 24)).columns)
    )
    return 0 if report.can_run else 1


def clean(path: Path | None, as_json_object: bool) -> int:
    """Remove leftovers and say what was removed. Exit status 1 when something lives, or resists."""
    if path is None and GATEWAY_CONFIG.exists():
        path = GATEWAY_CONFIG
    said: list[str] = []
    problem = ""
    try:
        config = None if path is None else load_gateway(path)
        pins = None if config is None else BPFFS / config.node_id
        said = leftovers.clean(None if config is None else config.run_dir, pins)
    except (ConfigError, leftovers.StillRunning) as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error}; start as root"
    if as_json_object:
        print(json.dumps({"said": said, "problem": problem or None}, indent=2))
    else:
        print("\n".join([*said, problem] if problem else said or ["nothing was left"]))
    return 1 if problem else 0


def examine(path: Path | None, deep: bool) -> Report:
    """Look at this machine, for the configuration in `path` or the one in its usual place."""
    if path is None:
        path = next((usual for usual in (GATEWAY_CONFIG, CLIENT_CONFIG) if usual.exists()), None)
    config, checked = _configuration(path)
    report = Report(_title(config, path))
    report.groups["host"] = checks.base_checks()
    if path is not None:
        report.groups["configuration"] = [checked]
    if isinstance(config, ClientConfig):
        report.groups["configuration"] += _client(config)
    else:
        _gateway(report, config, deep)
    return report


def _title(config: GatewayConfig | ClientConfig | None, path: Path | None) -> str:
    if config is None:
        return "this machine, for a gateway" + ("" if path is not None else "; name a configuration with -c")
    return f"{'client' if isinstance(config, ClientConfig) else 'gateway ' + config.node_id}, {path}"


def _configuration(path: Path | None) -> tuple[GatewayConfig | ClientConfig | None, Check]:
    try:
        if path is None:
            return None, Check("file", "ok", "none")
        if _is_client(path):
            return load_client(path), Check("file", "ok", f"{path}, a client's")
        config = load_gateway(path)
        gateway_plan(config, str(path))
    except ConfigError as error:
        return None, Check(
            "file", "problem", str(error), "mend it; docs/configuration.md explains each field"
        )
    return config, Check("file", "ok", f"{path}, a gateway's; peers: {len(config.peers)}")


def _is_client(path: Path) -> bool:
    """A client's file names its gateway; anything else is judged as a gateway's."""
    try:
        root = Source(str(path), ConfigError).root(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(root, yaml.MappingNode) and any(key.value == "gateway" for key, _ in root.value)


def _client(config: ClientConfig) -> list[Check]:
    status = checks_config.running(config.run_dir)
    found = checks_config.uplinks(config) + checks_config.endpoints(config)
    if all(check.level != "ok" for check in found if check.name.startswith("gateway ")):
        found = [replace(c, level="problem") if c.name.startswith("gateway ") else c for c in found]
    return [
        *found,
        checks_config.tun_name(config.tun_name, status),
        checks_config.offload(config.offload, status),
        *checks_config.key_log(status),
        *checks_config.client_folders(config),
    ]


def _gateway(report: Report, config: GatewayConfig | None, deep: bool) -> None:
    bpf = report.groups["steering"] = checks.bpf_checks()
    if deep and not any(check.blocks_bpf for check in bpf):
        bpf.append(checks.load_programs())
    status = None if config is None else checks_config.running(config.run_dir)
    modes: dict[str, str] = {}
    for name in checks_config.gateway_interfaces(config):
        check, modes[name] = checks_config.interface(name, status)
        bpf.append(check)
    if config is not None:
        report.groups["configuration"] += [
            *checks_config.listen_ports(config, status),
            checks_config.tun_name(config.tun_name, status),
            checks_config.offload(config.offload, status),
            *checks_config.key_log(status),
            *checks_config.forwarding(config),
            *checks_config.inner_pool(config),
            *checks_config.gateway_folders(config),
            *checks_fleet.fleet(config),
        ]
    blockers = [check for check in report.all_checks() if check.blocks_bpf]
    report.ladder, report.expected = ladder(blockers, modes, "auto" if config is None else config.xdp)


def ladder(blockers: list[Check], modes: dict[str, str], wanted: str) -> tuple[list[tuple[str, str]], str]:
    """Each step with what speaks for or against it, and the step to expect.

    `modes`: what each interface can do (native, maybe native, generic, none); `wanted`: xdp of the configuration.
    """
    last = "always possible"
    if blockers:
        why = "no: " + "; ".join(f"{check.name}: {check.found}" for check in blockers)
        return [*((step, why) for step in STEPS[:3]), (STEPS[3], last)], STEPS[3]
    if wanted == "off":
        modes = {}
    native = [name for name, mode in modes.items() if "native" in mode]
    generic = [name for name, mode in modes.items() if mode != "none"]
    steps = [
        (STEPS[0], _native_text(modes, native, wanted)),
        (STEPS[1], f"excluded by xdp: {wanted}" if wanted in ("native", "off") else _on(generic)),
        (STEPS[2], "possible: no shelter in front of the sockets, each session still at its worker"),
        (STEPS[3], last + ": all sessions share one core"),
    ]
    if native and wanted != "generic":
        return steps, STEPS[0]
    if generic and wanted != "native":
        return steps, STEPS[1]
    return steps, STEPS[2]


def _native_text(modes: dict[str, str], native: list[str], wanted: str) -> str:
    if wanted in ("generic", "off"):
        return f"excluded by xdp: {wanted}"
    unsure = [name for name in native if modes[name] == "maybe native"]
    return _on(native) + (f"; only attaching will tell on {', '.join(unsure)}" if unsure else "")


def _on(names: list[str]) -> str:
    return f"possible on {', '.join(names)}" if names else "on no interface"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "title": report.title,
        "can_run": report.can_run,
        "checks": [
            {"group": group, **asdict(check)} for group, found in report.groups.items() for check in found
        ],
        "ladder": [{"step": step, "why": why} for step, why in report.ladder],
        "expected": report.expected or None,
    }


def as_text(report: Report, columns: int) -> str:
    """`columns`: where lines are broken."""
    lines = _broken(f"jvpn doctor: {report.title}", "", columns)
    width = max(len(check.name) for check in report.all_checks())
    for group, found in report.groups.items():
        lines += ["", group]
        for check in found:
            head = f"  {check.level:<7}  {check.name:<{width}}  "
            lines += _broken(check.found, head, columns)
            if check.remedy:
                lines += _broken(check.remedy, f"{'':<{len(head)}}→ ", columns)
    if report.ladder:
        lines += ["", "steering, best first"]
        step_width = max(len(step) for step, _why in report.ladder)
        for number, (step, why) in enumerate(report.ladder, start=1):
            mark = "→" if step == report.expected else " "
            lines += _broken(why, f"  {mark} {number}  {step:<{step_width}}  ", columns)
    return "\n".join([*lines, "", _verdict(report)])


def _broken(text: str, head: str, columns: int) -> list[str]:
    """`text` behind `head`, its further lines below its first; words are never cut, so that commands can be copied."""
    return textwrap.wrap(
        text,
        max(columns, len(head) + 40),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(report: Report) -> str:
    levels = [check.level for check in report.all_checks()]
    problems, warnings = levels.count("problem"), levels.count("warning")
    counted = f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    if not report.can_run:
        return f"It cannot run here: {counted}."
    return f"It can run here{': ' + report.expected if report.expected else ''} ({counted})."
