"""`gliotrail sweep`."""


def sweep() -> None:
    """Run the sweep of params.yaml, or go on with it; the same as the stage, without DVC."""
    from gliotrail import params
    from gliotrail.distributed.submit import on_cluster
    from gliotrail.distributed.sweep import sweep as run

    if not on_cluster("sweep"):
        run(params.load())
