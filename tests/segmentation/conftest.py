"""Small patches of the real crops, and workers to train on them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepared import Prepared
from gliotrail.params import Augment
from gliotrail.segmentation.sampling import Patches
from tests.support.gloo import Workers, gloo_workers
from tests.support.scans import CASES, patch_section


@pytest.fixture(scope="session")
def patches(prepared_crops: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Patches:
    """14 patches of 16x16x8 from both crops, augmented as in the demo."""
    both = replace(prepared_crops, split=replace(prepared_crops.split, training=CASES))
    folder = tmp_path_factory.mktemp("patches")
    index = patch(patch_section(per_case=7), both, (16, 16, 8), folder)
    augment = Augment(flip=0.5, intensity_scale=0.1, intensity_shift=0.1)
    return Patches(index, prepared_crops.cases, augment, "brain", seed=7)


@pytest.fixture(scope="session")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Up to three real workers."""
    with gloo_workers(3, tmp_path_factory.mktemp("gloo")) as workers:
        yield workers
