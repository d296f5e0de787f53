"""What MLflow's pages show of an experiment: few columns, the best validation first.

A saved view of these pages is a tag of the experiment, which its menu `Views` lists: its name, and
as JSON the columns and the order that it opens with.
"""

import json
from typing import Final

SCORE: Final = "val/dice_mean_regions"
"""What runs are sorted and epochs judged by, as `segmentation.loop.SCORE`, which needs torch."""
VIEW_TAG: Final = "mlflow.sharedViewState.gliotrail"
VIEW_NAME: Final = "best validation Dice first"
TRAINING: Final = "workflowType=machine_learning"
"""Ends an address within MLflow's pages that are for trainings; without it they are for GenAI."""
BEST_FIRST: Final = f"viewStateShareKey=gliotrail&{TRAINING}"
"""Ends the address of an experiment's runs that opens the view."""
COLUMNS: Final = (
    f"metrics.`{SCORE}`",
    "metrics.`test/dice_mean_regions`",
    "params.`learning_rate`",
    "params.`patch_size`",
    "params.`init`",
    "tags.`gliotrail.kind`",
)


def tags_of(number: str) -> dict[str, str]:
    """The tags of an experiment: that it is for trainings, a description, and the view."""
    best_first = f"[Best validation Dice first](#/experiments/{number}/runs?{BEST_FIRST})"
    state = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": COLUMNS}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"{best_first}: `{SCORE}`, the mean of WT, TC and ET.",
        VIEW_TAG: json.dumps({"name": VIEW_NAME, "createdAt": 0, "state": json.dumps(state)}),
    }
