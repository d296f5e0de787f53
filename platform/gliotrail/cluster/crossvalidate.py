"""Stage `crossvalidate`: one fold of the training patients; a DVC matrix runs them all."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from gliotrail.cluster.train import choose, export, run_tracked
from gliotrail.files import write_json
from gliotrail.params import Params
from gliotrail.training.inputs import Training

EXPERIMENT: Final = "gliotrail-folds"


def crossvalidate(
    params: Params,
    fold: int,
    prepared: Path = Path("data/prepare"),
    patches: Path = Path("data/patch"),
    sweep: Path = Path("results/sweep"),
    out: Path = Path("results/crossvalidate"),
) -> None:
    """Train on all folds but one and judge on that one, on whole scans; write model and Dice.

    Raises:
        ParamsError: more folds than training patients.
        TrainingError, DataError, ClusterError: from training, data and cluster.
    """
    training = Training.of(params, choose(params, sweep / "best.json"), prepared, patches)
    training = replace(training, fold=(fold, len(params.crossvalidate.folds)))
    run = run_tracked(training, EXPERIMENT, "fold")
    export(run, out / str(fold))
    last = {point.key: point.value for point in run.points()}
    dice = {key.removeprefix("val/"): v for key, v in last.items() if key.startswith("val/dice_")}
    write_json(out / f"{fold}.json", dice)
