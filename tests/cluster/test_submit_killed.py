"""A submitted training of which one process after another is killed; `make chaos` runs it.

The same command is given again where it has ended, as a user would. At the end MLflow's database is
compared with the run's folder on the cluster's machine, by SQL.
"""

import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gliotrail.runs.journal import RunFolder
from tests.support.projects import Project, set_params
from tests.support.ray_head import RayHead
from tests.tracking.chaos import moment_of
from tests.tracking.killed import Killed, compare
from tests.tracking.kills import table
from tests.tracking.test_chaos import seed

EPOCHS, STEPS_PER_EPOCH = 8, 2
PARTS = {
    "training worker": "ray::RayTrainWorker", "trainer's controller": "ray::TrainController",
    "job": "gliotrail.cluster.job_main", "job's supervisor": "ray::JobSupervisor",
}  # fmt: skip
COMMAND, HEAD = "gliotrail submit", "head"


def part(head: RayHead, name: str) -> psutil.Process | None:
    """A process of the cluster's machine, by its title or its module."""
    assert head.process is not None
    for process in psutil.Process(head.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if PARTS[name] in " ".join(process.cmdline()):
                return process
    return None


def kill(name: str, head: RayHead, command: "subprocess.Popen[bytes]") -> bool:
    """Whether it was there."""
    if name == HEAD:
        head.kill()
        (head.home.parent / "ray.log").unlink()  # by which it is seen to be ready
        head.start()
        head.wait()
        return True
    if name == COMMAND:
        command.kill()
        return command.wait() == -signal.SIGKILL
    process = part(head, name)
    if process is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process.kill()
        return True
    return False


@pytest.mark.long
@pytest.mark.starts_ray
@pytest.mark.timeout(2400)
def test_a_job_whatever_of_it_is_killed(
    crops_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(crops_project.root / "params.yaml", {
        "train.patch_size": "16x16x16", "train.learning_rate": 3e-3, "train.epochs": EPOCHS,
        "train.model.base_filters": 1,
        "train.epoch_voxels": STEPS_PER_EPOCH * 4 * 16**3,
    })  # fmt: skip
    crops_project.run("dvc", "repro", "--quiet", "patch", timeout_s=600)
    best = crops_project.root / "results/sweep/best.json"
    best.parent.mkdir(parents=True)
    best.write_text("{}")
    words = ("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    crops_project.run(*words)
    crops_project.run("python", "-c", "from gliotrail.tracking.client import client; client()")
    state = crops_project.root / ".gliotrail"

    source, killed = random.Random(seed()), list[tuple[str, str]]()
    victims = [COMMAND, HEAD, *PARTS]
    plan = sorted((source.randint(0, EPOCHS - 3), victim) for victim in victims)
    with RayHead(tmp_path).running() as head, (tmp_path / "printed.txt").open("ab") as printed:
        env = crops_project.env | {
            "RAY_ADDRESS": head.address, "GLIOTRAIL_WORKERS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db",
        }  # fmt: skip
        there, code = head.home / ".cache/gliotrail/runs", -1
        for _ in range(2 * len(plan)):
            command = subprocess.Popen(
                ["gliotrail", "submit", "train"], cwd=crops_project.root, env=env,
                stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
            )  # fmt: skip
            while command.poll() is None:
                made = len(list(there.glob("*/checkpoints/*/manifest.json")))
                if plan and made >= plan[0][0]:
                    time.sleep(source.uniform(0, 0.5))
                    runs = [RunFolder(path.parent) for path in there.glob("*/run.json")]
                    moment = moment_of(runs[0]) if runs else "before it began"
                    if kill(plan[0][1], head, command):
                        killed.append((plan.pop(0)[1], moment))
                        print(killed[-1], flush=True)
                time.sleep(0.05)
            code = command.returncode
            if code == 0:
                break
        told = (tmp_path / "printed.txt").read_text(errors="replace")
        assert code == 0, told[-4000:]
        assert "Traceback" not in told

        (run,) = [RunFolder(path.parent) for path in there.glob("*/run.json")]
        monkeypatch.setenv("GLIOTRAIL_STATE", str(state))
        faults = compare(run)
        steps = Counter(p.step for p in run.points() if p.key == "train/soft_dice_loss")
        assert steps == Counter(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
        assert (run.ended() or {})["status"] == "FINISHED"
    print(table([Killed(who, moment, faults) for who, moment in killed]))
    assert not faults, faults
    assert len(killed) >= len(victims) - 1  # the last may find it at its end
    assert list((crops_project.root / "results/train").iterdir())
