"""What is refused before a training starts, where no training is needed to see it."""

import pytest

from gliotrail.dataset.brats import BRATS
from gliotrail.errors import ParamsError
from gliotrail.params import Model
from gliotrail.training.preflight import _check_heads


def test_region_heads_are_for_nested_regions_alone() -> None:
    regions, classes = (
        Model.model_validate({"name": "dynunet", "depth": 3, "base_filters": 4, "heads": heads})
        for heads in ("regions", "classes")
    )
    parts = BRATS.model_copy(update={"regions": BRATS.regions[1:]})
    _check_heads(regions, BRATS)
    _check_heads(classes, parts)
    with pytest.raises(ParamsError, match=r"each the one before .*got TC, ET; take classes"):
        _check_heads(regions, parts)
