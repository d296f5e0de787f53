"""What other programs read: compose, Kubernetes, Ray's cluster launcher, sbatch.

Schemas are those of the packages index: Kubernetes' own resources, the pods of KubeRay's, compose,
and Ray's launcher. KubeRay's own fields have no schema there; nothing is started here.
"""

import json
import re
import stat
import subprocess
import sys
from importlib.resources import files
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.support.projects import ROOT

INFRA = ROOT / "infra"
KUBERNETES = "1.34"


def documents(path):
    return [each for each in YAML(typ="safe").load_all(path.read_text()) if each]


def kubernetes():
    """All resources, and the group that the overlay adds, by a name for messages."""
    for path in sorted(INFRA.glob("kubernetes/*/*.yaml")):
        if path.name != "kustomization.yaml":
            for each in documents(path):
                yield f"{each['kind']} {each['metadata']['name']}", each
    (patch,) = documents(INFRA / "kubernetes/overlays/gpu/workers.yaml")
    yield "workers.yaml", patch[0]["value"]


def pods(value):
    """Pod templates anywhere in a resource."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        for each in value.values():
            yield from pods(each)
    elif isinstance(value, list):
        for each in value:
            yield from pods(each)


RESOURCES = dict(kubernetes())


@pytest.mark.parametrize("name", RESOURCES)
def test_kubernetes_resources_and_pods_are_valid(name):
    resource = RESOURCES[name]
    templates = list(pods(resource))
    for n, template in enumerate(templates):
        wrapped = {
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": f"p{n}"},
            "template": template,
        }  # fmt: skip
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)
    if "ray.io" not in resource.get("apiVersion", "ray.io"):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    else:
        assert templates


def test_a_fault_in_a_pod_is_seen():
    resource = json.loads(json.dumps(RESOURCES["StatefulSet postgres"]))
    resource["spec"]["template"]["spec"]["containers"][0]["imaeg"] = "postgres"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_no_pod_is_root_or_takes_an_image_without_its_version():
    for name, resource in RESOURCES.items():
        for template in pods(resource):
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True, name
            for container in template["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert "limits" in container["resources"], name
                assert container["image"].partition(":")[2] not in {"", "latest"}, name


def test_kubernetes_lets_nothing_in_that_is_not_named():
    closed, *named = documents(INFRA / "kubernetes/base/networkpolicy.yaml")
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert all(rule["from"] for each in named for rule in each["spec"]["ingress"])
    assert RESOURCES["RayCluster gliotrail"]["spec"]["authOptions"] == {"mode": "token"}


def test_kustomizations_name_files_that_are_there():
    for path in INFRA.glob("kubernetes/**/kustomization.yaml"):
        (each,) = documents(path)
        named = [*each["resources"], *(patch["path"] for patch in each.get("patches", ()))]
        assert [name for name in named if not (path.parent / name).exists()] == []


def test_compose_is_valid():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*check, str(INFRA / "compose/compose.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_compose_publishes_on_loopback_and_starts_with_secrets_only():
    (compose,) = documents(INFRA / "compose/compose.yaml")
    for name, service in compose["services"].items():
        assert service["image"].partition(":")[2] not in {"", "latest"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for key, value in service.get("environment", {}).items():
            if key.endswith(("PASSWORD", "TOKEN", "KEY", "KEY_ID")):
                assert value.startswith("${"), key
    assert compose["services"]["ray"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert compose["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("compose/secrets.sh", [".env"]),
        ("kubernetes/secrets.sh", ["base/server.env", "base/node.env"]),
    ],
)
def test_secrets_are_new_each_time_readable_by_their_owner_and_never_replaced(
    script, made, tmp_path
):
    there, env = tmp_path / "secrets.sh", {"PATH": "/usr/bin:/bin"}
    (tmp_path / "base").mkdir()
    there.write_text((INFRA / script).read_text())
    s3 = {"AWS_ENDPOINT_URL": "http://s3", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
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


def test_the_cluster_launchers_file_is_valid_and_takes_a_token():
    (config,) = documents(INFRA / "vm/gcp.yaml")
    schema = json.loads((files("ray") / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_shell_scripts_can_be_read():
    for path in [*INFRA.glob("**/*.sh"), INFRA / "slurm/gliotrail.sbatch"]:
        assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_images_begin_from_a_version_and_take_files_that_are_there():
    lines = (INFRA / "compose/Dockerfile").read_text().splitlines()
    stages = {line.split()[3] for line in lines if line.startswith("FROM ")}
    assert {"cpu", "cuda"} <= stages
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")} - stages
    definition = (INFRA / "slurm/gliotrail.def").read_text()
    assert bases == {re.search(r"^From: (\S+)$", definition, re.M)[1]}  # the same packages in both
    assert all(base.partition(":")[2] not in {"", "latest"} for base in bases)
    taken = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    files = definition.partition("%files")[2].partition("%post")[0]
    taken += [line.split()[0] for line in files.splitlines() if line.strip()]
    assert len(taken) == 8
    assert [name for name in taken if not (ROOT / name).exists()] == []


def test_nothing_names_a_host_of_others_or_runs_what_it_has_fetched():
    for path in files_of_infra():
        text = path.read_text()
        hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[\w.-]+", text)}
        assert not [host for host in hosts if re.search(r"\.[a-z]{2,}$", host)], path
        assert not re.search(r"\b(curl|wget)\b[^\n]*\|\s*(ba|da|z)?sh\b", text), path


def test_every_file_of_infra_is_checked_by_something():
    checked = {"infra/README.md", "infra/compose/Dockerfile", "infra/slurm/gliotrail.def"}
    by_kind = (".py", ".sh", ".sbatch", ".yaml")  # tests beside, `bash -n`, schemas above
    names = {path.relative_to(ROOT).as_posix() for path in files_of_infra()}
    assert checked <= names
    assert [name for name in names - checked if not name.endswith(by_kind)] == []
    folders = {name.split("/")[1] for name in names if name.endswith(".yaml")}
    assert folders == {"compose", "kubernetes", "vm"}


def files_of_infra():
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "infra"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in filter(None, names.split("\0")) if (ROOT / name).is_file()]
