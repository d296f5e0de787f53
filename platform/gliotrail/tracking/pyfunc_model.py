"""What MLflow runs to load a model: a script, not a module of the package ('models from code').

It goes into each logged model together with the package, so that the model needs no installation
of Gliotrail where it is served.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]

from gliotrail.imaging.labels import Labels
from gliotrail.segmentation.inference import segment_array
from gliotrail.segmentation.weights import load


class Segmenter(PythonModel):
    """Image (4, I, J, K) in raw values, RAS+, FLAIR, T1w, T1gd, T2w -> labels (I, J, K)."""

    def load_context(self, context: Any) -> None:
        """Read the weights; their names and shapes are checked."""
        self.model, self.description = load(Path(context.artifacts["weights"]))
        self.threshold = float(context.model_config["threshold"])

    # MLflow leaves np.ndarray alone; other hints it takes for a schema, and warns of none
    def predict(
        self,
        context: Any,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Labels:
        """Labels 0 background, 1 edema, 2 non-enhancing tumour, 3 enhancing tumour."""
        standardize = self.description.standardize
        return segment_array(self.model, model_input, standardize, self.threshold)


set_model(Segmenter())
