"""A run's description in MLflow: what it is and its results, short enough to be read.

It is written when a run begins, ends and is evaluated, unless a person has changed it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from gliotrail.dataset.brats import BRATS
from gliotrail.files import csv_rows
from gliotrail.runs.journal import LOSS_PICTURE, Point, RunFolder
from gliotrail.runs.lineage import OWN_LOOP
from gliotrail.tracking.experiment_page import BEST_FIRST, SCORE, TRAINING

NOTE_TAG: Final = "mlflow.note.content"
OURS_TAG: Final = "gliotrail.note_sha256"
"""Hash of the description that Gliotrail wrote last."""
PICTURES: Final = {
    "curves": "curves.png",
    "network": "network.png",
    "held-out cases, worst first": "evaluation/montage_1.png",
    "measures": "evaluation/measures.png",
    "volumes": "evaluation/volumes.png",
    "confusion": "evaluation/confusion.png",
    "learning rate against Dice": "learning_rate.png",
    "parallel coordinates": "parallel_coordinates.png",
    "budget": "budget.png",
}
_PICTURE_AT: Final = f"get-artifact?path={LOSS_PICTURE}&run_uuid="
"""Relative to MLflow's page, so that it works at any server address."""
_MEASURES: Final = ("dice", "sensitivity", "specificity", "hd95_mm")
_BEST_TRIALS: Final = 5
_VIEWERS: Final = 3
_LAST_VALUES: Final = 20


def note_tags(run: Run, text: str) -> list[RunTag]:
    """The tags that set a run's description; none if it is the same or a person wrote another."""
    now, tags = run.data.tags.get(NOTE_TAG), run.data.tags
    if now == text or (now is not None and tags.get(OURS_TAG) != _digest(now)):
        return []
    return [RunTag(NOTE_TAG, text), RunTag(OURS_TAG, _digest(text))]


def write_note(server: MlflowClient, run: Run, text: str) -> None:
    """Set a run's description by `note_tags`."""
    if new := note_tags(run, text):
        server.log_batch(run.info.run_id, tags=new)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def note_of(
    described: Mapping[str, Any],
    ended: Mapping[str, Any] | None,
    points: Sequence[Point],
    files: Sequence[str],
    page: str,
    trials: Sequence[Mapping[str, str]] = (),
) -> str:
    """A run's description, in Markdown.

    Args:
        described: what the run is, from `lineage.describe`.
        ended: how it ended, if it has.
        points: each key's last one counts; the score's give the best epoch.
        files: paths of its artifacts, to link to pictures.
        page: the address of the run's page in MLflow.
        trials: a sweep's, from `trials.csv`.
    """
    if described["tags"].get("gliotrail.kind") == OWN_LOOP:
        return _of_own_loop(described, ended, points)
    # MLflow's page folds all but the first few lines away
    parts = [
        _headline(described, ended),
        _links(files, page),
        f"![soft Dice loss]({_PICTURE_AT}{page.rpartition('/')[2]})"
        if LOSS_PICTURE in files
        else "",
        _facts(described, points),
        _trials(trials) if trials else "",
        _measures(points, described["params"]),
        _origin(described),
    ]
    return "\n\n".join(part for part in parts if part)


def _of_own_loop(
    described: Mapping[str, Any], ended: Mapping[str, Any] | None, points: Sequence[Point]
) -> str:
    status = f"{ended['status']}: {ended['reason']}" if ended else "goes on"
    last = {point.key: point for point in points}  # the newest of each
    rows = [[p.key, f"{p.value:.4g}", str(p.step)] for p in list(last.values())[:_LAST_VALUES]]
    data = ", ".join(f"`{d['name']}` {d['digest'][:10]}" for d in described["datasets"])
    parts = [
        f"**{described['name']}**, {status}",
        f"**Data**: {data}" if data else "",
        _table(["", "last", "step"], rows),
        _origin(described),
    ]
    return "\n\n".join(part for part in parts if part)


def note_of_folder(run: RunFolder, page: str) -> str:
    """A run's description from its folder."""
    names = [path.name for path in (run.root / "artifacts").glob("[!.]*")]
    history = run.history()
    images = [f"images/{path.name}" for checkpoint in history for path in checkpoint.pictures()]
    trials = csv_rows(run.root / "artifacts" / "trials.csv")
    points = run.points()
    return note_of(run.describe(), run.ended(), points, [*names, *images[:1]], page, trials)


def page_of(run: Run) -> str:
    """The address of a run's page, relative to any page of MLflow."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _headline(described: Mapping[str, Any], ended: Mapping[str, Any] | None) -> str:
    kind = described["tags"].get("gliotrail.kind", "run")
    if ended is None:
        return f"**{kind}**, goes on"
    score = ended["summary"].get("score")
    classes, regions = names_of(described["params"])
    of = ", ".join(regions or classes)
    dice = f"; validation Dice **{score:.3f}** (mean of {of})" if score is not None else ""
    return f"**{kind}**, {ended['status']}: {ended['reason']}{dice}"


def _links(files: Sequence[str], page: str) -> str:
    places = {name: f"artifacts/{path}" for name, path in PICTURES.items() if path in files}
    viewers = [path for path in files if path.endswith(".html")][:_VIEWERS]
    places |= {f"viewer of {Path(path).stem}": f"artifacts/{path}" for path in viewers}
    if any(path.startswith("images/") for path in files):
        places["validation slices, epoch by epoch"] = "model-metrics"
    links = [f"[{name}]({page}/{place}?{TRAINING})" for name, place in places.items()]
    links.append(f"[all runs, the best first]({page.rpartition('/')[0]}?{BEST_FIRST})")
    return "**See** " + " · ".join(links)


def _facts(described: Mapping[str, Any], points: Sequence[Point]) -> str:
    params = described["params"]
    rows = {"split": described.get("split")}
    data = [f"`{d['name']}` {d['digest'][:10]}" for d in described["datasets"]]
    rows["data"] = ", ".join(data)
    if "model" in params:
        model = params["model"]
        size = [
            f"{key.replace('_', ' ')} {model[key]}"
            for key in ("depth", "base_filters")
            if key in model
        ]
        total = params.get("parameters_trainable")
        count = [f"{total:,} trainable parameters"] if total is not None else []
        start = [f"from {params['init']}"] if "init" in params else []
        rows["network"] = ", ".join([str(model["name"]), *size, *count, *start])
        if model["name"] != "unet3d":  # it normalises: predicting in blocks would not be exact
            rows["whole scans"] = "by windows, overlapping by half, with Gaussian weights"
    keys = ("learning_rate", "patch_size", "batch_size", "steps", "loss", "seed")
    values = [f"{key.replace('_', ' ')} {_short(params[key])}" for key in keys if key in params]
    rows["training"] = ", ".join(values)
    # step 0 is of the first weights
    scores = [(p.value, -p.step) for p in points if p.key == SCORE and p.step]
    if scores:
        best, step = max(scores)
        place = sorted({-s for _, s in scores}).index(-step) + 1
        rows["best epoch"] = f"{place} of {len(scores)}, step {-step}, validation Dice {best:.3f}"
    return _table(["", ""], [[name, value] for name, value in rows.items() if value])


def names_of(params: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Classes and regions from the run's params; older runs, without them, are of brain tumours."""
    if "classes" not in params:
        return list(BRATS.class_names), list(BRATS.region_names)
    classes, regions = (str(params.get(kind, "")) for kind in ("classes", "regions"))
    return [name for name in classes.split(", ") if name], [n for n in regions.split(", ") if n]


def _measures(points: Sequence[Point], params: Mapping[str, Any]) -> str:
    last = {p.key: p.value for p in points}
    classes, regions = names_of(params)
    rows = []
    for name in (*classes, *regions, "mean_classes", *(["mean_regions"] if regions else [])):
        cells = [last.get(f"val/dice_{name}")]
        cells += [last.get(f"test/{measure}_{name}") for measure in _MEASURES]
        if any(cell is not None for cell in cells):
            numbers = ["" if cell is None else f"{cell:.3f}" for cell in cells[:-1]]
            numbers.append("" if cells[-1] is None else f"{cells[-1]:.1f}")
            rows.append([name.replace("_", " "), *numbers])
    names = ["", "validation Dice", "held-out Dice", "sensitivity", "specificity", "HD95 mm"]
    keep = [n for n in range(len(names)) if n == 0 or any(row[n] for row in rows)]
    return _table([names[n] for n in keep], [[row[n] for n in keep] for row in rows])


def _trials(trials: Sequence[Mapping[str, str]]) -> str:
    known = [trial for trial in trials if trial["score"]]
    # those that finished saw the whole budget; the best of the others would come after them
    known.sort(key=lambda t: (t["status"] != "FINISHED", -float(t["score"])))
    keys = [k for k in trials[0] if k not in {"trial", "score", "steps", "voxels", "reason"}]
    rows = [
        [*(_short(trial[key]) for key in keys), f"{float(trial['score']):.3f}"]
        for trial in known[:_BEST_TRIALS]
    ]
    title = f"The best of {len(trials)} trials:\n\n" if len(trials) > len(rows) else ""
    return title + _table([*(key.replace("_", " ") for key in keys), "validation Dice"], rows)


def _origin(described: Mapping[str, Any]) -> str:
    tags = described["tags"]
    commit = tags.get("mlflow.source.git.commit", "unknown")
    changed = (
        " with uncommitted changes" if tags.get("gliotrail.uncommitted_changes") == "true" else ""
    )
    lines = [f"**Lineage**: commit `{commit[:12]}`{changed}; `gliotrail trace {described['id']}`"]
    if tags.get("gliotrail.kind") == "train":
        lines.append(f"**Again**: `gliotrail reproduce {described['id']}`")
    return "\n\n".join(lines)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _short(value: Any) -> str:
    try:
        return f"{float(value):.3g}" if not isinstance(value, int) else str(value)
    except (TypeError, ValueError):
        return str(value)
