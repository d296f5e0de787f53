"""The user's side of a cluster: a stage is sent as a Ray job, its outputs come back by hash.

DVC, git and dvc.lock stay here. A job's name follows from its inputs, so the same command finds a
running job again, and takes the outputs of one that ended.
"""

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gliotrail
from gliotrail.code_graph import code_hash, imported_by
from gliotrail.errors import ClusterError, DataError, ParamsError, Stopped
from gliotrail.files import replacing
from gliotrail.own_parts import OWN
from gliotrail.paths import DIRECT, JOB
from gliotrail.plain_yaml import read_yaml
from gliotrail.progress import say

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from gliotrail.cluster.job_inputs import JobInputs

_ADDRESSES: Final = ("MLFLOW_TRACKING_URI", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
_LAYOUT: Final = ("GLIOTRAIL_WORKERS", "GLIOTRAIL_TRIAL_WORKERS", "GLIOTRAIL_TRIAL_CPUS",
                  "GLIOTRAIL_GPUS", "GLIOTRAIL_TRIAL_GPUS", "GLIOTRAIL_MICRO_BATCH",
                  "GLIOTRAIL_CONCURRENT_TRIALS",
                  "GLIOTRAIL_RAY_LOGS")  # fmt: skip
_PREFIX: Final = "gliotrail-"
_PATIENCE_S: Final = 300.0
_STOP_WAIT_S: Final = 300


def on_cluster(stage: str, *words: str) -> bool:
    """Run a stage as a job of the cluster at RAY_ADDRESS; False without one, and in the job itself.

    False, too, if GLIOTRAIL_DIRECT says that all machines of the cluster see this checkout.

    Raises:
        ClusterError, DataError, ParamsError: as `submit`.
        Stopped, SystemExit: as `submit`.
    """
    if not os.environ.get("RAY_ADDRESS") or os.environ.get(JOB) or os.environ.get(DIRECT):
        return False
    submit(stage, words)
    return True


def submit(stage: str, words: Sequence[str] = (), follow: bool = True) -> None:
    """Send a stage to the cluster, or find it there, follow it, and lay out its outputs.

    Args:
        words: arguments of the stage's script.
        follow: False only sends it.

    Raises:
        ParamsError: no such stage.
        ClusterError: no cluster or no store, or one that does not answer; Ray's versions differ.
        DataError: the outputs can't be fetched.
        Stopped: by Ctrl-C or SIGTERM; the job goes on, unless the user chose to cancel it.
        SystemExit: the job failed; with its exit code.
    """
    client = _client()
    described = _describe(stage, words)
    with _answering():
        job, status = next(reversed(_jobs(client, f"{described.job}-")), ("", ""))
        if status in {"PENDING", "RUNNING", "SUCCEEDED"}:
            say(f"{stage}: found job {job}, {status.lower()}")
        else:  # Ray wants a new name for each attempt
            job = f"{described.job}-{int(job.rpartition('-')[2]) + 1 if job else 1}"
            _send(client, replace(described, job=job))
            say(f"{stage}: sent as job {job}")
    if not follow:
        return
    if status != "SUCCEEDED":
        with _sigterm_raises():
            _follow(client, job, stage)
    _take(job)


def cancel(stage: str, words: Sequence[str] = ()) -> None:
    """Ask the stage's job of this checkout's inputs to stop at its next step, with a checkpoint.

    Args:
        stage: or a job's name.

    Raises:
        ParamsError: no such stage.
        ClusterError: no such job is running, or no cluster.
    """
    from gliotrail.cluster.content_store import dvc_digest

    client = _client()
    own = stage
    if not stage.startswith(_PREFIX):
        own = _name(stage, words, {path: dvc_digest(Path(path)) for path in _inputs(stage)})
    with _answering():
        alike = _jobs(client, f"{own.rpartition('-')[0]}-")
        going_on = [job for job, status in alike if status in {"PENDING", "RUNNING"}]
        for job in going_on:
            if own in {job, job.rpartition("-")[0]}:
                client.stop_job(job)
                say(f"job {job} was asked to stop")
                return
    raise ClusterError(
        f"no job {own} goes on",
        where=os.environ["RAY_ADDRESS"],
        got=", ".join(going_on) or None,
        do="`gliotrail submit JOB --cancel` stops one of other inputs" if going_on else None,
    )


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the errors of Ray's client into one line.

    Raises:
        ClusterError: the cluster does not answer, or refuses.
    """
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, RayError) as error:
        got = f"{type(error).__name__}: {error}".split("\n")[0]
        where = f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
        do = "`gliotrail doctor` looks closer"
        raise ClusterError("no Ray jobs", where=where, got=got, do=do) from None


def _client() -> "JobSubmissionClient":
    import ray  # seconds of imports
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # else it logs each connection
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        do = "such as http://HOST:8265"
        raise ClusterError("RAY_ADDRESS", wanted="a cluster's address", got="nothing", do=do)
    if "://" not in address:
        from gliotrail.cluster.connection import check_answer

        check_answer(address)
    with _answering():
        client = JobSubmissionClient()
        theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    if theirs != ray.__version__:
        what, do = "Ray's versions differ", "install the same on both"
        raise ClusterError(what, where=address, wanted=ray.__version__, got=theirs, do=do)
    return client


def _describe(stage: str, words: Sequence[str]) -> "JobInputs":
    """The stage's inputs; its data are in the store afterwards."""
    from gliotrail.cluster.content_store import put
    from gliotrail.cluster.job_inputs import JobInputs, versions_here
    from gliotrail.runs.code_snapshot import code_dir
    from gliotrail.runs.lineage import Origin
    from gliotrail.runs.store import Store

    inputs, described = _inputs(stage), _stage(stage)
    env = {name: os.environ[name] for name in (*_ADDRESSES, *_LAYOUT) if os.environ.get(name)}
    if "@" in env.get("MLFLOW_TRACKING_URI", ""):
        do = "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to the cluster's machines"
        raise ParamsError("MLFLOW_TRACKING_URI: a password would be sent along", do=do)
    store = Store.of_checkout()
    outs = []
    for kind in ("outs", "metrics"):
        outs += [_path(out, words) for out in described.get(kind, [])]
    digests = {path: put(Path(path), store) for path in inputs}
    origin = Origin.now().of_checkout()
    files = origin.get("gliotrail.code.files")
    return JobInputs(
        _name(stage, words, digests),
        stage,
        list(words),
        digests,
        outs,
        store.without_secrets(),
        versions_here(),
        origin,
        put(code_dir(files), store) if files else None,
        env,
    )


def _stage(name: str) -> dict[str, Any]:
    """A stage of dvc.yaml.

    Raises:
        ParamsError: there is no such stage.
    """
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    if name not in stages:
        raise ParamsError("no such stage", wanted=" | ".join(stages), got=repr(name))
    return dict(stages[name])


def _inputs(stage: str) -> list[str]:
    """The paths of its input data that exist."""
    inputs = [
        path for path in _stage(stage).get("deps", []) if not path.endswith(".py") and path != OWN
    ]
    first = read_yaml(Path("params.yaml"))["train"]["init"]
    if Path(first).is_file() and not Path(first).is_absolute():
        inputs.append(first)
    return [path for path in inputs if Path(path).exists()]


def _name(stage: str, words: Sequence[str], digests: Mapping[str, str]) -> str:
    """The name of a stage's job, without the number of the attempt."""
    from gliotrail.runs.lineage import digest_of

    code = code_hash(
        [*imported_by(f"gliotrail.cluster.{stage}").values(), *Path(OWN).rglob("*.py")]
    )
    inputs = [digests, read_yaml(Path("params.yaml")), code]
    return f"{_PREFIX}{'-'.join([stage, *words])}-{digest_of(inputs)}"


def _path(out: Any, words: Sequence[str]) -> str:
    """The path of an output in dvc.yaml; in a matrix the item is the stage's only argument."""
    path = out if isinstance(out, str) else next(iter(out))
    return re.sub(r"\$\{item\.\w+}", " ".join(words), path)


def _jobs(client: "JobSubmissionClient", start: str) -> list[tuple[str, str]]:
    """Names and states of jobs, the oldest first."""
    found = [
        (each.submission_id, each.status.value)
        for each in client.list_jobs()
        if each.submission_id and each.submission_id.startswith(start)
    ]
    return sorted(found, key=lambda job: int(job[0].rpartition("-")[2]))


def _send(client: "JobSubmissionClient", job: "JobInputs") -> None:
    env = {
        JOB: job.job,
        "PYTHONPATH": "platform",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        **({"OMP_NUM_THREADS": n} if (n := os.environ.get("OMP_NUM_THREADS")) else {}),
    }
    no_caches = shutil.ignore_patterns("__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        code = package / "platform/gliotrail"
        shutil.copytree(Path(gliotrail.__file__).parent, code, ignore=no_caches)
        for name in ("pipelines", OWN):
            if Path(name).is_dir():
                shutil.copytree(name, package / name, ignore=no_caches)
        for name in ("params.yaml", "dvc.lock"):
            if Path(name).is_file():
                shutil.copyfile(name, package / name)
        job.write(package)
        client.submit_job(
            entrypoint="exec python -m gliotrail.cluster.job_main",
            submission_id=job.job,
            runtime_env={"working_dir": folder, "env_vars": env},
        )


def _follow(client: "JobSubmissionClient", job: str, stage: str) -> None:
    """Show the job's output from its start, until it has ended well."""
    shown, seen_s = 0, time.monotonic()

    def show(text: str, position: int = 0) -> None:
        nonlocal shown
        sys.stderr.write(text[max(0, shown - position) :])
        sys.stderr.flush()
        shown = max(shown, position + len(text))

    async def tail() -> None:
        position = 0  # it begins at the start each time
        async for text in client.tail_job_logs(job):
            show(text, position)
            position += len(text)

    status = ""
    while not status:
        try:
            now = client.get_job_status(job).value
            seen_s = time.monotonic()
            if now == "PENDING":
                time.sleep(0.5)
            elif now == "RUNNING":
                asyncio.run(tail())
            else:
                status = now
                show(client.get_job_logs(job))
        except KeyboardInterrupt as signalled:
            terminated = isinstance(signalled, _Terminated)
            if not terminated and _ask(job):
                client.stop_job(job)
                say(f"{stage}: job {job} stops at its next step, with a checkpoint")
                continue
            by = "SIGTERM" if terminated else "Ctrl-C"
            do = f"the same command finds it again, `gliotrail submit {job} --cancel` ends it"
            raise Stopped(f"stopped by {by}: job {job} goes on", do=do) from None
        except (RuntimeError, OSError) as error:  # of the connection
            if re.search(r"\b404\b", str(error)):
                raise _forgotten(job) from None
            if time.monotonic() - seen_s > _PATIENCE_S:
                what, do = f"job {job}: the cluster does not answer", "the same command follows it"
                raise ClusterError(what, got=error, do=do) from None
            time.sleep(1)
    if status == "STOPPED":
        raise Stopped(f"job {job} was cancelled", do="the same command goes on")
    if status == "FAILED":
        ended = client.get_job_info(job)
        code = ended.driver_exit_code or 1
        say(f"error: job {job} ended with exit code {code}; see its output above")
        raise SystemExit(code)


def _forgotten(job: str) -> ClusterError:
    """The error for a head that restarted, and lost its jobs."""
    what = f"job {job} is gone: the cluster's head answers, but has no such job"
    do = "the head was restarted; the same command sends it again, and its training goes on"
    return ClusterError(what, do=do)


class _Terminated(KeyboardInterrupt):
    """Raised by SIGTERM."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ask(job: str) -> bool:
    """Whether to cancel a job; without a terminal it goes on."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"\njob {job}: detach and let it go on (Enter), or cancel it (c)? ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower().startswith("c")


def _take(job: str) -> None:
    """Lay out the outputs of a job that ended well."""
    from gliotrail.cluster.content_store import download
    from gliotrail.cluster.job_inputs import result_name
    from gliotrail.runs.store import Store

    store = Store.of_checkout()
    content = store.read(result_name(job))
    if content is None:
        raise DataError(f"no outputs of job {job}", where=store.url)
    for path, digest in json.loads(content).items():
        with replacing(Path(path)) as partial:
            download(digest, store, partial)
