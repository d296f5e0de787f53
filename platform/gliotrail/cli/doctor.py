"""`gliotrail doctor`."""

from dataclasses import asdict

import typer

from gliotrail.cli.show import Json, print_json

MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "none": "-"}


def doctor(as_json: Json = False) -> None:
    """Check versions, disk, GPU, Ray, MLflow, the store of data, and that outputs agree.

    Exit code 1 where a check fails; each says what to do.
    """
    from gliotrail.distributed import checks as of_cluster
    from gliotrail.tracking import checks

    found = []
    for check in (
        *(checks.machine, of_cluster.gpus, of_cluster.ray),
        *(checks.mlflow, checks.store, checks.outputs),
    ):
        for finding in check():
            found.append(finding)
            if not as_json:
                print(f"{finding.check:14} {MARKS[finding.state]:8} {finding.told}")
                if finding.do:
                    print(f"{'':23} {finding.do}")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.state == "failed" for finding in found):
        raise typer.Exit(1)
