"""Stage `evaluate`: held-out patients segmented, scored; the model registered."""

from gliotrail import params
from gliotrail.distributed.evaluate import evaluate
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        evaluate(params.load())
