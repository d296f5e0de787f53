import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
from typer.main import get_command

from tests.cli.conftest import Ended

Gliotrail = Callable[..., Ended]
PRINT_NO_RESULT = {"ui", "sweep", "submit", "try"}
"""One serves pages until it is ended; the others run stages, whose results are files."""


def all_commands(group: Any, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= all_commands(command, f"{above}{name} ")
        else:
            found[above + name] = command
    return found


def test_every_command_that_prints_a_result_prints_json_too() -> None:
    from gliotrail.cli.app import app

    commands = all_commands(get_command(app))
    without = {n for n, c in commands.items() if all("--json" not in p.opts for p in c.params)}
    assert without == PRINT_NO_RESULT


def test_help_goes_by_task_and_is_plain_text_where_there_is_no_terminal(
    gliotrail: Gliotrail,
) -> None:
    from gliotrail.cli.app import TASKS

    ended = gliotrail("--help")
    assert ended.code == 0
    places = [ended.out.index(task) for task in TASKS]
    assert places == sorted(places)
    assert "\x1b" not in ended.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    variable = {
        "bash": {"COMP_WORDS": "gliotrail sh", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "gliotrail sh"},
        "fish": {"_TYPER_COMPLETE_ARGS": "gliotrail sh", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [sys.executable, "-c", "from gliotrail.cli.app import app; app(prog_name='gliotrail')"],
        env=os.environ | {"_GLIOTRAIL_COMPLETE": f"complete_{shell}"} | variable,
        capture_output=True,
        text=True,
    )
    assert "show" in done.stdout


def test_the_version_is_that_of_the_package(gliotrail: Gliotrail) -> None:
    ended = gliotrail("--version")
    assert (ended.code, ended.out.strip()) == (0, f"gliotrail {metadata.version('gliotrail')}")
