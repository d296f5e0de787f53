"""Real workers for tests: processes joined by gloo, started once, that run what they are handed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from gliotrail.segmentation.loop import World

LONGEST_S = 120.0
Workers = Callable[..., list[Any]]
"""(how many workers, function, *args) -> what function(world, *args) returned on each of them."""


@contextmanager
def gloo_workers(most: int, folder: Path) -> Iterator[Workers]:
    """Processes for up to `most` workers. What they are handed and return goes through pickle."""
    context = torch.multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(most):
        ours, theirs = context.Pipe()
        args = (rank, most, folder / "store", theirs)
        processes.append(context.Process(target=_serve, args=args, daemon=True))
        processes[-1].start()
        pipes.append(ours)

    def run(workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in pipes[:workers]:
            pipe.send((workers, function, args))
        return [_answer(pipe) for pipe in pipes[:workers]]

    try:
        yield run
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(LONGEST_S):
        raise TimeoutError(f"a worker said nothing for {LONGEST_S:g} s")
    answer = pipe.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _serve(rank: int, most: int, store: Path, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=most
    )
    groups = {n: torch.distributed.new_group(list(range(n))) for n in range(1, most + 1)}
    while True:
        workers, function, args = pipe.recv()
        add = partial(torch.distributed.all_reduce, group=groups[workers])
        try:
            answer = function(World(rank, workers, add), *args)
        except Exception as error:  # noqa: BLE001 - raised again by who asked
            answer = error
        pipe.send(answer)
