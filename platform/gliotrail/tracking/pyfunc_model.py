"""The script that MLflow runs to load a model ('models from code'), no module of the package.

It goes into each logged model together with the package, so that the model needs no installation
of Gliotrail where it is served.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]

from gliotrail.errors import DataError, GliotrailError
from gliotrail.imaging.labels import Labels
from gliotrail.imaging.nifti import read_image
from gliotrail.segmentation.inference import segment_array
from gliotrail.segmentation.postprocess import postprocessed
from gliotrail.segmentation.segment import segment
from gliotrail.segmentation.weights import load


class Segmenter(PythonModel):
    """A scan's raw values -> labels (I, J, K): 0 and the places of the classes it was trained on.

    The scan is an array (channels, I, J, K) in RAS+ with voxels like the training data's, or the
    path of a NIfTI file of any orientation and spacing, whose labels then come in the file's own
    axes.
    """

    def load_context(self, context: Any) -> None:
        """Read the weights; their names and shapes are checked."""
        self.model, self.description = load(Path(context.artifacts["weights"]))
        self.threshold = float(context.model_config["threshold"])

    # MLflow takes any hint but np.ndarray for a schema, and warns if there is none
    def predict(
        self,
        context: Any,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Labels:
        """Labels (I, J, K); the model's signature names channels and labels.

        Args:
            params: `channels`: their names in the array's order, if that is not the model's own.

        Raises:
            MlflowException: bad input, as one line, which a server passes on.
        """
        try:
            return self._labels(model_input, (params or {}).get("channels"))
        except GliotrailError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _labels(self, model_input: Any, channels: Any) -> Labels:
        seen = np.asarray(model_input)
        if seen.dtype.kind in "UO" and seen.size == 1:  # servers pass a text in different forms
            scan = read_image(Path(str(seen.item())))
            return segment(scan, [(self.model, self.description)], self.threshold).labels
        of, given = self.description, [str(n) for n in (() if channels is None else channels)]
        if given and sorted(given) != sorted(of.channels):
            raise DataError("channels", wanted=", ".join(of.channels), got=", ".join(given))
        if given and seen.shape[:1] == (len(given),):
            seen = seen[[given.index(name) for name in of.channels]]
        labels_IJK = segment_array(
            self.model, seen, of.standardize, of.task.channels, of.intensities, self.threshold
        )
        return postprocessed(labels_IJK, of.postprocess, of.task, of.spacing_mm)


set_model(Segmenter())
