"""A training, identified by its inputs: params, data, patch index, code.

Its folder (see `runs.journal`) is named by their hash, so that an interrupted training is found
again and goes on, a finished one is not run twice, and a changed one starts afresh.

Nothing here imports torch or MLflow: Ray starts while they are imported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gliotrail.code_graph import code_hash, result_code
from gliotrail.dataset.brats import BRATS, is_brats
from gliotrail.dataset.patients import of_same_patients
from gliotrail.dataset.task import Task
from gliotrail.errors import DataError, ParamsError
from gliotrail.files import sha256
from gliotrail.imaging.prepared import INTENSITIES_FILE, TASK_FILE, read_task
from gliotrail.imaging.split import read_split
from gliotrail.own_parts import own_files
from gliotrail.param_types import FROM_SWEEP, Size, format_size
from gliotrail.params import Judged, Params, Pretrain, Rehearsed, Train, validate
from gliotrail.paths import state_dir
from gliotrail.runs.journal import RunFolder
from gliotrail.runs.lineage import digest_of
from gliotrail.synthesis.tumours import FILES, LESION_FILE, shape_path
from gliotrail.training.first_weights import initial_weights

VALIDATION_DO: Final = "name cases, a share or a block in prepare.split.validation"
"""The advice if there are no validation data."""
_DRIVER: Final = "gliotrail.training.driver"


@dataclass(frozen=True)
class Training:
    """A training's inputs, with all choices resolved. Cheap to send to a worker.

    section: `train` of params.yaml, with a learning rate and a patch size.
    threshold: on the probabilities of the validation data.
    phantoms, judged: the synthetic tumours for rehearsal, and those for validation (none in a
        sweep's trials, where they would decide nothing, and where intensities are standardised in
        another way).
    synthetic: the folder of anatomies and shapes they are made from.
    init: the weights file that it starts from, if any.
    prepared, patches: the stages' outputs; None without real data.
    fold: its number and how many there are, if validation is a fold of the training cases.
    digests: of the files, at the time when the training was defined.
    member: its place in a population, if it may take over from the others (see `population`).
    """

    section: Train
    threshold: float
    phantoms: Rehearsed
    judged: Judged | None
    synthetic: Path
    init: Path | None
    prepared: Path | None
    patches: Path
    digests: Mapping[str, str]
    fold: tuple[int, int] | None = None
    member: str | None = None

    @classmethod
    def of(
        cls,
        params: Params,
        section: Train,
        prepared: Path | None = Path("data/prepare"),
        patches: Path = Path("data/patch"),
        synthetic: Path = Path("data/pretrain"),
    ) -> "Training":
        """A training on the data and the code as they are now.

        Raises:
            ParamsError, DataError, WeightsError, TrackingError: data or weights that aren't there,
                or a patch size that isn't among `patch.sizes`.
        """
        init = initial_weights(section.init)
        files = synthetic_files(params.pretrain, synthetic)
        digests = {
            "code": result_code(_DRIVER),
            "synthetic": digest_of([[str(p.relative_to(synthetic)), sha256(p)] for p in files]),
        }
        if own := own_files(parts_of(section)):
            digests["own"] = code_hash(own)
        if prepared:
            digests["data"] = prepared_digest(prepared)
        if init:
            digests["init"] = sha256(init)
        alike = section.standardize == "foreground" and (
            not prepared or is_brats(read_task(prepared))
        )
        made = cls(
            section,
            params.evaluate.threshold,
            _clear_of_judged(params, prepared) if prepared else params.pretrain.phantoms,
            params.pretrain.validation if alike else None,
            synthetic.resolve(),
            init and init.resolve(),
            prepared and prepared.resolve(),
            patches.resolve(),
            digests,
        )
        # an old index may be there
        if prepared and made.size_vox not in params.patch.sizes:
            raise made._not_prepared()
        return made

    @cached_property
    def task(self) -> Task:
        """The task of the prepared data, or that of the synthetic brain tumours."""
        return read_task(self.prepared) if self.prepared else BRATS

    @property
    def learning_rate(self) -> float:
        """The training's largest learning rate."""
        assert not isinstance(self.section.learning_rate, str)
        return self.section.learning_rate

    @property
    def size_vox(self) -> Size:
        """The patches' size."""
        assert not isinstance(self.section.patch_size, str)
        return self.section.patch_size

    @property
    def voxels_per_step(self) -> int:
        """The voxels of all workers' patches in a step."""
        return self.section.batch_size * math.prod(self.size_vox)

    @property
    def index_path(self) -> Path:
        """The patch index of this training's size."""
        return self.patches / format_size(self.size_vox) / "index.parquet"

    def inputs(self) -> dict[str, Any]:
        """All that the result depends on, as plain values.

        Raises:
            ParamsError: the patch size isn't prepared.
        """
        inputs = {
            "train": self.section.model_dump(mode="json"),
            "threshold": self.threshold,
            "phantoms": self.phantoms.model_dump(mode="json"),
            **({"judged": self.judged.model_dump(mode="json")} if self.judged else {}),
            **({"fold": list(self.fold)} if self.fold else {}),
            **({"member": self.member} if self.member else {}),
            **self.digests,
        }
        if self.prepared is None:
            return inputs
        if not self.index_path.is_file():
            raise self._not_prepared()
        return inputs | {"patches": sha256(self.index_path)}

    def _not_prepared(self) -> ParamsError:
        size = format_size(self.size_vox)
        return ParamsError(
            f"patch size {size}: not prepared",
            where=self.index_path,
            do=f"add {size} to patch.sizes and run `dvc repro patch`",
        )

    def folder(self) -> RunFolder:
        """The folder of this training's run, the same when it goes on.

        Raises:
            ParamsError: the patch size isn't prepared.
        """
        return RunFolder(state_dir() / "runs" / digest_of(self.inputs()))


def parts_of(section: Train) -> tuple[str, ...]:
    """The names in the section that may be parts of your own."""
    return (section.model.name, section.loss, *section.augment.own)


def _clear_of_judged(params: Params, prepared: Path) -> Rehearsed:
    """The sources of synthetic tumours, without those of test and validation patients.

    Raises:
        ParamsError: a listed test or validation patient is among them, or nothing is left.
        DataError: the stage `prepare` has not been run.
    """
    rule, split = params.prepare.split, read_split(prepared)
    parts = {
        "test": (rule.test, split.test),
        "validation": (rule.validation, [region.case for region in split.validation]),
    }
    section = params.pretrain.phantoms
    for key in ("shapes", "anatomies"):
        names: tuple[str, ...] = getattr(section, key)
        for part, (asked, cases) in parts.items():
            known = of_same_patients(cases, names)
            if known and not isinstance(asked, float):
                wanted = f"none of a {part} patient ({', '.join(cases)}), as prepare.split lists it"
                raise ParamsError(f"pretrain.phantoms.{key}", wanted=wanted, got=", ".join(known))
            names = tuple(name for name in names if name not in known)
        if not names:
            raise ParamsError(f"pretrain.phantoms.{key}", wanted="some of no judged patient")
        section = section.model_copy(update={key: names})
    return section


def prepared_digest(folder: Path) -> str:
    """One hash of the prepared data: the split, and each case's raw files, box and statistics.

    Raises:
        DataError: the stage `prepare` has not been run.
    """
    of_all = [folder / name for name in ("split.json", TASK_FILE, INTENSITIES_FILE)]
    paths = [*of_all, *sorted(folder.glob("cases/*/case.json"))]
    if not paths[0].is_file():
        raise DataError("no such file", where=paths[0], do="run `dvc repro prepare` first")
    return digest_of([[path.relative_to(folder).as_posix(), sha256(path)] for path in paths])


def synthetic_files(section: Pretrain, folder: Path) -> list[Path]:
    """The files that synthetic tumours are made from.

    Raises:
        DataError: an anatomy or a shape that isn't there.
    """
    heads = dict.fromkeys(section.phantoms.anatomies + section.validation.anatomies)
    paths = [folder / head / file for head in heads for file in (*FILES.values(), LESION_FILE)]
    shapes = dict.fromkeys(section.phantoms.shapes + section.validation.shapes)
    paths += [shape_path(folder, name) for name in shapes]
    for path in paths:
        if not path.is_file():
            raise DataError("no such file", where=path, do="look at pretrain in params.yaml")
    return paths


def with_changes(params: Params, changes: Mapping[str, Any], where: object) -> Train:
    """The section `train` with other values, checked like params.yaml.

    Args:
        where: their origin, for messages.

    Raises:
        ParamsError: a key that `train` doesn't have, or a value that it can't have.
    """
    for key, value in changes.items():
        if value == FROM_SWEEP:
            raise ParamsError(f"train.{key}: can't be {FROM_SWEEP}", where=where)
    values = params.model_dump(mode="json")
    values["train"] |= changes
    return validate(values, where).train


def data_paths(*sizes: str) -> list[str]:
    """The versioned data of trainings on patches of these sizes, by their paths in dvc.lock."""
    return ["data/fetch", "data/prepare", *(f"data/patch/{size}" for size in sizes)]
