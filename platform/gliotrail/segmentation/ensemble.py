"""Several networks' weights as one file: the folds of a cross-validation as one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import Tensor

from gliotrail.errors import WeightsError
from gliotrail.segmentation.weights import read, to_bytes

_OF_EACH: Final = {"postprocess", "trained_on"}
"""Fields in which members may differ."""


def join(files: Sequence[Path]) -> bytes:
    """The content of a weights file with several networks, whose probabilities are averaged.

    Rules for label maps are left out: they were found for one network, not for a mean of several.

    Raises:
        WeightsError: as `weights.read`; fewer than two files, or networks that are not alike.
    """
    if len(files) < 2:
        raise WeightsError("an ensemble", wanted="two weights files or more", got=len(files))
    read_all = [(file, *read(file)) for file in files]
    state: dict[str, Tensor] = {}
    first = read_all[0][2].model_copy(update={"postprocess": None})
    for n, (file, tensors, description) in enumerate(read_all):
        if description.members > 1:
            raise WeightsError("members", where=file, wanted="one", got=description.members)
        for what, wanted in first:
            got = getattr(description, what)
            if what not in _OF_EACH and got != wanted:
                raise WeightsError(what, where=file, wanted=f"{wanted}, as {files[0]}", got=got)
        state |= {f"members.{n}.{name}": tensor for name, tensor in tensors.items()}
    seen = {name for _, _, description in read_all for name in description.trained_on}
    joined = {"members": len(files), "trained_on": tuple(sorted(seen))}
    return to_bytes(state, first.model_copy(update=joined))
