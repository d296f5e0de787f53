"""This machine's state folder: tracking database, runs in progress, caches, but no results.

It is `.gliotrail/` of the main checkout, also for commands in a git worktree or in one of DVC's
temporary experiment folders, so that all runs are in one place.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Final

from gliotrail.errors import ParamsError

_SOCKETS_BYTES: Final = 49
JOB: Final = "GLIOTRAIL_JOB"
"""Set in the processes of a stage that runs as a Ray job, whose working folder is temporary."""
DIRECT: Final = "GLIOTRAIL_DIRECT"
"""Set where all machines of the cluster at RAY_ADDRESS see this checkout: stages make no jobs."""


def state_dir() -> Path:
    """`.gliotrail/` of the main checkout, in a job `~/.cache/gliotrail`; or GLIOTRAIL_STATE.

    Raises:
        ParamsError: the current folder is in no checkout, and nothing was tracked in it.
    """
    override = os.environ.get("GLIOTRAIL_STATE")
    if not override and os.environ.get(JOB):
        return Path.home() / ".cache/gliotrail"
    if override:
        return Path(override).absolute()
    root = main_checkout(Path.cwd())
    if not (root / "dvc.yaml").is_file() and not (root / ".gliotrail").is_dir():
        do = "change into a checkout of Gliotrail, or set GLIOTRAIL_STATE"
        raise ParamsError("no checkout here", where=root, wanted="a folder with dvc.yaml", do=do)
    return root / ".gliotrail"


def made_state_dir() -> Path:
    """`state_dir`, made if there is none: in the git checkout, else in the current folder.

    Git ignores it: its content is no part of the code.
    """
    try:
        state = state_dir()
    except ParamsError:
        state = main_checkout(Path.cwd()) / ".gliotrail"
    state.mkdir(parents=True, exist_ok=True)
    ignore = state / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return state


@cache  # called often, and git takes some milliseconds
def main_checkout(here: Path) -> Path:
    """The checkout that a worktree or a temporary folder of DVC's belongs to; else the folder."""
    for folder in (here, *here.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            here = folder.parents[2]
    common = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir", cwd=here))
    return common.parent if common.name == ".git" else here


def git(*words: str, cwd: Path | None = None) -> str:
    """A git command's output; empty if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def short_temp(beside: str = "/ray") -> str:
    """The temporary folder, or /tmp if names of sockets below it would be too long.

    A socket's name has at most 107 bytes; Ray's part takes 58.

    Args:
        beside: the part between the folder and Ray's.
    """
    folder = gettempdir()
    if len(os.fsencode(folder + beside)) <= _SOCKETS_BYTES:
        return folder
    text = f"Ray's sockets are in /tmp: the name of TMPDIR={folder} is too long for them\n"
    sys.stderr.write(text)
    return "/tmp"  # noqa: S108 - Ray makes a folder of its own there
