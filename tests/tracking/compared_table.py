"""The measurements of `compared` as tables."""

from typing import Any

KILLS = (
    "killed", "way", "kills", "lost", "doubled", "at another step", "wrong at the end",
    "RUNNING 10 s later", "failed starts", "told by sync",
)  # fmt: skip
COSTS = (
    "server", "way", "ms a step", "longest, s", "CPU, ms a step", "end, s", "calls of the server",
    "came to its end",
)  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """Kills of each kind and way, and what came of them; then what tracking costs."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    costs = []
    for line in lines:
        if line["kind"] == "cost":
            costs.append(_cost(line))
        else:
            rows.setdefault((line["kind"], line["way"]), []).append(line)
    kills = [[kind, way, *_kills(of)] for (kind, way), of in sorted(rows.items())]
    return "\n\n".join(_markdown(*each) for each in ((KILLS, kills), (COSTS, costs)))


def _markdown(heads: tuple[str, ...], rows: list[list[Any]]) -> str:
    told = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in told)


def _kills(of: list[dict[str, Any]]) -> list[Any]:
    def total(key: str) -> int:
        return sum(int(line.get(key) or 0) for line in of)

    looked = any("running_after" in line for line in of)
    return [
        len(of), total("lost"), total("doubled"), total("at_wrong_step"),
        sum(line["statuses"] != ["FINISHED"] for line in of),
        total("running_after") if looked else "-", total("failed_starts"),
        total("synced"),
    ]  # fmt: skip


def _cost(line: dict[str, Any]) -> list[Any]:
    steps = line["steps"]
    blocked, busy = [s for s, _ in steps], [s for _, s in steps]
    mean = lambda of: f"{1000 * sum(of) / len(of):.1f}" if of else "-"  # noqa: E731
    end = "-" if line["end_s"] is None else f"{line['end_s']:.1f}"
    return [
        line["state"], line["way"], mean(blocked), f"{max(blocked, default=0):.1f}",
        mean(busy) if any(busy) else "-", end, line["calls"],
        "yes" if line["came_to_its_end"] else f"no: {len(steps)} steps, {line['exit']}",
    ]  # fmt: skip
