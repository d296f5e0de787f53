"""What holds the house together: names, layers, imports without side effects, no strange paths."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import is_here
from tests.support.projects import ROOT, clone_into

OVER_400_LINES: set[str] = set()
"""Files that are allowed to be longer than 400 lines; none may be longer than 420."""
MACHINE_PATHS = re.compile(
    "|".join(("/work" + "/", "/root" + "/", "/home/[a-z]", "/opt/" + "[wp]"))
)
"""Of one person's or one machine's disk. (`/home/` in prose needs a placeholder: `/home/YOU`.)"""


def python(*arguments, cwd=ROOT, **env):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | env, capture_output=True, text=True
    )


def files_in_git(*patterns):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


# platform/ is a plain folder: as a package it would hide Python's own module of that name


STARTED_FROM_THE_ROOT = [
    ("-c", "import platform; platform.system()"),
    ("-m", "pytest", "--version"),
    ("-m", "dvc", "--version"),
]


@pytest.mark.parametrize("arguments", STARTED_FROM_THE_ROOT, ids=" ".join)
def test_python_starts_tools_from_the_root(arguments):
    done = python(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", STARTED_FROM_THE_ROOT, ids=" ".join)
def test_a_platform_package_would_break_them(arguments, tmp_path):
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform/__init__.py").touch()
    assert python(*arguments, cwd=tmp_path).returncode != 0


def test_no_module_hides_one_of_pythons_own():
    for folder in (ROOT, ROOT / "platform", ROOT / "tests"):
        modules = {path.stem for path in folder.glob("*.py")}
        modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
        assert not modules & sys.stdlib_module_names
    assert not (ROOT / "platform/__init__.py").exists()
    assert not (ROOT / "tests/platform").exists()


# files


def test_files_are_short():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in files_in_git("*.py")
    }
    assert {name for name, n in lines.items() if n > 400} == OVER_400_LINES
    assert max(lines.values()) <= 420


def test_no_file_holds_a_path_of_one_machine():
    found = []
    for path in files_in_git():
        data = path.read_bytes()
        if b"\0" not in data:
            text = data.decode(errors="replace")
            found += [f"{path}: {match[0]}" for match in MACHINE_PATHS.finditer(text)]
            found += [str(path)] if str(ROOT) in text and len(ROOT.parts) > 2 else []
    assert not found


# what an import does


ROOMS = (
    *(
        "",
        "imaging",
        "synthesis",
        "runs",
        "segmentation",
        "report",
        "tracking",
        "training",
        "search",
    ),
    *("cluster", "integrations", "cli"),
)
"""From the lowest up; "" are the modules beside the rooms."""
NOT_LOADED = {
    "synthesis": {"torch", "ray", "mlflow", "dvc", "matplotlib"},
    "runs": {"torch", "ray", "mlflow", "dvc", "matplotlib"},
    "report": {"ray", "mlflow", "dvc"},
    "search": {"ray"},
}
"""Libraries that must not have been loaded after this room and all below it."""
IMPORT_ALL = """
import importlib, json, logging, os, sys
def state():
    return [sorted(os.listdir()), sorted(os.listdir(os.environ["HOME"])), logging.root.level,
            [str(h) for h in logging.root.handlers], os.environ.get("MLFLOW_TRACKING_URI")]
for module in sys.argv[1:]:
    before = state()
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:  # a library that gliotrail.integrations alone needs
        if error.name not in {"lightning", "transformers"}:
            raise
    changes = [] if state() == before else [before, state()]
    print(json.dumps([module, changes, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def room_of(module):
    name = (module + ".").split(".")[1]
    return name if name in ROOMS else ""


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    """Each module of the package, lowest room first: what it changed, what is loaded by then."""
    cwd, home = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("home")
    paths = [p.relative_to(ROOT / "platform") for p in ROOT.glob("platform/gliotrail/**/*.py")]
    modules = [".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in paths]
    modules.sort(key=lambda module: ROOMS.index(room_of(module)))
    env = {"HOME": str(home), "PYTHONPATH": str(ROOT / "platform")}
    done = python("-c", IMPORT_ALL, *modules, cwd=cwd, **env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_importing_a_module_writes_no_file_and_sets_nothing_up(imports):
    assert {module: changes for module, changes, _ in imports if changes} == {}


@pytest.mark.parametrize("room", NOT_LOADED)
def test_a_room_loads_no_library_of_the_rooms_above(imports, room):
    loaded = next(names for module, _, names in reversed(imports) if room_of(module) == room)
    assert not NOT_LOADED[room] & set(loaded)


def test_packages_hold_no_code_of_their_own():
    top = ROOT / "platform/gliotrail/__init__.py"  # which has the public interface, loaded late
    for path in files_in_git("platform/**/__init__.py", "pipelines/__init__.py"):
        for node in ast.parse(path.read_text()).body if path != top else ():
            assert isinstance(node, ast.Expr | ast.Assign), f"{path}:{node.lineno}"


def test_the_import_layers_are_held_and_an_upward_import_is_seen(tmp_path):
    project = clone_into(tmp_path)
    lint = ("lint-imports", "--no-logo", "--no-cache")
    project.run(*lint)

    geometry = project.root / "platform/gliotrail/imaging/geometry.py"
    geometry.write_text(geometry.read_text() + "\nfrom gliotrail.segmentation import unet\n")
    broken = project.run(*lint, check=False)

    assert broken.returncode != 0
    assert "gliotrail.imaging.geometry -> gliotrail.segmentation.unet" in broken.stdout


# the tests' own surroundings


def test_tests_reach_this_machine_only():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with pytest.raises(ConnectionRefusedError, match="this machine only"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address for documents only
    assert is_here("::1")
    assert not is_here("example.org")


def test_git_and_home_are_not_the_users():
    who = subprocess.run(["git", "config", "user.email"], capture_output=True, text=True)
    assert who.stdout.strip() == "test@example.org"
    assert Path.home().name.startswith("gliotrail-tests-")


TESTS = """
import pytest

@pytest.mark.peers
def test_peers(): ...

@pytest.mark.long
def test_long(): raise AssertionError

def test_fine(): ...
"""


@pytest.mark.parametrize(("ci", "failed", "skipped"), [("", 0, 1), ("1", 1, 0)])
def test_what_is_absent_is_skipped_naming_the_command_and_fails_in_ci(
    ci, failed, skipped, tmp_path
):
    (tmp_path / "tests/tracking").mkdir(parents=True)
    shutil.copytree(ROOT / "tests/support", tmp_path / "tests/support")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    plugins = "pytest_plugins = ('tests.support.needs', 'tests.support.rooms')"
    (tmp_path / "tests/conftest.py").write_text(plugins)
    (tmp_path / "tests/tracking/test_it.py").write_text(TESTS)

    done = python("-m", "pytest", "-ra", "--strict-markers", cwd=tmp_path, GLIOTRAIL_CI=ci)

    lines = done.stdout.splitlines()
    assert lines[-1] == f"tests: 1 passed, {failed} failed, {skipped} skipped"
    assert "1 deselected" in lines[-2]
    assert "needs the peers: make peers" in done.stdout
    assert re.search(r"^runs and tracking +\d+\.\d of  150$", done.stdout, re.MULTILINE)
    assert done.returncode == failed
