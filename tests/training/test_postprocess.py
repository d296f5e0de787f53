"""From a training that finds rules on its validation data to the masks of its model."""

from pathlib import Path

import numpy as np

from gliotrail.dataset.brats import BRATS
from gliotrail.imaging.nifti import read_image
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.postprocess import Postprocess, postprocessed
from gliotrail.segmentation.segment import segment
from gliotrail.segmentation.weights import load
from gliotrail.training.driver import result, run_training
from tests.support.crops import Crops
from tests.support.scans import DEMO


def test_rules_go_with_the_weights_and_are_applied(crops: Crops, tmp_path: Path) -> None:
    training = crops.training(
        train__postprocess="validation", train__epochs=1, train__epoch_voxels=20 * 4 * 16**3
    )
    run = RunFolder(tmp_path / "run")
    run_training(training, run, World())
    (tmp_path / "plain").write_bytes(result(training, run)[1])
    (tmp_path / "ruled").write_bytes(result(training, run, postprocess=True)[1])
    network, plain = load(tmp_path / "plain")
    _, ruled = load(tmp_path / "ruled")
    assert plain.postprocess is None
    assert ruled.postprocess is not None  # after so few steps there are specks everywhere

    scan = read_image(DEMO / "crops/BRATS_119_crop_image.nii.gz")
    before = segment(scan, [(network, plain)]).labels
    after = segment(scan, [(network, ruled)]).labels
    assert np.array_equal(after, postprocessed(before, ruled.postprocess, BRATS, (1, 1, 1)))
    nothing = plain.model_copy(update={"postprocess": Postprocess(least_region_ml={"WT": 1000})})
    assert before.any()
    assert not segment(scan, [(network, nothing)]).labels.any()
    # of several networks none's rules
    both = segment(scan, [(network, plain), (network, nothing)]).labels
    assert np.array_equal(both, before)
