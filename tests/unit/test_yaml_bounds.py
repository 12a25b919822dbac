"""Whatever YAML is in a file that is read by schema, reading it ends, with one sentence that names file and line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jvpn.config import load_client, load_gateway
from jvpn.lab.scenario.load import load as load_scenario
from jvpn.policy.model import load as load_policy
from jvpn.policy.source import SourceError

#: The last line stands for nine to the ninth values.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
READERS: list[Callable[[Path], object]] = [
    load_scenario,
    load_gateway,
    load_client,
    lambda path: load_policy(path.read_text(), str(path)),
]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "title: t\npolicy: &p {x: *p}\n",
            ":2: *p is an alias, which is not read here; write the value itself",
        ),
        (BOMB, ":2: *a is an alias"),
        ("gateway: &g\n  <<: [*g, *g]\n", ":2: *g is an alias"),
        (
            "title: *short\n",
            ":1: *short is an alias, which is not read here; write the value itself, or put it in",
        ),
        (f"title: t\npolicy: {'[' * 400}{']' * 400}\n", ":2: nested too deeply"),
        (f"title: t\npolicy: {'{a: ' * 100}b{'}' * 100}\n", ":2: nested too deeply"),
        ('title: "\\U00110000"\n', ": an escape in quotes names no character"),
        ('title: "\\UFFFFFFFF"\n', ": an escape in quotes names no character"),
    ],
)
@pytest.mark.parametrize("read", READERS, ids=["scenario", "gateway", "client", "policy"])
def test_it_is_refused_with_its_line(
    read: Callable[[Path], object], text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "default.yaml"
    path.write_text(text)
    with pytest.raises(SourceError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}{said}")


def test_a_mark_that_nobody_refers_to_and_words_with_an_asterisk_are_as_good_as_any(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text("description: &d '*d'\nrelearn: on\n")
    with pytest.raises(SourceError, match="unknown field"):
        load_policy((tmp_path / "default.yaml").read_text(), "default.yaml")


def jvpn(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "jvpn.cli", *argv], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("command", "status"), [(("lab", "run"), 2), (("policy", "check"), 1)])
def test_commands_say_it_and_end(command: tuple[str, ...], status: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(BOMB)
    done = jvpn(*command, str(path))
    assert done.returncode == status
    assert f"{path}:2: *a is an alias" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_it_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(f"gateway: {'[' * 400}{']' * 400}\n")
    done = jvpn("doctor", "-c", str(path))
    assert f"{path}:1: nested too deeply" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
