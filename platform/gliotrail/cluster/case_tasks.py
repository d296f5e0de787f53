"""Cases as Ray tasks, each on a worker of the cluster, with a GPU if workers have one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from gliotrail.cluster.autoscaling import wait_until_free, when_there_are
from gliotrail.cluster.connection import Resources, cluster, is_own, share_out, workers_wanted
from gliotrail.cluster.gpus import decide, device_of, gpus_wanted
from gliotrail.cluster.job_inputs import bring_inputs
from gliotrail.errors import ClusterError
from gliotrail.segmentation.loop import device_here

_LOSSES_SURVIVED: Final = 3
T = TypeVar("T")
R = TypeVar("R")


def each_case(
    work: Callable[[T, torch.device], R],
    cases: Sequence[T],
    came: Callable[[T, R], object],
    what: str,
) -> None:
    """Hand each case and its result of `work` to `came`, in the order in which they end.

    A case whose worker or machine is lost is done again. This process only waits, but does a single
    case itself if the cluster is this machine.

    Args:
        work: called with a case and its worker's device. Both it and the cases are sent to workers.
        what: the job, for messages, such as "evaluate".

    Raises:
        ClusterError: the cluster can't give a worker, or workers are lost again and again.
        Exception: as `work`; the case is not tried again.
    """
    wanted = gpus_wanted(1)
    if is_own() and len(cases) < 2:
        for case in cases:
            came(case, work(case, torch.device("cpu") if wanted == 0 else device_here()))
        return
    workers, at_least = workers_wanted()
    with cluster() as connected:
        connected()
        of_a_gpu = decide(wanted, what)
        each = when_there_are(
            lambda there: share_out(there, workers, at_least, of_a_gpu, len(cases), what),
            [Resources(1, 1, of_a_gpu).per_worker()] * (workers or 1),
        )
        wait_until_free(replace(each, workers=1, at_least=None), what)
        task: Any = ray.remote(_do).options(
            num_cpus=each.cpus_per_worker,
            num_gpus=each.gpus_per_worker,
            max_retries=_LOSSES_SURVIVED,
            retry_exceptions=False,
        )
        waiting: dict[Any, T] = {task.remote(work, case, of_a_gpu): case for case in cases}
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            came(waiting.pop(ended), _result(ended, what))


def _do(work: Callable[[T, torch.device], R], case: T, of_a_gpu: float) -> R:
    """Do one case, on a worker."""
    bring_inputs()
    device = device_of(of_a_gpu)
    if device.type == "cuda" and of_a_gpu < 1:  # the rest is for other cases
        torch.cuda.set_per_process_memory_fraction(of_a_gpu)
    return work(case, device)


def _result(ended: Any, what: str) -> Any:
    try:
        return ray.get(ended)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        got = str(error).strip().partition("\n")[0]
        do = "the same command goes on"
        raise ClusterError(f"{what}: workers are lost again and again", got=got, do=do) from error
