"""Held-out patients and validation scans as Ray tasks, against the same in one process."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gliotrail.cluster import evaluate as stage
from gliotrail.cluster.case_tasks import each_case
from gliotrail.cluster.shared_files import share
from gliotrail.dataset.brats import BRATS
from gliotrail.errors import DataError
from gliotrail.imaging.prepared import load_prepared
from gliotrail.imaging.split import Region
from gliotrail.segmentation import weights
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.segmentation.unet import initialize
from gliotrail.segmentation.validation import validate
from tests.support.crops import Crops
from tests.support.scans import CASES, snapshot

CPU = torch.device("cpu")


def weights_file(crops: Crops, seed: int, path: Path) -> Path:
    """Of a network that has learnt nothing."""
    model = crops.training().section.model
    network = weights.build(model, BRATS)
    initialize(network, seed)
    spacing_mm = next(iter(load_prepared(crops.prepared).cases.values())).spacing_mm
    description = weights.Description(
        model=model, window=None, standardize="foreground", spacing_mm=spacing_mm, task=BRATS
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(weights.to_bytes(network.state_dict(), description))
    return path


def here(work: Callable[..., Any], cases: Any, came: Callable[..., Any], what: str) -> None:
    for case in cases:
        came(case, work(case, CPU))


def test_workers_give_the_bytes_of_one_process(
    crops: Crops, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(crops.prepared, tmp_path / "prepare")
    split = tmp_path / "prepare/split.json"
    split.write_text(json.dumps(json.loads(split.read_text()) | {"test": CASES}))
    weights_file(crops, 3, tmp_path / "train/model.safetensors")
    monkeypatch.setattr(stage, "record", lambda *_: None)
    places = tmp_path / "prepare", crops.raw, tmp_path / "train"
    stage.evaluate(crops.params(), *places, tmp_path / "by_workers")
    with monkeypatch.context() as patched:
        patched.setattr(stage, "each_case", here)
        stage.evaluate(crops.params(), *places, tmp_path / "by_one")
    made = snapshot(tmp_path / "by_one")
    assert snapshot(tmp_path / "by_workers") == made
    assert {f"masks/{case}.nii.gz" for case in CASES} <= set(map(str, made))


def test_a_champion_is_judged_by_workers_as_a_validation_does(
    crops: Crops, tmp_path: Path, ray_cluster: None
) -> None:
    prepared = load_prepared(crops.prepared.resolve())
    regions = [Region(case) for case in CASES]
    files = [weights_file(crops, seed, tmp_path / f"{seed}.safetensors") for seed in (3, 4)]
    judged = stage._rescored(*files, prepared, regions, 0.5)
    assert judged is not None
    for path, score in zip(files, judged, strict=False):
        model, _ = weights.load(path)
        told = validate(model, BRATS, prepared.cases, regions, "foreground", 0.5, World())
        assert told[SCORE] == score


def fails(tries: Path, case: str, _: torch.device) -> str:
    """Notes each try; a worker that is given `lost` dies the first time it is."""
    with tries.open("a") as file:
        file.write(f"{case}\n")
    if case == "lost" and tries.read_text().count("lost\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "bad":
        raise DataError("shape", where="bad.nii.gz", wanted="3 axes", got="2")
    return case.upper()


def test_a_case_that_is_lost_with_its_worker_is_done_again(
    tmp_path: Path, ray_cluster: None
) -> None:
    came: dict[str, str] = {}
    work = partial(fails, tmp_path / "tries")
    each_case(work, ["lost", "good", "other"], came.__setitem__, "evaluate")
    assert came == {"lost": "LOST", "good": "GOOD", "other": "OTHER"}
    tries = (tmp_path / "tries").read_text().splitlines()
    assert sorted(tries) == ["good", "lost", "lost", "other"]


def test_what_is_wrong_with_a_case_is_not_tried_again(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(DataError, match=r"bad.nii.gz: shape: wanted 3 axes, got 2"):
        each_case(partial(fails, tmp_path / "tries"), ["bad", "good"], print, "evaluate")
    assert (tmp_path / "tries").read_text().count("bad") == 1


def test_one_case_stays_in_this_process_unless_there_is_a_cluster(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[tuple[str, int]] = []
    each_case(lambda *_: os.getpid(), ["a"], lambda *both: came.append(both), "evaluate")
    assert came == [("a", os.getpid())]
    monkeypatch.setenv("RAY_ADDRESS", "as if it were another's")
    monkeypatch.setattr("gliotrail.cluster.autoscaling._FIRST_REPORT_S", 0)
    each_case(lambda *_: os.getpid(), ["a"], lambda *both: came.append(both), "evaluate")
    assert came[1][1] != os.getpid()


def test_a_file_of_one_machine_reaches_another_of_its_job(
    tmp_path: Path, job_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    (folder / "masks").mkdir(parents=True)
    (folder / "masks/a").write_text("a mask")
    (tmp_path / "weights").write_text("weights")
    made, file = share(folder), share(tmp_path / "weights")
    shutil.rmtree(folder)
    (tmp_path / "weights").unlink()
    monkeypatch.setenv("GLIOTRAIL_STATE", str(tmp_path / "another machine"))
    assert file.here().read_text() == "weights"
    (tmp_path / "out").mkdir()
    made.copy_into(tmp_path / "out")
    assert (tmp_path / "out/masks/a").read_text() == "a mask"
