"""Disks that are full or read-only, too few open files, no shared memory, clocks that jump.

And processes that are killed as where memory is out.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from psutil import Process

from gliotrail.errors import DataError
from gliotrail.imaging.prepare import prepare
from gliotrail.imaging.prepared import load_prepared
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.writer import Writer
from tests.support.projects import ROOT, clone_into, set_params, use_crops
from tests.support.scans import edit_json, lay_out_crops, snapshot, split_section

Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a small disk, or mounts it anew with other options, such as `size=1m`."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        how = ["-o", f"remount,{options}"] if folder.exists() else ["-o", options]
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", str(folder)], check=True)
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def earlier(folder: Path) -> dict[str, str]:
    """An output of before, which must outlive a failure."""
    folder.mkdir()
    (folder / "fingerprint.json").write_text("work")
    return snapshot(folder)


@pytest.mark.needs_root
def test_prepare_on_a_full_disk_names_it_and_goes_on_once_there_is_room(
    disk: Disk, tmp_path: Path
) -> None:
    out, raw = disk("size=300k") / "prepare", lay_out_crops(tmp_path / "raw")
    before = earlier(out)
    with pytest.raises(OSError, match="No space left on device") as caught:
        prepare(split_section(), raw, out, processes=1)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(out))
    assert [path.name for path in out.parent.iterdir()] == ["prepare"]
    assert snapshot(out) == before
    disk("size=30m")
    prepare(split_section(), raw, out, processes=1)
    assert len(load_prepared(out).cases) == 2


@pytest.mark.needs_root
def test_prepare_on_a_read_only_disk_names_it_and_goes_on_once_it_is_not(
    disk: Disk, tmp_path: Path
) -> None:
    out, raw = disk("size=30m") / "prepare", lay_out_crops(tmp_path / "raw")
    before = earlier(out)
    disk("ro")
    with pytest.raises(OSError, match="Read-only file system") as caught:
        prepare(split_section(), raw, out, processes=1)
    assert str(caught.value.filename).startswith(str(out.parent))
    assert snapshot(out) == before
    disk("rw")
    prepare(split_section(), raw, out, processes=1)
    assert len(load_prepared(out).cases) == 2


def one_step(folder: Path, state: bytes) -> tuple[RunFolder, Writer]:
    """A run with a step and its checkpoint, and the hand that goes on."""
    run = RunFolder(folder / "run")
    run.begin({})
    writer = Writer(run)
    writer.write(1, {"train/soft_dice_loss": 1.0})
    writer.checkpoint(1, state)
    return run, writer


def go_on(run: RunFolder, state: bytes) -> None:
    """Another attempt makes the second step, and all there is are these two."""
    writer = Writer(run)
    writer.write(2, {"train/soft_dice_loss": 0.5})
    writer.checkpoint(2, state)
    writer.close()
    assert [(p.step, p.value) for p in run.points()] == [(1, 1.0), (2, 0.5)]


@pytest.mark.needs_root
def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(disk: Disk) -> None:
    run, writer = one_step(disk("size=400k"), b"1" * 100_000)
    writer.write(2, {"train/soft_dice_loss": 0.5})
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.checkpoint(2, b"2" * 400_000)
    assert str(run.root) in str(caught.value.filename)
    writer.close()
    assert [c.step for c in run.history()] == [1]
    assert run.history()[-1].state() == b"1" * 100_000
    assert not list(run.root.rglob("*.partial"))
    disk("size=4m")
    go_on(run, b"2" * 400_000)


@pytest.mark.needs_root
def test_a_journal_on_a_full_disk_stops_the_run_and_loses_no_final_point(disk: Disk) -> None:
    run, writer = one_step(disk("size=100k"), b"1")
    with pytest.raises(OSError, match="No space left on device"):
        for step in range(2, 5000):
            writer.write(step, {"train/soft_dice_loss": 1.0})
    writer.close()
    assert [(p.step, p.value) for p in run.points()] == [(1, 1.0)]
    disk("size=4m")
    go_on(run, b"2")


FEW_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
from gliotrail.errors import one_line_errors
from gliotrail.imaging.prepared import load_prepared
with one_line_errors():
    cases = load_prepared(Path(sys.argv[1])).cases.values()
    print(sum(int(case.image_CIJK.any()) + int(case.labels_IJK.any()) for case in cases))
"""


@pytest.mark.parametrize(
    ("hard", "fits"), [(400, True), pytest.param(32, False, marks=pytest.mark.long)]
)
def test_maps_of_many_cases_raise_the_limit_of_open_files_or_say_which_it_is(
    hard: int, fits: bool, tmp_path: Path
) -> None:
    prepare(split_section(), lay_out_crops(tmp_path / "raw"), tmp_path / "p", processes=1)
    for n in range(30):
        copy = tmp_path / f"p/cases/COPY_{n}"
        shutil.copytree(tmp_path / "p/cases/BRATS_009", copy)
        edit_json(copy / "case.json", lambda values, n=n: values.update(name=f"COPY_{n}"))
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path / "p"), "32", str(hard)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")}, capture_output=True, text=True,
    )  # fmt: skip
    if fits:
        assert (done.stdout, done.returncode) == ("64\n", 0), done.stderr
    else:
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "Too many open files" in done.stderr


@pytest.mark.long
@pytest.mark.needs_netns
@pytest.mark.needs_root
def test_prepare_works_without_shared_memory(tmp_path: Path) -> None:
    raw = lay_out_crops(tmp_path / "raw")
    code = (
        "from pathlib import Path; from gliotrail.imaging.prepare import prepare\n"
        "from tests.support.scans import split_section\n"
        "if __name__ == '__main__':\n"
        f"    prepare(split_section(), Path({str(raw)!r}), Path({str(tmp_path / 'out')!r}), 2)\n"
    )
    (tmp_path / "work.py").write_text(code)
    hide = "mount -t tmpfs -o ro tmpfs /dev/shm && exec "
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide + f"{sys.executable} {tmp_path / 'work.py'}"],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(load_prepared(tmp_path / "out").cases) == 2


RAY = """
import numpy, ray
from gliotrail.cluster.connection import cluster
from gliotrail.errors import one_line_errors
with one_line_errors(), cluster() as connected:
    connected()
    there = ray.put(numpy.ones(2_000_000))
    print("SUM", ray.get(ray.remote(lambda array: array.sum()).remote(there)))
"""


@pytest.mark.long
@pytest.mark.needs_netns
@pytest.mark.needs_root
@pytest.mark.parametrize(
    "harm",
    ["mount -t tmpfs -o ro tmpfs /dev/shm", "mount -t tmpfs -o size=1m tmpfs /dev/shm",
     "ulimit -n 64"],
    ids=["no shared memory", "little of it", "few open files"],
)  # fmt: skip
def test_ray_works_with(harm: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{harm} && exec "$@"', "sh", sys.executable, "-c", RAY],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("SUM 2000000.0\n", 0), done.stderr


@pytest.mark.long
def test_a_process_of_prepare_killed_for_memory_is_told_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    raw, out = lay_out_crops(tmp_path / "raw"), tmp_path / "prepare"
    before = earlier(out)

    def kill() -> None:
        while not (found := [p for p in Process().children() if "spawn_main" in str(p.cmdline())]):
            time.sleep(0.01)
        found[0].kill()  # as the kernel does where memory is out

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(DataError, match=r"a process of prepare was killed; if memory is short"):
        prepare(split_section(), raw, out, processes=2)
    killer.join()
    assert snapshot(out) == before
    assert [path.name for path in tmp_path.iterdir()] in (["raw", "prepare"], ["prepare", "raw"])
    prepare(split_section(), raw, out, processes=2)
    assert len(load_prepared(out).cases) == 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_training_for_which_memory_runs_out_is_told_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    project = use_crops(clone_into(tmp_path / "project"))
    alone = {"train.patch_size": "16x16x8", "train.learning_rate": 3e-3}  # no sweep before it
    set_params(project.root / "params.yaml", alone)
    for stage in ("fetch", "prepare", "patch"):
        size = ["16x16x8"] if stage == "patch" else []
        project.run("python", "-m", f"pipelines.{stage}", *size)
    train = ("python", "-m", "pipelines.train")
    # Ray then ends what it has started, as if all were used up
    little = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = project.run(*train, check=False, timeout_s=240, **little)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "memory ran out: Ray ended a process: got Memory usage" in done.stdout.splitlines()[-1]
    project.run(*train, timeout_s=240)
    assert (project.root / "results/train/model.safetensors").is_file()


WALL_CLOCK = {
    "runs/journal.py": "when a point was noted, and how a run began and ended: told only",
    "tracking/server_checks.py": "how far clocks are apart is what `doctor` asks",
    "tracking/disk_usage.py": "`gc` takes what is days old, and never what is held",
    "cluster/trials.py": "a name that is new",
    "cluster/workers.py": "a name that is new",
}
"""Who reads it, and why no lease and no timeout depends on it."""


def test_no_lease_or_timeout_reads_the_clock_that_jumps() -> None:
    package = ROOT / "platform/gliotrail"
    reads = re.compile(r"\btime\.time(_ns)?\b|\bfrom time import .*\btime\b|datetime\.(now|utcnow)")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if reads.search(path.read_text())
    }
    assert found == set(WALL_CLOCK)


def test_a_clock_that_jumps_neither_loses_nor_orders_points_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time_ns(), iter([0, 10**18, -(10**18), 5, *[7] * 1000])
    monkeypatch.setattr(time, "time_ns", lambda: now + next(jumps))
    run = RunFolder(tmp_path / "run")
    run.begin({})
    writer = Writer(run)
    for step in (1, 2, 3, 4):
        writer.write(step, {"train/soft_dice_loss": 1 / step})
        writer.checkpoint(step, b"state")
    writer.close()
    assert [(p.step, p.value) for p in run.points()] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert [c.step for c in run.history()] == [1, 2, 3, 4]


@pytest.mark.long
@pytest.mark.needs_root
def test_dvc_on_a_full_disk_keeps_what_there_was_and_goes_on_once_there_is_room(
    disk: Disk, tmp_path: Path
) -> None:
    project = use_crops(clone_into(tmp_path / "project"))
    cache = disk("size=100k") / "cache"
    project.run("dvc", "config", "--local", "cache.dir", str(cache))
    told = project.run("dvc", "repro", "fetch", check=False).stdout
    assert "No space left on device" in told
    assert len(list((project.root / "data/fetch").rglob("*.nii.gz"))) == 4
    disk("size=60m")
    # DVC sometimes ends with 0 all the same, and takes its output for stored: `commit` stores it
    project.run("dvc", "repro", "fetch")
    project.run("dvc", "commit", "--force", "fetch")
    shutil.rmtree(project.root / "data/fetch")
    project.run("dvc", "checkout", "fetch")
    assert len(list((project.root / "data/fetch").rglob("*.nii.gz"))) == 4
