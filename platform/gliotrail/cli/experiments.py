"""DVC's experiments: try another value, and see the results of all experiments."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gliotrail import params
from gliotrail.cli.output import Json, number, print_json, print_table, table_of
from gliotrail.dataset.brats import BRATS
from gliotrail.dataset.task import Task
from gliotrail.errors import ParamsError, TrackingError
from gliotrail.param_types import FROM_SWEEP
from gliotrail.paths import git
from gliotrail.plain_yaml import parse_yaml, read_yaml

WINNER: Final = Path("results/sweep/best.json")
_MEASURES: Final = "results/evaluate/measures"


def try_(
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Such as train.learning_rate=1e-3.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the changes.")] = False,
) -> None:
    """Run the pipeline with other values of params.yaml, as a DVC experiment.

    The keys and values are checked first: a mistyped key is told with the nearest one, and so is
    a change that changes nothing.
    """
    check_changes(changes)
    if not dry_run:
        for name in ("user.name", "user.email"):
            if not git("config", name):
                do = f'`git config --global {name} "..."`, since an experiment is a commit'
                raise ParamsError(f"git knows no {name}", do=do)
        words = [word for change in changes for word in ("-S", change)]
        os.execv(sys.executable, [sys.executable, "-m", "dvc", "exp", "run", *words])


def check_changes(
    changes: Sequence[str], file: Path = Path("params.yaml"), winner: Path = WINNER
) -> None:
    """Check changes of a params.yaml, given as KEY=VALUE.

    Raises:
        ParamsError: an unknown key, a value that can't be, or that is there already.
    """
    before, values = params.load(file), read_yaml(file)
    picked = json.loads(winner.read_text())["params"] if winner.is_file() else {}
    same = []
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ParamsError("change", wanted="KEY=VALUE", got=repr(change))
        of_that_name = [known for known in _flat(values) if known.endswith(f".{key}")]
        if key.partition(".")[0] not in values and of_that_name:
            least = min(known.count(".") for known in of_that_name)
            wanted = " or ".join(known for known in of_that_name if known.count(".") == least)
            raise ParamsError("key", where=file, wanted=wanted, got=key)
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ParamsError(f"{key}: {name} is no section", where=file)
        now, value = section.get(last), parse_yaml(text, key)
        if sections == ["train"] and now == FROM_SWEEP and picked.get(last) == value:
            same.append(f"{key} is {text}: the sweep picked it")
        elif now == value:
            same.append(f"{key} is {text} already")
        section[last] = value
    after = params.validate(values, where=file)
    _check_space(after)
    _check_own_parts(after)
    if after == before and _is_uncommitted(after, file):
        return  # of an experiment that was stopped: the same command goes on
    if after == before or len(same) == len(changes):
        raise ParamsError("nothing changes", where=file, got="; ".join(same) or None)


def _is_uncommitted(values: params.Params, file: Path) -> bool:
    """Whether the newest commit has other values."""
    committed = git("show", f"HEAD:./{file.name}")
    try:
        return bool(committed) and params.validate(parse_yaml(committed, "HEAD")) != values
    except ParamsError:  # of a version that knew other keys
        return True


def _check_space(changed: params.Params) -> None:
    """Raise ParamsError if a sweep would try what can't be."""
    from gliotrail.search.space import Space, changes  # numpy takes long to import
    from gliotrail.training.inputs import with_changes

    for point in Space(changed).probes():
        with_changes(changed, changes(changed, point), where="sweep.space")


def _check_own_parts(changed: params.Params) -> None:
    """Raise ParamsError if a part of your own doesn't work."""
    from gliotrail.own_parts import is_own

    train = changed.train
    if not any(map(is_own, (train.model.name, train.loss, *train.augment.own))) and (
        not changed.evaluate.measures
    ):
        return
    from gliotrail.segmentation.score import own_measures  # torch takes seconds to import
    from gliotrail.training.own_check import check_own

    task = _task_here()
    size = train.patch_size if isinstance(train.patch_size, tuple) else changed.patch.sizes[0]
    check_own(train, size, task)
    own_measures(changed.evaluate.measures)


def _task_here(prepared: Path = Path("data/prepare")) -> Task:
    """The task of this checkout; brain tumours if no data are prepared."""
    from gliotrail.imaging.prepared import TASK_FILE, read_task

    return read_task(prepared) if (prepared / TASK_FILE).is_file() else BRATS


def experiments(
    everything: Annotated[
        bool, typer.Option("--all", "-A", help="Of all commits, not only the newest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show all experiments: changed values and held-out Dice, the best first.

    `dvc exp show` has all values, in some 200 columns.
    """
    words = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(["-A"] * everything)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        got = done.stderr.strip().rpartition("\n")[2]
        raise TrackingError("dvc exp show", got=got, do="run it in a checkout")
    rows = list(rows_of(json.loads(done.stdout)))
    if as_json:
        print_json(rows)
        return
    changed = list(dict.fromkeys(key for row in rows for key in row["changed"]))
    task = _task_here()
    names = ("mean_regions", *(task.region_names or task.class_names))
    table = table_of("experiment", *changed, *(f"Dice {name}" for name in names))
    for row in rows:
        values = [str(row["changed"].get(key, "")) for key in changed]
        table.add_row(row["name"], *values, *(number(row["dice"].get(n)) for n in names))
    print_table(table)
    if not any(rows[0]["dice"].values()):
        print("the newest commit has no measures: `git add dvc.lock results`, then `git commit`")
    print("take one over: `dvc exp apply NAME`; differences: `dvc exp diff NAME`")


def rows_of(shown: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """`dvc exp show --json` as a row an experiment: the commits, then the best first.

    Each has a name, the params that differ from its commit's, and the held-out Dice.
    """
    for commit in shown:
        base = _flat(_params_of(commit))
        if commit["rev"] != "workspace":
            name = commit["name"] or commit["rev"][:7]
            yield {"name": name, "changed": {}, "dice": _dice(commit)}
        rows = []
        for experiment in commit.get("experiments") or ():
            for revision in experiment["revs"]:
                own = _flat(_params_of(revision))
                changed = {key: value for key, value in own.items() if base.get(key) != value}
                name = revision["name"] or revision["rev"][:7]
                rows.append({"name": name, "changed": changed, "dice": _dice(revision)})
        yield from sorted(rows, key=lambda row: -(row["dice"].get("mean_regions") or 0))


def _params_of(revision: Mapping[str, Any]) -> Mapping[str, Any]:
    files = (revision.get("data") or {}).get("params") or {}
    return (files.get("params.yaml") or {}).get("data") or {}


def _dice(revision: Mapping[str, Any]) -> dict[str, float | None]:
    files = (revision.get("data") or {}).get("metrics") or {}
    return {
        Path(path).stem: (of.get("data") or {}).get("dice")
        for path, of in files.items()
        if path.startswith(_MEASURES)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
