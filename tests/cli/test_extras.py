"""What each extra can do without the others, and what it says of them.

Libraries of the extras are hidden from a Python of its own, which imports as if they were absent.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Ended
from tests.cli.test_scans import SCAN, TRUTH, weights  # noqa: F401 - a fixture
from tests.support.environment import in_state

HIDING = """
import json, sys
from importlib.abc import MetaPathFinder

class Hiding(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

hidden, commands = json.loads(sys.argv[1])
sys.meta_path.insert(0, Hiding())
from gliotrail.cli.app import main
for words in commands:
    sys.argv = ["gliotrail", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
EXTRAS = [
    *("ray", "mlflow", "dvc", "dvc_s3", "optuna", "pyarrow", "numba", "psutil", "fsspec"),
    *("requests", "monai", "boto3"),
]


def run(*commands: str, hidden: Sequence[str] = EXTRAS, cwd: Path) -> Ended:
    """Run commands one after another, up to the first that fails."""
    given = json.dumps([hidden, [command.split() for command in commands]])
    done = subprocess.run(
        [sys.executable, "-c", HIDING, given], cwd=cwd, capture_output=True, text=True
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_segment_score_and_show_need_the_extra_segment_alone(weights: Path, tmp_path: Path) -> None:  # noqa: F811
    ended = run(
        f"segment {SCAN} --out mask.nii.gz --model {weights}",
        f"score {TRUTH} mask.nii.gz",
        f"show {SCAN} --labels mask.nii.gz --out picture.png",
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.iterdir()} == {"mask.nii.gz", "picture.png"}


def test_runs_need_the_extra_track_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_state(tmp_path / "state", monkeypatch)
    tracked = [name for name in EXTRAS if name not in {"mlflow", "requests", "pyarrow"}]
    hidden = [*tracked, "torch", "nibabel", "h5py", "imagecodecs", "safetensors"]
    ended = run("runs status", hidden=hidden, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "0.0 MB of at most" in ended.out


@pytest.mark.parametrize(
    ("command", "hidden", "said"),
    [
        ("sweep", ["ray"], "error: ray is not installed: `pip install 'gliotrail[train]'`\n"),
        (
            f"segment {SCAN} --out mask.nii.gz",
            ["torch"],
            "error: torch is not installed: `pip install 'gliotrail[segment]'`\n",
        ),
        ("trace abc", EXTRAS, "error: mlflow is not installed: `pip install 'gliotrail[track]'`\n"),
        (
            f"segment {SCAN} --out mask.nii.gz --model models:/gliotrail-unet3d@champion",
            ["mlflow"],
            "error: --model: wanted a weights file, got models:/gliotrail-unet3d@champion; "
            "registered models need `pip install 'gliotrail[track]'`\n",
        ),
    ],
)
def test_a_missing_extra_is_told_in_one_line(
    command: str, hidden: Sequence[str], said: str, tmp_path: Path
) -> None:
    ended = run(command, hidden=hidden, cwd=tmp_path)
    assert (ended.code, ended.out, ended.err) == (1, "", said)
    assert not list(tmp_path.iterdir())
