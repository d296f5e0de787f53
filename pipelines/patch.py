"""Stage `patch`: the patches of one size, `python -m pipelines.patch 48x48x16`, in data/patch."""

import sys
from pathlib import Path

from gliotrail import params
from gliotrail.errors import ParamsError, one_line_errors
from gliotrail.imaging.patch import patch
from gliotrail.imaging.prepared import load_prepared


def _size() -> params.Size:
    try:
        return params.parse_size(" ".join(sys.argv[1:]))
    except ValueError as error:
        raise ParamsError(str(error), where="pipelines.patch") from None


if __name__ == "__main__":
    with one_line_errors():
        section, size = params.load().patch, _size()
        patch(section, load_prepared(Path("data/prepare")), size, Path("data/patch"))
