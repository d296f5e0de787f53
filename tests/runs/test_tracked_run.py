import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gliotrail.errors import Stopped, TrackingError
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.stop import note
from gliotrail.runs.tracked_run import TrackedRun

NEVER_S = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs/one")
    run.begin({"id": "abc", "name": "one"})
    return run


def saving(number: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "number.json").write_text(json.dumps(number))


def values(run: RunFolder) -> list[tuple[int, str, float]]:
    return [(point.step, point.key, point.value) for point in run.points()]


def test_it_goes_on_from_what_was_saved_last_and_writes_no_step_twice(folder: RunFolder) -> None:
    run = TrackedRun(folder, every_s=NEVER_S)
    assert (run.last_step, run.checkpoint, list(run.steps(2))) == (0, None, [1, 2])
    run.report(1, {"loss": 0.5}, checkpoint=saving(1), now=True)
    run.report(2, {"loss": 0.4}, checkpoint=saving(2), now=True)
    run.report(3, {"loss": 0.3}, checkpoint=saving(3))  # not due: taken again
    run.close()

    again = TrackedRun(folder, every_s=NEVER_S)
    assert again.last_step == 2
    assert again.checkpoint is not None
    assert json.loads((again.checkpoint / "number.json").read_text()) == 2
    assert list(again.steps(4)) == [3, 4]
    again.report(2, {"loss": 99}, checkpoint=saving(99), now=True)
    again.report(3, {"loss": 0.31}, checkpoint=saving(3))
    again.report(4, {"loss": 0.2}, checkpoint=saving(4))  # the last of its steps: due
    again.finish()
    again.close()

    losses = [(1, "loss", 0.5), (2, "loss", 0.4), (3, "loss", 0.31), (4, "loss", 0.2)]
    assert values(folder) == losses
    assert folder.is_finished()
    assert len(list(folder.root.glob("checkpoints/*/saved"))) == 2  # of four
    done = TrackedRun(folder)
    assert (done.finished, list(done.steps(4))) == (True, [])
    done.report(5, {"loss": 0.1})
    done.attach("late.txt", "of no training")
    assert values(folder) == losses
    assert folder.artifacts() == {}


def test_a_loop_that_saves_nothing_is_final_at_its_end(folder: RunFolder) -> None:
    run = TrackedRun(folder)
    run.report(1, {"loss": 0.5})
    run.report(2, {"loss": 0.4})
    assert values(folder) == []
    run.finish()
    assert values(folder) == [(1, "loss", 0.5), (2, "loss", 0.4)]


def test_a_loop_that_was_left_early_saves_where_it_was_left(folder: RunFolder) -> None:
    run = TrackedRun(folder, every_s=NEVER_S)
    for step in run.steps(1000):
        run.report(step, {"loss": 1 / step}, checkpoint=saving(step))
        if step == 3:
            break
    run.finish()
    last = folder.history()[-1]
    assert last.step == 3
    assert json.loads((last.folder / "saved/number.json").read_text()) == 3


def test_reports_of_a_step_merge_and_a_second_value_names_both(folder: RunFolder) -> None:
    run = TrackedRun(folder)
    run.report(1, {"loss": np.float32(0.5)})
    run.report(1, {"accuracy": np.array(0.25), "loss": 0.5})
    with pytest.raises(TrackingError, match=r"step 1: loss: wanted one value, got 0\.5, then 0\.6"):
        run.report(1, {"loss": 0.6, "more": 1})
    run.report(1, {"odd": math.nan})
    run.report(1, {"odd": math.nan}, checkpoint=saving(1))
    with pytest.raises(TrackingError, match="wanted a step after 1, got step 1; a report with a"):
        run.report(1, {"late": 1})
    run.report(5, {"loss": 1})
    with pytest.raises(TrackingError, match="wanted a step after 5, got step 4"):
        run.report(4, {"loss": 1})
    run.finish()
    found = values(folder)
    assert found[:2] == [(1, "loss", 0.5), (1, "accuracy", 0.25)]
    assert [(step, key) for step, key, _ in found[2:]] == [(1, "odd"), (5, "loss")]


@pytest.mark.parametrize("value", ["0.5", None, [1, 2], np.zeros(2), 1j])
def test_what_is_no_number_is_refused_by_name(folder: RunFolder, value: object) -> None:
    run = TrackedRun(folder)
    with pytest.raises(TrackingError, match="step 7: loss: wanted a number, got "):
        run.report(7, {"fine": 1, "loss": value})
    run.finish()
    assert values(folder) == []


def test_what_is_not_finite_is_told_once_and_kept(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TrackedRun(folder)
    for step in (1, 2):
        run.report(step, {"loss": math.inf, "fine": 1})
    run.finish()
    assert capsys.readouterr().err.splitlines() == ["loss is inf at step 1"]
    assert [value for _, key, value in values(folder) if key == "loss"] == [math.inf, math.inf]


def test_numbers_may_have_a_time_of_their_own_and_there_may_be_thousands(folder: RunFolder) -> None:
    run = TrackedRun(folder)
    many = {f"layer {n}/norm": float(n) for n in range(5000)}
    run.report(1, many, time_ms=1234)
    run.finish()
    points = folder.points()
    assert {point.key: point.value for point in points} == many
    assert {point.time_ms for point in points} == {1234}


def test_asked_to_stop_it_saves_at_the_next_report_that_can(folder: RunFolder) -> None:
    run = TrackedRun(folder, every_s=NEVER_S)
    run.report(1, {"loss": 0.5}, checkpoint=saving(1))
    note(folder, "a test")
    run.report(2, {"loss": 0.4})
    with pytest.raises(Stopped, match="stopped by a test"):
        run.report(2, {"more": 1}, checkpoint=saving(2))
    assert [checkpoint.step for checkpoint in folder.history()] == [2]

    alone = RunFolder(folder.root.with_name("two"))
    alone.begin({"id": "two", "name": "two"})
    note(alone, "a test")
    with pytest.raises(Stopped):  # it has nothing to save
        TrackedRun(alone).report(1, {"loss": 1})


def test_a_damaged_checkpoint_is_told_with_what_to_do(folder: RunFolder) -> None:
    run = TrackedRun(folder)
    run.report(1, {"loss": 0.5}, checkpoint=saving(1), now=True)
    run.close()
    saved = next(folder.root.glob("checkpoints/*/saved/number.json"))
    saved.write_text("2")
    with pytest.raises(TrackingError, match=r"sha256: wanted .*; remove .* to go on from"):
        TrackedRun(folder)


def test_where_what_was_saved_made_room_it_begins_anew_and_tells_nothing_twice(
    folder: RunFolder,
) -> None:
    run = TrackedRun(folder)
    run.report(1, {"loss": 0.5}, checkpoint=saving(1), now=True)
    run.close()
    folder.drop_states()
    again = TrackedRun(folder)
    assert (again.last_step, again.checkpoint) == (0, None)
    for step in again.steps(2):
        again.report(step, {"loss": 7}, checkpoint=saving(step))
    again.finish()
    assert values(folder) == [(1, "loss", 0.5), (2, "loss", 7)]


def test_a_save_that_fails_leaves_what_was_there(folder: RunFolder) -> None:
    run = TrackedRun(folder)
    run.report(1, {"loss": 0.5}, checkpoint=saving(1), now=True)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        run.report(2, {"loss": 0.4}, checkpoint=fail, now=True)
    run.close()
    assert TrackedRun(folder).last_step == 1


@pytest.mark.parametrize("name", ["../out", "/tmp/a", "", ".hidden", "a/.b", "a b"])
def test_names_of_files_lead_nowhere_else(folder: RunFolder, name: str) -> None:
    with pytest.raises(TrackingError, match="wanted a name"):
        TrackedRun(folder).attach(name, "x")


def test_what_led_to_a_state_of_somebody_elses_is_taken_over(folder: RunFolder) -> None:
    for attempt in (1, 2):  # the second took step 2 again, and came further
        run = TrackedRun(folder)
        for step in range(attempt, attempt + 2):
            run.report(step, {"loss": 10 * attempt + step}, time_ms=attempt)
        run.close()
    run = TrackedRun(folder)
    run.adopt(upto=3)
    run.report(3, {"loss": 23, "late": 1}, checkpoint=saving(3), now=True)
    run.report(4, {"loss": 4})
    run.close()
    assert values(folder) == [(1, "loss", 11), (2, "loss", 22), (3, "loss", 23), (3, "late", 1)]
    assert [point.time_ms for point in folder.points()][:3] == [1, 2, 2]

    run = TrackedRun(folder)
    run.adopt()
    run.finish()
    assert values(folder)[4:] == [(4, "loss", 4)]
