"""A PostgreSQL for MLflow: loopback only, by password.

It refuses to run as root. Where this is root, it runs as the user `postgres`, who sees no folder of
root's: its data are then in /var/lib/gliotrail.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gliotrail.errors import ClusterError
from infra.local.processes import Service
from infra.local.settings import LOOPBACK, USER, Settings

DATABASES = ("mlflow", "mlflow_auth")


def programs(version: str | None = None) -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps out of PATH.

    Args:
        version: the major version, such as "15"; None is the newest.
    """
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += [initdb.parent for initdb in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if version is not None:
        folders = [folder for folder in folders if folder.parent.name == version]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


def home(settings: Settings) -> Path:
    """The folder that `data` is in."""
    if os.geteuid():
        return settings.folder / "postgres"
    digest = hashlib.sha256(str(settings.folder.resolve()).encode()).hexdigest()
    return Path("/var/lib/gliotrail") / digest[:12]


def prepare(settings: Settings) -> None:
    """Make the database's files, unless there are some.

    Raises:
        ClusterError: PostgreSQL, or as root its user, is not there.
    """
    folder = home(settings)
    if (folder / "data/PG_VERSION").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "data", ignore_errors=True)  # of an attempt that was broken off
    options = _options(folder)
    if os.geteuid() == 0:
        shutil.chown(folder, options["user"], options["group"])
    folder.chmod(0o700)
    with tempfile.NamedTemporaryFile("w", prefix="gliotrail-") as password:
        password.write(settings.secrets["postgres"])
        password.flush()
        if os.geteuid() == 0:
            shutil.chown(password.name, options["user"])
        words = ["-U", USER, "-A", "scram-sha-256", "--pwfile", password.name, "-E", "UTF8"]
        command = [_program("initdb"), "-D", str(folder / "data"), *words, "--no-instructions"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        shutil.rmtree(folder / "data", ignore_errors=True)
        raise ClusterError("PostgreSQL's initdb failed", got=done.stderr.strip()[-300:])


def delete(settings: Settings, folder: Path | None = None) -> None:
    """Remove a folder of data, or all."""
    shutil.rmtree(folder or home(settings), ignore_errors=True)


def service(settings: Settings) -> Service:
    """The server itself, in the version that wrote its data."""
    folder = home(settings)
    version = folder / "data/PG_VERSION"
    written_by = version.read_text().strip() if version.is_file() else None
    return Service(
        "postgres",
        [
            _program("postgres", written_by), "-D", str(folder / "data"),
            "-p", str(settings.ports["postgres"]), "-c", f"listen_addresses={LOOPBACK}",
            "-c", "unix_socket_directories=",
        ],
        lambda: run(settings, "psql", "-d", "postgres", "-c", "select 1", check=False) == 0,
        options=_options(folder),
        stop_signal=signal.SIGINT,  # rolls open transactions back and ends; SIGTERM would wait
    )  # fmt: skip


def create_databases(settings: Settings) -> None:
    """MLflow's own and that of its users, unless they are there."""
    for name in DATABASES:
        if run(settings, "psql", "-d", name, "-c", "select 1", check=False):
            run(settings, "createdb", name)


def uri(settings: Settings, database: str) -> str:
    """For SQLAlchemy. It holds the password."""
    secret = settings.secrets["postgres"]
    return f"postgresql+psycopg2://{USER}:{secret}@{settings.at('postgres')}/{database}"


def run(settings: Settings, name: str, *words: str, check: bool = True) -> int:
    """Run one of PostgreSQL's client programs on this server.

    Returns:
        its exit code.

    Raises:
        ClusterError: it was not 0 (unless check=False).
    """
    env = {"PGPASSWORD": settings.secrets["postgres"], "PGCONNECT_TIMEOUT": "10"}
    at = ["-h", LOOPBACK, "-p", str(settings.ports["postgres"]), "-U", USER, "-w"]
    command = [_program(name), *at, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | env
    )
    if check and done.returncode:
        raise ClusterError(f"{name} failed", got=done.stderr.strip()[-300:])
    return done.returncode


def _program(name: str, version: str | None = None) -> str:
    folder = programs(version)
    if folder is None:
        what = f"PostgreSQL {version}" if version else "PostgreSQL"
        raise ClusterError(f"{what} is not installed", do="`make services` installs one")
    return str(folder / name)


def _options(folder: Path) -> dict[str, Any]:
    """For Popen: as somebody else than root."""
    if os.geteuid():
        return {"cwd": folder}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        what = "PostgreSQL refuses to run as root, and there is no user `postgres`"
        raise ClusterError(what, do="`make services` installs it") from None
    return {"cwd": folder, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
