"""MLflow's page of an experiment: few columns, the best validation first, curves.

A saved view, listed in the menu `Views`, is a tag of the experiment: a name, and as JSON the
columns, the order and the charts.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from gliotrail.dataset.brats import BRATS

SCORE: Final = "val/dice_mean_regions"
"""The metric that sorts runs, the same as `segmentation.loop.SCORE`, which needs torch."""
HELD_OUT_TAG: Final = "gliotrail.held_out_dice"
"""An evaluated training's `test/dice_mean_regions`, rounded."""
PICTURE: Final = "validation"
"""The image of each validation: the same slices, step by step."""
VIEW_TAGS: Final = "mlflow.sharedViewState."
VIEW_NAME: Final = "best validation Dice first"
CURVES_NAME: Final = "curves"
TRAINING: Final = "workflowType=machine_learning"
"""The end of the addresses of MLflow's pages for trainings; without it they are for GenAI."""
BEST_FIRST: Final = f"viewStateShareKey=gliotrail&{TRAINING}"
"""The end of the address of an experiment's table of runs."""
CURVES: Final = f"compareRunsMode=CHART&viewStateShareKey=gliotrail-curves&{TRAINING}"
"""The end of the address of an experiment's charts."""
COLUMNS: Final = (
    f"metrics.`{SCORE}`",
    f"tags.`{HELD_OUT_TAG}`",
    "params.`learning_rate`",
    "params.`patch_size`",
    "params.`init`",
    "tags.`gliotrail.kind`",
)
_SECTION: Final = "gliotrail"
_LINE: Final = {
    "lineSmoothness": 0,
    "scaleType": "linear",
    "xAxisScaleType": "linear",
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def tags_of(number: str, views: bool = True) -> dict[str, str]:
    """The tags of an experiment: that it is for trainings, a description, and the views."""
    if not views:
        return {"mlflow.experimentKind": "custom_model_development"}
    runs = f"#/experiments/{number}/runs"
    links = f"[Best validation Dice first]({runs}?{BEST_FIRST}): `{SCORE}`, the mean over regions, "
    links += "or over classes where a data set names no regions"
    table = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": COLUMNS}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"{links} · [curves]({runs}?{CURVES})",
        f"{VIEW_TAGS}gliotrail": _view(VIEW_NAME, table),
        f"{VIEW_TAGS}gliotrail-curves": _view(CURVES_NAME, table | _charts()),
    }


def _view(name: str, state: dict[str, Any]) -> str:
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})


def _charts() -> dict[str, Any]:
    """The charts to show first; MLflow adds its own below, one for each metric."""
    score = {"selectedParams": ["learning_rate", "patch_size"], "selectedMetrics": [SCORE]}
    losses = [f"{part}/soft_dice_loss" for part in ("train", "val")]
    charts = [
        _line(*losses),
        _line(*(f"val/dice_{name}" for name in BRATS.region_names), SCORE),
        _line("train/learning_rate"),
        {"type": "PARALLEL", "showAllRuns": True, **score},
        # a slider through training; all params above it would push the picture out of view
        {"type": "IMAGE", "imageKeys": [PICTURE], "step": 0, "showRunParams": False},
        # smoothed; MLflow draws the raw curve behind it
        _line(losses[0]) | {"lineSmoothness": 70, "useGlobalLineSmoothing": False},
    ]
    shared = {"metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    return {
        "compareRunCharts": [
            {"uuid": f"{_SECTION}-{n}", "runsCountToCompare": 10, **shared, **chart}
            for n, chart in enumerate(charts)
        ],
        "compareRunSections": [
            {"uuid": _SECTION, "name": "At first sight", "display": True, "isReordered": False}
        ],
        "isAccordionReordered": False,
    }


def _line(*keys: str) -> dict[str, Any]:
    keys_: Sequence[str] = list(keys)
    return {"type": "LINE", "metricKey": keys_[0], "selectedMetricKeys": keys_, **_LINE}
