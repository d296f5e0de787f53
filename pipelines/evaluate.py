"""Stage `evaluate`: held-out patients segmented, scored; the model registered."""

from gliotrail import params
from gliotrail.cluster.evaluate import evaluate
from gliotrail.cluster.submit import on_cluster
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        if not on_cluster("evaluate"):
            evaluate(params.load())
