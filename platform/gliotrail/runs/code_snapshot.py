"""The code of a run: a commit that others can fetch, and all changes on top of it.

It is stored by its hash in the state folder at the run's start, and delivered as `code/*`.
"""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gliotrail.files import locked, write_durably
from gliotrail.paths import git, main_checkout, state_dir
from gliotrail.progress import say

LARGEST_BYTES: Final = 20_000_000
CHANGES: Final = "changes.patch"
UNTRACKED: Final = "untracked.tar.gz"
_DIFF: Final = (
    # each overrides a setting of the user's git: a patch must apply anywhere
    *("diff", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--no-relative", "--no-renames", "-O/dev/null"),
    *("--unified=3", "--inter-hunk-context=0", "--submodule=short", "--ignore-submodules=none"),
)
_OWNER: Final = "dubious ownership"
"""Part of git's message about a checkout that another user owns."""


@dataclass(frozen=True)
class Code:
    """The code of a checkout as it is now.

    base: the nearest commit that a remote branch has; without a remote, the newest one.
    files: the changes on top of it: a binary patch, and untracked files that git doesn't ignore.
    problem: why the code can't be rebuilt from these, if so.
    """

    base: str
    files: Mapping[str, bytes]
    problem: str | None = None

    def tags(self) -> dict[str, str]:
        """A run's tags; the digest leads to the files."""
        tags = {"gliotrail.code.base": self.base or "unknown"}
        if self.files:
            tags["gliotrail.code.files"] = _digest(self.files)
        return tags | {"gliotrail.code.problem": self.problem} if self.problem else tags


def code_now(tell: bool = True) -> Code:
    """The code of the current folder's checkout; a problem is also printed."""
    code = _look()
    if code.problem and tell:
        say(f"not rebuildable: {code.problem}")
    for name, content in code.files.items():
        path = code_dir(_digest(code.files)) / name
        if not path.is_file():
            with locked(state_dir() / "code.lock"):  # another may start at the same instant
                write_durably(path, content)
    return code


def code_dir(digest: str) -> Path:
    """The folder of the files with this digest."""
    return state_dir() / "code" / digest


def _look() -> Code:
    top, head = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    if not top or not head:
        return Code("", {}, unseen())
    root, base = Path(top), _base(head)
    if base is None:
        return Code(head, {}, "no remote branch has any commit of it")
    names = [n for n in _git(root, "ls-files", "-oz", "--exclude-standard").split(b"\0") if n]
    paths = sorted(root / os.fsdecode(name) for name in names)
    patch = _git(root, *_DIFF, base)
    if not applies(patch, base, root):
        return Code(base, {}, f"the patch that `git diff` wrote does not apply to {base}")
    n_bytes = len(patch) + sum(path.lstat().st_size for path in paths)
    if n_bytes > LARGEST_BYTES:
        megabytes = f"{n_bytes / 1e6:.0f} MB of at most {LARGEST_BYTES / 1e6:.0f}"
        what = "changes and untracked files that git doesn't ignore"
        return Code(base, {}, f"{megabytes} of {what}; commit and push, or ignore them")
    files = {CHANGES: patch} if patch else {}
    if paths:
        files[UNTRACKED] = _packed(root, paths)
    return Code(base, files)


def unseen() -> str:
    """Why git has no answer for the current folder."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "there is no git"
    if _OWNER in done.stderr:
        return (
            "git refuses this checkout, since another user owns it: "
            f"`git config --global --add safe.directory {Path.cwd()}`"
        )
    inside = subprocess.run(["git", "rev-parse"], capture_output=True, check=False).returncode == 0
    return "a git checkout without a commit" if inside else "no git checkout"


def applies(patch: bytes, base: str, root: Path) -> bool:
    """Whether a patch applies to a commit of the checkout at `root`. No file is touched."""
    if not patch:
        return True
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GIT_INDEX_FILE": f"{folder}/index"}
        index = subprocess.run(
            ["git", "read-tree", base], cwd=root, env=env, capture_output=True, check=False
        )
        words = ["git", "apply", "--cached", "--check", "--whitespace=nowarn", "-"]
        done = subprocess.run(
            words, cwd=root, env=env, input=patch, capture_output=True, check=False
        )
    return index.returncode == done.returncode == 0


def _base(head: str) -> str | None:
    # DVC's temporary folders are repositories without a remote
    main = main_checkout(Path.cwd())
    if not git("for-each-ref", "refs/remotes", cwd=main):
        return head
    own = git("rev-list", "--first-parent", head, "--not", "--remotes", cwd=main).split()
    if not own:
        return head
    return git("rev-parse", "--verify", "--quiet", f"{own[-1]}^", cwd=main) or None


def _git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, check=True).stdout


def _packed(root: Path, paths: list[Path]) -> bytes:
    """As tar.gz: equal files are equal bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in paths:
            entry = tar.gettarinfo(path, path.relative_to(root).as_posix())
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return gzip.compress(packed.getvalue(), mtime=0)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
