"""`gliotrail submit STAGE`."""

from typing import Annotated

import typer


def submit(
    stage: Annotated[
        str,
        typer.Argument(
            help="sweep, train, evaluate, pretrain, crossvalidate; or the job that --cancel stops."
        ),
    ],
    words: Annotated[list[str] | None, typer.Argument(help="Such as a fold's number.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Send it, don't follow it.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it, with a checkpoint.")] = False,
) -> None:
    """Run a stage as a job of the Ray cluster at RAY_ADDRESS, or find it there and follow it.

    Its outputs are laid out here when it has ended. `dvc repro` does the same, and updates
    dvc.lock.
    """
    from gliotrail.distributed import submit as jobs

    if cancel:
        jobs.cancel(stage, words or [])
    else:
        jobs.submit(stage, words or [], follow=not detach)
