"""A real Slurm: a controller and two nodes, each a container, on one file system.

Ray and jobs are in the containers' namespaces: nothing of them sees, or ends, a process outside.
"""

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import podman_env
from tests.support.projects import ROOT, Project

CONF = """\
ClusterName=test
SlurmctldHost=ctl
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldTimeout=30
SlurmdTimeout=60
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobRequeue=1
MessageTimeout=60
KillWait=30
NodeName=node[1-2] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
"""
START = """\
set -eu
cp /conf/slurm.conf /etc/slurm/slurm.conf
install -o munge -g munge -m 400 /conf/munge.key /etc/munge/munge.key
install -d -o munge -g munge /run/munge
mkdir -p /var/spool/slurmctld /var/spool/slurmd
runuser -u munge -- /usr/sbin/munged
case $1 in ctl) exec slurmctld -D ;; *) exec slurmd -D -N "$1" ;; esac
"""
_USER = 1000


@dataclass(frozen=True)
class Slurm:
    """The cluster; all nodes see the project at its own path."""

    project: Project
    controller: str
    env: dict[str, str]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on the controller as the project's user, in its root."""
        within = ["podman", "exec", "--user", str(_USER), "--workdir", str(self.project.root)]
        within += ["--env", f"PYTHONPATH={self.project.root}/platform", "--env", "HOME=/tmp"]
        done = subprocess.run(
            [*within, self.controller, *command],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """`sbatch` with options, then the script and its command; the job's number."""
        return self.run("sbatch", "--parsable", "--output=%j.out", *words).strip()

    def state(self, job: str) -> str:
        """Such as RUNNING, COMPLETED."""
        shown = self.run("scontrol", "show", "job", job)
        found = re.search(r"JobState=(\w+)", shown)
        assert found, shown
        return found[1]

    def restarts(self, job: str) -> int:
        """How often a job was queued again."""
        found = re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job))
        assert found
        return int(found[1])

    def said(self, job: str) -> str:
        """A job's output so far."""
        path = self.project.root / f"{job}.out"
        return path.read_text(errors="replace") if path.is_file() else ""

    def until(self, job: str, text: str, patience_s: float) -> None:
        """Wait until a job has said something."""
        ends_s = time.monotonic() + patience_s
        while text not in self.said(job):
            ended = self.state(job) in {"FAILED", "CANCELLED", "COMPLETED", "TIMEOUT"}
            assert not ended or text in self.said(job), self.said(job)[-3000:]
            assert time.monotonic() < ends_s, self.said(job)[-3000:]
            time.sleep(1)

    def ended(self, job: str, patience_s: float) -> str:
        """Wait for a job's end; its state."""
        ends_s = time.monotonic() + patience_s
        while (state := self.state(job)) in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
            assert time.monotonic() < ends_s, f"{state}: {self.said(job)[-3000:]}"
            time.sleep(1)
        return state


@contextmanager
def slurm(project: Project, folder: Path) -> Iterator[Slurm]:
    """Start the three containers, and end them."""
    env = podman_env(folder)
    conf = folder / "conf"
    conf.mkdir()
    (conf / "slurm.conf").write_text(CONF)
    (conf / "munge.key").write_bytes(os.urandom(1024))
    (conf / "start").write_text(START)
    name = f"gt{uuid.uuid4().hex[:8]}"
    podman(env, "network", "create", name)
    with ExitStack() as stack:
        stack.callback(podman, env, "network", "rm", "-f", name)
        for host in ("ctl", "node1", "node2"):
            stack.callback(podman, env, "rm", "-f", "-t", "1", f"{name}-{host}")
            podman(
                env, "run", "-d", "--name", f"{name}-{host}", "--hostname", host,
                "--network", f"{name}:alias={host}", "--user", "root", "--shm-size", "1g",
                "-v", f"{conf}:/conf:ro", "-v", f"{project.root}:{project.root}",
                "localhost/gliotrail-slurm", "bash", "/conf/start", host,
            )  # fmt: skip
        subprocess.run(["chown", "-R", f"{_USER}:{_USER}", str(project.root)], check=True)
        for parent in project.root.parents:
            if parent.is_relative_to(folder.parent):
                parent.chmod(parent.stat().st_mode | 0o055)
        cluster = Slurm(project, f"{name}-ctl", env)
        ends_s = time.monotonic() + 120
        while cluster.run("sinfo", "-h", "-o", "%t %D", check=False).strip() != "idle 2":
            assert time.monotonic() < ends_s, cluster.run("sinfo", check=False)
            time.sleep(1)
        yield cluster


def podman(env: dict[str, str], *words: str) -> None:
    """Run a command of podman's."""
    done = subprocess.run(["podman", *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BATCH = str(Path("infra/slurm/gliotrail.sbatch"))
assert (ROOT / BATCH).is_file()
