"""Try parts of your own before anything starts: see `own_parts`."""

import subprocess
from importlib.util import find_spec

import torch

from gliotrail.dataset.task import Task
from gliotrail.errors import ParamsError
from gliotrail.own_parts import is_own, own_files, tried
from gliotrail.param_types import Size
from gliotrail.params import Train
from gliotrail.segmentation import weights
from gliotrail.segmentation.augment import check_changes
from gliotrail.segmentation.losses import check_loss
from gliotrail.training.inputs import parts_of


def check_own(section: Train, size_vox: Size, task: Task) -> None:
    """Refuse a network, a loss or a change that doesn't work.

    Raises:
        ParamsError: naming it; or its file, if git ignores it, since no run would record it.
    """
    if is_own(section.model.name):
        _check_network(section, size_vox, task)
    check_loss(section.loss)
    check_changes(section.augment, len(task.channels))
    for path in own_files(parts_of(section)):
        words = ["git", "-C", str(path.parent), "check-ignore", "--quiet", str(path)]
        try:
            ignored = subprocess.run(words, check=False, capture_output=True).returncode == 0
        except FileNotFoundError:  # no git: the run says that its code is unknown
            return
        if ignored:
            do = "take it out of .gitignore: no run would keep it"
            raise ParamsError("a part that git ignores", where=path, do=do)


def _check_network(section: Train, size_vox: Size, task: Task) -> None:
    what = f"train.model.name: {section.model.name}"
    if find_spec("monai") is None:
        do = "`pip install 'gliotrail[monai]'`: whole scans are predicted by its windows"
        raise ParamsError(what, wanted="MONAI", got="none", do=do)
    network = weights.build(section.model, task)
    if section.freeze == "encoder":
        list(network.encoder)
    image = torch.zeros(1, len(task.channels), *size_vox)
    wanted = (1, len(task.classes), *size_vox)
    with tried(what, f"logits {wanted} of an image {tuple(image.shape)}"), torch.no_grad():
        got = tuple(network(image).shape)
    if got != wanted:
        raise ParamsError(what, wanted=f"logits {wanted}", got=got)
