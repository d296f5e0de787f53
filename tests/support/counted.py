"""What a computation costs, counted without doing it: on the `meta` device tensors have no data."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made within it hold at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, n_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= n_bytes


def flops(compute: Callable[[], object]) -> int:
    """Of multiplications and additions, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def live_bytes(compute: Callable[[], object]) -> int:
    """The most that its tensors hold at a time."""
    with LiveBytes() as counter:
        compute()
    return counter.most
