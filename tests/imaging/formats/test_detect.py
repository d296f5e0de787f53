"""Which layout a folder has; an imported task is the one that was meant, in its order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gliotrail.dataset.brats import SCHEMES, scheme_task
from gliotrail.dataset.task import Channel, Class, Region, Task
from gliotrail.errors import DataError, ParamsError
from gliotrail.imaging.formats.detect import import_any
from gliotrail.imaging.formats.importing import Found, write_found
from gliotrail.imaging.prepared import TASK_FILE, read_task
from tests.support.scans import save

NAMES = ("zeta", "Alpha", "mid", "beta", "Yolk", "core", "rim", "omega")


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Of any names in any order, with or without regions; no brain tumours."""
    names = draw(st.permutations(NAMES))
    kinds = st.sampled_from(["MR", "CT", "none"])
    channels = draw(st.integers(1, 4))
    classes = draw(st.integers(1, 4))
    labels = list(range(1, classes + 1))
    regions = []
    for name in draw(st.permutations(["outer", "inner", "best"]))[: draw(st.integers(0, 3))]:
        of = tuple(sorted(draw(st.sets(st.sampled_from(labels), min_size=1))))
        regions.append(Region(name=name, labels=of, written=draw(st.sampled_from(of))))
    return Task(
        name="any",
        channels=tuple(Channel(name=name, kind=draw(kinds)) for name in names[:channels]),
        classes=tuple(Class(name=f"c_{n}", code=k) for k, n in enumerate(names[:classes], 1)),
        regions=tuple(regions),
        licence="CC0",
        reference="nobody",
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(task=tasks())
def test_an_imported_task_is_read_as_it_was(
    task: Task, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    paths = []
    for channel in task.channel_names:
        paths.append(root / f"in/{channel}.nii")
        save(paths[-1], np.ones((2, 3, 4), np.uint8))
    labels = np.zeros((2, 3, 4), np.uint8)
    labels.ravel()[: len(task.classes)] = range(1, len(task.classes) + 1)
    save(root / "in/labels.nii", labels)
    found = [Found("a", tuple(paths), root / "in/labels.nii")]
    dataset = write_found(found, task, task.labels_of_codes, root / "out", "")
    assert dataset.task == task
    assert dataset.channel_order == tuple(range(len(task.channels)))
    # and as `prepare` keeps it
    (root / TASK_FILE).write_text(task.model_dump_json())
    assert read_task(root) == task


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_brats_scheme_is_read_as_it_was_written(scheme: str, tmp_path: Path) -> None:
    task, codes = scheme_task(scheme)
    paths = []
    for channel in task.channel_names:
        paths.append(tmp_path / f"in/{channel}.nii")
        save(paths[-1], np.ones((2, 3, 4), np.uint8))
    values = np.zeros((2, 3, 4), np.uint8)
    values.ravel()[: len(codes)] = list(codes)
    save(tmp_path / "in/seg.nii", values)
    found = [Found("a", tuple(paths), tmp_path / "in/seg.nii")]
    read = write_found(found, task, codes, tmp_path / "out", "").task
    assert read.channels == task.channels
    assert read.classes == task.classes
    assert read.regions == task.regions


def test_an_mha_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    """BraTS 2015."""
    name = "VSD.Brain.XX.O.MR_Flair.684"
    path = tmp_path / f"in/brats_2013_pat0001_1/{name}/{name}.mha"
    path.parent.mkdir(parents=True)
    path.write_text("ObjectType = Image\nNDims = 3\nElementDataFile = LOCAL\n")
    told = r"684\.mha: format: wanted NIfTI, got MetaImage; .*SimpleITK.*--scheme brats15"
    with pytest.raises(DataError, match=told):
        import_any(tmp_path / "in", tmp_path / "out")


def brats(root: Path, *names: str) -> Path:
    for name in names:
        for kind in ("flair", "t1", "t1ce", "t2", "seg"):
            values = np.zeros((4, 4, 4), np.uint8)
            values[1:3, 1:3, 1:3] = 1
            save(root / f"{name}/{name}_{kind}.nii.gz", values)
    return root


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("BRATS_001", "BraTS2021_00000", "BraTS2021_00001"),
            r"got 1 as BRATS_001, whose name shows no release; 2 as BraTS2021_00000, of brats21; "
            r"import each release by itself, with --scheme where no name shows it",
        ),
        (("BRATS_001", "BRATS_002"), r"got 2 as BRATS_001, whose name shows no release; say --sch"),
        (
            ("BraTS2021_00000", "BraTS-GLI-00005-000"),
            r"got 1 as BraTS2021_00000, of brats21; 1 as BraTS-GLI-00005-000, of brats23; "
            r"import each release by itself$",
        ),
    ],
)
def test_scans_of_several_releases_are_not_guessed(
    tmp_path: Path, names: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ParamsError, match=told):
        import_any(brats(tmp_path / "in", *names), tmp_path / "out")


def test_a_scheme_that_names_contradict_is_taken_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = brats(tmp_path / "in", "BRATS_001", "BraTS-GLI-00005-000")
    assert len(import_any(source, tmp_path / "out", "brats21").cases) == 2
    told = capsys.readouterr().err
    assert "--scheme brats21 is taken, though BraTS-GLI-00005-000 is named as in brats23" in told


@pytest.mark.parametrize("name", ["brats", "21", ""])
def test_an_unknown_scheme_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParamsError, match="--scheme: wanted one of msd, brats21"):
        import_any(tmp_path, tmp_path / "out", name)
