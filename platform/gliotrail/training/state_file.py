"""A training's state as a safetensors file: nothing is ever unpickled."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gliotrail.errors import TrackingError
from gliotrail.segmentation.loop import State


def to_bytes(state: State) -> bytes:
    """A state as safetensors; its few numbers are tensors of one element."""
    numbers = {
        "step": torch.tensor(state.step, dtype=torch.int64),
        "kept_score": torch.tensor(state.kept_score, dtype=torch.float64),
        "kept_step": torch.tensor(state.kept_step, dtype=torch.int64),
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return save_tensors(tensors | numbers)


def from_bytes(content: bytes, where: object = None) -> State:
    """The inverse of `to_bytes`. Nothing is unpickled.

    Raises:
        TrackingError: it is no such state.
    """
    try:
        tensors = load_tensors(content)
        step = int(tensors.pop("step").item())
        kept_score = float(tensors.pop("kept_score").item())
        kept_step = int(tensors.pop("kept_step").item())
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise TrackingError("no checkpoint", where=where, got=repr(error)) from None
    return State(step, tensors, kept_score, kept_step)
