"""`ready.py NODES PID`: wait until so many nodes of Ray are there, while the process goes on."""

import logging
import sys
import time
from pathlib import Path

import ray

_PATIENCE_S = 600

if __name__ == "__main__":
    wanted, process = int(sys.argv[1]), Path("/proc") / sys.argv[2]
    ends_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends_s and process.exists():
        try:
            if not ray.is_initialized():
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
            if sum(node["Alive"] for node in ray.nodes()) >= wanted:
                sys.exit(0)
        except (ConnectionError, ValueError):
            pass  # not yet
        time.sleep(1)
    sys.exit(1)
