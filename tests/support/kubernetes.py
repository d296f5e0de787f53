"""What `kubectl kustomize` would print of infra/kubernetes, checked as a server would: strictly.

`python -m tests.support.kubernetes` (in `make check`) prints each fault. Kubernetes' own resources
are held to its schemas, KubeRay's to those of its custom resource definitions.
"""

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
VERSION = "1.34"
BUILT = [
    *("storage/gke", "storage/eks", "overlays/cpu", "overlays/gpu"),
    *("overlays/cpu/job", "overlays/gpu/job"),
]
_SCHEMAS = ROOT / "tests/infra/kuberay/schemas-1.6.2.json"
_KNOWN = {
    *("apiVersion", "kind", "resources", "namespace", "images", "patches"),
    *("secretGenerator", "generatorOptions"),
}
_NO_NAMESPACE = {"Namespace", "StorageClass"}


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file, its anchors resolved."""
    return [each for each in YAML(typ="safe").load_all(path.read_text()) if each]


def build(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder, of what we use of it.

    Raises:
        ValueError: something that isn't known here.
    """
    (said,) = documents(folder / "kustomization.yaml")
    if strange := set(said) - _KNOWN:
        raise ValueError(f"{folder}: {sorted(strange)}")
    made: list[dict[str, Any]] = []
    for name in said["resources"]:
        path = folder / name
        # a copy of each: YAML's anchors make one object of several
        new = build(path) if path.is_dir() else json.loads(json.dumps(documents(path)))
        made += new
    for secret in said.get("secretGenerator", ()):
        lines = [each for env in secret["envs"] for each in _lines(folder / env)]
        data = dict(line.split("=", 1) for line in lines)
        name = {"name": secret["name"]}
        made.append({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": data})
    for patch in said.get("patches", ()):
        (operations,) = documents(folder / patch["path"])
        target = patch["target"].items()
        hit = [
            each for each in made if target <= {"kind": each["kind"], **each["metadata"]}.items()
        ]
        if len(hit) != 1:
            raise ValueError(f"{folder}: {dict(target)} is {len(hit)} resources")
        for operation in operations:
            _patch(hit[0], operation)
    for each in made:
        if "namespace" in said and each["kind"] not in _NO_NAMESPACE:
            each["metadata"]["namespace"] = said["namespace"]
        for image in said.get("images", ()):
            _rename(each, image["name"], image["newName"])
    return made


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else ["MADE_BY=secrets.sh"]


def _patch(resource: dict[str, Any], operation: Mapping[str, Any]) -> None:
    *way, last = operation["path"].strip("/").split("/")
    for name in way:
        resource = resource[name]
    if operation["op"] == "add" and last == "-":
        resource.append(copy.deepcopy(operation["value"]))  # type: ignore[attr-defined]
    elif operation["op"] == "replace" and last in resource:
        resource[last] = operation["value"]
    else:
        raise ValueError(f"{operation['op']} {operation['path']}")


def _rename(value: Any, name: str, new: str) -> None:
    if isinstance(value, dict):
        for key in ("containers", "initContainers"):
            for container in value.get(key) or ():
                was, colon, tag = container["image"].partition(":")
                container["image"] = f"{new if was == name else was}{colon}{tag}"
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            _rename(each, name, new)


def faults(resource: Mapping[str, Any]) -> Iterator[str]:
    """What a server that is asked to be strict would refuse."""
    name = f"{resource['kind']} {resource['metadata']['name']}"
    if resource["apiVersion"].startswith("ray.io/"):
        schema = _strict(json.loads(_SCHEMAS.read_text())[resource["kind"]])
        schema["properties"]["metadata"] = {"type": "object"}
        for error in jsonschema.Draft7Validator(schema).iter_errors(resource):
            yield f"{name}: {'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        return
    try:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{name}: {str(error)[:300]}"


def _strict(schema: Any) -> Any:
    """No field but those that are named, as with `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(each) for key, each in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", None):
        schema = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and "additionalProperties" not in schema and not open_to_all:
        schema["additionalProperties"] = False
    return schema


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Pods' specs anywhere in a resource."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value["spec"]
        for each in value.values():
            yield from pods(each)
    elif isinstance(value, list):
        for each in value:
            yield from pods(each)


if __name__ == "__main__":
    found = [f"{name}: {f}" for name in BUILT for r in build(KUBERNETES / name) for f in faults(r)]
    print("\n".join(found) or f"infra/kubernetes: {len(BUILT)} kustomizations are valid")
    sys.exit(bool(found))
