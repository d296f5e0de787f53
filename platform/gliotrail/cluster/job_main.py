"""The cluster's side of `submit`: `python -m gliotrail.cluster.job_main` runs the sent stage.

Outputs go to the store by their hash; `gliotrail/jobs/<job>.json` there lists them.
"""

import json
import os
import runpy
import socket
import sys
import uuid
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gliotrail.cluster.connection import cluster
from gliotrail.cluster.content_store import download, put
from gliotrail.cluster.job_inputs import (
    JobInputs,
    bring_inputs,
    check_versions,
    result_name,
    sent,
    versions_here,
)
from gliotrail.errors import ClusterError, one_line_errors
from gliotrail.progress import say
from gliotrail.runs.code_snapshot import code_dir
from gliotrail.runs.lineage import ORIGIN
from gliotrail.runs.store import Store


def run() -> None:
    """Check all machines, lay out the inputs, run the stage, store its outputs.

    Raises:
        ClusterError: versions differ, or machines don't share the store.
        DataError: the inputs can't be fetched.
        SystemExit: with the stage's exit code.
    """
    job = sent()
    if job is None:
        raise ClusterError("no job", do="`gliotrail submit` makes one")
    for name, value in job.env.items():
        os.environ.setdefault(name, value)
    _check_tracking()
    check_versions(job.versions, versions_here(), socket.gethostname())
    store = job.common_store
    with cluster() as connected:
        connected()
        _check_machines(job, store)
        for path, place in bring_inputs().items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).symlink_to(place)
        if job.code:
            download(job.code, store, code_dir(job.origin["gliotrail.code.files"]))
        os.environ[ORIGIN] = json.dumps(job.origin)
        say(f"{job.stage}: job {job.job} on {socket.gethostname()}")
        sys.argv = [f"pipelines.{job.stage}", *job.words]
        runpy.run_module(f"pipelines.{job.stage}", run_name="__main__")
    made = {path: put(Path(path), store) for path in job.outputs if Path(path).exists()}
    store.write(result_name(job.job), json.dumps(made).encode())


def _check_tracking() -> None:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri or (uri.startswith("sqlite:///") and not Path(uri[10:]).is_file()):
        raise ClusterError(
            "MLFLOW_TRACKING_URI",
            wanted="a tracking server that the cluster reaches, such as http://HOST:5000",
            got=uri or "nothing",
        )


def _check_machines(job: JobInputs, store: Store) -> None:
    """Check the other machines.

    Raises:
        ClusterError: as `check_versions`; a store that is not shared.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    probe = f"gliotrail/probes/{uuid.uuid4().hex}"
    store.write(probe, b"")
    try:
        looks = [
            ray.remote(_look)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(probe)
            for node in others
        ]
        for node, (versions, is_seen) in zip(others, ray.get(looks), strict=True):
            machine = node["NodeManagerHostname"]
            check_versions(job.versions, versions, machine)
            if not is_seen:
                raise ClusterError(
                    "a store that not all machines share",
                    where=store.url,
                    got=f"another one on {machine}",
                    do="give DVC a remote that all machines reach, such as s3://",
                )
    finally:
        store.remove(probe)


def _look(probe: str) -> tuple[dict[str, str], bool]:
    """Runs on another machine: its versions, and whether it sees this one's file in the store."""
    job = sent()
    assert job is not None
    return versions_here(), job.common_store.has(probe)


if __name__ == "__main__":
    with one_line_errors():
        run()
