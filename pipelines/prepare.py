"""Stage `prepare`: data/fetch into arrays, fingerprint and split; pictures of them."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.report.dataset import draw_data

if __name__ == "__main__":
    with one_line_errors():
        prepare(params.load().prepare, Path("data/fetch"), Path("data/prepare"))
        draw_data(load_prepared(Path("data/prepare")), Path("results/prepare"))
