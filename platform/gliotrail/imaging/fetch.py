"""Stage `fetch`: the raw data in the Decathlon's layout, from the repository, net or a folder."""

import shutil
from pathlib import Path

from gliotrail import params
from gliotrail.dataset.description import DESCRIPTION
from gliotrail.errors import DataError, ParamsError
from gliotrail.files import replacing
from gliotrail.imaging.download import download, unpack
from gliotrail.imaging.formats.decathlon import Dataset, read_dataset
from gliotrail.imaging.header import read_header
from gliotrail.progress import progress

MSD_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task01_BrainTumour.tar"
MSD_MD5 = "240a19d752f0d9e9101544901065d872"
MSD_NOTICE = f"""# Medical Segmentation Decathlon, Task01_BrainTumour

Keep this notice with every copy.

- Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
- Source: Antonelli et al., Nature Communications 2022; Simpson et al., arXiv:1902.09063; made from
  BraTS 2016 and 2017.
- Downloaded from {MSD_URL}, md5 {MSD_MD5}. Nothing changed.
"""
_NOTICES = ("PROVENANCE*", "LICENSE*", "LICENCE*", "README*")


def fetch(
    section: params.Fetch,
    out: Path,
    demo: Path = Path("data/demo"),
    cache: Path = Path(".gliotrail/downloads"),
    url: str = MSD_URL,
    md5: str = MSD_MD5,
) -> Dataset:
    """Lay out the raw data in `out`; what was there before stays if anything goes wrong.

    Args:
        section: `source` is `demo`, `msd` or a folder in the Decathlon's or nnU-Net's layout.
        out: the folder to make.
        demo: where the two demo patients are.
        cache: where a download is kept, whole or in part.
        url: of the Decathlon's archive.
        md5: of that archive.

    Raises:
        ParamsError: `source` is neither a known word nor a folder.
        DataError: as `read_dataset`, `download` and `unpack`.
    """
    if section.source == "msd":
        return _fetch_archive(out, download(url, cache / Path(MSD_URL).name, md5))
    folder = demo if section.source == "demo" else Path(section.source).expanduser()
    if not folder.is_dir():
        raise ParamsError("fetch.source", wanted="demo, msd or a folder", got=repr(str(folder)))
    if folder.resolve().is_relative_to(out.resolve()):
        raise ParamsError("fetch.source", wanted=f"a folder other than {out}", got=str(folder))
    return _copy(read_dataset(folder), out)


def _copy(dataset: Dataset, out: Path) -> Dataset:
    """What the description lists, and the notices. Copied, never linked: DVC protects outputs.

    A scan may be a link to anything, and copies are pushed to remotes: each must be NIfTI.
    """
    notices = {path for pattern in _NOTICES for path in dataset.root.glob(pattern)}
    files = [*dataset.files, *sorted(path for path in notices if path.is_file())]
    with replacing(out) as partial, progress(len(files), "copy", "files") as advance:
        for path in files:
            if path.parent != dataset.root:
                read_header(path)
            target = partial / path.relative_to(dataset.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            advance(1)
    return read_dataset(out)


def _fetch_archive(out: Path, archive: Path) -> Dataset:
    with replacing(out) as partial:
        unpacked = partial / ".unpacked"  # within it, so that both are removed together
        unpack(archive, unpacked)
        roots = [path.parent for path in unpacked.glob(f"*/{DESCRIPTION}")]
        if len(roots) != 1:
            wanted = f"one folder with a {DESCRIPTION}"
            raise DataError("archive", where=archive, wanted=wanted, got=len(roots))
        read_dataset(roots[0])
        for path in roots[0].iterdir():
            path.rename(partial / path.name)
        shutil.rmtree(unpacked)
        (partial / "PROVENANCE.md").write_text(MSD_NOTICE, encoding="utf-8")
    return read_dataset(out)
