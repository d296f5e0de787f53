"""What `dvc repro` takes by itself: with nothing to do, and until a training's first step."""

import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gliotrail.runs.journal import parse_lines
from tests.support.projects import Project, clone_into, set_params, use_crops

ROUNDS = 5


def lines(folder: Path) -> list[str]:
    """In a clone that works on crops, after one whole `dvc repro`."""
    project = use_crops(clone_into(folder))
    project.run("dvc", "repro", timeout_s=600)
    repro_s, status_s, ratio = nothing_to_do(project)
    until = first_step(project)
    parts = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in until)
    return [
        f"With nothing to do: {repro_s:.2f} s, {ratio:.2f} times the {status_s:.2f} s of "
        f"`dvc status`, medians of {ROUNDS} rounds (wanted: at most 1.5 times).\n",
        f"From `dvc repro` to a training's first step {sum(s for _, s in until):.1f} s: {parts}.",
    ]


def nothing_to_do(project: Project, rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Seconds of `dvc repro` and of `dvc status`, and the median of their ratios."""
    seconds: dict[str, list[float]] = {"repro": [], "status": []}
    for _ in range(rounds):
        for command, took in seconds.items():
            started = time.perf_counter()
            project.run("dvc", command)
            took.append(time.perf_counter() - started)
    repro, status = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(repro, status, strict=True))
    return statistics.median(repro), statistics.median(status), ratio


def first_step(project: Project) -> Sequence[tuple[str, float]]:
    """What passes, and for how long, after `train` alone was changed."""
    set_params(project.root / "params.yaml", {"train.seed": 8})
    known = set(project.root.glob(".gliotrail/runs/*"))
    started = time.time()
    with subprocess.Popen(
        ["dvc", "repro", "train"], cwd=project.root, env=project.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout
        stage = next(time.time() for line in process.stdout if line.startswith("Running stage"))
        said = process.stdout.read()
    (run,) = set(project.root.glob(".gliotrail/runs/*")) - known
    begun = (run / "run.json").stat().st_mtime
    made = [run / "attempts/0001.jsonl", *run.glob("checkpoints/*/segment.jsonl")]
    points = [p for path in made if path.is_file() for p in parse_lines(path.read_bytes())]
    assert points, said
    first = min(point.time_ms for point in points) / 1000
    return [
        ("until DVC starts the stage", stage - started),
        ("for imports and what the run is", begun - stage),
        ("for Ray, its workers, the data and the first step", first - begun),
    ]
