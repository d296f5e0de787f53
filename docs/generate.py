"""Writes docs/reference and the picture of the rooms from the code: `python -m docs.generate`.

`make docs` runs it; tests/docs fails where a page is not what the code says.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, PlainValidator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from typer.main import get_command

from docs.rooms import drawing
from gliotrail import params
from gliotrail.cli.app import app
from gliotrail.cluster.evaluate import measures_of, summary
from gliotrail.dataset.brats import BRATS
from gliotrail.imaging import patch, prepared
from gliotrail.imaging.formats import course
from gliotrail.runs import journal
from gliotrail.runs.metric_keys import SYSTEM
from gliotrail.segmentation import metrics, weights
from gliotrail.segmentation.loop import SCORE, World
from gliotrail.segmentation.losses import LOSSES
from gliotrail.segmentation.score import Measures, score
from gliotrail.segmentation.unet import UNet3d
from gliotrail.segmentation.validation import validate_synthetic

ROOT = Path(__file__).parents[1]
PLATFORM = ROOT / "platform/gliotrail"
HEAD = "<!-- Made from the code by `make docs`; changes by hand are lost. -->\n"

ENVIRONMENT = {
    "GLIOTRAIL_WEBHOOK": "An http(s) address that gets a JSON line when a run ends (`end`), "
    "fails (`failure`, `nan`), is stopped (`stop`) or takes no step for long (`stall`).",
    "GLIOTRAIL_STALL_S": "Seconds without a step after which it is told of a `stall`; else 600.",
    "GLIOTRAIL_CACHE_GB": "What a node's cache of data by hash may take; 200.",
    "GLIOTRAIL_CONCURRENT_TRIALS": "Trials of a sweep at a time; else one a GPU, or core.",
    "GLIOTRAIL_DIRECT": "Anything, where all machines of the cluster at RAY_ADDRESS see this"
    " checkout, as in a Slurm job: stages run from here, without a job and a remote.",
    "GLIOTRAIL_DISK_GB": "What all runs of a checkout may take; 20.",
    "GLIOTRAIL_GPUS": "For each worker: `auto` (a GPU if the cluster has or can start one), 0, 1,"
    " or for a sweep's one-worker trials and an evaluation a share such as 0.5; `auto`.",
    "GLIOTRAIL_HEARTBEAT_S": "Seconds between the heartbeats of a process with a run; 30.",
    "GLIOTRAIL_JOB": "Set in a stage that runs as a Ray job; not for users.",
    "GLIOTRAIL_MICRO_BATCH": "Patches that a worker computes at a time, or `auto`: all of its own,"
    " and half as many as often as the first step runs out of GPU memory. Changes memory, and"
    " results by rounding; `auto`.",
    "GLIOTRAIL_ORIGIN": "Set in a Ray job: the sender's commit and code; not for users.",
    "GLIOTRAIL_RAY_LOGS": "Anything: show the output of Ray's workers, too.",
    "GLIOTRAIL_STATE": "Where runs in progress, caches and the tracking database are; `.gliotrail`"
    " of the main checkout. A job on a cluster has `~/.cache/gliotrail`; set in the environment of"
    " Ray's machines, it is another path there, the same on all.",
    "GLIOTRAIL_TEST_GPU_IS_CPU": "For tests alone: a worker with a GPU of Ray's computes on its"
    " CPU.",
    "GLIOTRAIL_STOP_S": "Seconds that a step and its checkpoint may take once a run is asked to"
    " stop; 240.",
    "GLIOTRAIL_TRIAL_CPUS": "Cores of each worker of a sweep's trial.",
    "GLIOTRAIL_TRIAL_GPUS": "The former name of GLIOTRAIL_GPUS: refused.",
    "GLIOTRAIL_TRIAL_WORKERS": "Workers of each trial of a sweep; 1.",
    "GLIOTRAIL_WORKERS": "Workers of a training, or the fewest and the most, `1:4`; at most"
    " `train.batch_size`; else one for each GPU that is up, or without GPUs two. An evaluation's"
    " have the same share of the cluster, a patient each.",
}
"""Gliotrail's own. What is in the code and not here, or the reverse, is an error."""
OF_OTHERS = {
    "AWS_ACCESS_KEY_ID": "With `AWS_SECRET_ACCESS_KEY`: the keys of DVC's remote on S3, for"
    " the client and on each machine of a cluster.",
    "AWS_CA_BUNDLE": "File of the authority that signed S3's certificate, if it is not a public"
    " one.",
    "AWS_DEFAULT_REGION": "S3's region.",
    "AWS_ENDPOINT_URL": "Where S3 is, if not at Amazon.",
    "MLFLOW_TRACKING_PASSWORD": "With `MLFLOW_TRACKING_USERNAME`: a user of the tracking server.",
    "MLFLOW_TRACKING_URI": "The tracking server; else a SQLite file in GLIOTRAIL_STATE.",
    "MLFLOW_TRACKING_USERNAME": "See `MLFLOW_TRACKING_PASSWORD`.",
    "OMP_NUM_THREADS": "Threads of each worker.",
    "RAY_ADDRESS": "The Ray cluster that stages are sent to; else stages start a Ray of their"
    " own on this machine, closed to processes without its token.",
    "RAY_API_SERVER_ADDRESS": "Where the cluster takes jobs, if not at RAY_ADDRESS: http(s)://HOST:8265.",
    "RAY_AUTH_MODE": "`token` for a cluster that requires one. Every Ray of ours does.",
    "RAY_AUTH_TOKEN": "The cluster's token; or RAY_AUTH_TOKEN_PATH, the file with it.",
    "RAY_AUTH_TOKEN_PATH": "See `RAY_AUTH_TOKEN`; `~/.ray/auth_token` if absent.",
    "REQUESTS_CA_BUNDLE": "As AWS_CA_BUNDLE, for MLflow and Ray's jobs.",
}
KEYS = {
    "train/learning_rate": ("each epoch", "At its last step."),
    "train/voxels_per_s": ("each epoch", "Of all workers."),
    "train/data_wait_share": ("each epoch", "Share of the time that a worker waited for patches."),
    "train/step_s_median": ("each epoch", "Of worker 0's steps, waiting included."),
    "train/step_s_p95": ("each epoch", "Their 95th percentile."),
    "train/peak_gpu_gb": ("each epoch", "Most GPU memory that worker 0's tensors held."),
    "train/mfu": (
        "each epoch",
        "The network's FLOPS as a share of the GPU's peak, if that is known:"
        " `segmentation/precision.py`.",
    ),
    "trial/voxels": ("a trial's end", "Voxels seen."),
    "trial/seconds": ("a trial's end", "From its first step to its last, of all its attempts."),
}
OF_MACHINES = (
    "CPU, memory, disk, network and GPUs of the workers' machines, by MLflow's own names, means of"
    f" samples every ten seconds; of several machines `{SYSTEM}node_0/...` and so on."
)
MEASURES = {
    "soft_dice_loss": "Soft Dice loss of the probabilities, mean over scans.",
    "dice_mean": "Mean of those of the three classes, or of the three nested regions.",
    "dice": "Dice of label maps, mean over the scans where it is defined.",
    "sensitivity": "TP / (TP + FN), likewise.",
    "specificity": "TN / (TN + FP), likewise.",
    "hd95_mm": "95th percentile of the distances from surface to surface, in mm, of the two "
    "directions the larger one, likewise.",
}


def pages() -> dict[str, str]:
    """The pages of docs/reference, by file name."""
    return {
        "params.md": HEAD + "\n".join(_params()),
        "cli.md": HEAD + "\n".join(_cli()),
        "metrics.md": HEAD + "\n".join(_metrics()),
        "files.md": HEAD + "\n".join(_files()),
        "environment.md": HEAD + "\n".join(_environment()),
    }


def _table(*rows: tuple[str, ...]) -> Iterator[str]:
    yield ""
    for n, row in enumerate(rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        if not n:
            yield "|" + "---|" * len(row)
    yield ""


# params.yaml


def _params() -> Iterator[str]:
    values = params.read_yaml(ROOT / "params.yaml")
    said = dict(_comments((ROOT / "params.yaml").read_text(encoding="utf-8")))
    yield "# params.yaml\n"
    yield "All that changes a result. A key that is unknown, missing or out of range is an error."
    for name, field in params.Params.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        yield f"\n## {name}\n\n{inspect.getdoc(section)}"
        yield from _table(
            ("key", "what", "wanted", "in params.yaml"), *_keys(name, section, values[name], said)
        )
    for section in (params.ValidationBlock, params.Choice):
        yield f"\n## {section.__name__}\n\n{inspect.getdoc(section)}"
        rows = [(key, _wanted(of)) for key, of in section.model_fields.items()]
        yield from _table(("key", "wanted"), *rows)


def _keys(
    path: str, section: type, values: Any, said: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    for key, field in section.model_fields.items():  # type: ignore[attr-defined]
        name, value = f"{path}.{key}", values.get(key, field.default)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(name, field.annotation, value, said)
        else:
            shown = "(a section)" if isinstance(value, dict) else f"`{value}`"
            yield f"`{name}`", said.get(name, "").rstrip(":"), _wanted(field), shown


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, what its comment says) of the lines that have one."""
    path: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):.*?(?:\s# (.*))?$", line)
        if found:
            path = [*path[: len(found[1]) // 2], found[2]]
            if found[3]:
                yield ".".join(path), found[3]


def _wanted(field: FieldInfo) -> str:
    """What a value may be, in words."""
    for part in field.metadata:
        if isinstance(part, PlainValidator):
            try:
                part.func("?")  # type: ignore[call-arg]
            except ValueError as error:
                return re.split(r",? (?:is|are) wanted|, got", str(error))[0]
    of, args = get_origin(field.annotation), get_args(field.annotation)
    if of is Literal:
        return ", ".join(f"`{value}`" for value in args)
    words = {int: "whole number", float: "number", str: "text", tuple: "list", dict: "section"}
    kind = words.get(of or field.annotation, "a list of cases, a share, or a section")
    if type(None) in args:
        return "list, or left out"
    signs = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    bounds = [
        f"{word} {getattr(part, sign.__name__.lower())}"
        for part in field.metadata
        for sign, word in signs.items()
        if isinstance(part, sign)
    ]
    return " ".join([kind, ", ".join(bounds)]).strip()


# the command line


def _cli() -> Iterator[str]:
    yield "# gliotrail\n"
    yield "Stages run by `dvc repro`. `--json` is there for programs, and `--help` everywhere."
    yield "`gliotrail --install-completion` lets the shell (bash, zsh, fish) complete commands and"
    yield "options from its next start on; `--show-completion` prints what that adds. Colours and"
    yield "bars are for terminals: a pipe or a file gets none, and `NO_COLOR=1` takes the colours."
    yield from _commands(get_command(app), "gliotrail")


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
            continue
        yield f"\n## {path} {name}\n\n{inspect.cleandoc(command.help or '')}"
        rows = [
            (f"`{_spelt(option)}`", getattr(option, "help", "") or "", _default(option))
            for option in command.params
            if option.name != "help"
        ]
        if rows:
            yield from _table(("argument", "what", "else"), *rows)


def _spelt(option: Any) -> str:
    if option.param_type_name == "argument":
        return str(option.metavar or option.name.upper())
    return ", ".join([*option.opts, *option.secondary_opts])


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    is_set = option.default not in (None, False) and not callable(option.default)
    return f"`{option.default}`" if is_set else ""


# metric keys


def _metrics() -> Iterator[str]:
    yield "# Metric keys\n"
    yield "In MLflow and in the journal. `edema`, `non_enhancing` and `enhancing` are the classes;"
    yield "`WT`, `TC` and `ET` the nested regions. Per-case numbers are in `cases.json`."
    yield f"`{SCORE}` decides which trial wins and which model is the champion."
    steps = [f"train/{name}_loss" for name in LOSSES]
    rows = [(f"`{key}`", "each step", "Of the patches of a step, mean.") for key in steps]
    _check("KEYS", KEYS, r'"(tr(?:ain|ial)/[a-z0-9_]+)"')
    rows += [(f"`{key}`", when, what) for key, (when, what) in KEYS.items()]
    rows.append((f"`{SYSTEM}...`", "each epoch", OF_MACHINES))
    validated = [*_validation_keys("val"), *_validation_keys("val_synthetic")]
    for when, keys in (("each epoch", validated), ("evaluate", _test_keys())):
        found: dict[str, list[str]] = {}
        for key in keys:
            part, _, name = key.partition("/")
            measure = next(m for m in MEASURES if name.startswith(m))
            found.setdefault(f"{part}/{measure}", []).append(name[len(measure) :])
        rows += [
            (" ".join(f"`{start}{end}`" for end in ends), when, MEASURES[start.partition("/")[2]])
            for start, ends in found.items()
        ]
    yield from _table(("key", "when", "what"), *rows)
    yield "\nUndefined values are left out."


def _labels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(8**3, dtype=np.uint8).reshape(8, 8, 8) % 4


def _validation_keys(part: str) -> list[str]:
    image, unknown = np.ones((4, 8, 8, 8), np.float32), np.zeros((8, 8, 8), bool)
    scans = [(image, _labels(), unknown)]
    return list(validate_synthetic(UNet3d(1, 1), scans, 0.5, World(), part))


def _test_keys() -> list[str]:
    measured = score(_labels(), np.roll(_labels(), 1), (1, 1, 1))
    return list(measures_of(summary({"a": measured}, {"a": 0.5}, BRATS), BRATS))


# files


def _files() -> Iterator[str]:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    yield "# Files\n\n## What each stage writes"
    rows = []
    for name, stage in stages.items():
        outs = [*stage["outs"], *stage.get("metrics", [])]
        paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
        rows.append((f"`{name}`", ", ".join(f"`{path}`" for path in paths)))
    yield from _table(("stage", "outputs"), *rows)
    yield "\n## A prepared case: `data/prepare/cases/NAME`\n"
    yield "`image.npy` is (I, J, K, C), `labels.npy` (I, J, K); `case.json` says:"
    doc = inspect.getdoc(prepared.PreparedCase) or ""
    starts = [*re.finditer(r"^((?:\w+, )*\w+): ", doc, re.MULTILINE)]
    ends = [found.start() for found in starts[1:]] + [len(doc)]
    said = [
        (f"`{found[1]}`", " ".join(doc[found.end() : end].split()))
        for found, end in zip(starts, ends, strict=True)
    ]
    yield from _table(("field", "what"), *said[1:-1])
    yield f"\n## A patch index: `data/patch/SIZE/index.parquet`\n\n{inspect.getdoc(patch)}\n"
    columns = ["case", *patch._CORNER, *patch._SIZE]
    columns += [f"{patch._VOXELS}{name}" for name in ("background", *BRATS.class_names)]
    columns.append(patch._CENTRED)
    yield "Columns: " + ", ".join(f"`{column}`" for column in columns) + "."
    yield f"\n## Patches as HDF5 files\n\n{inspect.getdoc(course)}"
    yield f"\n## Weights: `.safetensors`\n\n{inspect.getdoc(weights)}\n"
    fields = ", ".join(f"`{name}`" for name in weights.Description.model_fields)
    yield f"The header's key is `{weights._KEY}`; its fields are {fields}."
    yield "\n## Measures: `metrics.json`, `cases.json`\n"
    names = ", ".join(f"`{name}`" for name in Measures.model_fields)
    yield f"`cases.json` has, for each case, class and region: {names}."
    yield f"\n{inspect.getdoc(metrics)}"
    yield f"\n## A run's folder: `.gliotrail/runs/HASH`\n\n{inspect.getdoc(journal)}"


# environment


def _environment() -> Iterator[str]:
    _check("ENVIRONMENT", ENVIRONMENT, r"\b(GLIOTRAIL_[A-Z]+(?:_[A-Z]+)*)\b")
    yield "# Environment variables\n"
    yield "Where it runs. None of them changes a result beyond rounding."
    rows = [(f"`{name}`", what) for name, what in (ENVIRONMENT | OF_OTHERS).items()]
    yield from _table(("variable", "what"), *rows)


def _check(what: str, known: Mapping[str, Any], pattern: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in PLATFORM.rglob("*.py"))
    differ = set(re.findall(pattern, code)) ^ set(known)
    if differ:
        raise SystemExit(f"docs/generate.py: {what} and the code differ: {sorted(differ)}")


def _tidy(text: str) -> str:
    """One empty line where there are several, and one at the end."""
    lines = [line.rstrip() for line in text.splitlines()]
    kept = lines[:1] + [b for a, b in pairwise(lines) if a or b]
    return "\n".join(kept).rstrip() + "\n"


def written() -> dict[Path, str]:
    """Each page's path and text."""
    references = {ROOT / "docs/reference" / name: _tidy(text) for name, text in pages().items()}
    return references | {ROOT / "docs/pictures/rooms.svg": drawing()}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
