"""Kills of a loop's process, of the tracker's beside it, and of the server that it leans on."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.tracking.compared_support import (
    LOOKED_AT_S,
    STEP_S,
    STEPS,
    ForkedServer,
    Loop,
    kept,
    settled,
    store,
    until,
)

WITH_HELPER = {"gliotrail.track": "delivery_process", "W&B offline": "wandb-core"}


def of_loop(way: str, moment: float) -> dict[str, Any]:
    """One kill of the loop's process, at a share of its steps' time."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = store(folder)
        loop = Loop(way, folder, uri)
        process = loop.start()
        loop.until_began(process)
        time.sleep(moment * STEPS * STEP_S)
        process.kill()
        process.join()
        running = not until(lambda: "RUNNING" not in kept(way, folder, uri).statuses, LOOKED_AT_S)
        loop.to_its_end()
        until(lambda: kept(way, folder, uri).statuses == ["FINISHED"], LOOKED_AT_S)
        seen = kept(way, folder, uri).told
        return seen | {"running_after": running, "failed_starts": loop.failed}


def of_helper(way: str, moment: float) -> dict[str, Any]:
    """One kill of the tracker's own process beside the loop."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = store(folder)
        loop = Loop(way, folder, uri)
        step_s = 2 * STEP_S  # so that it is up and at work in most of that time
        process = loop.start(step_s)
        loop.until_began(process)
        time.sleep(moment * STEPS * step_s)
        helpers = [
            each for each in psutil.Process(process.pid).children(recursive=True)
            if WITH_HELPER[way] in " ".join(each.cmdline())
        ]  # fmt: skip
        for helper in helpers:
            helper.kill()
        loop.to_its_end(process)
        until(lambda: kept(way, folder, uri).statuses == ["FINISHED"], LOOKED_AT_S)
        seen = kept(way, folder, uri).told
        return seen | {"killed": len(helpers), "failed_starts": loop.failed}


def of_server(
    server: ForkedServer, ways: list[str], number: int, moment: float, away_s: float
) -> dict[str, dict[str, Any]]:
    """One kill of a server that all ways' loops lean on.

    Args:
        number: of the kill, for names of its own.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        top, step_s, found = Path(name), 2 * STEP_S, {}
        loops = {}
        for at, way in enumerate(ways):
            (top / str(at)).mkdir()
            loops[way] = Loop(way, top / str(at), server.uri, f"of-{number}-{at}")
        processes = {way: loop.start(step_s) for way, loop in loops.items()}
        for way, loop in loops.items():
            loop.until_began(processes[way])
        time.sleep(moment * STEPS * step_s)
        server.kill_for(away_s)
        for way, loop in loops.items():
            loop.to_its_end(processes[way])
        for at, way in enumerate(ways):
            look = partial(settled, way, top, server.database, f"of-{number}-{at}")
            is_synced = way == "gliotrail.track" and look().statuses != ["FINISHED"]
            if is_synced:
                loops[way].sync()
            found[way] = look().told | {
                "synced": is_synced,
                "failed_starts": loops[way].failed,
                "blocked_s": sum(took for took, _ in loops[way].took()["steps"]),
            }
        return found
