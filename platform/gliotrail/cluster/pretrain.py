"""Stage `pretrain`: the network trained on synthetic tumours alone; weights and their card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gliotrail.cluster.train import run_tracked
from gliotrail.dataset.brats import BRATS
from gliotrail.errors import ParamsError
from gliotrail.files import replacing, sha256
from gliotrail.param_types import FROM_SWEEP
from gliotrail.params import Params
from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.training.inputs import Training, synthetic_files

EXPERIMENT: Final = "gliotrail-pretraining"


def pretrain(
    params: Params, synthetic: Path = Path("data/pretrain"), out: Path = Path("results/pretrain")
) -> None:
    """Train by `pretrain.train`, going on where an interrupted one of the same inputs was.

    Raises:
        ParamsError: a value that only `train` may have.
        TrainingError, DataError, ClusterError: from training, data and cluster.
    """
    section = params.pretrain.train
    if FROM_SWEEP in (section.learning_rate, section.patch_size):
        raise ParamsError(f"pretrain.train: can't be {FROM_SWEEP}")
    training = Training.of(params, section, prepared=None, synthetic=synthetic)
    run = run_tracked(training, EXPERIMENT, "pretrain")
    described = run.describe()
    n_parameters = described["params"]["parameters_trainable"]
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        weights = partial / f"unet3d-{n_parameters}.safetensors"
        shutil.copyfile(run.root / MODEL_FILE, weights)
        card = _card(params, described, _last_values(run), weights, synthetic)
        (partial / "CARD.md").write_text(card)


def _last_values(run: RunFolder) -> dict[str, float]:
    """Each key's value at its last step."""
    return {point.key: point.value for point in run.points()}


def _card(
    params: Params,
    described: Mapping[str, Any],
    values: Mapping[str, float],
    weights: Path,
    synthetic: Path,
) -> str:
    """The weights' card: what they are, their data, training and Dice."""
    section, tags = params.pretrain, described["tags"]
    train, judged = section.train, section.validation
    steps = described["params"]["steps"]
    rows = [
        f"| {name} | {values[f'val/dice_{name}']:.3f} |"
        for name in BRATS.region_names
        if f"val/dice_{name}" in values
    ]
    files = synthetic_files(section, synthetic)
    hashes = [f"| `{path.relative_to(synthetic)}` | `{sha256(path)}` |" for path in files]
    return f"""# {weights.name}

A 3-D U-Net (depth {train.model.depth}, {train.model.base_filters} base filters) that segments
brain tumours, trained on synthetic tumours in real anatomy alone: it has seen no scan of a real
tumour. Meant to be fine-tuned. Not a medical device.

- SHA-256 `{sha256(weights)}`
- Input: FLAIR, T1w, T1gd, T2w in voxels of 1 mm, standardised over the brain.
  Output: edema, non-enhancing tumour, enhancing tumour.
- Heads: {", ".join(section.phantoms.anatomies)}. Shapes: {", ".join(section.phantoms.shapes)}.
- Seed {train.seed}, {steps} steps of {train.batch_size} patches, learning rate
  {train.learning_rate}, loss {train.loss}; all else is in `pretrain` of params.yaml.
- Code: commit {tags["mlflow.source.git.commit"]}.
  Command: `dvc unfreeze pretrain && dvc repro pretrain`.
- Licence: CC BY-SA 4.0, as the shapes it was made from (see `data/pretrain/PROVENANCE.md`).

Dice on {judged.scans} synthetic scans ({", ".join(judged.shapes)} in {", ".join(judged.anatomies)};
looks from the spans {list(judged.spans)} of every range, training's were
{list(section.phantoms.spans)}):

| region | Dice |
|---|---|
{chr(10).join(rows)}

Made from:

| file | SHA-256 |
|---|---|
{chr(10).join(hashes)}
"""
