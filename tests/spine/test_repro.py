"""One whole `dvc repro` on the crops, and what a change runs again."""

import json
import re
import resource
from statistics import median

import nibabel as nib
import pytest
from ruamel.yaml import YAML

from tests.support.brain import CLASSES, REGIONS
from tests.support.projects import CROPS_PARAMS, ROOT, set_params


@pytest.fixture
def project(reproduced_copy):
    yield reproduced_copy
    reproduced_copy.run("git", "checkout", "--quiet", "params.yaml")
    reproduced_copy.run("dvc", "checkout", "--quiet", "--force")


def stages_run(log):
    return re.findall(r"Running stage '([^']+)'", log)


def test_one_repro_runs_every_stage_once_but_the_frozen_one_and_folds_none_asked_for(reproduced):
    known = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    stages = [name for name in known if name not in {"pretrain", "crossvalidate"}]
    assert [name for name in known if known[name].get("frozen")] == ["pretrain"]
    ran = stages_run(reproduced.log)
    assert len(ran) == len(set(ran))
    assert list(dict.fromkeys(name.partition("@")[0] for name in ran)) == stages
    assert {n.partition("@")[2] for n in ran} - {""} == set(CROPS_PARAMS["patch.sizes"])


def test_it_ends_in_measures_of_the_held_out_patient_and_a_mask_on_its_own_grid(reproduced):
    results = reproduced.project.root / "results/evaluate"
    measures = json.loads((results / "metrics.json").read_text())
    assert {*CLASSES, *REGIONS} <= set(measures)
    scan = nib.load(reproduced.project.root / "raw/labelsTr/BRATS_119.nii.gz")
    (mask,) = (results / "masks").glob("BRATS_119*.nii.gz")
    assert nib.load(mask).shape == scan.shape
    assert (nib.load(mask).affine == scan.affine).all()


def test_a_second_repro_has_nothing_to_do_and_takes_three_seconds(reproduced):
    used_s = []
    for _ in range(3):
        before_s = cpu_s()
        assert stages_run(reproduced.project.run("dvc", "repro").stdout) == []
        used_s.append(cpu_s() - before_s)
    assert median(used_s) <= 3, used_s


def cpu_s():
    """Of the commands run so far. One process: on an idle machine that is its wall-clock time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_change_of_training_runs_no_data_stage(project):
    set_params(project.root / "params.yaml", {"train.epochs": 3})
    assert stages_run(project.run("dvc", "repro", "--dry").stdout) == ["params", "train"]


@pytest.mark.parametrize(
    ("written", "mistyped", "nearest"),
    [
        ("  learning_rate: from", "  learning_rat: from", "train.learning_rat: unknown key; did"),
        (
            "  per_case:",
            "  per_cas: 1\n  per_case:",
            "patch.per_cas: unknown key; did you mean per_",
        ),
        ("\nevaluate:", "\nevaluat:", "evaluat: unknown key; did you mean evaluate?"),
    ],
    ids=["in place of its own", "added", "a section"],
)
def test_a_mistyped_key_is_told_with_the_nearest_before_any_stage(
    written, mistyped, nearest, project
):
    file = project.root / "params.yaml"
    file.write_text(file.read_text().replace(written, mistyped, 1))
    told = project.run("dvc", "repro", check=False).stdout
    assert stages_run(told) == ["params"]
    assert f"params.yaml: {nearest}" in told


def test_a_patch_size_put_in_front_runs_alone_and_costs_kilobytes(project):
    sizes = ["8x8x8", *CROPS_PARAMS["patch.sizes"]]
    set_params(project.root / "params.yaml", {"patch.sizes": sizes})
    ran = stages_run(project.run("dvc", "repro", "patch").stdout)
    assert ran == ["params", "patch@8x8x8"]
    index = list((project.root / "data/patch/8x8x8").rglob("*"))
    written = [*index, project.root / "results/patch/8x8x8.png"]
    assert 0 < sum(path.stat().st_size for path in written) < 200_000
