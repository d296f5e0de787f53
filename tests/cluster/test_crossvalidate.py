"""Folds of the training patients: here two, of one patient each."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gliotrail.cluster.crossvalidate import crossvalidate
from gliotrail.errors import ParamsError
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.segmentation.batches import Patches
from gliotrail.training.driver import data_of, source_of
from gliotrail.training.inputs import Training
from gliotrail.training.preflight import check
from tests.support.crops import Crops
from tests.support.scans import CASES

BOTH = {
    "prepare__split__test": [],
    "prepare__split__validation": 0,
    "crossvalidate__folds": [1, 2],
    "train__rehearsal": 0,
    "train__epochs": 1,
}


@pytest.fixture(scope="module")
def both(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """Both crops are for training. Shared: change nothing."""
    made = Crops(tmp_path_factory.mktemp("both"))
    values = made.params(**BOTH)
    prepare(values.prepare, crops.raw, made.prepared, processes=1)
    for size in values.patch.sizes:
        patch(values.patch, load_prepared(made.prepared), size, made.patches)
    return made


@pytest.mark.parametrize("fold", [1, 2])
def test_a_fold_trains_on_the_other_patients_alone(both: Crops, fold: int) -> None:
    training = replace(both.training(**BOTH), fold=(fold, 2))
    data = data_of(training)
    assert data is not None
    assert [region.case for region in data.split.validation] == [CASES[fold - 1]]
    source = source_of(training, data)
    assert isinstance(source, Patches)
    served = {source.sample(number).case for number in range(2 * len(source.index))}
    assert served == {CASES[2 - fold]}
    assert training.folder() != replace(training, fold=(3 - fold, 2)).folder()


def test_more_folds_than_patients_are_refused(both: Crops) -> None:
    training = replace(both.training(**BOTH), fold=(1, 3))
    with pytest.raises(ParamsError, match=r"crossvalidate.folds: wanted 2 to 2 folds"):
        check([training])


@pytest.mark.usefixtures("in_this_process")
def test_the_stage_gives_a_fold_s_model_and_dice(
    both: Crops, new_state: Callable[[], Path], tmp_path: Path
) -> None:
    new_state()
    params = both.params(**BOTH)
    crossvalidate(params, 2, both.prepared, both.patches, out=tmp_path / "out")
    measures = json.loads((tmp_path / "out/2.json").read_text())
    assert 0 <= measures["dice_mean_regions"] <= 1
    assert all(key.startswith("dice_") for key in measures)  # columns of `dvc metrics show`
    assert (tmp_path / "out/2/model.safetensors").is_file()
    described = json.loads((tmp_path / "out/2/run.json").read_text())
    assert described["experiment"] == "gliotrail-folds"
    assert Training.of(params, params.train, both.prepared, both.patches).fold is None
