import io
import multiprocessing
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gliotrail.runs import code_snapshot as code_module
from gliotrail.runs.code_snapshot import CHANGES, UNTRACKED, Code, code_dir, code_now
from gliotrail.runs.lineage import provenance

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in a checkout of one commit, that is the current folder."""
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "state"))

    def run(*words: str, cwd: Path = root) -> str:
        return subprocess.run(
            ["git", *words], cwd=cwd, check=True, capture_output=True, text=True
        ).stdout.strip()

    run("init", "--quiet")
    (root / "code.py").write_text("one = 1\n")
    (root / ".gitignore").write_text("data/\n")
    run("add", ".")
    run("commit", "--quiet", "--message", "One")
    return run


def pushed(git: Git, tmp_path: Path) -> str:
    """What is committed so far is on a remote; its commit."""
    git("clone", "--quiet", "--bare", ".", str(tmp_path / "remote.git"))
    if not git("remote"):
        git("remote", "add", "origin", str(tmp_path / "remote.git"))
    git("fetch", "--quiet", "origin")
    return git("rev-parse", "HEAD")


def rebuilt(git: Git, code: Code, folder: Path, source: Path) -> Path:
    """The checkout as it was, from a clone and what is on top of it."""
    git("clone", "--quiet", str(source), str(folder))
    git("checkout", "--quiet", code.base, cwd=folder)
    if CHANGES in code.files:
        (folder.parent / CHANGES).write_bytes(code.files[CHANGES])
        git("apply", str(folder.parent / CHANGES), cwd=folder)
    if UNTRACKED in code.files:
        with tarfile.open(fileobj=io.BytesIO(code.files[UNTRACKED])) as tar:
            tar.extractall(folder, filter="data")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if ".git" not in path.parts and "data" not in path.parts
    }


def test_a_clone_of_the_remote_and_what_is_on_top_give_the_checkout_again(
    git: Git, tmp_path: Path
) -> None:
    base, here = pushed(git, tmp_path), Path.cwd()
    (here / "code.py").write_text("two = 2\n")
    git("commit", "--quiet", "--all", "--message", "Two, not pushed")
    (here / "picture.bin").write_bytes(bytes(range(256)))
    git("add", "picture.bin")
    (here / "code.py").write_text("three = 3\n")
    (here / "folder").mkdir()
    (here / "folder/né w.py").write_text("new = True\n")
    (here / "data").mkdir()
    (here / "data/scan").write_text("ignored")

    code = code_now()
    assert (code.base, code.problem) == (base, None)
    again = rebuilt(git, code, tmp_path / "again", tmp_path / "remote.git")
    assert contents(again) == contents(here)
    assert code.tags()["gliotrail.code.base"] == base
    kept = code_dir(code.tags()["gliotrail.code.files"])
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == code.files
    assert code_now() == code  # byte by byte


def test_a_file_whose_name_is_no_utf8_comes_back_by_tar_and_by_reproduce(
    git: Git, tmp_path: Path
) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9.txt", b"link\xff")]
    Path(names[0]).write_text("new")
    Path(names[1]).symlink_to(names[0])
    packed, ways = tmp_path / UNTRACKED, [tmp_path / "tar", tmp_path / "reproduce"]
    packed.write_bytes(code_now().files[UNTRACKED])
    for folder in ways:
        folder.mkdir()
    subprocess.run(["tar", "xzf", packed], cwd=ways[0], check=True)
    with tarfile.open(packed) as tar:
        tar.extractall(ways[1], filter="data")
    for folder in ways:
        assert sorted(path.name for path in folder.iterdir()) == names
        assert contents(folder) == dict.fromkeys(names, b"new")


def test_two_that_start_at_the_same_instant_both_keep_their_code(git: Git) -> None:
    fork, fsync = multiprocessing.get_context("fork"), os.fsync
    writing = fork.Event()

    def slow(file: int) -> None:
        writing.set()
        time.sleep(0.5)
        fsync(file)

    def slowly() -> None:
        os.fsync = slow
        code_now()

    Path("new.py").write_text("new = True\n")
    first, second = fork.Process(target=slowly), fork.Process(target=code_now)
    first.start()
    assert writing.wait(20)
    second.start()
    for process in (first, second):
        process.join(20)
        assert process.exitcode == 0


def test_a_clean_checkout_is_its_commit_alone(git: Git, tmp_path: Path) -> None:
    head = git("rev-parse", "HEAD")
    assert code_now() == Code(head, {})  # no remote at all
    assert pushed(git, tmp_path) == head
    assert code_now() == Code(head, {})
    assert code_now().tags() == {"gliotrail.code.base": head}


def test_what_cannot_be_rebuilt_is_told_at_the_start(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(code_module, "LARGEST_BYTES", 1_000_000)
    (tmp_path / "checkout/large").write_bytes(bytes(2_000_000))
    code = code_now()
    assert code.files == {}
    assert "gliotrail.code.problem" in code.tags()
    told = "not rebuildable: 2 MB of at most 1 of changes and untracked files"
    assert capsys.readouterr().err.startswith(told)
    (tmp_path / "checkout/large").unlink()
    monkeypatch.chdir(tmp_path)
    assert code_now().problem == "no git checkout"


def test_a_temporary_experiment_of_dvc_has_the_base_of_the_main_checkout(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pushed(git, tmp_path)
    git("commit", "--quiet", "--allow-empty", "--message", "Not pushed")
    # as `dvc exp run --temp` and its queue make it: a repository without remotes
    folder = tmp_path / "checkout/.dvc/tmp/exps/standalone/one"
    git("clone", "--quiet", ".", str(folder))
    git("remote", "remove", "origin", cwd=folder)
    (folder / "code.py").write_text("tried = 1\n")
    monkeypatch.chdir(folder)
    code = code_now()
    assert (code.base, code.problem) == (base, None)
    assert b"+tried = 1" in code.files[CHANGES]


def test_a_remote_of_another_history_is_no_base(git: Git, tmp_path: Path) -> None:
    pushed(git, tmp_path)
    git("checkout", "--quiet", "--orphan", "other")
    git("commit", "--quiet", "--message", "Other")
    assert code_now().problem == "no remote branch has any commit of it"


SETTINGS = {
    "diff.noprefix": "true",
    "diff.mnemonicPrefix": "true",
    "diff.srcPrefix": "old/",
    "diff.dstPrefix": "new/",
    "diff.relative": "true",
    "diff.renames": "copies",
    "diff.context": "0",
    "diff.interHunkContext": "9",
    "diff.external": "false",
    "diff.suppressBlankEmpty": "true",
    "diff.algorithm": "patience",
    "diff.indentHeuristic": "false",
    "diff.wordRegex": ".",
    "diff.colorMoved": "zebra",
    "diff.wsErrorHighlight": "all",
    "diff.submodule": "log",
    "diff.ignoreSubmodules": "all",
    "diff.orderFile": "order",
    "diff.statGraphWidth": "3",
    "diff.autoRefreshIndex": "false",
    "diff.upper.textconv": "tr a-z A-Z <",
    "diff.upper.command": "false",
    "color.ui": "always",
    "core.quotePath": "false",
    "core.pager": "false",
    "apply.whitespace": "error",
}


@pytest.mark.parametrize("setting", [*SETTINGS, "all of them"])
def test_the_patch_applies_whatever_git_is_configured_to(
    setting: str, git: Git, tmp_path: Path
) -> None:
    here = Path.cwd()
    (here / ".gitattributes").write_text("*.txt diff=upper\n")
    (here / "sub").mkdir()
    (here / "sub/größe.txt").write_text("a\n\nb\n" * 20)
    (here / "moved.py").write_text("".join(f"line = {n}\n" for n in range(30)))
    git("add", ".")
    git("commit", "--quiet", "--message", "More")
    base = pushed(git, tmp_path)
    (here / "order").write_text("sub/*\n")
    for name, value in SETTINGS.items():
        if setting in {name, "all of them"}:
            git("config", name, value)
    (here / "sub/größe.txt").write_text("a\n\nb \n" * 20)
    (here / "picture.bin").write_bytes(bytes(range(256)))
    git("mv", "moved.py", "sub/there.py")
    git("add", "picture.bin")
    code = code_now()
    assert (code.base, code.problem) == (base, None)
    again = rebuilt(git, code, tmp_path / "again", tmp_path / "remote.git")
    assert contents(again) == contents(here)


def test_a_patch_that_does_not_apply_is_told_and_not_kept(
    git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("code.py").write_text("two = 2\n")
    monkeypatch.setattr(code_module, "_DIFF", ("diff", "--no-prefix"))
    code = code_now()
    assert code.files == {}
    assert code.problem is not None
    assert "does not apply" in code.problem


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_a_checkout_of_another_owner_is_told_as_that(
    git: Git, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))  # whose git config trusts no folder
    for path in (Path.cwd(), *Path.cwd().rglob("*")):
        os.chown(path, 1234, 1234)
    problem = code_now().problem
    assert problem is not None
    assert problem.startswith("git refuses this checkout, since another user owns it")
    assert f"safe.directory {Path.cwd()}" in problem
    told = provenance()
    assert (told["mlflow.source.git.commit"], told["gliotrail.uncommitted_changes"]) == (
        "unknown",
        "unknown",
    )
