"""`gliotrail segment`, `score`, `data import-brats` and `weights import` as they are typed."""

import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from gliotrail.cli import scans
from gliotrail.cli.scans import _one, _trained
from gliotrail.errors import ParamsError
from gliotrail.imaging.nifti import read_image
from tests.support.brain import CHANNELS, CLASSES, REGIONS, from_msd
from tests.support.scans import DEMO, save, snapshot

SCAN = DEMO / "crops/BRATS_119_crop_image.nii.gz"
TRUTH = DEMO / "crops/BRATS_119_crop_label.nii.gz"
MEASURES = {"dice", "sensitivity", "specificity", "hd95_mm", "volume_ref_ml", "volume_pred_ml"}
FOUR = ("--flair", "--t1", "--t1gd", "--t2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights."""
    from gliotrail.params import Model
    from gliotrail.segmentation.unet import UNet3d, initialize
    from gliotrail.segmentation.weights import Description, to_bytes

    network = UNet3d(2, 2)
    initialize(network, seed=1)
    model = Model(name="unet3d", depth=2, base_filters=2)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    path.write_bytes(
        to_bytes(network.state_dict(), Description(model=model, standardize="foreground"))
    )
    return path


@pytest.fixture
def four(tmp_path: Path) -> list[object]:
    """The scan as four files in LPS, as options."""
    image = nib.load(SCAN)
    lps = nib.orientations.axcodes2ornt("LPS")
    there = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), lps)
    words: list[object] = []
    for option, channel in zip(FOUR, range(4), strict=True):
        one = nib.Nifti1Image(np.asarray(image.dataobj)[..., channel], image.affine, image.header)
        path = tmp_path / f"in{option}.nii.gz"
        nib.save(one.as_reoriented(there), path)
        words += [option, path]
    return words


def one_line(ended, message):
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err


# segment


def test_a_scan_becomes_a_mask_and_probabilities_on_its_own_grid(gliotrail, weights, tmp_path):
    mask, probability = tmp_path / "mask.nii.gz", tmp_path / "p.nii.gz"
    words = ("--model", weights, "--probabilities", probability)
    assert gliotrail("segment", SCAN, "-o", mask, *words).code == 0
    scan, labels, probabilities = map(nib.load, (SCAN, mask, probability))
    assert labels.shape == scan.shape[:3]
    assert probabilities.shape == (*scan.shape[:3], 3)
    assert labels.affine.tobytes() == probabilities.affine.tobytes() == scan.affine.tobytes()
    assert set(np.unique(labels.dataobj)) == {0, 1, 2, 3}
    most = np.asarray(probabilities.dataobj).max(axis=3)
    assert np.array_equal(np.asarray(labels.dataobj) != 0, most > 0.5)


def test_four_files_in_lps_give_the_same_mask_in_lps(gliotrail, weights, four, tmp_path):
    one, other = tmp_path / "one.nii.gz", tmp_path / "other.nii"
    gliotrail("segment", SCAN, "-o", one, "--model", weights)
    assert gliotrail("segment", *four, "-o", other, "--model", weights).code == 0
    turned = nib.load(other)
    assert nib.aff2axcodes(turned.affine) == ("L", "P", "S")
    assert turned.affine.tobytes() == nib.load(four[1]).affine.tobytes()
    again = nib.as_closest_canonical(turned)
    assert np.array_equal(again.dataobj, nib.load(one).dataobj)


@pytest.mark.parametrize("scheme", ["brats21", "brats23"])
def test_a_mask_has_the_codes_that_are_asked_for(gliotrail, weights, tmp_path, scheme):
    one, other = tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"
    gliotrail("segment", SCAN, "-o", one, "--model", weights)
    gliotrail("segment", SCAN, "-o", other, "--model", weights, "--scheme", scheme)
    expected = from_msd(np.asarray(nib.load(one).dataobj), scheme)
    assert np.array_equal(nib.load(other).dataobj, expected)


def test_without_a_promoted_model_the_weights_that_ship_are_taken_and_named(
    gliotrail, weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(scans, "SHIPPED", weights)
    one, other = tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"
    ended = gliotrail("segment", SCAN, "-o", one)
    assert ended.code == 0
    assert (
        f"no model was promoted by name: taking the weights that ship, {weights.name}\n"
        in ended.err
    )
    gliotrail("segment", SCAN, "-o", other, "--model", weights)
    assert np.array_equal(nib.load(one).dataobj, nib.load(other).dataobj)
    assert not (tmp_path / "state").exists()  # nothing is set up to find that out
    monkeypatch.setattr(scans, "SHIPPED", tmp_path / "none.safetensors")
    one_line(gliotrail("segment", SCAN, "-o", one), "--model: wanted a weights file, got none")


def test_two_models_and_tta_change_the_mask(gliotrail, weights, tmp_path):
    masks = []
    for n, words in enumerate(([], ["--tta"], ["--threshold", "0.7"])):
        gliotrail("segment", SCAN, "-o", tmp_path / f"{n}.nii", "--model", weights, *words)
        masks.append(np.asarray(nib.load(tmp_path / f"{n}.nii").dataobj))
    gliotrail("segment", SCAN, "-o", tmp_path / "a.nii", *["--model", weights] * 2)
    assert np.array_equal(nib.load(tmp_path / "a.nii").dataobj, masks[0])
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_a_model_of_another_organ_wants_its_own_channels_and_codes(gliotrail, tmp_path):
    from gliotrail.dataset.task import Channel, Class, Task
    from gliotrail.imaging.prepared import Intensity
    from gliotrail.params import Model
    from gliotrail.segmentation.unet import UNet3d
    from gliotrail.segmentation.weights import Description, to_bytes

    task = Task(channels=(Channel(name="CT", kind="CT"),), classes=(Class(name="spleen", code=7),))
    described = Description(
        model=Model(name="unet3d", depth=2, base_filters=2),
        standardize="foreground",
        task=task,
        intensities={"CT": Intensity(low=-100, high=200, mean=50, std=60)},
    )
    model = tmp_path / "spleen.safetensors"
    model.write_bytes(to_bytes(UNet3d(2, 2, 1, 1).state_dict(), described))
    values = np.full((16, 16, 16), -1024, np.int16)
    values[4:12, 4:12, 4:12] = np.arange(512).reshape(8, 8, 8) - 200
    scan, mask = save(tmp_path / "ct.nii.gz", values), tmp_path / "mask.nii.gz"
    words = ("segment", "-o", mask, "--model", model, "--threshold", 0)
    done = gliotrail(*words, "--channel", f"ct={scan}")
    assert done.code == 0, done.err
    assert np.unique(nib.load(mask).dataobj).tolist() == [0, 7]
    told = "channels of the model: wanted CT, got FLAIR; --channel CT=FILE"
    one_line(gliotrail(*words, "--flair", scan), told)
    told = "--scheme: wanted a model of brain tumours, got one of spleen"
    one_line(gliotrail(*words, scan, "--scheme", "brats23"), told)


def test_models_of_several_thresholds_need_one(weights):
    assert _trained(str(weights))[1] == 0.5
    assert _one([0.4, 0.4]) == 0.4
    with pytest.raises(ParamsError, match=r"wanted one for all models, got 0.4, 0.5; set --thresh"):
        _one([0.5, 0.4, 0.5])


def test_what_can_t_be_segmented_is_one_line_and_earlier_masks_stay(
    gliotrail, weights, four, tmp_path
):
    mask = tmp_path / "mask.nii.gz"
    mask.write_text("an earlier mask")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(SCAN.read_bytes()[:-1000])
    flat = save(tmp_path / "flat.nii.gz", np.ones((8, 8, 8), np.int16))
    zeros = save(tmp_path / "zeros.nii.gz", np.zeros((8, 8, 8, 4), np.int16))
    before = snapshot(tmp_path)
    for words, message in (
        ([bad], "bad.nii.gz: truncated file"),
        ([flat], "wanted I x J x K x 4 channels, got 8 x 8 x 8"),
        ([zeros], "FLAIR is 0 everywhere"),
        ([tmp_path / "none.nii.gz"], "no such file"),
        (
            [],
            "scan: wanted one SCAN, or a file a channel: --channel NAME=FILE",
        ),
        ([SCAN, *four], "scan: wanted one SCAN, or a file a channel"),
        ([SCAN, "--t1", flat], "scan: wanted one SCAN, or a file a channel"),
        (four[:6], "channels of the model: wanted FLAIR, T1w, T1gd, T2w, got FLAIR, T1w, T1gd"),
        ([*four[:7], flat], "shape: wanted 64 x 64 x 16 as"),
        ([SCAN, "--model", tmp_path / "none"], "none: no such file"),
        ([SCAN, "--model", flat], "not a whole safetensors file"),
        ([SCAN, "--probabilities", "p.mgz"], "wanted NAME.nii.gz or NAME.nii"),
        ([SCAN, "--probabilities", mask], "output: wanted a file of its own"),
    ):
        one_line(gliotrail("segment", "-o", mask, "--model", weights, *words), message)
    one_line(gliotrail("segment", zeros, "-o", zeros), "output: wanted a file of its own")
    one_line(gliotrail("segment", *four, "-o", four[1]), "output: wanted a file of its own")
    assert snapshot(tmp_path) == before


# score


def test_a_mask_is_scored_as_json_with_both_means(gliotrail, tmp_path):
    labels = nib.load(TRUTH)
    moved = np.roll(np.asarray(labels.dataobj), 1, axis=0)
    lps = save(tmp_path / "pred.nii.gz", moved[::-1], labels.affine @ np.diag([-1, 1, 1, 1]))
    image = nib.load(lps)
    image.affine[:3, 3] = labels.affine[:3] @ [63, 0, 0, 1]
    nib.save(nib.Nifti1Image(moved[::-1], image.affine), lps)
    codes = from_msd(np.asarray(labels.dataobj), "brats21")
    truth = save(tmp_path / "truth.nii.gz", codes, labels.affine)
    ended = gliotrail("score", truth, lps, "--ref-scheme", "brats21", "--json")
    assert ended.code == 0
    score = json.loads(ended.out)
    assert list(score["classes"]) == list(CLASSES)
    assert list(score["regions"]) == list(REGIONS)
    for of in (*score["classes"].values(), *score["regions"].values()):
        assert of.keys() >= MEASURES
        assert 0.5 < of["dice"] < 1
    mean = np.mean([score["classes"][name]["dice"] for name in CLASSES])
    assert score["mean_classes"]["dice"] == pytest.approx(mean)
    assert score["mean_regions"]["dice"] > score["mean_classes"]["dice"]
    assert score["empty"] == {"ref": [], "pred": []}


def test_a_table_tells_what_is_empty(gliotrail, tmp_path):
    labels = nib.load(TRUTH)
    only = np.where(np.asarray(labels.dataobj) == 1, 1, 0).astype(np.uint8)
    pred = save(tmp_path / "pred.nii.gz", only, labels.affine)
    ended = gliotrail("score", TRUTH, pred)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert any(line.split()[:2] == ["edema", "1.000"] for line in lines)
    assert f"no voxel of non_enhancing, enhancing, TC, ET in {pred}" in lines


def test_what_can_t_be_scored_is_one_line(gliotrail, tmp_path):
    other = save(tmp_path / "other.nii.gz", np.ones((8, 8, 8), np.uint8))
    one_line(gliotrail("score", TRUTH, other), "shape: wanted 64 x 64 x 16 as")
    one_line(gliotrail("score", TRUTH, tmp_path / "none.nii"), "no such file")
    one_line(gliotrail("score", TRUTH, TRUTH, "--ref-scheme", "brats21"), "wanted among 0, 1, 2, 4")


# import


def test_brats_folders_are_imported(gliotrail, tmp_path):
    scan = read_image(SCAN)
    for name, channel in zip(("t2f", "t1n", "t1c", "t2w"), range(4), strict=True):
        path = tmp_path / f"in/A-000/A-000-{name}.nii.gz"
        save(path, scan.array[..., channel], scan.affine)
    ended = gliotrail("data", "import", tmp_path / "in", "-o", tmp_path / "out")
    assert ended.code == 0
    assert f"1 scans in {tmp_path / 'out'}, 0 of them labelled" in ended.out
    one_line(
        gliotrail("data", "import", tmp_path / "in", "--out", tmp_path / "out"),
        "folder: wanted a new one",
    )
    one_line(
        gliotrail("data", "import-brats", tmp_path / "in", "--out", tmp_path / "out"),
        "import-brats: wanted data import, which knows BraTS and others; gliotrail data import",
    )


def test_keras_weights_are_imported_and_shown(gliotrail, tmp_path):
    from gliotrail.segmentation.weights import load

    file, out = tmp_path / "a.weights.h5", tmp_path / "a.safetensors"
    shapes = [(3, 3, 3, 4, 5), (3, 3, 3, 5, 10), (1, 1, 1, 10, 3)]
    with h5py.File(file, "w") as store:
        for n, shape in enumerate(shapes):
            layer = f"layers/conv3d{f'_{n}' if n else ''}/vars"
            store[f"{layer}/0"], store[f"{layer}/1"] = np.zeros(shape, "f4"), np.ones(shape[-1])
    order = ",".join(CHANNELS[::-1])
    ended = gliotrail("weights", "import", file, "-o", out, "--channels", order)
    assert ended.code == 0
    for text in ("U-Net of depth 1, 5 base filters", "down.0.1", "conv3d_2", "1,938"):
        assert text in ended.out
    assert "inputs T2w, T1gd, T1w, FLAIR, standardised by slice" in ended.out
    assert load(out)[0].base_filters == 5
    before = out.read_bytes()
    one_line(gliotrail("weights", "import", SCAN, "-o", out), "format: wanted HDF5")
    assert out.read_bytes() == before
