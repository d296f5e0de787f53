"""The command line, run in this process: its exit code, what it prints, what it complains of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def gliotrail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """`gliotrail("score", path, ..)`, through the entry point that is installed."""

    def run(*words: object) -> Ended:
        from gliotrail.cli.app import main

        monkeypatch.setattr(sys, "argv", ["gliotrail", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        seen = capsys.readouterr()
        return Ended(int(ended.value.code or 0), seen.out, seen.err)

    return run
