"""`gliotrail sweep`, `submit` and `doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer

from gliotrail.cli import complete
from gliotrail.cli.output import Json, print_json


def sweep() -> None:
    """Run the sweep of params.yaml, or go on with it; the same as the stage, without DVC."""
    from gliotrail import params
    from gliotrail.cluster.submit import on_cluster
    from gliotrail.cluster.sweep import sweep as run

    if not on_cluster("sweep"):
        run(params.load())


def submit(
    stage: Annotated[
        str,
        typer.Argument(
            help="sweep, train, evaluate, pretrain, crossvalidate; or the job that --cancel stops.",
            autocompletion=complete.stages,
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
    from gliotrail.cluster import submit as jobs

    if cancel:
        jobs.cancel(stage, words or [])
    else:
        jobs.submit(stage, words or [], follow=not detach)


MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "none": "-"}


def doctor(as_json: Json = False) -> None:
    """Check versions, disk, GPU, Ray, MLflow, the store of data, and that outputs agree.

    Exit code 1 where a check fails; each says what to do.
    """
    from gliotrail.cluster import ray_checks as of_cluster
    from gliotrail.tracking import server_checks as checks

    found = []
    for check in (
        *(checks.machine, of_cluster.gpus, of_cluster.ray),
        *(checks.mlflow, checks.store, checks.outputs, checks.twins),
    ):
        for finding in check():
            found.append(finding)
            if not as_json:
                print(f"{finding.check:14} {MARKS[finding.state]:8} {finding.text}")
                if finding.do:
                    print(f"{'':23} {finding.do}")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.state == "failed" for finding in found):
        raise typer.Exit(1)
