"""What GitHub, pre-commit and citing tools read is valid, and names what exists."""

import re
import subprocess
import sys
import tomllib

import pytest
from ruamel.yaml import YAML

from tests.support.projects import ROOT


def read(path):
    return YAML(typ="safe").load(ROOT / path)


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        (".github/workflows/tests.yml", "github-workflows"),
        ("CITATION.cff", "citation-file-format"),
    ],
)
def test_it_follows_its_schema(path, schema):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    arguments = [] if path.endswith(".yml") else ["--force-filetype", "yaml"]
    done = subprocess.run([*check, *arguments, str(ROOT / path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_ci_and_make_targets_that_exist():
    jobs = read(".github/workflows/tests.yml")["jobs"]
    assert jobs["change"]["steps"][-1]["run"] == ".ci/run"
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(jobs["night"]["strategy"]["matrix"]["target"]) <= set(targets)


def test_hooks_before_a_commit_fetch_nothing_and_run_tools_that_make_check_runs():
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/")
        assert re.search(rf"\b{tool.removeprefix('.venv/bin/')}\b", (ROOT / "Makefile").read_text())


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read("CITATION.cff")["version"] == version
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_documents_and_docstrings_name_modules_that_exist():
    package = ROOT / "platform/gliotrail"
    rooms = "|".join(path.name for path in package.iterdir() if (path / "__init__.py").is_file())
    gone = [
        f"{path.relative_to(ROOT)}: {room}.{module}"
        for path in [*ROOT.glob("docs/**/*.md"), *package.rglob("*.py")]
        for room, module in re.findall(rf"`({rooms})\.([a-z_]+)[.`]", path.read_text())
        if not list((package / room).glob(f"{module}*")) and (room, module) != ("dataset", "json")
    ]
    assert not gone
