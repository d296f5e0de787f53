"""The cluster of tests: two nodes that share a network and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import is_listed
from tests.support.projects import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.needs_netns,
    pytest.mark.needs_postgres,
    pytest.mark.timeout(900),  # the fixture's start is in it
]

LOOK = """
import json, os, pathlib, sys
import ray
ray.init(logging_level="ERROR")

@ray.remote(num_cpus=2, scheduling_strategy="SPREAD")
class Node:
    def look(self, mine, paths):
        import botocore.session
        s3 = botocore.session.get_session().create_client("s3")
        s3.put_object(Bucket="gliotrail", Key=f"nodes/{mine}", Body=b"1")
        pathlib.Path("/tmp/mine").write_text(mine)
        import urllib.request
        health = urllib.request.urlopen(os.environ["MLFLOW_TRACKING_URI"] + "/health").read()
        return {
            "address": ray.util.get_node_ip_address(),
            "hidden": [os.path.exists(path) for path in paths],
            "token in env": "RAY_AUTH_TOKEN" in os.environ,
            "mlflow": health.decode(),
        }
    def seen(self):
        return pathlib.Path("/tmp/mine").read_text()

nodes = [Node.remote() for _ in range(2)]
told = ray.get([node.look.remote(str(i), sys.argv[1:]) for i, node in enumerate(nodes)])
print("TOLD " + json.dumps([told, ray.get([node.seen.remote() for node in nodes])]))
"""


def test_two_nodes_share_a_network_and_services_but_no_file(two_nodes, monkeypatch):
    for name, value in two_nodes.env.items():
        monkeypatch.setenv(name, value)
    paths = [str(ROOT / "dvc.yaml"), str(two_nodes.settings.folder / "env")]
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--", "python", "-c"]

    done = subprocess.run([*submit, LOOK, *paths], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("TOLD "))
    told, seen = json.loads(line.removeprefix("TOLD "))
    assert {each["address"] for each in told} == {two_nodes.head.address, two_nodes.other.address}
    assert [each["hidden"] for each in told] == [[False, False]] * 2
    assert {each["mlflow"] for each in told} == {"OK"}
    assert seen == ["0", "1"]


def test_a_job_without_the_token_is_refused(two_nodes, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = str(Path(sys.executable).with_name("ray"))
    address = two_nodes.env["RAY_API_SERVER_ADDRESS"]
    submit = [ray, "job", "submit", "--address", address, "--", "true"]
    done = subprocess.run(submit, capture_output=True, text=True)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "uthenticat" in done.stdout + done.stderr


def test_a_killed_node_is_gone_with_all_its_processes(two_nodes):
    assert is_listed(two_nodes.other, two_nodes.head, two_nodes.settings)
    assert two_nodes.other.kill() > 3
    assert two_nodes.other.pids() == []
    assert two_nodes.head.pids() != []
