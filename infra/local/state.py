"""Back up, restore and upgrade what the services keep: MLflow's two databases and S3's objects.

A backup is one tar file: `mlflow.dump` and `mlflow_auth.dump` (pg_dump's own format), then
`objects/BUCKET/KEY`. Databases come first: what they name is then surely among the objects.
"""

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gliotrail.errors import ClusterError, GliotrailError
from gliotrail.files import replacing
from infra.local import others, postgres
from infra.local.processes import Processes, Service
from infra.local.settings import BUCKETS, USER, Settings


@contextmanager
def running(settings: Settings, services: list[Service]) -> Iterator[None]:
    """Within the block these run; what did not before is stopped again."""
    processes = Processes(settings.folder)
    new = [each for each in services if not processes.is_running(each.name)]
    try:
        for each in new:
            processes.start(each)
        for each in services:
            processes.wait(each)
        yield
    finally:
        processes.stop(new)


def backup(settings: Settings, path: Path) -> int:
    """Write a backup; what was at `path` stays until it is whole.

    Returns:
        its size in bytes.
    """
    stores = [others.seaweedfs(settings), postgres.service(settings)]
    with running(settings, stores), replacing(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for name, dump in dumps(settings, partial.with_suffix(".dump.partial")):
                tar.add(dump, f"{name}.dump")
            for bucket in BUCKETS:
                client = others.s3_client(settings, bucket)
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    for found in page.get("Contents", ()):
                        told = tarfile.TarInfo(f"objects/{bucket}/{found['Key']}")
                        told.size = found["Size"]
                        body = client.get_object(Bucket=bucket, Key=found["Key"])["Body"]
                        tar.addfile(told, body)
    return path.stat().st_size


def dumps(settings: Settings, partial: Path) -> Iterator[tuple[str, Path]]:
    """Each database in a file that lasts until the next."""
    for name in postgres.DATABASES:
        try:
            postgres.run(settings, "pg_dump", "-Fc", "-f", str(partial), name)
            yield name, partial
        finally:
            partial.unlink(missing_ok=True)


def restore(settings: Settings, path: Path) -> None:
    """Make the state of a new installation from a backup; its own secrets stay.

    Raises:
        ClusterError: there is state already, or the file is no backup.
    """
    if (postgres.home(settings) / "data").exists():
        do = "`remove --yes` removes it; or restore to another --state"
        raise ClusterError("there is state already", where=settings.folder, do=do)
    if not tarfile.is_tarfile(path):
        raise ClusterError("no backup", where=path)
    postgres.prepare(settings)
    try:
        with running(settings, [others.seaweedfs(settings), postgres.service(settings)]):
            postgres.create_databases(settings)
            with tarfile.open(path) as tar:
                for member in tar:
                    _put(settings, tar, member)
            _fit(settings)
    except (GliotrailError, tarfile.TarError) as error:
        postgres.delete(settings)
        raise ClusterError("the backup could not be restored", where=path, got=error) from None


def _put(settings: Settings, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    body = tar.extractfile(member)
    assert body is not None
    kind, _, rest = member.name.partition("/")
    if kind == "objects":
        bucket, _, key = rest.partition("/")
        others.s3_client(settings, bucket).upload_fileobj(body, bucket, key)
        return
    partial = settings.folder / ".dump.partial"
    try:
        partial.write_bytes(body.read())
        _fill(settings, member.name.removesuffix(".dump"), partial)
    finally:
        partial.unlink(missing_ok=True)


def _fill(settings: Settings, database: str, dump: Path) -> None:
    words = ("--no-owner", "--exit-on-error", "-d", database, str(dump))
    postgres.run(settings, "pg_restore", *words)


def upgrade(settings: Settings) -> Path:
    """Move the databases to the newest PostgreSQL here, and to this MLflow's schema.

    Must be called where nothing runs. What was is kept beside, and put back where this fails.

    Returns:
        the folder of the databases as they were.
    """
    data = postgres.home(settings) / "data"
    before = data.with_name(f"data-before-{time.strftime('%Y%m%d-%H%M%S')}")
    kept: dict[str, Path] = {}
    with running(settings, [postgres.service(settings)]):
        for name, dump in dumps(settings, settings.folder / ".dump.partial"):
            kept[name] = dump.rename(settings.folder / f".{name}.dump")
    data.rename(before)
    try:
        postgres.prepare(settings)
        with running(settings, [postgres.service(settings)]):
            postgres.create_databases(settings)
            for name, dump in kept.items():
                _fill(settings, name, dump)
            _fit(settings)
    except BaseException:
        postgres.delete(settings, data)
        before.rename(data)
        raise
    finally:
        for dump in kept.values():
            dump.unlink()
    return before


def _fit(settings: Settings) -> None:
    """Bring both databases to this MLflow's schema, and its first user to this password."""
    # by another process, whose environment (not its command line) has the password
    done = subprocess.run(
        [sys.executable, "-c", _FIT],
        env=os.environ
        | {
            "FIT_MLFLOW": postgres.uri(settings, "mlflow"),
            "FIT_AUTH": postgres.uri(settings, "mlflow_auth"),
            "FIT_USER": USER,
            "FIT_PASSWORD": settings.secrets["mlflow"],
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError("MLflow's schema could not be upgraded", got=done.stderr[-300:])


_FIT = """\
import os
import sqlalchemy
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.db.utils import _upgrade_db

_upgrade_db(sqlalchemy.create_engine(os.environ["FIT_MLFLOW"]))
users = SqlAlchemyStore()
users.init_db(os.environ["FIT_AUTH"])
if users.has_user(os.environ["FIT_USER"]):
    users.update_user(os.environ["FIT_USER"], password=os.environ["FIT_PASSWORD"])
"""
