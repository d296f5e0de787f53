"""Where this machine keeps what is no result: tracking database, runs in progress, caches.

All of it is in `.gliotrail/` of the main checkout, also when the command runs in a git worktree or
in one of DVC's temporary experiment folders, so that runs never scatter.
"""

import os
import subprocess
from pathlib import Path


def state_dir() -> Path:
    """`.gliotrail/` of the main checkout; GLIOTRAIL_STATE overrides it."""
    override = os.environ.get("GLIOTRAIL_STATE")
    return Path(override).absolute() if override else main_checkout() / ".gliotrail"


def main_checkout() -> Path:
    """The checkout that worktrees and DVC's temporary folders belong to; else this folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            here = folder.parents[2]
    found = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    common = Path(found.stdout.strip())
    return common.parent if found.returncode == 0 and common.name == ".git" else here
