"""Stage `patch`: the patches of one size, `python -m pipelines.patch 48x48x16`, and a picture."""

import sys
from pathlib import Path

from gliotrail import params
from gliotrail.errors import ParamsError, one_line_errors
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepared import load_prepared
from gliotrail.param_types import Size, parse_size
from gliotrail.paths import state_dir
from gliotrail.report.patch_sheet import draw_sample


def _size() -> Size:
    try:
        return parse_size(" ".join(sys.argv[1:]))
    except ValueError as error:
        raise ParamsError(str(error), where="pipelines.patch") from None


if __name__ == "__main__":
    with one_line_errors():
        section, size = params.load().patch, _size()
        prepared = load_prepared(Path("data/prepare"))
        kept = state_dir() / "kept/patch"
        index = patch(section, prepared, size, Path("data/patch"), kept)
        draw_sample(prepared, index, Path("results/patch"))
