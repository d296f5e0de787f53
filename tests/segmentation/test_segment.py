"""A new patient: geometry, on real scans that are turned, thinned and mirrored."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from gliotrail.errors import DataError
from gliotrail.imaging.geometry import to_ras
from gliotrail.imaging.nifti import Scan, read_image
from gliotrail.params import Model
from gliotrail.segmentation.inference import predict_case, to_labels
from gliotrail.segmentation.segment import Trained, segment
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.segmentation.weights import Description
from tests.support.scans import DEMO, save

CROP = DEMO / "crops/BRATS_009_crop_image.nii.gz"


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of a real scan whose sides are no whole strides."""
    crop = nib.load(CROP).slicer[8:45, 10:43, 4:23]
    path = tmp_path_factory.mktemp("part") / "part.nii.gz"
    nib.save(crop, path)
    return path


def network(seed: int = 1, depth: int = 2, base: int = 2) -> Trained:
    """Random weights: every voxel of what it sees matters."""
    model = UNet3d(depth, base)
    initialize(model, seed)
    description = Model(name="unet3d", depth=depth, base_filters=base)
    return model, Description(model=description, standardize="foreground")


def bright(at: float, standardize: str = "foreground") -> Trained:
    """Edema where FLAIR is above a value (more than 0); it sees single voxels."""
    model, description = network(depth=1, base=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, second = model.down[0]
        first.weight[0, 0, 1, 1, 1] = second.weight[0, 0, 1, 1, 1] = model.head.weight[0, 0] = 1
        model.head.weight *= 4 / at
        model.head.bias[:] = torch.tensor([-4.0, -9, -9])
    return model, description.model_copy(update={"standardize": standardize})


def turned(path: Path, axes: str, target: Path) -> Path:
    """The same scan with its axes in another order."""
    image = nib.load(path)
    start = nib.orientations.io_orientation(image.affine)
    there = nib.orientations.axcodes2ornt(tuple(axes))
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, there)), target)
    return target


def mirrored(scan: Scan, axes: Sequence[int]) -> Scan:
    """The scan's mirror image, on the same grid."""
    return Scan(np.flip(scan.array, tuple(axes)), scan.header)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_scan_like_those_of_training_is_predicted_as_in_training(prepared_crops):
    model, description = network()
    done = segment(read_image(CROP), [(model, description)])
    case = prepared_crops.cases["BRATS_009"]
    probabilities_CIJK = predict_case(model, case, "foreground")
    assert np.array_equal(np.moveaxis(done.probabilities, 3, 0), probabilities_CIJK)
    assert np.array_equal(done.labels, to_labels(probabilities_CIJK, 0.5))
    assert set(np.unique(done.labels)) == {0, 1, 2, 3}
    assert not done.labels[(read_image(CROP).array == 0).all(axis=3)].all()


@pytest.mark.parametrize("axes", ["LPS", "LAS", "SPL", "IAR", "PRI"])
def test_a_turned_scan_gives_the_turned_mask(axes, part, tmp_path):
    nets = [network()]
    expected = segment(read_image(part), nets)
    scan = read_image(turned(part, axes, tmp_path / "turned.nii.gz"))
    done = segment(scan, nets)
    assert done.labels.shape == scan.shape_vox
    assert done.probabilities.shape == (*scan.shape_vox, 3)
    for got, wanted in (
        (done.labels, expected.labels),
        (done.probabilities, expected.probabilities),
    ):
        assert np.array_equal(to_ras(got, scan.affine)[0], wanted)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 3), (2, 1, 1), (0.5, 0.5, 2)])
@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_another_spacing_gives_the_same_tumour_in_mm(spacing_mm, axes, tmp_path):
    """Slices taken out or voxels doubled: what is bright stays where it is."""
    whole = read_image(CROP)
    truth = segment(whole, [bright(1)]).labels == 1
    array, affine = whole.array, whole.affine.copy()
    for axis, length in enumerate(spacing_mm):
        n = max(1, round(1 / length))
        array = np.repeat(array, n, axis) if n > 1 else array
        truth = np.repeat(truth, n, axis) if n > 1 else truth
        kept = [slice(None)] * 3
        kept[axis] = slice(None, None, max(1, round(length)))
        array, truth = array[tuple(kept)], truth[tuple(kept)]
        affine[:, axis] *= length
    path = turned(save(tmp_path / "own.nii.gz", array, affine), axes, tmp_path / "turned.nii.gz")
    scan = read_image(path)
    done = segment(scan, [bright(1)])
    assert done.labels.shape == scan.shape_vox != whole.shape_vox
    assert dice(to_ras(done.labels == 1, scan.affine)[0], truth) > 0.85


def test_a_scan_like_those_of_training_is_not_resampled_whatever_their_voxels(part):
    (model, description), scan = network(), read_image(part)
    expected = segment(scan, [(model, description)]).labels
    affine = scan.affine @ np.diag([1, 1, 5, 1])
    thick = Scan(scan.array, replace(scan.header, affine=affine))
    description = description.model_copy(update={"spacing_mm": (1.0, 1.0, 5.0)})
    assert np.array_equal(segment(thick, [(model, description)]).labels, expected)
    assert segment(scan, [(model, description)]).labels.shape == expected.shape
    wanted = "spacing of the networks: wanted 1 x 1 x 5 mm, got 1 x 1 x 1 mm"
    with pytest.raises(DataError, match=wanted):
        segment(thick, [(model, description), network()])


def test_a_ball_is_found_where_it_is_in_mm(tmp_path):
    spacing_mm, centre_mm, radius_mm = (0.6, 1.4, 3.0), (8, -6, 5), 13
    shape = (100, 50, 24)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1])
    xyz_mm = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3]
    middle_mm = (np.array(shape) - 1) / 2 @ affine[:3, :3]
    ball = np.linalg.norm(xyz_mm - middle_mm - centre_mm, axis=-1) < radius_mm
    values = np.where(ball, 300, 100)[..., None] + np.zeros(4)
    scan = read_image(save(tmp_path / "ball.nii.gz", values.astype(np.int16), affine))
    found = segment(scan, [bright(100, "none")], allow_missing=True).labels == 1
    found_mm = xyz_mm[found].mean(axis=0) - middle_mm
    assert np.abs(found_mm - centre_mm).max() < 0.2
    assert found.sum() == pytest.approx(ball.sum(), rel=0.05)


def test_the_brain_s_edge_stays_where_it_is_after_resampling(tmp_path):
    """Interpolated, the brain would grow by what is between its last voxel and the next."""
    array = read_image(DEMO / "imagesTr/BRATS_119.nii.gz").array[20:220:2, 30:210:3, :9]
    scan = read_image(save(tmp_path / "a.nii.gz", array, np.diag([2, 3, 1, 1])))
    labels = segment(scan, [bright(1, "none")]).labels
    assert dice(labels == 1, (array[..., 0] > 1)) > 0.97


# mirror images


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_mirrored_scan_gives_exactly_the_mirrored_mask_with_tta(axes, part):
    scan, nets = read_image(part), [network()]
    expected = segment(scan, nets, tta=True)
    done = segment(mirrored(scan, axes), nets, tta=True)
    assert np.array_equal(np.flip(done.labels, axes), expected.labels)
    assert np.abs(np.flip(done.probabilities, axes) - expected.probabilities).max() < 1e-6
    without = segment(mirrored(scan, axes), nets)
    assert not np.array_equal(np.flip(without.labels, axes), segment(scan, nets).labels)


def test_a_network_that_is_its_own_mirror_image_needs_no_tta():
    """Whole strides, and kernels that are symmetric: the network allows it."""
    model, description = network()
    crop = read_image(CROP)
    crop = Scan(crop.array[:, :, :16], crop.header)
    apart = []
    for _ in range(2):
        one, other = (
            segment(scan, [(model, description)]).probabilities
            for scan in (crop, mirrored(crop, (0,)))
        )
        apart.append(np.abs(np.flip(other, 0) - one).max())
        with torch.no_grad():
            for name, kernel in model.named_parameters():
                if name.endswith("weight"):
                    kernel.copy_((kernel + kernel.flip(2)) / 2)
    assert apart[0] > 0.1
    assert apart[1] < 1e-3


def test_tta_of_a_resampled_scan_is_mirrored_too(part, tmp_path):
    array = read_image(part).array[::2, :, ::2]
    scan = read_image(save(tmp_path / "a.nii.gz", array, np.diag([2, 1, 2, 1])))
    expected = segment(scan, [network()], tta=True)
    done = segment(mirrored(scan, (0, 2)), [network()], tta=True)
    assert np.abs(np.flip(done.probabilities, (0, 2)) - expected.probabilities).max() < 1e-4


# several networks


def test_several_networks_are_averaged(part):
    scan = read_image(part)
    one, other = (segment(scan, [network(seed)]).probabilities for seed in (1, 2))
    both = segment(scan, [network(1), network(2, depth=2, base=2)])
    assert np.abs(both.probabilities - (one + other) / 2).max() < 1e-6
    wanted = to_labels(np.moveaxis(both.probabilities, 3, 0), 0.5)
    assert np.array_equal(both.labels, wanted)


def test_each_network_gets_the_scan_as_it_was_trained(part):
    scan = read_image(part)
    model, description = network()
    raw = description.model_copy(update={"standardize": "none"})
    one, other = segment(scan, [(model, description)]), segment(scan, [(model, raw)])
    assert not np.array_equal(one.labels, other.labels)


def test_the_threshold_is_of_the_probability(part):
    scan, nets = read_image(part), [network()]
    low, high = (segment(scan, nets, threshold).labels != 0 for threshold in (0.3, 0.7))
    assert low.sum() > high.sum()
    assert not (high & ~low).any()


# what can't be segmented


def test_a_scan_of_zeros_is_refused(tmp_path):
    scan = read_image(save(tmp_path / "zeros.nii.gz", np.zeros((8, 8, 8, 4), np.int16)))
    with pytest.raises(DataError, match=r"zeros\.nii\.gz: channels: .*FLAIR is 0 everywhere"):
        segment(scan, [network()])
    with pytest.raises(DataError, match=r"zeros\.nii\.gz: voxel values: wanted a body"):
        segment(scan, [network()], allow_missing=True)


def test_a_spacing_that_can_t_be_is_refused_before_memory_is_taken(tmp_path):
    affine = np.diag([90, 90, 90, 1])
    scan = read_image(save(tmp_path / "cm.nii.gz", np.ones((240, 8, 8, 4), np.uint8), affine))
    with pytest.raises(DataError, match=r"size: wanted sides of up to 640 mm, got 240 x 8 x 8 vox"):
        segment(scan, [network()], allow_missing=True)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t1gd, t1: t1gd * 0, "T1gd is 0 everywhere"),
        (lambda t1gd, t1: (t1gd > 0) * 500, "T1gd is 500 all over the body"),
        (lambda t1gd, t1: t1, "T1w and T1gd are the same"),
    ],
)
def test_a_channel_that_tells_nothing_is_refused_unless_it_is_meant(tmp_path, spoil, told):
    array = read_image(CROP).array.copy()
    array[:4] = 0
    array[..., 2] = spoil(array[..., 2], array[..., 1])
    scan = read_image(save(tmp_path / "a.nii.gz", array))
    with pytest.raises(DataError, match=f"channels: wanted 4 different images, got {told}"):
        segment(scan, [network()])
    assert segment(scan, [network()], allow_missing=True).labels.any()


# memory

PEAK = """
import resource, sys
from pathlib import Path
from gliotrail.imaging.nifti import read_image, write_labels, write_probabilities
from gliotrail.segmentation.segment import segment
from gliotrail.segmentation.weights import load
scan = read_image(Path(sys.argv[1]))
done = segment(scan, [load(Path(sys.argv[2]))])
write_labels(Path(sys.argv[3]), done.labels, scan)
write_probabilities(Path(sys.argv[4]), done.probabilities, scan)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("spacing_mm", [1.0, 1.3])
def test_a_whole_head_at_32_filters_takes_less_than_4_gib(tmp_path, spacing_mm):
    from gliotrail.segmentation.weights import to_bytes

    values = np.random.default_rng(1).normal(300, 90, (240, 240, 155, 4)).astype(np.float32)
    affine = np.diag([spacing_mm] * 3 + [1])
    paths = [save(tmp_path / "scan.nii", values, affine), tmp_path / "w.safetensors"]
    model, description = network(base=32)
    paths[1].write_bytes(to_bytes(model.state_dict(), description))
    paths += [tmp_path / "mask.nii.gz", tmp_path / "p.nii.gz"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    print(f"peak {float(done.stdout):.2f} GiB at {spacing_mm} mm")
    assert float(done.stdout) < 4
