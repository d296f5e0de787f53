"""Run by `.venv-bench`'s Python alone: what MONAI and surface-distance say of pairs of masks.

python peers_script.py PAIRS.npz OUT.json: PAIRS holds `ref_N`, `pred_N` (I, J, K) and
`spacing_mm_N`, `tolerance_mm_N` for N from 0; OUT has one object of numbers a pair, and
surface-distance's areas of its 256 neighbourhoods for each spacing.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from surface_distance import (
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
    lookup_tables,
)


def measure(ref, pred, spacing_mm, tolerance_mm):
    """The peers' HD95 in mm and surface Dice of two masks."""
    masks = [torch.from_numpy(mask)[None, None] for mask in (pred, ref)]
    hd95 = compute_hausdorff_distance(
        *masks, include_background=True, percentile=95, spacing=spacing_mm
    )
    distances = compute_surface_distances(ref, pred, spacing_mm)
    return {
        "monai_hd95_mm": hd95.item(),
        "surface_distance_hd95_mm": float(compute_robust_hausdorff(distances, 95)),
        "surface_dice": float(compute_surface_dice_at_tolerance(distances, tolerance_mm)),
    }


if __name__ == "__main__":
    pairs = np.load(sys.argv[1])
    measured, areas_mm2 = [], {}
    for n in range(len(pairs.files) // 4):
        spacing_mm = pairs[f"spacing_mm_{n}"].tolist()
        tolerance_mm = float(pairs[f"tolerance_mm_{n}"])
        measured.append(measure(pairs[f"ref_{n}"], pairs[f"pred_{n}"], spacing_mm, tolerance_mm))
        table = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
        areas_mm2[json.dumps(spacing_mm)] = table.tolist()
    Path(sys.argv[2]).write_text(json.dumps({"pairs": measured, "areas_mm2": areas_mm2}))
