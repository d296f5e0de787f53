"""Where a run comes from: commit, data hashes, code, environment."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import gliotrail
from gliotrail.params import read_yaml

_PACKAGES = ("dvc", "mlflow", "numpy", "nibabel", "ray", "safetensors", "scipy", "torch")


def git_commit() -> str:
    """HEAD's hash, `-dirty` behind it if tracked files differ; `unknown` outside a checkout."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def dvc_digests(lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """DVC's digest of each output in dvc.lock, by path: a file's md5, a folder's `<md5>.dir`."""
    stages = read_yaml(lock)["stages"] if lock.is_file() else {}
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", ())
        if "md5" in out
    }


def code_digest() -> str:
    """One hash of the code that decides what a training gives: imaging, segmentation, params.

    Where a run happens and what is drawn of it (the other rooms) change no weight.
    """
    root = Path(gliotrail.__file__).parent
    sources = [root / "params.py", *(root / "imaging").glob("*.py")]
    sources += (root / "segmentation").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def digest_of(values: Any) -> str:
    """A short hash of plain values, the same for equal values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment() -> dict[str, str]:
    """Versions and hardware, as flat tags."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "command": " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
