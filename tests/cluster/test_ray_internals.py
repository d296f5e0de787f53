"""What is used of Ray that Ray doesn't promise to keep is in few files, and as they expect it."""

import inspect
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import node, ray_constants, services, worker
from ray.job_submission import JobSubmissionClient
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

import gliotrail
from gliotrail.cluster import ray_internals

PRIVATE = re.compile(r"ray[.\w]*\._\w+|from ray[.\w]*_internal|_internal_kv|_do_request")
HOLDERS = {"ray_internals.py", "fixed_scaling.py", "workers.py", "autoscaling.py", "submit.py"}


def test_nobody_else_uses_what_ray_does_not_promise() -> None:
    found = {
        path.name
        for path in Path(gliotrail.__file__).parent.rglob("*.py")
        if PRIVATE.search(path.read_text())
    }
    assert found <= HOLDERS


def test_it_is_as_we_expect_it() -> None:
    assert isinstance(ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, bool)
    assert {"raylet", "gcs_server"} == {
        ray_constants.PROCESS_TYPE_RAYLET,
        ray_constants.PROCESS_TYPE_GCS_SERVER,
    }
    assert hasattr(ray._private.worker, "_global_node")
    assert "self.all_processes" in inspect.getsource(node.Node.__init__)
    limits = inspect.getsource(node)
    assert "RAY_gcs_server_port_wait_time_s" in limits  # which is raised
    assert "ray._private.services.get_node(" in limits  # which waits 30 s, and is made to wait
    starts = inspect.getsource(node)
    assert "ray._private.services.start_raylet(" in starts
    assert set(ray_internals._PORTS_OF_AGENTS) <= set(
        inspect.signature(ray_internals._RAYS_START).parameters
    )
    ray_internals.read_token_again()
    for owner, names in {
        TorchTrainer: ("_create_default_callbacks", "_initialize_and_run_controller",
                       "_register_sigint_handler"),
        FixedScalingPolicy: ("after_controller_start", "_maybe_send_resource_request"),
        JobSubmissionClient: ("_do_request",),
    }.items():  # fmt: skip
        assert all(callable(getattr(owner, name, None)) for name in names), owner


def test_sigterm_is_left_to_us_before_ray_starts() -> None:
    ray_internals.leave_sigterm_to_us()
    assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER is True


def test_a_death_is_told_in_one_line_and_workers_own_lines_as_ray_tells_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_internals.tell_deaths_in_one_line()
    died = "A worker died or was killed. To troubleshoot, check the logs.\nMemory: 1 GB"
    worker.print_to_stdstream({"lines": [died], "pid": "raylet", "is_err": False}, False)
    lines = {"lines": ["loss. 0.1"], "pid": 7, "ip": "127.0.0.1", "is_err": False, "job": None,
             "actor_name": None, "task_name": "train"}  # fmt: skip
    worker.print_to_stdstream(lines, True)
    told = capsys.readouterr()
    assert told.err == "Ray: A worker died or was killed\n"
    assert told.out == "loss. 0.1\n"
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)


def test_a_raylet_that_lives_is_waited_for_and_what_a_failed_start_left_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "get_node", services.get_node)
    asked = []

    def get_node(*_: str) -> dict[str, str]:
        asked.append(time.monotonic())
        if len(asked) < 4:
            raise RuntimeError("not yet")
        return {"node": "here"}

    monkeypatch.setattr(ray_internals, "_RAYS_GET_NODE", get_node)
    ray_internals.wait_longer_for_a_raylet(60)
    with pytest.raises(RuntimeError):  # there is none: nothing is waited for
        services.get_node("address", "id")
    started = {}

    def start(name: str, called: str) -> None:
        shutil.copy(shutil.which("sleep") or "", tmp_path / name)
        started[name] = subprocess.Popen([called, "600"], executable=tmp_path / name)

    of_ray = str(Path(ray.__file__).parent / "core/src/ray/raylet/raylet")
    try:
        start("other", "other")
        start("raylet", of_ray)
        with pytest.raises(RuntimeError):  # a raylet whose GCS has ended will never register
            services.get_node("address", "id")
        start("gcs_server", of_ray)
        assert services.get_node("address", "id") == {"node": "here"}
        assert len(asked) == 4
        ray_internals.end_what_a_start_left()
        assert not psutil.pid_exists(started["raylet"].pid)
        assert not psutil.pid_exists(started["gcs_server"].pid)
        assert started["other"].poll() is None
    finally:
        for process in started.values():
            process.kill()
            process.wait()
