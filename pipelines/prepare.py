"""Stage `prepare`: data/fetch into arrays, fingerprint and split in data/prepare."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepare import prepare

if __name__ == "__main__":
    with one_line_errors():
        prepare(params.load().prepare, Path("data/fetch"), Path("data/prepare"))
