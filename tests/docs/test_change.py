"""The first experiment, as docs/how-to/change.md tells it: `make demo-test`."""

from __future__ import annotations

import json

import pytest

from gliotrail.plain_yaml import read_yaml
from tests.support.documents import blocks
from tests.support.known import run_block
from tests.support.projects import ROOT, Project

pytestmark = pytest.mark.long
PAGE = "docs/how-to/change.md"
MINUTES = 20  # 80 s on two quiet cores


@pytest.fixture(scope="module")
def changed(reproduced_copy: Project) -> Project:
    for block in blocks((ROOT / PAGE).read_text(encoding="utf-8"), PAGE):
        run_block(block, reproduced_copy, timeout_s=60 * MINUTES)
    return reproduced_copy


@pytest.mark.timeout(60 * MINUTES)
def test_each_row_of_the_measures_differs(changed: Project) -> None:
    differs = json.loads(changed.run("dvc", "metrics", "diff", "--json").stdout)
    rows = {path.name for path in (changed.root / "results/evaluate/measures").glob("*.json")}
    assert {path.rpartition("/")[2] for path in differs} == rows


def test_each_plot_differs(changed: Project) -> None:
    told = json.loads(changed.run("dvc", "plots", "diff", "--json").stdout)["data"]
    names = [name for plot in read_yaml(ROOT / "dvc.yaml")["plots"] for name in plot]
    assert [name.rpartition("::")[2] for name in told] == names
    for (plot,) in told.values():
        drawn: dict[str, list[dict[str, object]]] = {}
        for point in plot["content"]["data"]["values"]:
            drawn.setdefault(point.pop("rev"), []).append(point)
        assert set(drawn) == {"HEAD", "workspace"}
        assert drawn["HEAD"] != drawn["workspace"]


def test_the_experiment_is_listed_with_what_it_changed(changed: Project) -> None:
    commit, tried = json.loads(changed.run("gliotrail", "experiments", "--json").stdout)
    assert (commit["changed"], tried["changed"]) == ({}, {"train.learning_rate": 1e-3})
    assert commit["dice"] != tried["dice"]
