"""What the scans of a dataset are like: shapes, spacings, orientations, intensities, classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gliotrail.dataset.task import Task
from gliotrail.imaging.geometry import axis_codes
from gliotrail.imaging.nifti import Scan

PERCENTILES = (0.5, 50.0, 99.5)


def case_fingerprint(
    scan: Scan,
    image_IJKC: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    task: Task,
    statistics: Mapping[str, npt.NDArray[np.float64]],
    counts: Sequence[int] | None,
) -> dict[str, Any]:
    """One case as plain values.

    Args:
        scan: as in its file.
        image_IJKC: its foreground box, resampled if it was, channels in the order of the task's.
        spacing_mm: of that array.
        task: what is segmented.
        statistics: of each channel over the foreground, as `prepared.foreground_statistics`.
        counts: voxels per label, None where there are no labels.
    """
    foreground_IJK = (image_IJKC != 0).any(axis=3)
    means, stds = statistics["mean_C"].tolist(), statistics["std_C"].tolist()
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    classes = dict(zip(task.class_names, counts[1:], strict=True)) if counts else None
    return {
        "shape_vox": list(scan.shape_vox),
        "spacing_mm": list(scan.spacing_mm),
        "orientation": axis_codes(scan.affine),
        "data_type": scan.header.dtype.name,
        "foreground_box_vox": list(foreground_IJK.shape),
        "foreground_ml": round(int(foreground_IJK.sum()) * voxel_ml, 6),
        "voxels": classes,
        "intensity": {
            name: {"mean": mean, "std": std} | _intensity(image_IJKC[..., channel][foreground_IJK])
            for channel, (name, mean, std) in enumerate(
                zip(task.channel_names, means, stds, strict=True)
            )
        },
    }


def _intensity(values: npt.NDArray[Any]) -> dict[str, float]:
    """Least and largest value and percentiles, each one a value that occurs."""
    if not values.size:
        return {}
    percentiles = np.percentile(values, PERCENTILES, method="nearest")
    shares = {f"percentile_{p:g}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    return {"min": float(values.min()), "max": float(values.max())} | shares


def dataset_fingerprint(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All cases, each as `case_fingerprint` gives it, and what they have in common."""
    labelled = [case["voxels"] for case in cases.values() if case["voxels"] is not None]
    names = list(labelled[0]) if labelled else []
    return {
        "cases": dict(cases),
        "all": {
            "cases": len(cases),
            "labelled": len(labelled),
            "orientations": dict(Counter(case["orientation"] for case in cases.values())),
            "shape_vox": _spread([case["shape_vox"] for case in cases.values()]),
            "spacing_mm": _spread([case["spacing_mm"] for case in cases.values()]),
            "foreground_box_vox": _spread([case["foreground_box_vox"] for case in cases.values()]),
            "voxels": {name: sum(voxels[name] for voxels in labelled) for name in names},
            "cases_with": {name: sum(v[name] > 0 for v in labelled) for name in names},
        },
    }


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    table = np.array(rows, np.float64)
    return {
        "min": table.min(axis=0).tolist(),
        "median": np.median(table, axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
