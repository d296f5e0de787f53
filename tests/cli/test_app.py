import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gliotrail.cli import complete
from tests.cli.conftest import Ended
from tests.support.tracked_runs import begun

Gliotrail = Callable[..., Ended]
PRINT_NO_RESULT = {"ui", "sweep", "submit", "try", "runs watch", "data import-brats"}
"""They serve or show until they are ended, or run stages, whose results are files."""


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


@pytest.mark.parametrize(
    "words",
    [
        ("doctor",), ("gc",), ("models",), ("promote", "1"), ("runs", "status"), ("runs", "sync"),
        ("runs", "reap"), ("runs", "watch"), ("runs", "stop", "a"), ("trace", "abc"), ("ui",),
        ("experiments",), ("metrics",), ("show", "BRATS_009"), ("view", "BRATS_009"),
        ("patches", "export", "16x16x8", "-o", "out"), ("sweep",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_outside_a_checkout_a_command_that_needs_one_says_so_and_makes_nothing(
    words: tuple[str, ...], gliotrail: Gliotrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIOTRAIL_STATE")
    monkeypatch.chdir(tmp_path)
    ended = gliotrail(*words)
    assert ended.code == 1
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_names_of_this_checkout_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    assert [complete.cases(""), complete.models(""), complete.runs("")] == [[], [], []]
    (tmp_path / "data/prepare").mkdir(parents=True)
    cases = {"cases": {"BRATS_009": {}, "BRATS_119": {}}}
    (tmp_path / "data/prepare/fingerprint.json").write_text(json.dumps(cases))
    (tmp_path / "data/patch/16x16x8").mkdir(parents=True)
    begun(tmp_path / "state/runs/0123abc")
    with sqlite3.connect(tmp_path / "state/mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (name TEXT, version INTEGER)")
        database.execute("INSERT INTO model_versions VALUES ('unet', 3)")
    database.close()
    assert complete.cases("BRATS_0") == ["BRATS_009"]
    assert complete.sizes("") == ["16x16x8"]
    assert complete.runs("01") == ["0123abc"]
    assert complete.stages("ev") == ["evaluate"]
    assert complete.versions("") == ["3"]
    assert complete.models_and_runs("m") == ["models:/unet/3", "models:/unet@champion"]
