from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ended

Gliotrail = Callable[..., Ended]


def test_the_pages_of_a_server_that_runs_are_named(
    gliotrail: Gliotrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush@127.0.0.1:9")
    ended = gliotrail("ui")
    assert ended.code == 0
    assert "127.0.0.1:9 (a server that runs already)" in ended.out
    assert "hush" not in ended.out


def test_measures_that_are_not_there_are_one_line(
    gliotrail: Gliotrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gliotrail("metrics")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "dvc repro" in ended.err


def test_what_the_machine_refuses_is_one_line(gliotrail: Gliotrail, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    (tmp_path / "file").touch()
    ended = gliotrail("weights", "import", tmp_path / "a.h5", "-o", tmp_path / "file/a.safetensors")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "Traceback" not in ended.err
