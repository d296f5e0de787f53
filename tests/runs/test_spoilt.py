"""Files of ours that a full disk or power loss left empty, cut or absent."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gliotrail.errors import TrackingError
from gliotrail.files import write_json
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.local_runs import all_runs, look_at, notes_path, read_notes, runs_dir
from gliotrail.runs.owner import beat, claim, owner_of, release
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.reaper import reap_all
from gliotrail.tracking.sync import sync_all
from tests.support.tracked_runs import begun, go_on

SPOIL: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "absent": lambda content: None,
}
SMALL = ("run.json", "owner.json", "beat", "ended.json", "stop", "delivered/*.json")
"""Files that a decision is made by, each replaced as a whole."""
CHECKPOINTS = ("manifest.json", "segment.jsonl", "state.safetensors")


def one(name: str) -> RunFolder:
    """Killed after two checkpoints, and delivered; ended once before."""
    run = begun(runs_dir() / name)
    claim(run)
    beat(run)
    go_on(run, [1, 2])
    run.end("FAILED", "a test")
    (run.root / "stop").write_text("a test")
    return run


def spoil(path: Path, how: str) -> None:
    content = SPOIL[how](path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("how", SPOIL)
def test_a_small_file_that_is_spoilt_counts_as_never_written(
    how: str, server: MlflowClient, no_outputs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = {pattern: one(f"run{n}") for n, pattern in enumerate(SMALL)}
    assert sync_all()[1] == {}
    spoilt = [next(run.root.glob(pattern)) for pattern, run in runs.items()]
    for path in spoilt:
        spoil(path, how)

    capfd.readouterr()
    assert all(look_at(each).problem is None for each in all_runs())
    told = capfd.readouterr().err
    for path in spoilt:
        lines = rf"{re.escape(str(path))}: spoilt \(\d+ bytes"
        assert bool(re.search(lines, told)) == (path.suffix == ".json" and how != "absent"), path
    reap_all()
    assert sync_all()[1] == {}

    for run in runs.values():  # as the same command would go on
        again = begun(run.root)
        again.reopen()
        claim(again)
        beat(again)
        go_on(again, [3])
        again.end("FINISHED", "trained to the end")
        release(again)
    assert sync_all()[1] == {}
    for run in runs.values():
        known = server.get_run(read_notes(run)["run_id"])
        assert known.info.status == "FINISHED"
        assert known.data.tags["gliotrail.id"] == run.describe()["id"]
        history = server.get_metric_history(known.info.run_id, "val/dice_WT")
        assert [point.step for point in history] == [1, 2, 3]


@pytest.mark.parametrize("how", SPOIL)
def test_of_a_checkpoint_it_is_told_in_one_line_and_the_other_runs_go_on(
    how: str, server: MlflowClient, no_outputs: None
) -> None:
    for name in CHECKPOINTS:
        run = one(name)
        spoil(next(run.root.glob(f"checkpoints/*1-0001/{name}")), how)
    reap_all()
    problems = sync_all()[1]
    assert problems.keys() == {"manifest.json", "segment.jsonl"}  # no state but the newest counts
    assert all(told.startswith("TrackingError: ") for told in problems.values())
    assert all(told.count("\n") == 0 for told in problems.values())


def test_a_heartbeat_that_is_spoilt_begins_anew(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    for content in (b"", b"1e3 every", b"\xff\x00"):
        (run.root / "beat").write_bytes(content)
        assert beat(run).startswith("1 every")
        assert beat(run).startswith("2 every")


def test_what_decisions_depend_on_is_on_the_disk_before_its_name_and_so_are_new_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: MlflowClient
) -> None:
    """As power loss may take what was not seen onto the disk."""
    seen: list[Path] = []

    def fsync(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    run = begun(runs_dir() / "one")
    claim(run)
    go_on(run, [1])
    run.end("FINISHED", "a test")
    deliver(run, server)
    release(run)
    durable = [
        run.root / "run.json",
        run.root / "owner.json",
        *run.root.glob("checkpoints/*/*"),
        run.root / "ended.json",
        notes_path(run),
    ]
    for path in durable:
        of_file = next(n for n, known in enumerate(seen) if known.name == path.name)
        assert path.parent in seen[of_file + 1 :], path
    for folder in run.root.rglob("*"):  # a new folder's name is in the folder above
        if folder.is_dir() and folder.name in {"checkpoints", "delivered"}:
            assert folder.parent in seen, folder
    seen.clear()
    write_json(tmp_path / "output.json", {})
    assert seen == []


def test_a_spoilt_owner_is_nobody(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    claim(run)
    (run.root / "owner.json").write_bytes(b"")
    assert owner_of(run) is None
    claim(run)
    assert owner_of(run) is not None
    release(run)


def test_a_run_whose_description_is_gone_is_told_as_one_line(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run.root / "run.json").write_bytes(b"{")
    with pytest.raises(TrackingError, match="no run"):
        run.describe()
