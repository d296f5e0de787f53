"""Stage `params`: whether params.yaml is as it must be, looked at before any other stage."""

from pathlib import Path

from gliotrail import params
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        params.load()
        out = Path("results/params/checked.txt")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("params.yaml has all keys, no others, each with a value that can be.\n")
