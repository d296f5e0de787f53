"""Stage `prepare`: data/fetch into arrays, fingerprint and split; pictures of them."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.paths import state_dir
from gliotrail.report.data_pictures import draw_data

if __name__ == "__main__":
    with one_line_errors():
        out, kept = Path("data/prepare"), state_dir() / "kept"
        prepare(params.load().prepare, Path("data/fetch"), out, memory=kept / "prepare")
        draw_data(load_prepared(out), Path("results/prepare"), kept / "draw")
