"""One HTML file that shows a case in a browser, from disk or anywhere: scan, truth, prediction.

It holds all it needs, NiiVue (WebGL2) too, and its policy forbids the browser to load anything. It
has the scan's foreground box in 8 bits a voxel: as much as an eye can tell, in a quarter of the
bytes.
"""

import base64
import gzip
import html
import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.imaging.geometry import Affine
from gliotrail.imaging.labels import Labels, known_labels
from gliotrail.imaging.prepared import PreparedCase
from gliotrail.report.colours import ERROR_COLOURS, colours_of, spoken
from gliotrail.report.overlays import centre_voxel, error_codes

NIIVUE_VERSION: Final = "0.69.0"
NIIVUE_SHA256: Final = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""SHA-256 of dist/niivue.umd.js in npm's @niivue/niivue."""
LARGEST_BYTES: Final = 15_000_000
_WINDOW = (0.5, 99.8)
_LEVEL = 4


def viewer_html(
    case: PreparedCase,
    truth_IJK: Labels | None = None,
    predicted_IJK: Labels | None = None,
    largest_bytes: int = LARGEST_BYTES,
    task: Task = BRATS,
) -> str:
    """The page of a case.

    Args:
        case: its raw values; each channel is shown between its percentiles 0.5 and 99.8 over the
            foreground, in 255 steps.
        truth_IJK: labels of the whole scan in RAS+; None where there are none.
        predicted_IJK: likewise.
        largest_bytes: a page that would be larger has every second voxel along each axis, or every
            fourth, and so on, and says so.
    """
    step = 1
    while (
        len(page := _page(case, truth_IJK, predicted_IJK, step, task)) > largest_bytes and step < 16
    ):
        step *= 2
    return page


def _page(
    case: PreparedCase,
    truth_IJK: Labels | None,
    predicted_IJK: Labels | None,
    step: int,
    task: Task,
) -> str:
    image_CIJK, steps = case.image_CIJK[:, ::step, ::step, ::step], np.diag([step] * 3 + [1.0])
    shown_IJKC, windows = _quantised(image_CIJK)
    to_ras = np.eye(4)
    to_ras[:3, 3] = case.box.start_vox
    to_ras = to_ras @ steps
    to_mm = case.affine_ras @ to_ras
    volumes = {"scan": _packed(shown_IJKC, to_mm)}

    def seen(labels_IJK: Labels | None) -> Labels | None:
        if labels_IJK is None:
            return None
        return known_labels(labels_IJK[case.box.slices][::step, ::step, ::step])

    truth, predicted = seen(truth_IJK), seen(predicted_IJK)
    colours = colours_of(task)
    classes = [[spoken(name), colours[name]] for name in task.class_names]
    overlays: list[dict[str, Any]] = []
    for name, labels in (("truth", truth), ("prediction", predicted)):
        if labels is not None:
            volumes[name] = _packed(labels, to_mm)
            outline = name == "truth" and predicted is not None
            look = {"shown": True, "outline": outline, "opacity": 1 if outline else 0.5}
            overlays.append({"name": name, "codes": classes, **look})
    if truth is not None and predicted is not None:
        volumes["errors"] = _packed(error_codes(truth, predicted), to_mm)
        errors = [[spoken(name), colour] for name, colour in ERROR_COLOURS.items()]
        look = {"shown": False, "outline": False, "opacity": 0.8}
        overlays.append({"name": "errors", "codes": errors, **look})
    coarser = f", one in {step} along each axis" if step > 1 else ""
    facts = {
        "name": case.name,
        "about": f"The foreground's box, 8 bits a voxel{coarser}, by NiiVue {NIIVUE_VERSION}. "
        "No medical device.",
        "channels": [
            {"name": name, "low": low + air, "high": high + air}
            for name, (low, high), air in zip(
                case.channels, windows, case.air_C.tolist(), strict=True
            )
        ],
        "overlays": overlays,
        "to_mm": to_mm.tolist(),
        "to_file": (np.linalg.inv(case.file_affine) @ to_mm).tolist(),
        "start": centre_voxel(predicted if truth is None else truth, image_CIJK),
    }
    niivue, template, licence = _assets()
    scripts = [
        f'<script type="application/gzip" id="{name}">{content}</script>'
        for name, content in volumes.items()
    ]
    parts = {
        "title": html.escape(f"{case.name} - Gliotrail"),
        "licence": html.escape(licence),
        # so that no name can end the script
        "facts": json.dumps(facts).replace("<", "\\u003c"),
        "volumes": "\n".join(scripts),
        "niivue": niivue,
    }
    first, *rest = template.split("{{")
    return first + "".join(
        parts[name] + after for name, _, after in (part.partition("}}") for part in rest)
    )


def _quantised(
    image_CIJK: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.uint8], list[tuple[float, float]]]:
    """Values as 1 to 255 between each channel's two ends, which are returned; background is 0."""
    foreground = (image_CIJK != 0).any(axis=0)
    shown_IJKC = np.zeros((*foreground.shape, len(image_CIJK)), np.uint8, order="F")
    windows = []
    for channel, image_IJK in enumerate(image_CIJK):
        values = image_IJK[foreground].astype(np.float32)
        low, high = map(float, np.percentile(values, _WINDOW))
        scaled = (values - low) * np.float32(254 / ((high - low) or 1))
        shown_IJKC[..., channel][foreground] = 1.5 + np.clip(scaled, 0, 254)
        windows.append((low, high))
    return shown_IJKC, windows


def _packed(volume: npt.NDArray[np.uint8], affine: Affine) -> str:
    """A volume as a NIfTI file, packed, as text."""
    content = nib.Nifti1Image(volume, affine).to_bytes()
    return base64.b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode()


@cache
def _assets() -> tuple[str, str, str]:
    """NiiVue (packed, as text), the page's template, NiiVue's licence."""
    folder = files("gliotrail.report")
    niivue = (folder / "niivue/niivue.umd.js.gz").read_bytes()
    template = (folder / "viewer.html").read_text(encoding="utf-8")
    licence = (folder / "niivue/LICENSE.txt").read_text(encoding="utf-8")
    return base64.b64encode(niivue).decode(), template, licence
