"""What tracking costs a loop a step, with a server that is up, slow or away."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.proxy import Proxy
from tests.support.services import kill_all
from tests.tracking.compared_support import STEP_S, ForkedServer, Loop, until
from tests.tracking.compared_sweeps import Sweep
from tests.tracking.compared_tune import WAYS as OF_TUNE

STEPS, SLOW_S, PATIENCE_S = 30, 0.2, 180.0


class SlowProxy(Proxy):
    """Each answer comes later; once it is away, none does."""

    away = False

    def _ask(self, handler: Any, body: bytes) -> tuple[int, str, bytes]:
        answer = super()._ask(handler, body)
        time.sleep(self.late_s)
        return answer

    def _serve(self, handler: Any, body: bytes, fault: str) -> None:
        super()._serve(handler, body, "lost before" if self.away else fault)

    def go_away(self) -> None:
        """Connections that are open are closed when they are used, new ones are refused."""
        self.away = True
        self.close()


def of_cost(way: str, state: str, server: ForkedServer) -> dict[str, Any]:
    """One run of the loop, or of a trial, and its calls of the server."""
    proxy = SlowProxy(server.uri, SLOW_S if state == "slow" else 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, began_s = Path(name), time.monotonic()
        if way in OF_TUNE:
            sweep = Sweep(way, folder, proxy.uri, [None], steps=STEPS, step_s=STEP_S)
            sweep.go(0)
            process, began, took = sweep.process, folder / "began-0", folder / "took-0.json"
        else:
            loop = Loop(way, folder, proxy.uri)
            process, began, took = loop.start(steps=STEPS), folder / "began", folder / "took.json"
        until(lambda: began.exists() or not process.is_alive(), 300)
        if state == "away":
            time.sleep(STEPS * STEP_S / 4)
            proxy.go_away()
        process.join(PATIENCE_S)
        ended = process.exitcode if not process.is_alive() else f"not after {PATIENCE_S:.0f} s"
        kill_all(process.pid)
        content = json.loads(took.read_text()) if took.exists() else {"steps": [], "end_s": None}
        proxy.go_away()
        return content | {
            "state": state, "exit": ended, "whole_s": time.monotonic() - began_s,
            "came_to_its_end": ended == 0 and len(content["steps"]) == STEPS,
            "calls": sum(proxy.calls.values()), "kinds": dict(proxy.calls),
        }  # fmt: skip
