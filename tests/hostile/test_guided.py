"""The reader of scans under a fuzzer that is guided by what it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.conftest import SEED, Tally


@pytest.mark.long
@pytest.mark.timeout(900)
def test_scans_that_reach_every_line_are_refused_in_one_line_or_read_as_they_say(
    tmp_path: Path, tally: Tally
) -> None:
    pytest.importorskip("atheris", reason="atheris is installed by make setup where it exists")
    words = [str(tmp_path), "60000", str(SEED % 2**31)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.hostile.guided", *words], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    counts = json.loads((tmp_path / "tally.json").read_text())
    assert counts["inputs"] > 50_000
    for name, count in counts.items():
        setattr(tally, name, getattr(tally, name) + count)
