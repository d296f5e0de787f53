"""The crops' whole pipeline, made again from the remotes alone: `make reproduce-test`."""

import pytest

from tests.support.projects import Project, commit, set_params

CHAMPION = "models:/gliotrail-unet3d@champion"


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

    server = {"MLFLOW_TRACKING_URI": f"sqlite:///{one.root}/.gliotrail/mlflow.db"}

    def reproduce(model: str, *options: str) -> None:
        done = two.run("gliotrail", "reproduce", model, *options, timeout_s=600, **server)
        print(done.stdout)
        assert done.stdout.rstrip().endswith(": bit-identical")
        for part in ("weights", "curves", "measures"):
            assert part in done.stdout

    reproduce(CHAMPION)
    reproduce(CHAMPION, "--with-sweep")  # its winner is found again

    # that model's weights are the first ones of another, which may then have its name
    set_params(one.root / "params.yaml", {"train.init": CHAMPION})
    commit(one, "Go on from the champion")
    one.run("git", "push", "--quiet", str(tmp_path / "remote.git"), "HEAD")
    one.run("dvc", "repro", "evaluate", timeout_s=600)
    one.run("dvc", "push")
    reproduce("models:/gliotrail-unet3d/2")
    assert two.run("git", "worktree", "list").stdout.count("\n") == 1
    assert two.run("git", "status", "--short").stdout == ""
