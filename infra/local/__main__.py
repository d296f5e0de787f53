"""`python -m infra.local COMMAND`: PostgreSQL, S3, MLflow's server and a Ray head on this machine.

`start` makes what is missing and says what to `source`; `stop` ends exactly what was started.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from gliotrail.errors import ClusterError, one_line_errors
from gliotrail.files import locked
from gliotrail.paths import state_dir
from infra.local import others, postgres
from infra.local import state as of_state
from infra.local.processes import Processes, Service
from infra.local.settings import Settings, is_free, load

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
PORTS = {"postgres": "postgres", "seaweedfs": "s3", "mlflow": "mlflow", "ray": "ray"}
State = Annotated[
    Path | None, typer.Option("--state", help="Folder of all state; .gliotrail/services if absent.")
]


def folder_of(state: Path | None) -> Path:
    """Where an installation is kept."""
    return (state or state_dir() / "services").absolute()


def services(settings: Settings) -> list[Service]:
    """All, in the order in which they can be stopped."""
    return [
        others.ray_head(settings),
        others.mlflow(settings),
        others.seaweedfs(settings),
        postgres.service(settings),
    ]


def start_all(settings: Settings) -> None:
    """Start what doesn't run, and wait until it answers.

    Raises:
        ClusterError: one doesn't; what was started here is stopped again.
    """
    processes = Processes(settings.folder)
    postgres.prepare(settings)
    others.ray_session(settings).mkdir(mode=0o700, exist_ok=True)
    ray, mlflow, seaweedfs, database = services(settings)
    new = [each for each in services(settings) if not processes.is_running(each.name)]
    for each in new:
        port = settings.ports[PORTS[each.name]]
        if not is_free(port):
            do = f"end what listens there, or change it in {settings.folder / 'settings.json'}"
            raise ClusterError(each.name, wanted=f"port {port}", got="a port that is taken", do=do)
    try:
        for each in (database, seaweedfs, ray):
            processes.start(each)
        processes.wait(database)
        postgres.create_databases(settings)
        processes.start(mlflow)
        for each in (seaweedfs, ray, mlflow):
            processes.wait(each)
    except BaseException:
        processes.stop(new)
        raise


def stop_all(settings: Settings) -> list[str]:
    """End what was started; which ran."""
    return Processes(settings.folder).stop(services(settings))


def existing(state: Path | None) -> Settings:
    """The settings of an installation that was made before.

    Raises:
        ClusterError: there is none.
    """
    folder = folder_of(state)
    if not (folder / "settings.json").is_file():
        raise ClusterError("nothing was ever started here", where=folder)
    return load(folder)


@app.command()
def start(
    state: State = None,
    host: Annotated[
        str | None, typer.Option(help="Address for S3, MLflow and Ray; kept. First 127.0.0.1.")
    ] = None,
) -> None:
    """Start PostgreSQL, SeaweedFS, MLflow's server and a Ray head; what runs already is left so."""
    folder = folder_of(state)
    with locked(folder / "commands.lock"):
        settings = load(folder, host)
        start_all(settings)
    for name in reversed(PORTS):
        print(f"{name:10} {settings.at(PORTS[name])}")
    print(f"dashboard  http://{settings.at('dashboard')}")
    if not settings.is_loopback:
        print("warning: passwords and tokens cross the network in plain text: see infra/README.md")
    print(f"now: source {settings.folder / 'env'}")


@app.command()
def stop(state: State = None) -> None:
    """Stop exactly what `start` started; all data stay."""
    settings = existing(state)
    with locked(settings.folder / "commands.lock"):
        print(f"stopped: {', '.join(stop_all(settings)) or 'nothing, nothing ran'}")


@app.command()
def status(
    state: State = None, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """Tell of each whether it answers. Exit code 1 where one does not."""
    settings = existing(state)
    told = [_look_at(settings, each) for each in reversed(services(settings))]
    if as_json:
        print(json.dumps(told, indent=1))
    else:
        for each in told:
            print(f"{each['name']:10} {each['state']:15} {each['address']:21} {each['log']}")
    if any(each["state"] != "answers" for each in told):
        raise typer.Exit(1)


def _look_at(settings: Settings, service: Service) -> dict[str, Any]:
    processes = Processes(settings.folder)
    owner = processes.owners().get(service.name)
    if processes.is_running(service.name):
        found = "answers" if service.is_ready() else "does not answer"
    else:
        found = "not started" if owner is None else "died"
    return {
        "name": service.name,
        "state": found,
        "address": settings.at(PORTS[service.name]),
        "pid": owner.pid if owner else None,
        "log": str(processes.log(service.name)),
    }


@app.command()
def backup(file: Path, state: State = None) -> None:
    """Write MLflow's databases and S3's objects to one file. It may run meanwhile."""
    settings = existing(state)
    with locked(settings.folder / "commands.lock"):
        print(f"{file}: {of_state.backup(settings, file.absolute()) / 1e6:.1f} MB")


@app.command()
def restore(file: Path, state: State = None) -> None:
    """Make the state from a backup, where there is none yet; `start` then starts on it."""
    settings = load(folder_of(state))
    with locked(settings.folder / "commands.lock"):
        of_state.restore(settings, file)
    print(f"restored to {settings.folder}; now: python -m infra.local start")


@app.command()
def upgrade(state: State = None) -> None:
    """After new packages: move the databases to the newest PostgreSQL and MLflow's schema."""
    settings = existing(state)
    with locked(settings.folder / "commands.lock"):
        ran = stop_all(settings)
        kept = of_state.upgrade(settings)
        if ran:
            start_all(settings)
    print(f"upgraded; as it was before: {kept}")


@app.command()
def remove(
    state: State = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do remove all data.")] = False,
) -> None:
    """Stop all and remove all data, MLflow's runs and S3's objects included."""
    settings = existing(state)
    if not yes:
        what = "this removes MLflow's runs and S3's objects"
        raise ClusterError(what, where=settings.folder, do="with --yes it does")
    stop_all(settings)
    postgres.delete(settings)
    shutil.rmtree(others.ray_session(settings), ignore_errors=True)
    shutil.rmtree(settings.folder)
    print(f"removed {settings.folder}")


if __name__ == "__main__":
    with one_line_errors():
        app()
