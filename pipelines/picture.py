"""Stage `picture`: pictures of the prepared data. No data depend on it."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepared import load_prepared
from gliotrail.paths import state_dir
from gliotrail.report.data_pictures import draw_data

if __name__ == "__main__":
    with one_line_errors():
        section, kept = params.load().picture, state_dir() / "kept/draw"
        prepared = load_prepared(Path("data/prepare"))
        draw_data(prepared, Path("results/picture"), kept, section.animations)
