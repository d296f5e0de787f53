"""SeaweedFS (S3), MLflow's server and a Ray head: how each is started, and whether it answers."""

import json
import sys
from pathlib import Path

import requests

from gliotrail.paths import short_temp
from infra.local import postgres
from infra.local.processes import Service
from infra.local.settings import BUCKETS, LOOPBACK, USER, Settings, write_private

_BIN = Path(sys.executable).parent
# `ray`, without its server for ray:// addresses, which nothing here uses: on a busy machine it
# gives up after 30 s, and all of Ray with it
_RAY = """\
from ray.scripts import scripts
scripts.get_ray_client_dependency_error = lambda: "not wanted"
scripts.main()
"""
_RAYS_LIMITS = {
    # a busy machine takes longer to start its processes than Ray's 30 to 60 s
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    # there is no other node that could take over what runs here, so nothing to wait for
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


def seaweedfs(settings: Settings) -> Service:
    """S3 where the settings say; its own parts talk to each other on loopback."""
    ports, data = settings.ports, settings.folder / "s3"
    data.mkdir(exist_ok=True)
    actions = ("Admin", "Read", "Write", "List", "Tagging")
    identities = [
        {
            "name": bucket,
            "credentials": [
                {
                    "accessKey": settings.secrets[f"s3_id_{bucket}"],
                    "secretKey": settings.secrets[f"s3_key_{bucket}"],
                }
            ],
            "actions": [f"{action}:{bucket}" for action in actions],
        }
        for bucket in BUCKETS
    ]
    config = settings.folder / "s3.json"
    write_private(config, json.dumps({"identities": identities}))
    parts = [
        f"-{part}.port{kind.replace('_', '.')}={ports[part + kind]}"
        for part in ("master", "volume", "filer", "s3")
        for kind in ("", "_grpc")
    ]
    return Service(
        "seaweedfs",
        [
            str(_BIN / "weed"), "-logtostderr=true", "server", f"-dir={data}", *parts,
            f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", f"-s3.ip.bind={settings.host}", "-s3",
            f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            # as many volumes as the disk has room for, of 1 GB; the default is 8 in all
            "-volume.max=0", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ],
        lambda: _has_buckets(settings),
    )  # fmt: skip


def _has_buckets(settings: Settings) -> bool:
    """Whether S3 answers, with the buckets, which are made."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        for bucket in BUCKETS:
            client = s3_client(settings, bucket)
            if bucket not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError):
        return False
    return True


def s3_client(settings: Settings, bucket: str):  # type: ignore[no-untyped-def] # noqa: ANN201
    """A boto3 client with the keys of a bucket."""
    import boto3
    from botocore.config import Config

    env = settings.s3_env(bucket)
    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_DEFAULT_REGION"],
        config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 1}),
    )


def mlflow(settings: Settings) -> Service:
    """The tracking server: users in PostgreSQL, artifacts in S3 through it, known hosts only."""
    auth, where = settings.folder / "mlflow-auth.ini", f"http://{settings.at('mlflow')}"
    write_private(
        auth,
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 600\n"
        f"database_uri = {postgres.uri(settings, 'mlflow_auth')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )
    env = settings.s3_env("mlflow") | {
        # by the environment: command lines can be seen by everyone
        "MLFLOW_BACKEND_STORE_URI": postgres.uri(settings, "mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.secrets["mlflow"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.secrets["mlflow_cookies"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    hosts = {f"{host}:{settings.ports['mlflow']}" for host in (settings.host, "localhost")}

    def is_ready() -> bool:
        ask = f"{where}/api/2.0/mlflow/experiments/get?experiment_id=0"
        return _status(ask) == 401 and _status(ask, auth=(USER, settings.secrets["mlflow"])) == 200

    return Service(
        "mlflow",
        [
            str(_BIN / "mlflow"), "server", "--app-name", "basic-auth", "--workers", "2",
            "--host", settings.host, "--port", str(settings.ports["mlflow"]),
            "--artifacts-destination", "s3://mlflow", "--allowed-hosts", ",".join(sorted(hosts)),
        ],
        is_ready,
        env,
    )  # fmt: skip


def ray_head(settings: Settings) -> Service:
    """A node of Ray that others can join where it listens beyond loopback; by token."""
    ports, token = settings.ports, settings.secrets["ray"]
    ask = f"http://{settings.at('dashboard')}/api/version"
    session = ray_session(settings)

    def is_ready() -> bool:
        bearer = {"Authorization": f"Bearer {token}"}
        return _status(ask) == 401 and _status(ask, headers=bearer) == 200

    return Service(
        "ray",
        [
            sys.executable, "-c", _RAY, "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address", settings.host, "--port", str(ports["ray"]),
            "--include-dashboard", "true", "--dashboard-host", settings.host,
            "--dashboard-port", str(ports["dashboard"]),
            "--dashboard-agent-listen-port", str(ports["ray_agent"]), "--temp-dir", str(session),
        ],
        is_ready,
        settings.node_env() | _RAYS_LIMITS,
    )  # fmt: skip


def ray_session(settings: Settings) -> Path:
    """Ray's sockets and logs: sockets have short names only, so it is not in the state's folder."""
    name = f"gliotrail-ray-{settings.secrets['id'][:12]}"
    return Path(short_temp(f"/{name}")) / name


def _status(address: str, **options: object) -> int:
    try:
        return requests.get(address, timeout=20, **options).status_code  # type: ignore[arg-type]
    except requests.RequestException:
        return 0
