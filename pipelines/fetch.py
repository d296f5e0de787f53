"""Stage `fetch`: the raw data into data/fetch."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors
from gliotrail.imaging.fetch import fetch
from gliotrail.paths import state_dir

if __name__ == "__main__":
    with one_line_errors():
        fetch(params.load().fetch, Path("data/fetch"), cache=state_dir() / "downloads")
