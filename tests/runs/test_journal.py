import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliotrail.errors import TrackingError
from gliotrail.files import locked
from gliotrail.runs.journal import Point, RunFolder, parse_lines, to_line
from gliotrail.runs.writer import Writer

points = st.builds(
    Point,
    key=st.text(max_size=30),
    value=st.floats(),
    step=st.integers(0, 10**9),
    time_ms=st.integers(0, 2**45),
)


def same(one: list[Point], other: list[Point]) -> bool:
    """Whether points are equal, where NaN is NaN."""
    return [repr(point) for point in one] == [repr(point) for point in other]


def values(run: RunFolder) -> dict[int, float]:
    """The value of `loss` by step."""
    assert len({(p.key, p.step) for p in run.points()}) == len(run.points())
    return {p.step: p.value for p in run.points() if p.key == "loss"}


def checkpoint(writer: Writer, step: int, loss: float = 0.5) -> None:
    writer.write(step, {"loss": loss})
    writer.checkpoint(step, b"state %d" % step)


# lines


@given(st.lists(points, max_size=5))
def test_points_come_back_from_their_lines(written: list[Point]) -> None:
    assert same(parse_lines(b"".join(map(to_line, written))), written)


@given(st.lists(points, min_size=1, max_size=5), st.data())
def test_of_a_torn_journal_all_whole_lines_are_read(
    written: list[Point], data: st.DataObject
) -> None:
    lines = [to_line(point) for point in written]
    cut = data.draw(st.integers(0, len(b"".join(lines))))
    whole = sum(len(b"".join(lines[: n + 1])) <= cut for n in range(len(lines)))
    assert same(parse_lines(b"".join(lines)[:cut]), written[:whole])


@given(st.lists(points, min_size=3, max_size=3), st.data())
def test_a_flipped_bit_ends_the_journal_before_its_line(
    written: list[Point], data: st.DataObject
) -> None:
    lines = [bytearray(to_line(point)) for point in written]
    n = data.draw(st.integers(0, 2))
    bit = data.draw(st.integers(0, 8 * len(lines[n]) - 1))
    lines[n][bit // 8] ^= 1 << bit % 8
    assert same(parse_lines(b"".join(lines)), written[:n])


# checkpoints


def test_what_was_noted_since_the_last_checkpoint_is_not_final(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    checkpoint(writer, 1)
    writer.write(2, {"loss": 0.4})
    assert values(run) == {1: 0.5}


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    checkpoint(writer, 1)
    checkpoint(writer, 2)
    (run.history()[-1].folder / "manifest.json").unlink()
    assert [c.step for c in run.history()] == [1]
    assert values(run) == {1: 0.5}


def _die_at_rename(run: RunFolder, writer: Writer, n: int) -> None:
    """Make a checkpoint at step 2, and die before the n-th file gets its name."""
    rename, seen = Path.replace, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.replace = replace  # type: ignore[method-assign]
    writer.attach("validation.png", b"a picture")
    checkpoint(writer, 2, loss=0.25)


def test_a_checkpoint_broken_off_anywhere_is_as_if_it_had_not_begun(tmp_path: Path) -> None:
    fork, ended = multiprocessing.get_context("fork"), {}
    for n in range(1, 10):
        run = RunFolder(tmp_path / str(n))
        writer = Writer(run)
        checkpoint(writer, 1)
        process = fork.Process(target=_die_at_rename, args=(run, writer, n))
        process.start()
        process.join()
        ended[n] = process.exitcode
        if process.exitcode == 0:
            break
        assert values(run) == {1: 0.5}
        assert run.history()[-1].state() == b"state 1"
        checkpoint(Writer(run), 2, loss=0.2)  # and the next attempt goes on
        assert values(run) == {1: 0.5, 2: 0.2}
    assert list(ended.values()) == [-signal.SIGKILL] * 4 + [0], "state, segment, picture, manifest"
    assert values(run) == {1: 0.5, 2: 0.25}


def test_points_keep_the_time_at_which_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    checkpoint(writer, 1)
    live = parse_lines((tmp_path / "attempts/0001.jsonl").read_bytes())
    assert run.points() == live


def test_training_goes_on_while_the_disk_takes_its_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    writer.write(10, {"loss": 0.5})
    with locked(tmp_path / "attempts.lock"):  # a disk that takes its time: no manifest
        writer.begin_checkpoint(10, b"state 10")
        writer.write(11, {"loss": 0.25})
        assert run.history() == []
    made = writer.finish_checkpoint()
    assert made in run.history()
    assert values(run) == {10: 0.5}
    writer.begin_checkpoint(11, b"state 11")
    writer.close()
    assert values(run) == {10: 0.5, 11: 0.25}


def test_what_the_disk_refused_is_told_with_the_next_checkpoint_or_at_the_end(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    for told in ("begin_checkpoint", "close"):
        writer = Writer(run)
        folder = tmp_path / f"checkpoints/{10:010d}-{writer.attempt:04d}"
        folder.parent.mkdir(exist_ok=True)
        folder.touch()  # where a folder has to come
        writer.begin_checkpoint(10, b"state")
        with pytest.raises(FileExistsError, match=folder.name):
            getattr(writer, told)(*[20, b"state"][: 2 * (told != "close")])
    assert run.history() == []


def test_numbers_that_are_none_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    checkpoint(Writer(run), 1, loss=math.nan)
    assert math.isnan(values(run)[1])


def test_states_of_old_checkpoints_go_and_their_points_and_pictures_stay(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    for step in range(1, 5):
        writer.attach("validation.png", b"%d" % step)
        checkpoint(writer, step, loss=1 / step)
    assert {p.parent.name for p in tmp_path.glob("**/state.safetensors")} == {
        "0000000003-0001",
        "0000000004-0001",
    }
    assert values(run) == {step: 1 / step for step in range(1, 5)}
    assert [c.pictures()[0].read_bytes() for c in run.history()] == [b"1", b"2", b"3", b"4"]


# attempts


def test_an_attempt_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for steps in ((10, 20), (30,), (40, 50)):
        writer = Writer(run)
        for step in steps:
            checkpoint(writer, step, loss=step)
        writer.write(step + 1, {"loss": -1})  # lost with the attempt
    assert values(run) == {step: step for step in (10, 20, 30, 40, 50)}
    names = [c.folder.name for c in run.history()]
    assert [c.previous for c in run.history()] == [None, *names[:-1]]


def test_an_older_attempt_that_still_runs_makes_nothing_final(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    zombie = Writer(run)
    checkpoint(zombie, 10, loss=10)
    newer = Writer(run)
    with pytest.raises(TrackingError, match="attempt 1 is over: attempt 2 has taken the run"):
        checkpoint(zombie, 40, loss=-1)
    assert values(run) == {10: 10}  # although the newer one has no checkpoint yet
    checkpoint(newer, 20, loss=20)
    with pytest.raises(TrackingError, match="attempt 1 is over"):
        checkpoint(zombie, 50, loss=-1)
    checkpoint(newer, 30, loss=30)
    assert values(run) == {10: 10, 20: 20, 30: 30}
    assert run.history()[-1].state() == b"state 30"


def test_a_step_taken_again_counts_as_the_newer_attempt_took_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = Writer(run)
    checkpoint(first, 10, loss=1)
    first.write(20, {"loss": 2})  # never in a checkpoint
    checkpoint(Writer(run), 20, loss=3)
    assert values(run) == {10: 1, 20: 3}


def _start(root: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    writer = Writer(RunFolder(root))
    writer.write(1, {"pid": os.getpid()})


def test_attempts_that_start_at_once_have_journals_of_their_own(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(8)
    processes = [fork.Process(target=_start, args=(tmp_path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    journals = sorted(tmp_path.glob("attempts/*.jsonl"))
    assert [path.stem for path in journals] == [f"{n:04d}" for n in range(1, 9)]
    pids = [[p.value for p in parse_lines(path.read_bytes())] for path in journals]
    assert sorted(pids) == sorted([process.pid] for process in processes)


def test_attempts_and_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    checkpoint(Writer(run), 1)
    (tmp_path / "attempts/9999.jsonl").touch()
    newest = Writer(run)
    checkpoint(newest, 2)
    assert newest.attempt == 10_000
    assert [c.step for c in run.history()] == [1, 2]


# damage


@pytest.mark.parametrize("name", ["state.safetensors", "segment.jsonl"])
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    checkpoint(Writer(run), 1)
    last = run.history()[-1]
    assert (last.state(), len(run.points())) == (b"state 1", 1)
    content = bytearray((last.folder / name).read_bytes())
    content[-2] ^= 1
    (last.folder / name).write_bytes(content)
    with pytest.raises(TrackingError, match=f"{name}: sha256: wanted [0-9a-f]+, got [0-9a-f]+"):
        last.read(name)


def test_of_a_damaged_state_it_is_told_what_to_do_and_that_helps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    checkpoint(writer, 1)
    checkpoint(writer, 2)
    last = run.history()[-1]
    (last.folder / "state.safetensors").unlink()
    with pytest.raises(TrackingError, match=r"no file; remove .* to go on") as told:
        last.state()
    assert str(last.folder) in str(told.value)
    for path in last.folder.iterdir():
        path.unlink()
    last.folder.rmdir()
    assert run.history()[-1].state() == b"state 1"


def test_a_missing_checkpoint_and_a_damaged_manifest_are_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    writer = Writer(run)
    checkpoint(writer, 1)
    checkpoint(writer, 2)
    first, second = (c.folder / "manifest.json" for c in run.history())
    first.unlink()
    with pytest.raises(TrackingError, match="0000000001-0001: no such checkpoint"):
        run.history()
    second.write_text("{}")
    with pytest.raises(TrackingError, match=r"0000000002-0001/manifest\.json: damaged manifest"):
        run.history()


# the run


def test_a_run_begins_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.has_begun()
    run.begin({"id": "first"}, {"params.yaml": b"a: 1"})
    run.begin({"id": "second"}, {"params.yaml": b"a: 2"})
    assert run.describe()["id"] == "first"
    assert (tmp_path / "artifacts/params.yaml").read_bytes() == b"a: 1"


def test_a_run_that_has_begun_has_its_artifacts(tmp_path: Path) -> None:
    (tmp_path / "artifacts").touch()  # where the folder would be
    with pytest.raises(FileExistsError):
        RunFolder(tmp_path).begin({"id": "first"}, {"params.yaml": b"a: 1"})
    assert not RunFolder(tmp_path).has_begun()


def test_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no run: wanted a folder with a run\.json"):
        RunFolder(tmp_path).describe()


def test_a_run_ends_and_may_go_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.ended() is None
    run.end("FAILED", "out of patience")
    assert not run.is_finished()
    run.reopen()
    assert run.ended() is None
    run.end("FINISHED", "at last", {"score": 0.5})
    assert run.is_finished()
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert (ended["reason"], ended["summary"]) == ("at last", {"score": 0.5})
