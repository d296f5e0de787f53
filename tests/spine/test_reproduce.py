"""The crops' whole pipeline, made again from the remotes alone: `make reproduce-test`."""

import pytest

from tests.support.projects import Project


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_clone_with_only_the_remotes_makes_the_champion_again_bit_by_bit(
    reproduced_copy, tmp_path
):
    one, two = reproduced_copy, Project(tmp_path / "two")
    one.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "remote.git"))
    one.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    one.run("dvc", "push")
    one.run("git", "clone", "--quiet", str(tmp_path / "remote.git"), str(two.root))
    two.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))

    champion = "models:/gliotrail-unet3d@champion"
    server = {"MLFLOW_TRACKING_URI": f"sqlite:///{one.root}/.gliotrail/mlflow.db"}
    for options in ([], ["--with-sweep"]):  # by the recorded winner, and by finding it again
        command = ["gliotrail", "reproduce", champion, *options]
        done = two.run(*command, timeout_s=600, **server)
        print(done.stdout)
        assert done.stdout.rstrip().endswith(": bit-identical")
        for part in ("weights", "curves", "measures"):
            assert part in done.stdout
    assert two.run("git", "worktree", "list").stdout.count("\n") == 1
    assert two.run("git", "status", "--short").stdout == ""
