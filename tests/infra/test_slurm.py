"""The sbatch script, with local processes in place of Slurm's, and a real Ray.

`ray symmetric-run` ends by `ray stop`, which ends every Ray it sees: so all runs in a namespace of
processes, where there is no other.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.projects import ROOT

SRUN = """\
#!/bin/sh
while case $1 in --*) true;; *) false;; esac; do shift; done
exec "$@"
"""
SCONTROL = """\
#!/bin/sh
case $1 in
show) echo localnode ;;
requeue) echo "$2" >>requeued ;;
esac
"""
GETENT = """\
#!/bin/sh
echo 10.9.9.9 STREAM localnode
"""
COMMAND = """\
import os, pathlib, signal, sys, time
import ray
ray.init(logging_level="ERROR")
pathlib.Path("cpus").write_text(str(ray.cluster_resources()["CPU"]))
pathlib.Path("mode").write_text(oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777))
def stop(*_):
    pathlib.Path("checkpoint").write_text("at step 7")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("started").touch()
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""
NODE = 'ip link set lo up; ip addr add 10.9.9.9/32 dev lo; exec "$@"'


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job of one node; its process."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "getent": GETENT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "command.py").write_text(COMMAND)
    started = []

    def start(*words):
        alone = ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
        script = ["bash", ROOT / "infra/slurm/gliotrail.sbatch"]
        env = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localnode",
            "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2",
        }  # fmt: skip
        del env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"]
        started.append(
            subprocess.Popen(
                [*alone, "sh", "-c", NODE, "sh", *script, sys.executable, "command.py", *words],
                cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def shell_of(process):
    """The batch script's own process, seen from outside of its namespace."""
    for _ in range(2):  # unshare, then what was `sh`
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in map(int, listed):
            if "gliotrail.sbatch" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
    raise AssertionError("no batch script")


pytestmark = [pytest.mark.long, pytest.mark.needs_netns, pytest.mark.timeout(400)]


def test_before_the_time_limit_it_makes_a_checkpoint_and_queues_again(job, tmp_path):
    process = job("300", "0")
    ends_s = time.monotonic() + 200
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < ends_s
        time.sleep(0.5)

    subprocess.run(["kill", "-USR1", str(shell_of(process))], check=True)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    assert (tmp_path / "checkpoint").read_text() == "at step 7"
    assert (tmp_path / "requeued").read_text() == "4711\n"
    assert (tmp_path / "cpus").read_text() == "2.0"
    assert (tmp_path / "mode").read_text() == "0o600"
    assert not (tmp_path / ".gliotrail/slurm/4711").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_ends_with_its_commands_code_and_is_not_queued_again(code, job, tmp_path):
    process = job("0", str(code))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert not (tmp_path / "requeued").exists()
    assert not re.search("checkpoint", output)
