"""From a model back to its origin: run, commit, params, data, and the commands that rebuild it.

Also: the differences between two runs. Everything is read from MLflow; nothing is changed.
"""

import configparser
import json
import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gliotrail.errors import TrackingError
from gliotrail.paths import git, main_checkout
from gliotrail.runs.addresses import shown, tracking_uri
from gliotrail.runs.code_snapshot import CHANGES, UNTRACKED, applies, code_dir
from gliotrail.runs.lineage import OWN_LOOP
from gliotrail.tracking.client import ID_TAG, client, one_line
from gliotrail.tracking.ensemble_run import MEMBERS_TAG
from gliotrail.tracking.evaluation_run import held_out
from gliotrail.tracking.once import SHA256_TAG
from gliotrail.tracking.registry import MODEL, find_version

COMMIT_TAG: Final = "mlflow.source.git.commit"
INIT_TAG: Final = "gliotrail.init_sha256"
"""SHA-256 of the weights that the run started from."""


def trace(name: str) -> dict[str, Any]:
    """Everything that a model or a run came from, as plain values.

    Args:
        name: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a run's id: MLflow's, its own, or
            the name of its folder.

    Raises:
        TrackingError: no such model or run, or MLflow can't be reached.
    """
    with one_line():
        server = client()
        version, run = resolve(server, name)
        tags, params = run.data.tags, run.data.params
        return {
            "model": version and _model(version),
            "run": {
                "id": run.info.run_id,
                "own_id": tags.get(ID_TAG),
                "name": run.info.run_name,
                "status": run.info.status,
                "inputs": tags.get("gliotrail.inputs"),
                "command": tags.get("env.command"),
            },
            "code": _code(tags) | {"problem": problem_of(server, run)},
            "environment": _with_prefix(tags, "env."),
            "params": dict(sorted(params.items())),
            "data": [
                {"path": path, "digest": digest, "at": _places(digest)}
                for one in (run, *map(server.get_run, members_of(run)))
                for path, digest in datasets_of(one).items()
            ],
            "parent": _parent(server, params.get("init"), tags.get(INIT_TAG)),
            "measures": dict(sorted((run.data.metrics | held_out(server, run)).items())),
            "commands": _commands(server, run),
        }


def compare(first: str, second: str) -> dict[str, dict[str, tuple[Any, Any]]]:
    """The differences between two models or runs: by kind, then by name, the two values.

    Raises:
        TrackingError: as `trace`.
    """
    with one_line():
        server = client()
        one, other = (_facts(server, resolve(server, name)[1]) for name in (first, second))
    return {
        kind: {
            key: (one[kind].get(key), other[kind].get(key))
            for key in sorted(one[kind].keys() | other[kind].keys())
            if one[kind].get(key) != other[kind].get(key)
        }
        for kind in one
    }


def resolve(server: MlflowClient, name: str) -> tuple[ModelVersion | None, Run]:
    """The named model version, if it is one, and its run.

    Raises:
        TrackingError: there is no such model or run.
    """
    if ":/" in name:
        version = find_version(server, name)
        return version, server.get_run(str(version.run_id))
    try:
        return None, server.get_run(name)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
    experiments = [e.experiment_id for e in server.search_experiments(max_results=1000)]
    for key in (f"tags.`{ID_TAG}`", "tags.`gliotrail.inputs`", "attributes.run_id"):
        if not name.isalnum():
            break
        for pattern in (f"{key} = '{name}'", f"{key} LIKE '{name}%'"):
            found = server.search_runs(experiments, pattern, max_results=5)
            if len({run.data.tags.get(ID_TAG, run.info.run_id) for run in found}) > 1:
                got = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in found)
                raise TrackingError(name, wanted="the beginning of one run's id", got=got)
            if found:
                return None, found[0]
    do = f"take models:/{MODEL}@champion, or an id that `gliotrail runs status` shows"
    raise TrackingError(f"{name}: no such run", where=shown(tracking_uri()), do=do)


def _model(version: ModelVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(version.aliases or ()),
        "sha256": version.tags.get(SHA256_TAG),
    }


def _code(tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "commit": tags.get(COMMIT_TAG),
        "uncommitted_changes": {"true": True, "false": False}.get(
            tags.get("gliotrail.uncommitted_changes", "")
        ),
        "base": tags.get("gliotrail.code.base"),
        "files": tags.get("gliotrail.code.files"),
        "problem": tags.get("gliotrail.code.problem"),
    }


def problem_of(server: MlflowClient, run: Run) -> str | None:
    """Why a run's code can't be rebuilt, if so: recorded at its start, or found now.

    Older versions' patches may not apply: git wrote them by its user's settings.
    """
    tags = run.data.tags
    problem, base = tags.get("gliotrail.code.problem"), tags.get("gliotrail.code.base", "")
    if problem or "gliotrail.code.files" not in tags or not git("cat-file", "-t", base):
        return problem
    patch = code_dir(tags["gliotrail.code.files"]) / CHANGES
    with TemporaryDirectory() as folder:
        if not patch.is_file():
            recorded = {file.path for file in server.list_artifacts(run.info.run_id, "code")}
            if f"code/{CHANGES}" not in recorded:
                return None
            patch = Path(server.download_artifacts(run.info.run_id, f"code/{CHANGES}", folder))
        if applies(patch.read_bytes(), base, Path.cwd()):
            return None
    return f"its recorded patch does not apply to {base}: git wrote it by its user's settings"


def _with_prefix(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        key.removeprefix(prefix): value
        for key, value in sorted(tags.items())
        if key.startswith(prefix)
    }


def _parent(server: MlflowClient, init: str | None, digest: str | None) -> dict[str, Any] | None:
    """The weights that the run started from, and their registered model, if any."""
    if digest is None:
        return None
    known = server.search_model_versions(f"tags.`{SHA256_TAG}` = '{digest}'")
    return {"init": init, "sha256": digest, "model": _model(known[0]) if known else None}


def members_of(run: Run) -> list[str]:
    """MLflow's ids of the runs of an ensemble's members."""
    members = run.data.tags.get(MEMBERS_TAG, "")
    return members.split(",") if members else []


def datasets_of(run: Run) -> dict[str, str]:
    """DVC's digest of each input dataset, by path."""
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    return {d.dataset.name: d.dataset.digest for d in inputs}


def _places(digest: str) -> list[str]:
    """Where the data of a digest are for this checkout: cache, then remotes."""
    config = dvc_config(main_checkout(Path.cwd()))
    cached = Path(config["cache"]["dir"], "files/md5", digest[:2], digest[2:]).is_file()
    remotes = [config.get(section, "url", fallback="") for section in _remotes(config)]
    return ["cache"] * cached + [shown(url) for url in remotes]


def dvc_config(root: Path) -> configparser.RawConfigParser:
    """DVC's settings of a checkout and the place of its cache, with absolute paths."""
    config = configparser.RawConfigParser()
    config.read([root / ".dvc/config", root / ".dvc/config.local"])
    if not config.has_option("cache", "dir"):
        config.read_dict({"cache": {"dir": "cache"}})
    for section, key in (("cache", "dir"), *((remote, "url") for remote in _remotes(config))):
        path = config.get(section, key, fallback="://")
        if "://" not in path:
            absolute = os.path.normpath(root / ".dvc" / Path(path).expanduser())
            config.set(section, key, absolute)
    return config


def _remotes(config: configparser.RawConfigParser) -> list[str]:
    return [section for section in config.sections() if section.startswith("'remote")]


def _commands(server: MlflowClient, run: Run) -> list[str]:
    """The commands that rebuild it, in a folder of its own."""
    if members := members_of(run):
        return [f"gliotrail trace {member}" for member in members]
    tags, run_id = run.data.tags, run.info.run_id
    base = tags.get("gliotrail.code.base") or tags.get(COMMIT_TAG)
    if base in {None, "unknown"} or problem_of(server, run):
        return []
    get = f"mlflow artifacts download --run-id {run_id}"
    from_here = git("remote", "get-url", "origin") or "."
    commands = [
        f"export MLFLOW_TRACKING_URI={quote(shown(tracking_uri()))}",
        *(f"git clone {shown(from_here)} rebuilt", "cd rebuilt", f"git checkout {base}"),
    ]
    if tags.get("gliotrail.code.files"):
        commands += [
            f"{get} --artifact-path code --dst-path .gliotrail/rebuild",
            f"for f in .gliotrail/rebuild/code/{CHANGES}; "
            "do test ! -s $f || git apply --whitespace=nowarn $f; done",
            f"for f in .gliotrail/rebuild/code/{UNTRACKED}; do test ! -s $f || tar xzf $f; done",
        ]
    is_own = tags.get("gliotrail.kind") == OWN_LOOP
    recorded = {file.path for file in server.list_artifacts(run_id)} if is_own else None
    for name in ("params.yaml", "dvc.lock"):
        if recorded is None or name in recorded:
            commands.append(f"{get} --artifact-path {name} --dst-path .")
    if recorded is None or "dvc.lock" in recorded:
        commands += _data_commands()
    commands.append(f"python {tags.get('env.command')}" if is_own else "dvc repro train")
    return commands


def _data_commands() -> list[str]:
    """Those that bring the data of dvc.lock: from a remote, or from this checkout's cache."""
    config = dvc_config(main_checkout(Path.cwd()))
    if _remotes(config):
        return ["dvc pull --allow-missing"]
    cache = quote(config["cache"]["dir"])
    return [f"dvc cache dir --local {cache}", "dvc checkout --allow-missing"]


def _facts(server: MlflowClient, run: Run) -> dict[str, dict[str, Any]]:
    code = _code(run.data.tags)
    return {
        "params": dict(run.data.params),
        "data": datasets_of(run),
        "code": {key: code[key] for key in ("commit", "base", "files")},
        "environment": _with_prefix(run.data.tags, "env."),
        "metrics": run.data.metrics | held_out(server, run),
    }


def as_text(value: Any) -> str:
    """A value for a table's cell."""
    return value if isinstance(value, str) else json.dumps(value)
