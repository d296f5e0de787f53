"""Stage `prepare`: data/fetch into arrays, fingerprint and split."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepare import prepare
from gliotrail.paths import state_dir

if __name__ == "__main__":
    with one_line_errors():
        kept = state_dir() / "kept/prepare"
        prepare(params.load().prepare, Path("data/fetch"), Path("data/prepare"), memory=kept)
