"""What an installation of the services is: its folder, where it listens, and its secrets.

All is made at the first start and stays: in FOLDER/settings.json, readable by its owner alone.
"""

import json
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from gliotrail.errors import ParamsError
from gliotrail.files import replacing

LOOPBACK: Final = "127.0.0.1"
USER: Final = "gliotrail"
BUCKETS: Final = ("gliotrail", "mlflow")
"""Of the clients, and of MLflow's server, for artifacts."""
_PORTS: Final = {
    "postgres": 5433,
    "s3": 8333,
    **dict.fromkeys(("s3_grpc", "master", "master_grpc", "volume", "volume_grpc"), 0),
    **dict.fromkeys(("filer", "filer_grpc"), 0),
    "mlflow": 5000,
    "ray": 6379,
    "dashboard": 8265,
    "ray_agent": 0,
}
"""The usual ones, where they are free; 0 is any."""
_SECRETS: Final = (
    *("id", "postgres", "mlflow", "mlflow_cookies", "ray"),
    *(f"{kind}_{bucket}" for bucket in BUCKETS for kind in ("s3_id", "s3_key")),
)


@dataclass(frozen=True)
class Settings:
    """An installation. Only `host` may change between two starts."""

    folder: Path
    host: str
    ports: Mapping[str, int]
    secrets: Mapping[str, str]

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine is listened to."""
        return ip_address(self.host).is_loopback

    def at(self, service: str) -> str:
        """HOST:PORT."""
        host = LOOPBACK if service == "postgres" else self.host
        return f"{host}:{self.ports[service]}"

    def s3_env(self, bucket: str) -> dict[str, str]:
        """What boto3, DVC, pyarrow and MLflow's server need to use one bucket."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.at('s3')}",
            "AWS_ACCESS_KEY_ID": self.secrets[f"s3_id_{bucket}"],
            "AWS_SECRET_ACCESS_KEY": self.secrets[f"s3_key_{bucket}"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def ray_env(self) -> dict[str, str]:
        """What every process of the cluster, and of its clients, must agree on."""
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray-token")}
        # Ray takes another of the machine's addresses for 127.0.0.1, unless it is told that this
        # is one of the systems on which it makes no clusters
        only_here = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if self.is_loopback else {}
        return auth | only_here

    def node_env(self) -> dict[str, str]:
        """What a node of the cluster has in its environment, and so each worker on it."""
        return self.ray_env() | {
            "MLFLOW_TRACKING_URI": f"http://{self.at('mlflow')}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow"],
            **self.s3_env("gliotrail"),
        }

    def client_env(self) -> dict[str, str]:
        """What a user's shell needs."""
        return {
            "RAY_ADDRESS": self.at("ray"),
            "RAY_API_SERVER_ADDRESS": f"http://{self.at('dashboard')}",  # of `ray job`
            **self.node_env(),
        }


def load(folder: Path, host: str | None = None) -> Settings:
    """An installation's settings; the first time they are made.

    Args:
        folder: of its state.
        host: the address to listen at from now on; None is what it was, at first loopback.

    Raises:
        ParamsError: the host is no address of this machine.
    """
    path = folder / "settings.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        settings = Settings(folder, kept["host"], kept["ports"], kept["secrets"])
    else:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        made = {name: secrets.token_hex(24) for name in _SECRETS}
        settings = Settings(folder, LOOPBACK, _free_ports(_PORTS.items()), made)
    settings = replace(settings, host=host or settings.host)
    _check(settings.host)
    write_private(path, json.dumps(asdict(settings) | {"folder": None}, indent=1))
    write_private(folder / "ray-token", settings.secrets["ray"])
    lines = ["unset RAY_AUTH_TOKEN\n"]  # of another Ray; it would come before the path
    lines += [f"export {name}='{value}'\n" for name, value in settings.client_env().items()]
    write_private(folder / "env", "".join(lines))
    return settings


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner ever could read."""
    with replacing(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether one could listen there."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _free_ports(wanted: Iterable[tuple[str, int]]) -> dict[str, int]:
    with ExitStack() as held:  # all until the end, so that no two are the same
        free = {}
        for name, usual in wanted:
            port = usual if usual and is_free(usual) else 0
            server = held.enter_context(socket.create_server((LOOPBACK, port)))
            free[name] = server.getsockname()[1]
        return free


def _check(host: str) -> None:
    try:
        ip_address(host)
        with closing(socket.create_server((host, 0))):
            return
    except (ValueError, OSError):
        raise ParamsError("--host", wanted="an IP address of this machine", got=host) from None
