from pathlib import Path

import pytest

from gliotrail.errors import ParamsError
from gliotrail.paths import git, main_checkout, short_temp, state_dir
from tests.support.projects import Project


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small git repository with a worktree beside it."""
    project = Project(tmp_path_factory.mktemp("main") / "checkout")
    (project.root / "platform").mkdir(parents=True)
    (project.root / "dvc.yaml").touch()
    project.run("git", "init", "--quiet")
    project.run("git", "commit", "--quiet", "--allow-empty", "--message", "first")
    project.run("git", "worktree", "add", "--quiet", "../worktree")
    return project.root


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GLIOTRAIL_STATE", raising=False)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    return state_dir()


def test_state_is_in_the_main_checkout_wherever_one_stands(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (".", "platform", "../worktree", ".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/x/data"):
        assert in_folder(checkout / folder, monkeypatch) == checkout / ".gliotrail"


def test_a_temporary_experiment_that_is_a_clone_of_its_own_leads_to_the_main_checkout_too(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout / ".dvc/tmp/exps/standalone"
    folder.mkdir(parents=True)
    git("init", "--quiet", cwd=folder)
    assert in_folder(folder, monkeypatch) == checkout / ".gliotrail"


def test_outside_a_checkout_there_is_no_state_and_the_environment_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParamsError, match="elsewhere: no checkout here"):
        in_folder(tmp_path / "elsewhere", monkeypatch)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.setenv("GLIOTRAIL_STATE", "relative/place")
    assert state_dir() == tmp_path / "elsewhere/relative/place"


def test_without_git_there_is_no_checkout_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""
    assert main_checkout(tmp_path) == tmp_path


def test_rays_sockets_have_a_short_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "gliotrail.paths.gettempdir"
    monkeypatch.setattr(where, lambda: "/a/short/one")
    assert short_temp() == "/a/short/one"
    monkeypatch.setattr(where, lambda: "/" + "x" * 50)
    assert short_temp() == "/tmp"
    assert "TMPDIR=/xxx" in capsys.readouterr().err
