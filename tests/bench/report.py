"""The bench's table, and what it was measured on."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gliotrail.runs.lineage import cpu_model

_BEGIN, _END = "<!-- measured -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One part: medians in seconds, ratios of a peer's time to ours, and peak memory."""

    what: str
    rounds: int
    medians_s: Mapping[str, float]
    ratios: Mapping[tuple[str, str], float]
    targets: Sequence[tuple[str, str, float]]
    peaks_mb: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """As a row of the table."""
        peaks = {name: f" ({mb:.0f} MB)" for name, mb in self.peaks_mb.items()}
        times = "; ".join(
            f"{name} {_time(s)}{peaks.get(name, '')}" for name, s in self.medians_s.items()
        )
        ratios = "; ".join(
            f"{peer} {ratio:.1f}x" + (f" ({ours})" if "/" in ours else "")
            for (ours, peer), ratio in self.ratios.items()
        )
        wanted = "; ".join(
            f"{target:g}x {peer}" + (f" ({ours})" if "/" in ours else "") + f": {met}"
            for ours, peer, target in self.targets
            if (ratio := self.ratios.get((ours, peer)))
            for met in ["met" if ratio >= target else "missed"]
        )
        return f"| {self.what} | {times} | {ratios} | {wanted} | {self.rounds} |"


def write(path: Path, rows: Sequence[Row], grown: Sequence[str], today: str, commit: str) -> None:
    """Put new figures between the page's two marks."""
    load, gib = os.getloadavg()[0], psutil.virtual_memory().total / 2**30
    machine = f"{cpu_model()}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}"
    quiet = "quiet" if load < 2.5 else "busy with other work: trust only large ratios"
    table = [
        _BEGIN,
        f"Measured on {today} at {commit}: {machine}, load {load:.1f} ({quiet}).\n",
        "| work | time | how many times ours | wanted | rounds |",
        "|---|---|---|---|---|",
        *(row.line() for row in rows),
        "\n## How cost grows\n",
        *grown,
        _END,
    ]
    page = path.read_text(encoding="utf-8")
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    path.write_text(before + "\n".join(table) + after, encoding="utf-8")


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
