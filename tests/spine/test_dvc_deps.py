"""dvc.yaml against the code: what a stage depends on is what it really imports and reads."""

import ast

import pytest
from ruamel.yaml import YAML

from gliotrail.params import Params
from gliotrail.plain_yaml import read_yaml
from tests.spine.dvc_deps import code_of, written_anew
from tests.support.known import has_key
from tests.support.projects import ROOT

WRITTEN = ("outs", "metrics", "plots")


@pytest.fixture(scope="module")
def stages():
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def listed_code(stage):
    """The .py files a stage depends on; a folder of code stands for every module in it."""
    files = set()
    for path in map(str, stage.get("deps", [])):
        if path.startswith(("platform", "pipelines")):
            inside = (ROOT / path).rglob("*.py") if (ROOT / path).is_dir() else [ROOT / path]
            files |= {str(file.relative_to(ROOT)) for file in inside if file.name != "__init__.py"}
    return files


def listed_keys(stage):
    """The keys of params.yaml that a stage depends on."""
    return {key for entry in stage.get("params", []) for key in keys_of(entry)}


def keys_of(entry):
    return entry.get("params.yaml", []) if isinstance(entry, dict) else [entry]


def sections_read(source):
    """The sections a script takes from `params.load()`; None where it hands all of it on."""
    tree = ast.parse(source)
    parent = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    uses = []
    for call, around in parent.items():
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) in {"params.load", "load"}):
            continue
        if isinstance(around, ast.Assign):
            name = ast.unparse(around.targets[0])
            names = [n for n in parent if isinstance(n, ast.Name) and n.id == name]
            uses += [parent[n] for n in names if isinstance(n.ctx, ast.Load)]
        else:
            uses.append(around)
    read = {use.attr for use in uses if isinstance(use, ast.Attribute)}
    return read if all(isinstance(use, ast.Attribute) for use in uses) else None


def paths_of(stage, *kinds):
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]


def faults(name, stage, values):
    """What is wrong with one stage, one line each."""
    if not stage["cmd"].split("#")[0].startswith(f"pipelines/python -m pipelines.{name}"):
        yield f"{name}: cmd is not pipelines/python -m pipelines.{name}: {stage['cmd']}"
        return
    real, listed = code_of(name), listed_code(stage)
    yield from (f"{name}: imports {path}, not in its deps" for path in sorted(real - listed))
    yield from (f"{name}: doesn't import its dep {path}" for path in sorted(listed - real))
    keys = listed_keys(stage)
    yield from (f"{name}: params.yaml has no {key}" for key in keys if not has_key(values, key))
    sections = {key.split(".")[0] for key in keys}
    read = sections_read((ROOT / f"pipelines/{name}.py").read_text())
    if name not in sections and "params.yaml" not in stage["deps"]:
        yield f"{name}: its own section of params.yaml is not listed"
    if read is not None and read != sections:
        yield f"{name}: reads {sorted(read)} of params.yaml and lists {sorted(sections)}"
    for path in paths_of(stage, *WRITTEN):
        if path.split("/")[:2] not in [["data", name], ["results", name]]:
            yield f"{name}: writes {path}, outside its folder"


def test_every_stage_depends_on_what_it_imports_and_reads(stages):
    values = read_yaml(ROOT / "params.yaml")
    found = [fault for name in stages for fault in faults(name, stages[name], values)]
    assert not found, "\n" + "\n".join(found)


def test_the_listed_code_is_as_generated():
    text = (ROOT / "dvc.yaml").read_text()
    assert text == written_anew(text), "run `make deps`"


def test_stage_script_and_section_have_one_name(stages):
    scripts = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    assert set(stages) == scripts == {"params", *Params.model_fields}


def test_a_stage_reads_what_another_writes_or_what_is_in_git(stages):
    written = [folder_of(path) for stage in stages.values() for path in paths_of(stage, *WRITTEN)]
    for name, stage in stages.items():
        for path in map(folder_of, paths_of(stage, "deps")):
            made = any(path.startswith(w) or w.startswith(path) for w in written)
            assert made or (ROOT / path).exists(), f"{name}: nobody writes {path}"


def folder_of(path):
    """Up to the first ${item}, with a slash at the end."""
    return path.split("$")[0].rstrip("/") + "/"


# the checker itself, on the real stage `fetch` with each fault planted


@pytest.fixture
def good():
    return {
        "cmd": "pipelines/python -m pipelines.fetch",
        "deps": sorted(code_of("fetch")),
        "params": ["fetch"],
        "outs": [{"data/fetch": {"persist": False}}],
    }


def test_a_faultless_stage_has_no_fault(good):
    assert list(faults("fetch", good, {"fetch": {"source": "demo"}})) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"cmd": "python pipelines/fetch.py"}, "cmd is not pipelines/python -m"),
        ({"deps": []}, "imports pipelines/fetch.py, not in its deps"),
        ({"deps+": ["platform/gliotrail/segmentation/unet.py"]}, "doesn't import its dep"),
        ({"deps+": ["platform/gliotrail/segmentation"]}, "doesn't import its dep"),
        ({"params": ["fetch", "fetch.sauce"]}, "params.yaml has no fetch.sauce"),
        ({"params": []}, "its own section"),
        ({"params": [{"params.yaml": ["fetch", "prepare"]}]}, "reads ['fetch'] of params.yaml"),
        ({"outs": ["data/raw"]}, "writes data/raw, outside"),
        ({"metrics": [{"results/train/a.json": {"cache": False}}]}, "outside its folder"),
    ],
    ids=str,
)
def test_a_planted_fault_is_found(change, fault, good):
    stage = {**good, **{key: value for key, value in change.items() if "+" not in key}}
    stage["deps"] = [*stage["deps"], *change.get("deps+", [])]
    values = {"fetch": {"source": "demo"}, "prepare": {}}
    assert any(fault in found for found in faults("fetch", stage, values))


@pytest.mark.parametrize(
    ("source", "sections"),
    [
        ("fetch(params.load().fetch)", {"fetch"}),
        ("p = params.load()\ntrain(p.train, p.sweep.epochs, loop.load(x).y)", {"train", "sweep"}),
        ("from gliotrail.params import load\nall = load()\ntrain(all)", None),
        ("train(params.load())", None),
    ],
)
def test_the_sections_a_script_reads_are_seen(source, sections):
    assert sections_read(source) == sections
