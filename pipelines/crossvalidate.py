"""Stage `crossvalidate FOLD`: one fold of the training patients, trained without it and judged."""

import sys

from gliotrail import params
from gliotrail.cluster.crossvalidate import crossvalidate
from gliotrail.cluster.submit import on_cluster
from gliotrail.errors import ParamsError, one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
            raise ParamsError("fold", wanted="one number", got=" ".join(sys.argv[1:]) or "nothing")
        if not on_cluster("crossvalidate", sys.argv[1]):
            crossvalidate(params.load(), int(sys.argv[1]))
