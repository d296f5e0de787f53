"""Shell completion: names of this checkout's cases, stages, runs and models.

Nothing here imports MLflow, which takes seconds: runs and versions are read from the disk.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

STAGES = ("pretrain", "sweep", "train", "evaluate", "crossvalidate")


def _quietly(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The names that begin with the typed text; none on any error."""

    def completed(incomplete: str) -> list[str]:
        try:
            return sorted({name for name in names() if name.startswith(incomplete)})
        except Exception:  # noqa: BLE001 - a completion can't show an error
            return []

    return completed


def _cases() -> Iterable[str]:
    return list(json.loads(Path("data/prepare/fingerprint.json").read_bytes())["cases"])


def _sizes() -> Iterable[str]:
    return [path.name for path in Path("data/patch").iterdir() if path.is_dir()]


def _runs() -> Iterable[str]:
    from gliotrail.runs.local_runs import all_runs

    return [run.root.name for run in all_runs()]


def _versions() -> list[tuple[str, str]]:
    from gliotrail.paths import state_dir

    file = state_dir() / "mlflow.db"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT name, version FROM model_versions").fetchall()


def _models() -> Iterable[str]:
    known = _versions()
    champions = [f"models:/{name}@champion" for name in {name for name, _ in known}]
    return [*champions, *(f"models:/{name}/{number}" for name, number in known)]


cases = _quietly(_cases)
sizes = _quietly(_sizes)
runs = _quietly(_runs)
stages = _quietly(lambda: STAGES)
versions = _quietly(lambda: [str(number) for _, number in _versions()])
models = _quietly(_models)
models_and_runs = _quietly(lambda: [*_models(), *_runs()])
