"""Segment one held-out patient, score it on the scan's own grid, and draw it. On any worker."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from gliotrail.cluster.shared_files import SharedFile, share
from gliotrail.dataset.task import Task
from gliotrail.imaging.formats.decathlon import Case
from gliotrail.imaging.geometry import Box, from_ras, to_ras
from gliotrail.imaging.header import read_header
from gliotrail.imaging.labels import Labels, known_labels
from gliotrail.imaging.nifti import Scan, in_ras, read_labels, write_labels
from gliotrail.imaging.prepare import read_scan
from gliotrail.imaging.prepared import (
    Intensities,
    PreparedCase,
    case_of_array,
    read_labels_patch,
    read_patch,
)
from gliotrail.imaging.resample import to_scan_grid
from gliotrail.imaging.split import Region
from gliotrail.report.evaluation_charts import Look, look
from gliotrail.report.figures import figure_png
from gliotrail.report.overlays import draw_prediction, pick_slices
from gliotrail.report.viewer import viewer_html
from gliotrail.segmentation.inference import predict_case, to_labels
from gliotrail.segmentation.metrics import confusion, soft_dice_loss_scan
from gliotrail.segmentation.postprocess import postprocessed
from gliotrail.segmentation.score import Score, own_measures, score
from gliotrail.segmentation.validation import row_of_region
from gliotrail.segmentation.weights import load

FOLDERS: Final = ("masks", "pictures", "viewers")
"""The folders that have a file for each patient."""


@dataclass(frozen=True)
class HeldOut:
    """A patient: the prepared case and its files."""

    case: PreparedCase
    files: Case


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A patient's results: measures, a row of the montage, and its files in FOLDERS."""

    score: Score
    loss: float
    confusion_rp: npt.NDArray[np.int64]
    look: Look
    files: SharedFile


@dataclass(frozen=True)
class Evaluation:
    """All that patients have in common; called with a patient, it evaluates it.

    channel_order: as in `Dataset`.
    scratch: a folder for the patients' files.
    measures: the names of measures of your own.
    """

    weights: SharedFile
    threshold: float
    task: Task
    intensities: Intensities
    channel_order: tuple[int, ...]
    scratch: Path
    measures: tuple[str, ...] = ()

    def __call__(self, patient: HeldOut, device: torch.device) -> Evaluated:
        """Predict on `device`.

        Raises:
            DataError, WeightsError: a scan or weights that can't be used.
        """
        model, description = load(self.weights.here())
        model.to(device)
        task, prepared = self.task, patient.case
        probabilities_CIJK = predict_case(model, prepared, description.standardize)
        case, image_CIJK, ref_IJK = self._as_scanned(patient)
        if prepared.resampled:
            grids = prepared.spacing_mm, case.ras_shape_vox, case.spacing_mm
            probabilities_CIJK = to_scan_grid(probabilities_CIJK, *grids)
        pred_IJK = to_labels(probabilities_CIJK, self.threshold, model.heads)
        pred_IJK = postprocessed(pred_IJK, description.postprocess, task, case.spacing_mm)
        loss = soft_dice_loss_scan(probabilities_CIJK, ref_IJK)
        body_IJK = (image_CIJK != 0).any(axis=0)
        own = own_measures(self.measures)
        scored = score(ref_IJK, pred_IJK, case.spacing_mm, body_IJK, task=task, own=own)
        confusion_rp = confusion(ref_IJK, pred_IJK, task.n_labels)

        ref_IJK = known_labels(ref_IJK)
        folder, name = self.scratch / case.name, case.name
        for kind in FOLDERS:
            (folder / kind).mkdir(parents=True, exist_ok=True)
        mask = from_ras(pred_IJK, case.file_affine)
        like = Scan(mask, read_header(patient.files.image))
        codes = task.codes_of_labels
        write_labels(folder / "masks" / f"{name}.nii.gz", mask, like=like, codes=codes)
        drawing = draw_prediction(
            image_CIJK,
            ref_IJK,
            pred_IJK,
            pick_slices(ref_IJK, 4),
            case.spacing_mm,
            f"{name}, held out",
            task=task,
        )
        (folder / "pictures" / f"{name}.png").write_bytes(figure_png(drawing))
        page = viewer_html(case, ref_IJK, pred_IJK, task=task)
        (folder / "viewers" / f"{name}.html").write_text(page, encoding="utf-8")
        made = share(folder)
        if made.digest:  # it is in the store
            shutil.rmtree(folder)
        seen = look(image_CIJK, ref_IJK, pred_IJK, case.spacing_mm, task)
        return Evaluated(scored, loss, confusion_rp, seen, made)

    def _as_scanned(self, patient: HeldOut) -> tuple[PreparedCase, npt.NDArray[Any], Labels]:
        """The case on its scan's own grid in RAS+: the prepared one, or read again if resampled.

        Returns:
            the case, its raw values (C, I, J, K) and its true labels (I, J, K).
        """
        case, files = patient.case, patient.files
        if not case.resampled:
            whole = Box((0, 0, 0), case.ras_shape_vox)
            return case, read_patch(case, whole, "none"), read_labels_patch(case, whole)
        assert files.label is not None
        scan = read_scan(files, len(self.task.channels))
        ras = in_ras(scan)
        image_CIJK = np.moveaxis(ras.array, 3, 0)
        if len(files.images) == 1:
            image_CIJK = image_CIJK[list(self.channel_order)]
        own = case_of_array(image_CIJK, ras.affine, case.name, self.task.channels, self.intensities)
        own = replace(own, file_affine=case.file_affine, file_shape_vox=case.file_shape_vox)
        labels = read_labels(files.label, like=scan, codes=self.task.labels_of_codes)
        ref_IJK = to_ras(labels.array, scan.affine)[0]
        whole = Box((0, 0, 0), own.ras_shape_vox)
        return own, read_patch(own, whole, "none"), ref_IJK


@dataclass(frozen=True)
class Judged:
    """One region of validation data, and the weights that are judged on it."""

    weights: SharedFile
    case: PreparedCase
    region: Region


@dataclass(frozen=True)
class Judging:
    """Called with weights and a region, it returns the region's row for `means_of_rows`."""

    task: Task
    threshold: float

    def __call__(self, judged: Judged, device: torch.device) -> list[float]:
        """Predict on `device`."""
        model, description = load(judged.weights.here())
        model.to(device).eval()
        of = description.standardize, self.threshold, description.postprocess
        row, _ = row_of_region(model, self.task, judged.case, judged.region, *of)
        return [float(value) for value in row]
