"""`gliotrail.track`: track any training loop; a kill neither loses nor doubles a point."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from gliotrail.errors import GliotrailError, ParamsError, Stopped
from gliotrail.files import sha256
from gliotrail.paths import made_state_dir
from gliotrail.plain_yaml import read_yaml
from gliotrail.progress import say
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import OWN_LOOP, Origin, as_plain, describe, digest_of
from gliotrail.runs.local_runs import look_at
from gliotrail.runs.tracked_run import CHECKPOINT_EVERY_S, TrackedRun
from gliotrail.tracking.delivery_thread import Hold, tracked

_PARAMS: Final = "params"
_OF_DVC: Final = ("params.yaml", "dvc.lock")
_DIGEST: Final = 32


@contextmanager
def track(
    experiment: str,
    *,
    inputs: Mapping[str, Any],
    name: str | None = None,
    parent: TrackedRun | str | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Iterator[TrackedRun]:
    """Track the block as one run, identified by its inputs.

    The same inputs are the same run: it goes on from its last checkpoint, or has nothing to do if
    it is FINISHED. A run is FINISHED when the block ends, FAILED if the block raises, KILLED if it
    is stopped or killed. Another process delivers to MLflow; docs/reference/track.md says what is
    guaranteed.

    Args:
        experiment: its name in MLflow.
        inputs: all that the result depends on. A `Path` anywhere in it, and a text directly in it
            that names a file or a folder, stand for their contents. Values under `params` become
            MLflow's params by their own names.
        name: of the run in MLflow; by default the inputs' hash.
        parent: the parent run, of the same experiment, or its id.
        checkpoint_every_s: seconds between two checkpoints.

    Raises:
        ParamsError: inputs that are not plain values, or a file that is not there.
        TrackingError: another process holds the run, or a checkpoint is damaged.
        SystemExit: with 130 or 143: Ctrl-C or SIGTERM stopped it, with a checkpoint.
    """
    with (
        begun(experiment, inputs, name, parent) as (folder, _),
        closing(TrackedRun(folder, every_s=checkpoint_every_s)) as run,
    ):
        yield run
        run.finish()


@contextmanager
def begun(
    experiment: str,
    inputs: Mapping[str, Any],
    name: str | None = None,
    parent: TrackedRun | str | None = None,
) -> Iterator[tuple[RunFolder, Hold]]:
    """Hold the run of these inputs while the block works on it, and deliver it.

    Yields:
        its folder, and a function that adds a run below it; a FINISHED run is not opened again.

    Raises:
        ParamsError, TrackingError, SystemExit: as `track`.
    """
    state = made_state_dir()
    data: dict[str, str] = {}
    identity = {"experiment": experiment, "inputs": _identified(inputs, data)}
    folder = RunFolder(state / "runs" / digest_of(identity))
    if folder.is_finished() and look_at(folder).is_known:
        say(f"{folder.root.name}: the same inputs are FINISHED; nothing to do")
        yield folder, lambda _: None
        return
    try:
        with tracked(folder, by_process=True) as hold:
            if not folder.has_begun():
                above = parent.id if isinstance(parent, TrackedRun) else parent
                says = _described(experiment, inputs, identity, data, name, above)
                files = {p: Path(p).read_bytes() for p in _OF_DVC if Path(p).is_file()}
                folder.begin(says, files)
            if not folder.is_finished():
                folder.reopen()
            yield folder, hold
    except Stopped as error:
        say(str(error))
        raise SystemExit(error.code) from None


def _described(
    experiment: str,
    inputs: Mapping[str, Any],
    identity: Mapping[str, Any],
    data: Mapping[str, str],
    name: str | None,
    parent: str | None,
) -> dict[str, Any]:
    origin = Origin.now(tell=False)
    problem, base = (origin.tags.get(f"gliotrail.code.{key}") for key in ("problem", "base"))
    if problem and base != "unknown":
        say(f"not rebuildable: {problem}")
    params = inputs.get(_PARAMS, _of_project())
    own = {key: value for key, value in inputs.items() if key != _PARAMS}
    if isinstance(params, Mapping):
        if _PARAMS in inputs and (both := sorted(map(str, params.keys() & own.keys()))):
            raise ParamsError("inputs", wanted="names of their own", got=f"{both[0]} twice")
        own = {**params, **own}
    elif params is not None:
        own[_PARAMS] = params
    says = describe(
        origin,
        experiment=experiment,
        kind=OWN_LOOP,
        name=name or digest_of(identity),
        params=as_plain(own),
        inputs=identity,
        data=list(data),
        parent=parent,
    )
    known = {dataset["name"] for dataset in says["datasets"]}
    says["datasets"] += [
        {"name": path, "digest": digest[:_DIGEST], "path": path, "context": "training",
         "source": "local"}
        for path, digest in data.items() if path not in known
    ]  # fmt: skip
    says["tags"] |= {f"dvc.{path}": digest for path, digest in origin.digests.items()}
    return says


def _of_project() -> Mapping[str, Any] | None:
    """The params.yaml of a DVC project; None if there is none, or none of plain values."""
    with suppress(GliotrailError):
        if Path("dvc.yaml").is_file() and Path("params.yaml").is_file():
            return dict(read_yaml(Path("params.yaml")))
    return None


def _identified(inputs: Mapping[str, Any], data: dict[str, str]) -> Any:
    """The inputs as plain values, with files' digests in place of their names.

    Args:
        data: receives each file's and folder's digest, by its relative path.
    """
    return {
        str(key): _plain(Path(value) if _names_data(value) else value, str(key), data)
        for key, value in inputs.items()
    }


def _names_data(value: Any) -> bool:
    # `Path.exists` would raise for a text that is too long for a name
    return isinstance(value, str) and value != "" and os.path.exists(value)  # noqa: PTH110


def _plain(value: Any, where: str, data: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{where}.{key}", data) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(each, f"{where}[{n}]", data) for n, each in enumerate(parts)]
    if isinstance(value, Path):
        path = Path(os.path.relpath(value)).as_posix()
        data[path] = _digest_of_files(value, where)
        return {"sha256": data[path]}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy's numbers
        return _plain(value.item(), where, data)
    wanted = "plain values, lists, dictionaries and paths"
    raise ParamsError(f"inputs: {where}", wanted=wanted, got=type(value).__name__)


def _digest_of_files(path: Path, where: str) -> str:
    """The digest of a file's content, or of the names and contents of all files in a folder."""
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise ParamsError(f"inputs: {where}", wanted="a file or a folder", got=path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return _digest_of_all({each.relative_to(path).as_posix(): sha256(each) for each in files})


def _digest_of_all(digests: Mapping[str, str]) -> str:
    """One hash of names and hashes."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()
