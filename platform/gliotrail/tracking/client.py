"""MLflow's experiments and runs. The tag `gliotrail.id` has our own id of a run."""

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from gliotrail.errors import TrackingError
from gliotrail.files import locked
from gliotrail.paths import state_dir
from gliotrail.progress import say
from gliotrail.runs.addresses import database_uri, reason, shown, tracking_uri
from gliotrail.runs.lineage import OWN_LOOP
from gliotrail.tracking.experiment_page import BEST_FIRST, TRAINING, VIEW_TAGS, tags_of

ID_TAG: Final = "gliotrail.id"
OWNER_TAG: Final = "gliotrail.owner"
"""The process that holds the run, as JSON."""
STATUS_TAG: Final = "gliotrail.status"
"""The status that the run's own process gave it."""
_SET_UP: Final = "mlflow.set-up."
_ADDRESSES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that hold paths of artifacts."""


def client() -> MlflowClient:
    """A client of `tracking_uri()`; a new SQLite file is set up first, by one process alone."""
    # a training must not hang with the server: MLflow's own defaults wait for many minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # without its database MLflow logs a traceback at each call; we report what it raises
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)  # parts of MLflow make their own clients
    if not uri.startswith("sqlite"):
        return MlflowClient(uri)
    with locked(state_dir() / "mlflow.lock"):
        if uri != database_uri(state_dir()):
            return _opened(uri)
        _set_up(state_dir())
        _follow_a_move(state_dir())
        return _opened_in(state_dir())


def _opened(uri: str) -> MlflowClient:
    made = MlflowClient(uri)
    made.search_experiments(max_results=1)
    return made


def _opened_in(folder: Path) -> MlflowClient:
    made = _opened(database_uri(folder))
    stray = Path(database_uri(folder).removeprefix("sqlite:///")).parent
    if stray != folder:
        with suppress(OSError):  # MLflow makes a folder with the name as written in the address
            os.removedirs(stray)
    return made


def _set_up(state: Path) -> None:
    """Make the checkout's own database in a folder of its own, and move it whole to its place.

    MLflow can't open a database whose set-up was killed.
    """
    database = state / "mlflow.db"
    if database.is_file() and database.stat().st_size:
        return
    for killed in state.glob(f"{_SET_UP}*"):
        shutil.rmtree(killed, ignore_errors=True)
    with TemporaryDirectory(prefix=_SET_UP, dir=state) as folder:
        _opened_in(Path(folder))
        (Path(folder) / database.name).replace(database)


def _follow_a_move(state: Path) -> None:
    """Update the paths of artifacts in the checkout's own database after it was copied or moved.

    They are absolute in MLflow: pictures and models would silently go to the old place.
    """
    database, here = state / "mlflow.db", (state / "artifacts").as_uri()
    if not database.is_file() or not (state / "artifacts").is_dir():
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if not tables.issuperset(table for table, _ in _ADDRESSES):
            return  # not set up yet
        made = connection.execute(
            "SELECT name, artifact_location FROM experiments WHERE artifact_location LIKE ?",
            ("%/artifacts/%",),
        )
        old = {at.removesuffix(f"/{quote(name)}") for name, at in made if quote(name) in at} - {
            here
        }
        for before in sorted(old):
            for table, column in _ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"WHERE substr({column}, 1, ?) = ?",
                    (here, len(before) + 1, len(before) + 1, f"{before}/"),
                )
            say(f"the checkout was copied or moved: MLflow's artifacts are looked for in {here}")


@contextmanager
def one_line() -> Iterator[None]:
    """Turn MLflow's errors into one line.

    Raises:
        TrackingError: the server refuses or can't be reached.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        got = reason(error)
        raise TrackingError("MLflow", where=shown(tracking_uri()), got=got) from error


def experiment_id(server: MlflowClient, name: str, of: Mapping[str, str] | None = None) -> str:
    """The experiment of that name, made if need be. A description by a person stays.

    Args:
        of: the tags of a run in it; experiments of `gliotrail.track` get no views of ours.

    An experiment that was deleted in MLflow's pages is restored, with its runs: MLflow keeps its
    name, so that no other could be made.
    """
    found = server.get_experiment_by_name(name) or _make_experiment(server, name)
    number = str(found.experiment_id)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        server.restore_experiment(number)
        say(f"MLflow's experiment {name} had been deleted: it is restored, with its runs")
    for key, value in tags_of(number, (of or {}).get("gliotrail.kind") != OWN_LOOP).items():
        known = found.tags.get(key)
        if known is None or (key.startswith(VIEW_TAGS) and known != value):
            server.set_experiment_tag(number, key, value)
    return number


def _make_experiment(server: MlflowClient, name: str) -> Experiment:
    """Make it; without a server, its artifacts lie in `.gliotrail/`, like the database."""
    local = "sql" in tracking_uri().partition(":")[0]
    location = (state_dir() / "artifacts" / name).as_uri() if local else None
    try:
        return server.get_experiment(server.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process was first
        found = server.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def find_run(server: MlflowClient, experiment: str, own_id: str) -> Run | None:
    """The MLflow run with our own id."""
    return next(iter(runs_of(server, experiment_id(server, experiment), own_id)), None)


def runs_of(server: MlflowClient, number: str, own_id: str) -> list[Run]:
    """All runs of an experiment with our own id: the one that counts, then its twins."""
    found = server.search_runs([number], f"tags.`{ID_TAG}` = '{own_id}'", max_results=100)
    return sorted(found, key=lambda run: (not is_ours(run), run.info.run_id))


def is_ours(run: Run) -> bool:
    """Whether a process has written more of a run than its creation."""
    has_spoken = OWNER_TAG in run.data.tags or STATUS_TAG in run.data.tags
    return has_spoken or run.info.status != "RUNNING"


def every_run(server: MlflowClient, condition: str) -> Iterator[tuple[Run, str]]:
    """Our runs in all experiments, each with our own id."""
    experiments = [e.experiment_id for e in server.search_experiments(max_results=1000)]
    token = None
    while experiments:
        text = f"{condition} and tags.`{ID_TAG}` LIKE '%'"
        page = server.search_runs(experiments, text, max_results=1000, page_token=token)
        yield from ((run, run.data.tags[ID_TAG]) for run in page)
        token = page.token
        if not token:
            return


def existing_run(server: MlflowClient, experiment: str, own_id: str) -> Run:
    """Like `find_run`, for a run that must be there.

    Raises:
        TrackingError: there is none.
    """
    found = find_run(server, experiment, own_id)
    if found is None:
        raise TrackingError(
            f"no run {own_id} in experiment {experiment}",
            where=shown(tracking_uri()),
            do="deliver it with `gliotrail runs sync`",
        )
    return found


def page_of_runs() -> str:
    """The end of the address of MLflow's page of trainings, the best first."""
    found = client().get_experiment_by_name("gliotrail")
    place = f"experiments/{found.experiment_id}/runs?{BEST_FIRST}" if found else f"?{TRAINING}"
    return f"#/{place}"
