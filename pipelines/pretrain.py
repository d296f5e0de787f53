"""Stage `pretrain`: weights from synthetic tumours, to fine-tune; frozen, its result is in git."""

from gliotrail import params
from gliotrail.cluster.pretrain import pretrain
from gliotrail.cluster.submit import on_cluster
from gliotrail.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        if not on_cluster("pretrain"):
            pretrain(params.load())
