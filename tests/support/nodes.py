"""A cluster of two Ray nodes on this machine that share nothing but a network.

Each node is in a network namespace of its own, and sees a /tmp, a /dev/shm and a checkout of its
own, all empty: code and data must be sent. Services listen at the bridge's address, as on a server
that both can reach. Needs root (`needs_netns`) and PostgreSQL (`needs_postgres`).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from infra.local import others, postgres
from infra.local.processes import Processes, Service
from infra.local.settings import Settings, load
from tests.support.projects import ROOT

CPUS = 2
ALONE = """\
set -e
mount --make-rprivate /
hide() { mount -t tmpfs -o size=2g none "$1"; }
exec 9<"$VENV"
for folder in $HIDDEN /tmp /dev/shm; do hide "$folder"; done
mkdir -p "$VENV" /tmp/home
mount -c --bind /proc/self/fd/9 "$VENV"
exec 9<&-
cd /tmp/home
ip link set lo up
exec "$@"
"""
"""A shell's script: no file of this machine's users is seen but Python's environment."""
ASK = """\
import sys, urllib.request as r
request = r.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.stdin.read()})
print(r.urlopen(request, timeout=5).read().decode())
"""


@dataclass(frozen=True)
class Node:
    """A machine, as it were."""

    namespace: str
    address: str

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in its network (not with its files); what it prints."""
        within = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.run(within, capture_output=True, text=True, check=check).stdout

    def pids(self) -> list[int]:
        """All processes on it."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def file(self, path: str) -> Path:
        """A file as the node's processes see it, such as `/tmp/own/x`."""
        return Path(f"/proc/{self.pids()[0]}/root{path}")

    def kill(self) -> int:
        """As when its power fails; how many processes there were."""
        killed = 0
        while pids := [pid for pid in self.pids() if _kill(pid)]:
            killed += len(pids)
        return killed

    def unplug(self, plugged: bool = False) -> None:
        """Cut its cable, or plug it in again."""
        self.run("ip", "link", "set", "eth0", "up" if plugged else "down")


@dataclass(frozen=True)
class Cluster:
    """Two nodes; `env` is what a user's shell needs to use them and the services."""

    head: Node
    other: Node
    settings: Settings
    env: Mapping[str, str]

    def log(self, name: str) -> str:
        """What `head`, `other`, `mlflow`, `seaweedfs` or `postgres` wrote."""
        return Processes(self.settings.folder).log(name).read_text(errors="replace")


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Services and two nodes of Ray, for a module: `@pytest.mark.needs_netns`, `needs_postgres`."""
    with ExitStack() as stack:
        yield stack.enter_context(cluster(tmp_path_factory.mktemp("services"), stack))


@contextmanager
def cluster(folder: Path, stack: ExitStack) -> Iterator[Cluster]:
    """Start all, and end all of it."""
    host, head, other = network(stack)
    settings = load(folder, host)
    processes = Processes(folder)
    postgres.prepare(settings)
    stack.callback(postgres.delete, settings)
    nodes = [
        on_node(head, head_command(settings, head), settings, head),
        on_node(other, other_command(settings, head, other), settings, head),
    ]
    below = [others.seaweedfs(settings), postgres.service(settings)]
    mlflow = others.mlflow(settings)
    stack.callback(processes.stop, [*reversed(nodes), mlflow, *below])
    for service in (*below, nodes[0]):
        processes.start(service)
    processes.wait(below[1])
    postgres.create_databases(settings)
    processes.start(mlflow)
    for service in (below[0], nodes[0]):
        processes.wait(service)
    processes.start(nodes[1])
    for service in (nodes[1], mlflow):
        processes.wait(service)
    there = {
        "RAY_ADDRESS": f"{head.address}:{settings.ports['ray']}",
        "RAY_API_SERVER_ADDRESS": f"http://{head.address}:{settings.ports['dashboard']}",
        "RAY_AUTH_TOKEN": settings.secrets["ray"],  # not the one of the tests' own Ray
    }
    yield Cluster(head, other, settings, settings.client_env() | there)


def network(stack: ExitStack) -> tuple[str, Node, Node]:
    """A bridge with two namespaces at it; the bridge's own address first."""
    n = os.getpid() % 250
    bridge, net = f"gliotrail{n}", f"10.231.{n}"
    _ip("link", "add", bridge, "type", "bridge")
    stack.callback(_ip, "link", "del", bridge)
    _ip("addr", "add", f"{net}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    nodes = []
    for i, name in enumerate("ab", 2):
        node = Node(f"gliotrail{n}{name}", f"{net}.{i}")
        _ip("netns", "add", node.namespace)
        stack.callback(_ip, "netns", "del", node.namespace)
        stack.callback(node.kill)
        cable = f"gt{n}{name}"
        peer = ("peer", "name", "eth0", "netns", node.namespace)
        _ip("link", "add", cable, "type", "veth", *peer)
        stack.callback(_ip, "link", "del", cable)  # with its namespace it would go, but later
        _ip("link", "set", cable, "master", bridge, "up")
        node.run("ip", "addr", "add", f"{node.address}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        nodes.append(node)
    return f"{net}.1", nodes[0], nodes[1]


def head_command(settings: Settings, head: Node) -> list[str]:
    """The head of infra/local, at the node's address."""
    there = others.ray_head(replace(settings, host=head.address))
    command = [word if "gliotrail-ray-" not in word else "/tmp/ray" for word in there.command]
    return [*command, "--num-cpus", str(CPUS), "--object-store-memory", "200000000"]


def other_command(settings: Settings, head: Node, other: Node) -> list[str]:
    """A node that joins."""
    return [
        str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats",
        "--address", f"{head.address}:{settings.ports['ray']}", "--node-ip-address", other.address,
        "--num-cpus", str(CPUS), "--object-store-memory", "200000000",
    ]  # fmt: skip


def on_node(node: Node, command: list[str], settings: Settings, head: Node) -> Service:
    """A command on a node, which has the services' secrets in its environment."""
    env = settings.node_env() | {
        "RAY_AUTH_TOKEN": settings.secrets["ray"],
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "HOME": "/tmp/home",
        "GLIOTRAIL_STATE": "/tmp/state",
        "PYTHONPATH": "",
        "VENV": sys.prefix,
        "HIDDEN": " ".join(map(str, hidden())),
    }
    del env["RAY_AUTH_TOKEN_PATH"]
    name = "head" if node is head else "other"
    within = ["ip", "netns", "exec", node.namespace, "unshare", "--mount", "sh", "-c", ALONE, "sh"]
    return Service(name, [*within, *command], lambda: is_listed(node, head, settings), env)


def is_listed(node: Node, head: Node, settings: Settings) -> bool:
    """Whether Ray's dashboard has a node among the living."""
    address = f"http://{head.address}:{settings.ports['dashboard']}/nodes?view=summary"
    # by another process: this one is kept from talking to other machines
    done = subprocess.run(
        [sys.executable, "-c", ASK, address],
        input=settings.secrets["ray"], capture_output=True, text=True,
    )  # fmt: skip
    rows = json.loads(done.stdout)["data"]["summary"] if done.returncode == 0 else []
    return (node.address, "ALIVE") in {
        (row["raylet"].get("nodeManagerAddress"), row["raylet"].get("state")) for row in rows
    }


def hidden() -> list[Path]:
    """This checkout, and the one that the package is installed from."""
    direct = json.loads(distribution("gliotrail").read_text("direct_url.json") or "{}")
    installed = Path(unquote(urlsplit(direct.get("url", "")).path))
    return sorted({ROOT, installed} - {Path(), Path("/")})


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
