"""Processes to share cases out to, and what becomes of one that is killed."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from gliotrail.errors import DataError


def pool_of(processes: int | None = None) -> ProcessPoolExecutor | None:
    """So many processes, by default one a core; None without /dev/shm, which they need."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the progress bar's thread
    try:
        return ProcessPoolExecutor(processes, context)
    except OSError:
        return None


@contextmanager
def killed_is_told() -> Iterator[None]:
    """Tell that one of a pool was killed.

    Raises:
        DataError: saying what to do.
    """
    try:
        yield
    except BrokenProcessPool:
        do = "if memory is short, use fewer cores: taskset --cpu-list 0,1 COMMAND"
        raise DataError("a process of prepare was killed", do=do) from None
