import hashlib
import json
import re
from pathlib import Path

import pytest

from gliotrail.runs.lineage import (
    Origin,
    describe,
    digest_of,
    dvc_digests,
    provenance,
)
from tests.support.projects import ROOT, Project, clone_into, commit

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p data/prepare/cases && echo one > data/prepare/cases/a && echo two > data/prepare/b
    outs: [data/prepare]
  evaluate:
    cmd: echo '{}' > metrics.json
    metrics:
      - metrics.json:
          cache: false
"""


@pytest.fixture(scope="module")
def reproduced_by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a real `dvc repro` wrote dvc.lock."""
    project = Project(tmp_path_factory.mktemp("dvc"))
    (project.root / "dvc.yaml").write_text(PIPELINE)
    project.run("dvc", "init", "--quiet", "--no-scm")
    project.run("dvc", "repro", "--quiet")
    return project.root


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_digests_are_those_by_which_dvc_knows_the_data(reproduced_by_dvc: Path) -> None:
    files = [
        {"md5": md5(b"two\n"), "relpath": "b"},
        {"md5": md5(b"one\n"), "relpath": "cases/a"},
    ]
    assert dvc_digests(reproduced_by_dvc / "dvc.lock") == {
        "data/prepare": md5(json.dumps(files).encode()) + ".dir",
        "metrics.json": md5(b"{}\n"),
    }


def test_without_a_dvc_lock_there_are_no_digests(tmp_path: Path) -> None:
    assert dvc_digests(tmp_path / "dvc.lock") == {}


def test_a_run_names_the_data_that_dvc_knows() -> None:
    origin = Origin({"env.cpu": "1 x abacus"}, {"data/fetch": "f.dir", "data/patch/1x1x1": "p.dir"})
    described = describe(
        origin,
        experiment="tests",
        kind="trial",
        name="trial 1",
        params={"a": 1},
        inputs=[1, 2],
        data=["data/fetch", "data/prepare"],
    )
    assert [d["name"] for d in described["datasets"]] == ["data/fetch"]
    assert [d["digest"] for d in described["datasets"]] == ["f.dir"]
    assert described["tags"] == {
        "env.cpu": "1 x abacus",
        "dvc.data/fetch": "f.dir",
        "gliotrail.kind": "trial",
        "gliotrail.inputs": digest_of([1, 2]),
        "mlflow.source.name": "pipelines.sweep",
        "mlflow.source.type": "JOB",
    }


# code


DIGEST = """
from gliotrail.code_graph import result_code
print(result_code("gliotrail.training.driver"))
"""


def digest_in(project: Project) -> str:
    return project.run("python", "-c", DIGEST).stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return clone_into(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("segmentation/loop.py", True),
        ("imaging/prepared.py", True),
        ("params.py", True),
        ("synthesis/tumours.py", True),
        ("training/driver.py", True),
        ("imaging/formats/brats.py", False),
        ("report/overlays.py", False),
        ("tracking/client.py", False),
        ("cluster/workers.py", False),
    ],
)
def test_the_code_counts_that_decides_what_a_training_gives(
    module: str, counts: bool, checkout: Project
) -> None:
    path = checkout.root / "platform/gliotrail" / module
    before, content = digest_in(checkout), path.read_text()
    path.write_text(content + "# a remark\n'and a word'\n")
    assert digest_in(checkout) == before
    path.write_text(content + "AGAIN = 1\n")
    assert (digest_in(checkout) != before) == counts
    path.write_text(content)
    assert digest_in(checkout) == before


def test_a_module_that_is_renamed_is_other_code(checkout: Project) -> None:
    before = digest_in(checkout)
    loop = checkout.root / "platform/gliotrail/segmentation/loop.py"
    loop.rename(loop.with_name("circle.py"))
    assert digest_in(checkout) != before
    loop.with_name("circle.py").rename(loop)


# where and who


def test_uncommitted_changes_are_told_beside_the_commit(
    checkout: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout.root)
    head = checkout.run("git", "rev-parse", "HEAD").stdout.strip()
    assert provenance()["mlflow.source.git.commit"] == head
    assert provenance()["gliotrail.uncommitted_changes"] == "false"
    readme = checkout.root / "README.md"
    readme.write_text("changed")
    assert provenance()["mlflow.source.git.commit"] == head
    assert provenance()["gliotrail.uncommitted_changes"] == "true"
    commit(checkout, "Changed")
    assert provenance()["mlflow.source.git.commit"] != head
    assert provenance()["gliotrail.uncommitted_changes"] == "false"


def test_outside_a_checkout_and_without_git_or_a_name_a_run_still_tells_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert provenance()["mlflow.source.git.commit"] == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4242)  # a container's user, in no list
    tags = provenance()
    assert tags["mlflow.source.git.commit"] == "unknown"
    assert tags["mlflow.user"] == "unknown"


def test_the_environment_names_versions_and_hardware_and_no_path() -> None:
    tags = provenance()
    assert re.fullmatch(r"\d+ x .+", tags["env.cpu"])
    assert tags["env.torch"].startswith("2.")
    assert str(ROOT) not in json.dumps(tags)


def test_equal_values_have_one_digest_and_others_another() -> None:
    assert digest_of({"a": 1, "b": [1.5]}) == digest_of({"b": [1.5], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})
