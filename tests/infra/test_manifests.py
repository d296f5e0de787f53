"""What other programs read: compose, Kubernetes, Ray's cluster launcher, sbatch.

Schemas are Kubernetes', KubeRay's (kuberay/), compose's and those of Ray's launcher; nothing is
started here.
"""

import functools
import json
import re
import shutil
import stat
import subprocess
import sys
from importlib.resources import files
from urllib.parse import urlsplit

import jsonschema
import pytest
from ruamel.yaml import YAML

from tests.support.kubernetes import BUILT, KUBERNETES, build, documents, faults, pods
from tests.support.projects import ROOT

INFRA = ROOT / "infra"


@functools.cache
def resources():
    """Each resource of each kustomization, by a name for messages."""
    return {
        f"{folder} {each['kind']} {each['metadata']['name']}": each
        for folder in BUILT
        for each in build(KUBERNETES / folder)
    }


LEFT_ALONE = {"Namespace", "PersistentVolumeClaim", "StorageClass"}


def test_kustomizations_are_what_a_strict_server_takes():
    assert [fault for each in resources().values() for fault in faults(each)] == []


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("overlays/cpu StatefulSet postgres", "spec/template/spec/containers/0/imaeg", "imaeg"),
        ("overlays/gpu RayCluster gliotrail", "spec/headGroupSpec/rayStartParam", "rayStartParam"),
        ("overlays/cpu/job RayJob gliotrail-smoke", "spec/entrypont", "entrypont"),
    ],
)
def test_a_fault_is_seen(name, path, said):
    resource = json.loads(json.dumps(resources()[name]))
    *way, last = path.split("/")
    place = resource
    for part in way:
        place = place[int(part) if part.isdigit() else part]
    place[last] = "x"
    (fault,) = faults(resource)
    assert said in fault


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("folder", BUILT)
def test_what_is_checked_is_what_kubectl_prints(folder, tmp_path):
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    for name in ("postgres", "server", "node"):
        (tmp_path / f"kubernetes/base/{name}.env").write_text("A=b\n")
    command = ["kubectl", "kustomize", tmp_path / "kubernetes" / folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = [each for each in YAML(typ="safe").load_all(done.stdout) if each["kind"] != "Secret"]
    ours = [each for each in build(KUBERNETES / folder) if each["kind"] != "Secret"]

    def key(each):
        return each["kind"], each["metadata"]["name"]

    assert sorted(theirs, key=key) == sorted(ours, key=key)


def test_pods_keep_to_pod_securitys_restricted_and_name_their_versions_and_limits():
    (namespace,) = documents(KUBERNETES / "storage/base/namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    count = 0
    for name, resource in resources().items():
        for pod in pods(resource):
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for container in [*pod["containers"], *pod.get("initContainers", ())]:
                count += 1
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                }, name  # fmt: skip
                assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
                assert container["image"].partition(":")[2] not in {"", "latest"}, name
            volumes = {next(iter(set(each) - {"name"})) for each in pod.get("volumes", ())}
            assert volumes <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert count > 12


def test_what_serves_is_asked_whether_it_does():
    serves = [r for r in resources().values() if r["kind"] in {"Deployment", "StatefulSet"}]
    containers = [each for r in serves for each in r["spec"]["template"]["spec"]["containers"]]
    assert len(containers) == 4  # MLflow and PostgreSQL, in both overlays
    asked = {"startupProbe", "readinessProbe", "livenessProbe"}
    assert [each["name"] for each in containers if not asked <= set(each)] == []


def test_what_is_deleted_with_an_overlay_holds_no_data():
    kept = {name.split()[1] for name in resources() if name.startswith("storage/")}
    assert kept == LEFT_ALONE
    gone = {name.split()[1] for name in resources() if name.startswith("overlays/")}
    assert not gone & LEFT_ALONE
    assert not any("volumeClaimTemplates" in each.get("spec", {}) for each in resources().values())
    classes = [each for each in resources().values() if each["kind"] == "StorageClass"]
    assert [each["reclaimPolicy"] for each in classes] == ["Retain", "Retain"]


def test_workers_have_neither_the_admins_password_nor_the_servers_keys():
    cluster = resources()["overlays/gpu RayCluster gliotrail"]
    text = json.dumps(cluster)
    assert "gliotrail-node" in text
    assert "gliotrail-server" not in text
    assert "gliotrail-postgres" not in text


def test_a_job_has_its_overlays_images():
    for folder in ("overlays/cpu", "overlays/gpu"):
        (overlay,) = documents(KUBERNETES / folder / "kustomization.yaml")
        (job,) = documents(KUBERNETES / folder / "job/kustomization.yaml")
        assert overlay["images"] == job["images"]


def test_kubernetes_lets_nothing_in_that_is_not_named():
    closed, *named = documents(KUBERNETES / "base/networkpolicy.yaml")
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert all(rule["from"] for each in named for rule in each["spec"]["ingress"])
    cluster = resources()["overlays/cpu RayCluster gliotrail"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_compose_is_valid():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*check, str(INFRA / "compose/compose.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_compose_listens_on_loopback_but_for_tls_and_starts_with_secrets_only():
    (compose,) = documents(INFRA / "compose/compose.yaml")
    for name, service in compose["services"].items():
        assert service["image"].rpartition(":")[2] not in {"", "latest"}, name
        plain = [port for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")]
        assert name == "tls" or not plain, name
        for key, value in service.get("environment", {}).items():
            if key.endswith(("PASSWORD", "TOKEN", "KEY", "KEY_ID")):
                assert value.startswith("${"), key
    assert "ssl" in (INFRA / "compose/tls.cfg").read_text()
    ray, worker = compose["services"]["ray"], compose["services"]["worker"]
    assert ray["environment"]["RAY_AUTH_MODE"] == worker["environment"]["RAY_AUTH_MODE"] == "token"
    assert "--num-cpus=0" in ray["command"]
    assert "admin" not in json.dumps(worker)
    assert compose["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("compose/secrets.sh", [".env", "client.env"]),
        ("kubernetes/secrets.sh", ["base/postgres.env", "base/server.env", "base/node.env"]),
    ],
)
def test_secrets_are_new_each_time_readable_by_their_owner_and_never_replaced(
    script, made, tmp_path
):
    there, env = tmp_path / "secrets.sh", {"PATH": "/usr/bin:/bin"}
    (tmp_path / "base").mkdir()
    there.write_text((INFRA / script).read_text())
    s3 = {"AWS_ENDPOINT_URL": "http://s3", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    s3 |= {"MLFLOW_S3_ID": "c", "MLFLOW_S3_KEY": "d", "MLFLOW_BUCKET": "e"}
    subprocess.run(["bash", there], env=env | s3, check=True, capture_output=True)
    first = {name: (tmp_path / name).read_text() for name in made}
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in made} == {0o600}
    again = subprocess.run(["bash", there], env=env | s3, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert {name: (tmp_path / name).read_text() for name in made} == first
    for name in made:
        ignored = ["git", "check-ignore", "-q", str((INFRA / script).parent / name)]
        assert subprocess.run(ignored, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_cluster_launchers_files_are_valid_take_a_token_and_name_no_address_outside(name):
    (config,) = documents(INFRA / f"vm/{name}.yaml")
    for node in config["available_node_types"].values():
        interfaces = node["node_config"].get("networkInterfaces")
        assert name == "aws" or (interfaces and "accessConfigs" not in interfaces[0])
    assert config["provider"]["use_internal_ips"] is True
    schema = json.loads((files("ray") / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_skypilot_s_task_is_valid_and_holds_no_secret():
    (task,) = documents(INFRA / "vm/skypilot.yaml")
    schema = json.loads((ROOT / "tests/infra/skypilot/task.json").read_text())
    jsonschema.validate(task, schema)
    assert set(task["secrets"].values()) == {None}  # given by the shell
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task | {"setups": ""}, schema)


def test_what_was_never_run_says_so_in_its_first_line_and_in_the_readme():
    entries = [*INFRA.glob("kubernetes/**/kustomization.yaml"), *INFRA.glob("vm/*.yaml")]
    entries += [INFRA / "slurm/gliotrail.def"]
    assert len(entries) > 12
    first = {path: path.read_text().partition("\n")[0] for path in entries}
    assert [path for path, line in first.items() if "# Experimental, never " not in line] == []
    assert "experimental, never run: [what was](infra/README.md" in (ROOT / "README.md").read_text()


def test_shell_scripts_can_be_read():
    for path in [*INFRA.glob("**/*.sh"), INFRA / "slurm/gliotrail.sbatch"]:
        assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_images_begin_from_a_version_and_take_files_that_are_there():
    lines = (INFRA / "compose/Dockerfile").read_text().splitlines()
    stages = {line.split()[3] for line in lines if line.startswith("FROM ")}
    assert {"cpu", "cuda"} <= stages
    bases = {line.split("=")[1] for line in lines if line.startswith("ARG BASE=")}
    definition = (INFRA / "slurm/gliotrail.def").read_text()
    assert bases == {re.search(r"^From: (\S+)$", definition, re.M)[1]}  # the same packages in both
    assert all(base.partition(":")[2] not in {"", "latest"} for base in bases)
    taken = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    files = definition.partition("%files")[2].partition("%post")[0]
    taken += [line.split()[0] for line in files.splitlines() if line.strip()]
    assert len(taken) == 10
    assert [name for name in taken if not (ROOT / name).exists()] == []


def test_nothing_names_a_host_of_others_or_runs_what_it_has_fetched():
    for path in files_of_infra():
        text = path.read_text()
        hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[\w.-]+", text)}
        assert not [host for host in hosts if re.search(r"\.[a-z]{2,}$", host)], path
        assert not re.search(r"\b(curl|wget)\b[^\n]*\|\s*(ba|da|z)?sh\b", text), path


def test_every_file_of_infra_is_checked_by_something():
    checked = {"infra/README.md", "infra/compose/Dockerfile", "infra/slurm/gliotrail.def"}
    by_kind = (
        ".cfg",
        ".py",
        ".sh",
        ".sbatch",
        ".sql",
        ".yaml",
    )  # tests beside, `bash -n`, schemas above
    names = {path.relative_to(ROOT).as_posix() for path in files_of_infra()}
    assert checked <= names
    assert [name for name in names - checked if not name.endswith(by_kind)] == []
    folders = {name.split("/")[1] for name in names if name.endswith(".yaml")}
    assert folders == {"compose", "kubernetes", "vm"}


def files_of_infra():
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "infra"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in filter(None, names.split("\0")) if (ROOT / name).is_file()]
