"""Deliver and evaluate runs in processes that are killed before their n-th call to MLflow.

Not from pytest's own process: one that is forked must have no other thread, and no connection to
the database open.
"""

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from gliotrail.runs.journal import MODEL_FILE, RunFolder
from gliotrail.tracking import delivery
from gliotrail.tracking.client import client
from gliotrail.tracking.delivery import deliver
from gliotrail.tracking.evaluation_run import held_out
from gliotrail.tracking.registry import champion
from tests.support.told import told
from tests.support.tracked_runs import begun, go_on, model_file
from tests.tracking.test_evaluation_record import MEASURES, record, trained


def in_a_process(work: Callable[[], object]) -> int:
    """What became of it, as `os.waitstatus_to_exitcode` has it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except Exception:  # noqa: BLE001 - a forked process must not return
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_before(n: int, told: Path | None = None) -> None:
    """Make this process kill itself before the n-th call to MLflow or note of what was told.

    Args:
        told: a file that is told the call's name.
    """
    calls, depth = 0, 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            nonlocal calls, depth
            calls += depth == 0  # MLflow's own calls to itself don't count
            if calls == n and depth == 0:
                if told:
                    told.write_text(call.__name__)
                os.kill(os.getpid(), signal.SIGKILL)
            depth += 1
            try:
                return call(*args, **more)
            finally:
                depth -= 1

        return wrapped

    for name, call in list(vars(MlflowClient).items()):
        if callable(call) and not name.startswith("_"):
            setattr(MlflowClient, name, counted(call))
    delivery.write_json = counted(delivery.write_json)  # type: ignore[attr-defined]


def kill_everywhere(
    make: Callable[[Path], RunFolder], folder: Path, pictures: int, every: int
) -> int:
    """Deliver run after run, each killed some calls later; see that the next delivery mends it.

    Args:
        every: 1 kills before each call; 4 before each fourth, from one of the first four on.

    Returns:
        the last call before which a delivery was killed.
    """
    server = client()
    for n in range(random.randint(1, every), 100, every):
        run = make(folder / str(n))

        def broken_off(run: RunFolder = run, n: int = n) -> None:
            die_before(n)
            deliver(run, server)

        ended = in_a_process(broken_off)
        assert ended in {0, -signal.SIGKILL}, (n, ended)
        of = told(server, deliver(run, server))
        assert of["points"] == sorted((p.key, p.step, p.value, p.time_ms) for p in run.points())
        assert len(of["files"]) == 1 + 2 * pictures, of["files"]  # params.yaml, with small copies
        assert len(of["datasets"]) == 2, of["datasets"]
        assert of["status"] == "FINISHED"
        has_model = (run.root / MODEL_FILE).exists()
        assert [status for _, status, _ in of["models"]] == ["READY"] * has_model, of["models"]
        assert of["outputs"] == [model_id for model_id, _, _ in of["models"]]
        experiments = [e.experiment_id for e in server.search_experiments()]
        own_id = f"tags.`gliotrail.id` = '{run.describe()['id']}'"
        assert len(server.search_runs(experiments, own_id)) == 1
        if ended == 0:
            return n - every
    raise AssertionError("it never came to its end")


def with_points(root: Path) -> RunFolder:
    """A run with two checkpoints, that has ended."""
    run = begun(root)
    go_on(run, [1, 2])
    run.end("FINISHED", "trained to the end")
    return run


def with_a_model_left(root: Path) -> RunFolder:
    """A run of which all is delivered but a model and its end."""
    run = begun(root)
    deliver(run, client())
    model_file(run.root / MODEL_FILE)
    run.end("FINISHED", "trained to the end")
    return run


def kill_evaluations(every: int) -> int:
    """Evaluate run after run, each killed some calls later; its training's end stays as it was.

    Evaluated again, it is as if nothing had happened: one model, one version, and champion.

    Returns:
        the last call before which an evaluation was killed.
    """
    server = client()
    for n in range(random.randint(1, every), 100, every):
        run, says = trained(n, score=n / 1000)
        run_id = deliver(run, server)
        ended = told(server, run_id)["status"], told(server, run_id)["times"]

        def broken_off(n: int = n, run: RunFolder = run, says: dict[str, Any] = says) -> None:
            die_before(n)
            record(run, says)

        code = in_a_process(broken_off)
        assert code in {0, -signal.SIGKILL}, (n, code)
        assert (told(server, run_id)["status"], told(server, run_id)["times"]) == ended
        assert "champion" in record(run, says)
        of = told(server, run_id)
        assert ended == (of["status"], of["times"])
        assert ended[0] == "FINISHED"
        scores = sorted(held_out(server, server.get_run(run_id)))
        assert scores == sorted(MEASURES), scores
        assert len(of["models"]) == 1, of["models"]
        versions = server.search_model_versions(f"run_id = '{run_id}'")
        assert len(versions) == 1, versions
        holder = champion(server)
        assert holder is not None
        assert holder.run_id == run_id
        if code == 0:
            return n - every
    raise AssertionError("it never came to its end")


def main(root: Path, every: int) -> None:
    """Print before how many calls each of three kinds of work was killed."""
    print("points", kill_everywhere(with_points, root / "points", 2, every))
    print("model", kill_everywhere(with_a_model_left, root / "model", 0, every))
    print("evaluation", kill_evaluations(every))
