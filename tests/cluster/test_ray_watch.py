"""What is done when Ray is gone; a process of its own stands for Ray's: no cluster is started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.projects import ROOT

WAIT = """
import os, subprocess, sys, time
from gliotrail.cluster import ray_watch
from gliotrail.errors import one_line_errors
raylet = subprocess.Popen(["sleep", "600"])
ray_watch.own_processes = lambda: {"raylet": raylet}
ray_watch._PATIENCE_S = 4
if sys.argv[1] == "leaves":
    with one_line_errors(), ray_watch.while_ray_lives(own=True):
        time.sleep(0.1)
    raylet.kill()
    time.sleep(2)
    print("went on")
elif sys.argv[1] == "starts":
    with one_line_errors(), ray_watch.while_ray_starts():
        raylet.kill()
        time.sleep(600)
else:
    with one_line_errors(), ray_watch.while_ray_lives(own=True):
        raylet.kill()
        while True:
            try:
                time.sleep(600)
            except BaseException as error:
                os.write(2, b"what Ray's own code says of it\\n")
                if sys.argv[1] == "ends":
                    raise
"""
GONE = "error: Ray is gone: got its raylet ended with -9; the same command goes on"


@pytest.mark.parametrize(
    ("what", "code", "told"),
    [("ends", 1, GONE), ("hangs", 1, GONE), ("starts", 1, GONE), ("leaves", 0, "went on")],
)
def test_what_leans_on_ray_ends_with_it_in_one_line_whatever_it_is_at(
    what: str, code: int, told: str, tmp_path: Path
) -> None:
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WAIT, what], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout + done.stderr).splitlines()[-1:] == [told]
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started_s < 100
