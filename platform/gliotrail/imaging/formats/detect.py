"""Which layout a folder has, and its import."""

import shutil
from pathlib import Path
from typing import Final

from gliotrail.dataset.brats import SCHEMES
from gliotrail.dataset.description import DESCRIPTION
from gliotrail.errors import DataError, ParamsError
from gliotrail.files import check_free, replacing
from gliotrail.imaging.formats.bids import import_bids, is_bids
from gliotrail.imaging.formats.brats import Cavity, import_brats
from gliotrail.imaging.formats.decathlon import Dataset, read_dataset

_TO_NIFTI: Final = (
    'convert it: pip install SimpleITK, then python -c "import sys, SimpleITK as s; '
    's.WriteImage(s.ReadImage(sys.argv[1]), sys.argv[2])" SCAN.mha NAME_flair.nii.gz, '
    "one folder a patient, and say --scheme brats15"
)


def import_any(
    source: Path, out: Path, scheme: str | None = None, cavity: Cavity = "class"
) -> Dataset:
    """Write the scans of a folder to the new folder `out`, in the Decathlon's layout.

    Args:
        source: with a `dataset.json` (the Decathlon's or nnU-Net's raw data), BIDS, or BraTS.
        scheme: as `import_brats`, as is `cavity`.

    Raises:
        ParamsError: no such folder or scheme.
        DataError: an unknown layout; as the layout's own import.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ParamsError("--scheme", wanted=f"one of {', '.join(SCHEMES)}", got=repr(scheme))
    if not source.is_dir():
        raise ParamsError("folder", where=source, wanted="one with scans", got="none")
    if (source / DESCRIPTION).is_file():
        return _copied(read_dataset(source), out)
    if is_bids(source):
        return import_bids(source, out)
    images = next((p for p in sorted(source.rglob("*.mha")) if p.is_file()), None)
    if images is not None:
        raise DataError("format", where=images, wanted="NIfTI", got="MetaImage", do=_TO_NIFTI)
    return import_brats(source, out, scheme, cavity)


def _copied(dataset: Dataset, out: Path) -> Dataset:
    check_free(out)
    with replacing(out) as partial:
        for path in dataset.files:
            target = partial / path.relative_to(dataset.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return read_dataset(out)
