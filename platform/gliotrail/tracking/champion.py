"""The registered versions: which one is champion, their figures, and their pages in MLflow."""

from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from gliotrail.dataset.task import Task
from gliotrail.errors import TrackingError
from gliotrail.runs.lineage import PLANNED_TAG
from gliotrail.tracking.client import client, one_line
from gliotrail.tracking.evaluation_run import held_out
from gliotrail.tracking.registry import (
    CHAMPION,
    MODEL,
    PROMOTED,
    champion,
    find_version,
    validation_score,
)
from gliotrail.tracking.run_page import names_of

_DICE: Final = "test/dice_"
_ALL: Final = "name LIKE 'gliotrail-%'"
_OURS: Final = "**Gliotrail**"
"""The start of descriptions that Gliotrail wrote, and may replace."""


def versions() -> list[dict[str, Any]]:
    """Every version of every model of ours, by model, the newest first, as plain values.

    Raises:
        TrackingError: MLflow can't be reached.
    """
    with one_line():
        server = client()
        # MLflow's search results come without aliases
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in server.search_registered_models(_ALL):
            for alias, number in sorted(model.aliases.items()):
                aliases.setdefault((model.name, str(number)), []).append(alias)
        known = server.search_model_versions(_ALL)
        newest_first = sorted(known, key=lambda version: (version.name, -int(version.version)))
        return [_row(server, version, aliases) for version in newest_first]


def _row(
    server: MlflowClient, version: ModelVersion, aliases: dict[tuple[str, str], list[str]]
) -> dict[str, Any]:
    run = server.get_run(str(version.run_id))
    measures, params = held_out(server, run), run.data.params
    dice = {k.removeprefix(_DICE): v for k, v in measures.items() if k.startswith(_DICE)}
    number, planned = str(version.version), run.data.tags.get(PLANNED_TAG)
    classes, regions = names_of(params)
    return {
        "model": version.name,
        "version": number,
        "aliases": aliases.get((version.name, number), []),
        "names": regions or classes,
        "validation_dice": validation_score(version),
        "held_out_dice": dice,
        "voxels": int(params.get("epochs", 0)) * int(params.get("epoch_voxels", 0)) or None,
        "planned_voxels": planned and int(planned),
        "run": run.info.run_name,
        "run_id": run.info.run_id,
    }


def figures(server: MlflowClient, version: ModelVersion) -> str:
    """A version with its validation and, where it was evaluated, its held-out Dice."""
    score = validation_score(version)
    dice = held_out(server, server.get_run(str(version.run_id))).get(f"{_DICE}mean_regions")
    scores = [f"validation Dice {score:.3f}"] if score is not None else []
    scores += [f"held out {dice:.3f}"] if dice is not None else []
    return f"version {version.version} ({', '.join(scores) or 'not judged'})"


def describe_version(server: MlflowClient, version: ModelVersion, task: Task) -> None:
    """Write a version's measures, data and usage on its page in MLflow.

    A text that a person wrote stays.
    """
    known = server.get_model_version(version.name, version.version)
    if known.description and not known.description.startswith(_OURS):
        return
    run = server.get_run(str(known.run_id))
    tags = run.data.tags
    measures = held_out(server, run)
    names = (*task.class_names, *task.region_names)
    dice = [f"{n} {measures[f'{_DICE}{n}']:.3f}" for n in names if f"{_DICE}{n}" in measures]
    digests = [f"`{key.removeprefix('dvc.')}` {value[:10]}" for key, value in sorted(tags.items())
               if key.startswith("dvc.")]  # fmt: skip
    uri = f"models:/{known.name}/{known.version}"
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    parts = [
        f"{_OURS} {figures(server, known)}",
        f"**Held-out Dice** {', '.join(dice)}" if dice else "Not measured on held-out patients.",
        f"**Input** {', '.join(task.channel_names)}, in this order. "
        f"**Output** labels: 0 background, "
        + ", ".join(f"{n} {name}" for n, name in enumerate(task.class_names, start=1)),
        f"**Data** {', '.join(digests)}" if digests else "",
        f"**Run** [{run.info.run_name}]({page})",
        f"    gliotrail segment SCAN.nii.gz -o mask.nii.gz --model {uri}\n"
        f"    gliotrail trace {uri}\n"
        f'    mlflow.pyfunc.load_model("{uri}").predict("SCAN.nii.gz")',
    ]
    text = "\n\n".join(part for part in parts if part)
    if text != known.description:
        server.update_model_version(known.name, known.version, text)


def crown(name: str) -> dict[str, str | None]:
    """Make a version champion.

    Args:
        name: its number, or `models:/NAME/NUMBER`.

    Returns:
        the versions `before` and `now`, and a line to print (`told`).

    Raises:
        TrackingError: there is no such version, or MLflow can't be reached.
    """
    with one_line():
        server = client()
        version = _version(server, name)
        before = champion(server, version.name)
        for alias in (CHAMPION, PROMOTED):
            server.set_registered_model_alias(version.name, alias, version.version)
        old = figures(server, before) if before else "none"
        line = f"champion: {old} -> {figures(server, version)}"
        was = str(before.version) if before else None
        return {"before": was, "now": str(version.version), "told": line}


def uncrown(name: str) -> dict[str, str | None]:
    """Take the champion's name away from a version.

    Raises:
        TrackingError: it is not the champion, or MLflow can't be reached.
    """
    with one_line():
        server = client()
        version = _version(server, name)
        holder = champion(server, version.name)
        if holder is None or str(holder.version) != str(version.version):
            got = f"version {holder.version}" if holder else "none"
            raise TrackingError("champion", wanted=f"version {version.version}", got=got)
        for alias in (CHAMPION, PROMOTED):
            aliases = server.get_registered_model(version.name).aliases
            if str(aliases.get(alias)) == str(version.version):
                server.delete_registered_model_alias(version.name, alias)
        line = (
            f"champion: {figures(server, version)} -> none; `gliotrail promote VERSION` names one"
        )
        return {"before": str(version.version), "now": None, "told": line}


def short_uri(version: ModelVersion) -> str:
    """A version's short name: its number; NAME/NUMBER unless it is a brain tumour model."""
    return str(version.version) if version.name == MODEL else f"{version.name}/{version.version}"


def _version(server: MlflowClient, name: str) -> ModelVersion:
    uri = name if ":/" in name else f"models:/{name if '/' in name else f'{MODEL}/{name}'}"
    return find_version(server, uri)
