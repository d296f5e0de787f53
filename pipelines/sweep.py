"""Stage `sweep`: trials over learning rate and patch size; the winner in results/sweep."""

from gliotrail import params
from gliotrail.cluster.submit import on_cluster
from gliotrail.cluster.sweep import sweep
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        if not on_cluster("sweep"):
            sweep(params.load())
