"""Stage `train`: the network fine-tuned; model, journal and curves in results/train."""

from gliotrail import params
from gliotrail.cluster.submit import on_cluster
from gliotrail.cluster.train import train
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        if not on_cluster("train"):
            train(params.load())
