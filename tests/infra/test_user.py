"""An ordinary user: umask 077, a space in every path, a long TMPDIR, no activated environment.

In a container, as its packages are where such a user sees them.
"""

import os
import subprocess

import pytest

from tests.support.containers import podman_env
from tests.support.projects import clone_into, set_params, use_crops

pytestmark = [pytest.mark.long, pytest.mark.needs_images, pytest.mark.timeout(1200)]
USER = 1000
SCRIPT = r"""
set -eu
umask 077
python -m venv --without-pip --system-site-packages .venv
echo "$PWD/platform" >"$(echo .venv/lib/python3*/site-packages)/gliotrail.pth"
printf '#!/bin/sh\nexec "$(dirname "$0")/python" -m dvc "$@"\n' >.venv/bin/dvc
chmod +x .venv/bin/dvc
export TMPDIR="$HOME/a folder for what is temporary, of a long name"
mkdir -p "$TMPDIR"
exec .venv/bin/dvc repro train
"""


def test_a_sweep_and_a_training_in_a_path_with_a_space(tmp_path):
    project = use_crops(clone_into(tmp_path / "checkout"))
    set_params(project.root / "params.yaml", {"train.epochs": 2})
    for path in (project.root, *project.root.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    there = "/" + "home/an ordinary home/check out"
    done = subprocess.run(
        ["podman", "run", "--rm", "--user", str(USER), "--shm-size", "1g", "--workdir", there,
         "-v", f"{project.root}:{there}", "-e", "HOME=/tmp/a home",
         "localhost/gliotrail:cpu", "bash", "-c", SCRIPT],
        env=podman_env(tmp_path), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    assert "Ray's sockets are in /tmp" in done.stdout
    assert "best.json" in {path.name for path in (project.root / "results/sweep").iterdir()}
    assert any((project.root / "results/train").glob("model*"))
