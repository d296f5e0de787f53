"""Results, and from a model back to its origin."""

import json
import math
import os
import socket
import sys
import time
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from gliotrail.cli import complete
from gliotrail.cli.output import Json, number, print_json, print_table, table_of
from gliotrail.errors import DataError, ParamsError, TrackingError

Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_RUN",
        help="models:/NAME@ALIAS, or the beginning of a run's id.",
        autocompletion=complete.models_and_runs,
    ),
]
Other = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_RUN", help="The other one.", autocompletion=complete.models_and_runs
    ),
]


def trace(name: Name, as_json: Json = False) -> None:
    """Show the origin of a model or a run, and the commands that rebuild it."""
    from gliotrail.tracking.trace import as_text
    from gliotrail.tracking.trace import trace as find

    found = find(name)
    if as_json:
        print_json(found)
        return
    table = _facts()
    for kind in ("model", "run", "code", "parent", "environment", "params", "measures"):
        for n, (key, value) in enumerate((found[kind] or {"": "none"}).items()):
            text = f"{value:.6g}" if isinstance(value, float) else as_text(value)
            table.add_row("" if n else kind, key, text)
        table.add_section()
    for n, data in enumerate(found["data"]):
        where = ", ".join(data["at"]) or "not in the cache, and there is no remote"
        table.add_row("" if n else "data", data["path"], f"{data['digest']} ({where})")
    print_table(table)
    if found["commands"]:
        print("to rebuild it:", *found["commands"], sep="\n  ")
    else:
        print(f"not rebuildable: {found['code']['problem'] or 'no commit is known'}")


def compare(first: Name, second: Other, as_json: Json = False) -> None:
    """Show the differences of two models or runs: params, data, code, environment, metrics."""
    from gliotrail.tracking.trace import as_text
    from gliotrail.tracking.trace import compare as differences

    found = differences(first, second)
    if as_json:
        print_json(found)
        return
    table = table_of("", "", first, second, "difference", left=4)
    table.columns[1].no_wrap = True  # a key is searched as one word
    for kind, rows in found.items():
        for n, (key, values) in enumerate(rows.items()):
            cells = [f"{v:.4g}" if isinstance(v, float) else as_text(v) for v in values]
            table.add_row("" if n else kind, key, *cells, _difference(*values))
        table.add_section()
    if any(found.values()):
        print_table(table)
    else:
        print("nothing differs")


def _facts() -> Table:
    table = table_of("", "", "", left=3)
    table.show_header = False
    return table


def _difference(one: object, other: object) -> str:
    """The difference of two numbers; as params they are text in MLflow."""
    try:
        return f"{float(str(other)) - float(str(one)):+.4g}"
    except ValueError:
        return ""


def reproduce(
    name: Name,
    with_sweep: Annotated[
        bool, typer.Option("--with-sweep", help="Sweep again; else take the recorded winner.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model again from its run's record, and compare weights, curves and measures.

    Exit code 0 if they are the same, bit for bit; else 1, with the largest differences.
    """
    from gliotrail.tracking.reproduce import reproduce as again

    found = again(name, with_sweep)
    if as_json:
        parts = {
            key: asdict(part) | {"largest": part.largest if math.isfinite(part.largest) else None}
            for key, part in found.parts.items()
        }
        print_json(asdict(found) | {"parts": parts, "is_identical": found.is_identical})
    else:
        table = table_of("", "numbers", "equal", "largest difference", "at")
        for key, part in found.parts.items():
            largest = f"{part.largest:.3g}"
            table.add_row(key, str(part.n), str(part.n_equal), largest, part.where)
        print_table(table)
        print(f"{found.again} reproduces {found.run}: {found.verdict}")
    if not found.is_identical:
        raise typer.Exit(1)


def metrics(
    path: Annotated[Path, typer.Argument()] = Path("results/evaluate/metrics.json"),
    as_json: Json = False,
) -> None:
    """Show the held-out patients' measures, and where to look next."""
    if not path.is_file():
        raise DataError("no such file", where=path, do="run `dvc repro` first")
    try:
        values = json.loads(path.read_bytes())
        n_cases, loss = int(values["cases"]), values["soft_dice_loss"]
    except (ValueError, KeyError, TypeError):
        wanted = "what `dvc repro` writes to results/evaluate/metrics.json"
        raise DataError("no measures", where=path, wanted=wanted, got="another file") from None
    if as_json:
        print_json(values)
        return
    print(f"held-out patients: {n_cases}")
    table = table_of("", "Dice", "sensitivity", "specificity", "HD95 mm", "cases")
    for kind, names in (("classes", values["classes"]), ("regions", values["regions"])):
        for name in names:
            row = values[name]
            cells = [number(row[key]) for key in ("dice", "sensitivity", "specificity")]
            table.add_row(name, *cells, number(row["hd95_mm"], 1), str(row["defined"]))
        if names:
            table.add_row(f"mean of {kind}", number(values[f"mean_{kind}"]), end_section=True)
    print_table(table)
    print("cases: those with a Dice, which has none where there is nothing to find")
    print(f"whole-scan soft Dice loss {number(loss)}")
    print("look next: `make ui` opens MLflow; masks and pictures are in results/evaluate")


def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Open MLflow's pages of the recorded runs (reachable from this machine only)."""
    from gliotrail.runs.addresses import shown, tracking_uri

    if tracking_uri().startswith(("http://", "https://")):
        check_answers(tracking_uri())
        print(f"MLflow's pages: {shown(tracking_uri())} (a running server)")
        return
    check_port(port)
    from gliotrail.tracking.client import one_line, page_of_runs  # seconds of imports

    with one_line():
        page = page_of_runs()
    address = f"http://127.0.0.1:{port}/{page}"
    print(f"MLflow's pages: {address} (end with Ctrl-C)", flush=True)
    if show and has_browser() and os.fork() == 0:
        open_when_there(port, address)
    words = ["-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the server's own processes
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # nothing here uses them
    # one process: with several, slow ones are killed and restarted for ever
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *words, *where, "--app-name", "gliotrail"])


def check_answers(address: str) -> None:
    """Check that a server answers, with any status.

    Raises:
        TrackingError: it does not.
    """
    import requests

    from gliotrail.runs.addresses import shown

    try:
        requests.get(address, timeout=20)
    except (requests.RequestException, OSError):
        do = "start it, or mend MLFLOW_TRACKING_URI; `gliotrail doctor` tells more"
        raise TrackingError("no answer", where=shown(address), do=do) from None


def check_port(port: int) -> None:
    """Check that a port is free.

    Raises:
        ParamsError: there is no such port, or another program has it.
    """
    if not 0 < port < 65536:
        raise ParamsError("--port", wanted="1 to 65535", got=port)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            do = f"end it, or take another: `gliotrail ui --port {port % 65535 + 1}`"
            got = (error.strerror or str(error)).lower()
            raise ParamsError(f"port {port}", wanted="a free one", got=got, do=do) from None


def has_browser() -> bool:
    """Whether a page can be opened here: not over ssh, nor in a container."""
    return sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )


def open_when_there(port: int, address: str) -> NoReturn:
    """Open a page as soon as its server listens, for two minutes at most; ends the process."""
    for _ in range(240):
        time.sleep(0.5)
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            continue
        webbrowser.open(address)
        break
    os._exit(0)
