"""How a command ends when something is wrong: one line, an exit code, no traceback."""

import os
import subprocess
import sys

import pytest

from tests.support.projects import ROOT

SCRIPT = "from gliotrail.errors import one_line_errors\nwith one_line_errors():\n    {}\n"
FAILURES = {
    "open('/dev/full', 'w').write('a' * 99999)": (
        1, "error: No space left on device; the same command goes on once that is mended\n",
    ),
    "open('none/such')": (
        1, "error: none/such: No such file or directory; the same command goes on once that is "
        "mended\n",
    ),
    "raise KeyboardInterrupt": (
        130, "error: stopped by Ctrl-C; finished work stays; the same command goes on\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_what_ends_a_command_is_told_in_one_line(failure):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(failure)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == FAILURES[failure]
