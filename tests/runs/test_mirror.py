"""A run on two machines that share a store and nothing else: two folders of one name."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gliotrail.errors import TrackingError
from gliotrail.runs import mirror as module
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.mirror import Mirror, following, sending, telling_of_stops
from gliotrail.runs.owner import claim, release
from gliotrail.runs.stop import asked_by, forget, note
from gliotrail.runs.store import Store
from gliotrail.runs.writer import Writer


@pytest.fixture
def on(tmp_path: Path) -> Callable[[str], Mirror]:
    store = Store({"url": str(tmp_path / "store")})

    def of(machine: str) -> Mirror:
        return Mirror(RunFolder(tmp_path / machine / "run"), store)

    return of


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.02)
    monkeypatch.setattr(module, "_SELDOM_S", 0.3)


def train(writer: Writer, *steps: int) -> None:
    """A checkpoint with a picture after each step."""
    for step in steps:
        writer.write(step, {"loss": 1 / step})
        writer.attach("a.png", b"picture")
        writer.checkpoint(step, f"state {step}".encode())


def steps_of(run: RunFolder) -> list[int]:
    return [point.step for point in run.points()]


def soon(is_so: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_another_machine_goes_on_without_gap_or_double(on: Callable[[str], Mirror]) -> None:
    one, two = on("one"), on("two")
    one.run.begin({"id": "1"}, {"params.yaml": b"a: 1"})
    one.begin()
    with sending(one):
        writer = Writer(one.run)
        train(writer, 1, 2, 3)
        writer.write(4, {"loss": 0.25})  # final nowhere
    two.bring()
    assert two.run.describe() == one.run.describe()
    assert two.run.points() == one.run.points()
    assert two.run.history()[-1].state() == b"state 3"
    assert [path.read_bytes() for c in two.run.history() for path in c.pictures()] == [
        b"picture"
    ] * 3
    assert (two.run.root / "artifacts/params.yaml").read_bytes() == b"a: 1"
    with sending(two):
        train(Writer(two.run), 4, 5)
    one.bring()
    assert steps_of(one.run) == steps_of(two.run) == [1, 2, 3, 4, 5]
    assert len(one._store.names("gliotrail/runs/run/checkpoints")) == 5 * 3 + 2


def test_an_older_attempt_elsewhere_sends_nothing_more_and_stops(
    on: Callable[[str], Mirror],
) -> None:
    one, two = on("one"), on("two")
    older = Writer(one.run)
    train(older, 1, 2)
    one.send(1)
    two.bring()
    newer = Writer(two.run)
    two.send(2)
    train(older, 3)
    one.send(1)
    assert asked_by(one.run) == "a newer attempt on another machine"
    train(newer, 3, 4)
    two.send(2)
    three = on("three")
    three.bring()
    assert steps_of(three.run) == [1, 2, 3, 4]
    assert three.run.history()[-1].folder.name == "0000000004-0002"
    one.bring()
    with pytest.raises(TrackingError, match="attempt 1 is over"):
        train(older, 5)


def test_who_waits_sees_checkpoints_as_they_come_and_can_stop_the_other(
    on: Callable[[str], Mirror],
) -> None:
    driver, worker = on("driver"), on("worker")
    with following(driver), sending(worker):
        writer = Writer(worker.run)
        train(writer, 1)
        soon(lambda: steps_of(driver.run) == [1])
        assert driver.run.states() == []
        note(driver.run, "Ctrl-C")
        soon(lambda: asked_by(worker.run) == "Ctrl-C")
        train(writer, 2)
    assert driver.run.history()[-1].state() == b"state 2"
    assert driver.run.seconds() == worker.run.seconds()


def test_what_an_attempt_before_left_on_any_machine_ends_no_later_one(
    on: Callable[[str], Mirror],
) -> None:
    driver, worker = on("driver"), on("worker")
    claim(driver.run)
    driver.begin()
    note(driver.run, "Ctrl-C")
    driver.tell_of_stop()
    driver.take_part()  # a worker beside the driver, in the same folder
    worker.take_part()
    worker.hear_of_stop()
    assert asked_by(driver.run) == asked_by(worker.run) == "Ctrl-C"
    (worker.run.root / "failed.json").write_text("{}")
    worker.run.end("FAILED", "no memory", error=MemoryError())
    worker.send_whole()
    driver.bring()
    release(driver.run)

    claim(driver.run)
    forget(driver.run)
    driver.run.reopen()
    driver.begin()
    worker.take_part()
    worker.hear_of_stop()
    release(driver.run)
    for run in (driver.run, worker.run):
        assert not {"stop", "failed.json", "ended.json", "traceback.txt"} & {
            path.name for path in run.root.iterdir()
        }


def test_runs_on_other_machines_hear_what_asks_them_to_stop_while_they_go_on(
    on: Callable[[str], Mirror],
) -> None:
    driver, worker, going_on = on("driver"), on("worker"), dict[str, Mirror]()
    with telling_of_stops(going_on.values()):
        going_on["trial"] = driver
        note(driver.run, "SIGTERM")
        with following(waits := on("between")), sending(worker):
            soon(lambda: asked_by(worker.run) == "SIGTERM")
        assert asked_by(waits.run) == "SIGTERM"  # so it is no failure that it waited for


def test_a_store_that_is_away_holds_no_training_up(
    on: Callable[[str], Mirror], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = on("one"), on("two")
    (tmp_path / "store").write_text("no folder")
    with sending(one):
        train(Writer(one.run), 1, 2)
        soon(lambda: "trying again" in capfd.readouterr().err)
        (tmp_path / "store").unlink()
    two.bring()
    assert steps_of(two.run) == [1, 2]


def test_the_store_is_asked_the_more_seldom_the_longer_there_is_nothing_new(
    on: Callable[[str], Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, asked = Store.names, 0

    def counted(store: Store, folder: str) -> list[str]:
        nonlocal asked
        asked += 1
        return names(store, folder)

    one, two = on("one"), on("two")
    one.run.begin({"id": "1"})
    one.begin()
    monkeypatch.setattr(Store, "names", counted)
    with sending(one), following(two):
        writer = Writer(one.run)
        train(writer, 1)
        soon(lambda: bool(two.run.points()))
        asked = 0
        time.sleep(1.5)  # 75 times as often as it is looked for what is new here
        assert asked < 20
        train(writer, 2)
        soon(lambda: steps_of(two.run) == [1, 2])
        writer.close()
