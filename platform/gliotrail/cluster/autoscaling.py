"""Ask a cluster that scales up for machines, and wait for them, printing what is on the way."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import ray
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from gliotrail.cluster.connection import (
    WORKERS,
    Node,
    Resources,
    is_own,
    nodes,
    start_limit_s,
    total,
)
from gliotrail.errors import ClusterError
from gliotrail.progress import say

_PATIENCE_S: Final = 600.0
_FIRST_REPORT_S: Final = 10.0
_ASKED_FOR_S: Final = 20.0
"""An autoscaler looks every five seconds; a new one takes longer."""
_STATUS: Final = "__autoscaling_status"
_FIXED: Final = "node_"
"""How Ray's name for the type of a machine begins that no autoscaler has started."""
T = TypeVar("T")


def when_there_are(
    choose: Callable[[Sequence[Node]], T],
    bundles: Sequence[Mapping[str, float]],
    look: Callable[[], object] = lambda: None,
) -> T:
    """The result of `choose` for the cluster's machines; waits for more if the cluster scales up.

    Args:
        choose: raises ClusterError if they don't suffice.
        bundles: Ray's resources to ask the cluster for in that case.
        look: called each second; if it raises, the wait ends.

    Raises:
        ClusterError: `choose`'s, at once if the cluster can't grow, else if no machine is on the
            way within the start limit, or none has arrived for ten minutes.
    """
    try:
        return choose(nodes())
    except ClusterError as error:
        problem = error
    if is_own() or not _grows():
        raise problem
    from ray.autoscaler.sdk import request_resources

    said, changed_s = "", time.monotonic()
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        while True:
            look()
            state = _describe(nodes(), on_the_way() or {})
            if state != said:
                say(f"waiting for {problem.wanted}: {state}")
                said, changed_s = state, time.monotonic()
            elif time.monotonic() - changed_s > (_PATIENCE_S if on_the_way() else start_limit_s()):
                raise problem
            time.sleep(1)
            try:
                return choose(nodes())
            except ClusterError as error:
                problem = error
    finally:
        request_resources(bundles=[])


def wait_until_free(
    wanted: Resources, what: str, look: Callable[[], object] = lambda: None
) -> None:
    """Wait while others hold the resources for the workers; at most the start limit.

    Ray itself would silently wait for ever.

    Args:
        what: the job, for messages.
        look: called each second; if it raises, the wait ends.

    Raises:
        ClusterError: others still hold it.
    """
    if is_own():
        return
    limit_s = start_limit_s()
    ends_s, said = time.monotonic() + limit_s, False
    group = placement_group([wanted.per_worker()] * (wanted.at_least or wanted.workers))
    try:
        while not group.wait(1):
            look()
            free = ray.available_resources()
            there = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
            if time.monotonic() > ends_s:
                raise ClusterError(
                    f"{what} can't start within {limit_s:g} s: others hold what it needs",
                    wanted=wanted.describe(),
                    got=there,
                    do=f"wait for them, or lower {WORKERS}",
                )
            if not said:
                say(f"{what}: waiting for {wanted.describe()}, which others hold: {there}")
            said = True
    finally:
        remove_placement_group(group)


def can_start_gpus(look: Callable[[], object] = lambda: None) -> bool:
    """Whether the cluster's autoscaler has a type of machine with a GPU, and room for one.

    Ray lists no types. So it is asked for a GPU: without a suitable type it starts nothing.

    Args:
        look: called each second; if it raises, the wait ends.
    """
    if not _grows():
        return False
    from ray.autoscaler.sdk import request_resources

    before = on_the_way() or {}
    ends_s = time.monotonic() + _ASKED_FOR_S
    request_resources(bundles=[{"GPU": 1.0}])
    try:
        while time.monotonic() < ends_s:
            look()
            coming = on_the_way() or {}
            if total(nodes(), "GPU") or any(n > before.get(name, 0) for name, n in coming.items()):
                return True
            time.sleep(1)
        return False
    finally:
        request_resources(bundles=[])


def _grows() -> bool:
    """Whether the cluster has an autoscaler; a new one takes seconds until it reports machines."""
    ends_s = time.monotonic() + _FIRST_REPORT_S
    while on_the_way() is None:
        report = _old_report() or {}
        if any(map(report.get, ("active_nodes", "idle_nodes"))) or time.monotonic() > ends_s:
            return False
        time.sleep(0.5)
    return True


def on_the_way() -> Mapping[str, int] | None:
    """How many machines of each type the cluster is starting; None if it has no autoscaler."""
    report = _old_report()
    if report:
        types = [*report["active_nodes"], *(report["idle_nodes"] or {})]
        coming = Counter(report["pending_launches"])
        coming.update(of_type for _, of_type, _ in report["pending_nodes"])
    else:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        there = [*status.active_nodes, *status.idle_nodes]
        types = [node.ray_node_type_name for node in there]
        coming = Counter(node.ray_node_type_name for node in status.pending_nodes)
        for launch in status.pending_launches:
            coming[launch.ray_node_type_name] += launch.count
    grows = coming or any(name and not name.startswith(_FIXED) for name in types)
    return +coming if grows else None


def _old_report() -> dict[str, Any] | None:
    """The report of the cluster launcher's older autoscaler; a head without one writes it, too."""
    content = _internal_kv_get(_STATUS)
    report: dict[str, Any] | None = json.loads(content or b"{}").get("autoscaler_report")
    return report


def _describe(there: Sequence[Node], coming: Mapping[str, int]) -> str:
    has = f"there are {total(there, 'CPU')} CPUs and {total(there, 'GPU')} GPUs"
    starts = ", ".join(f"{n} of type {name}" for name, n in sorted(coming.items()))
    return f"{has}; on the way: {starts or 'nothing yet'}"
