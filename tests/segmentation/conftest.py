"""Small patches of the real crops, and workers to train on them.

Torch is imported inside the fixtures: this file is read before OMP_NUM_THREADS is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.scans import CASES, augmented, patch_section

if TYPE_CHECKING:
    from gliotrail.imaging.prepared import Prepared
    from gliotrail.segmentation.batches import Patches
    from tests.support.gloo import Workers


@pytest.fixture(scope="session")
def patches(prepared_crops: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Patches:
    """14 patches of 16x16x8 from both crops, augmented as in the demo."""
    from gliotrail.imaging.patch import patch
    from gliotrail.segmentation.batches import Patches

    both = replace(prepared_crops, split=replace(prepared_crops.split, training=CASES))
    folder = tmp_path_factory.mktemp("patches")
    index = patch(patch_section(per_case=7), both, (16, 16, 8), folder)
    augment = augmented(flip=0.5, intensity_scale=0.1, intensity_shift=0.1)
    return Patches(index, prepared_crops.cases, augment, "foreground", seed=7)


@pytest.fixture(scope="session")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Up to four real workers."""
    from tests.support.gloo import gloo_workers

    with gloo_workers(4, tmp_path_factory.mktemp("gloo")) as workers:
        yield workers
