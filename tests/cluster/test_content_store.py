"""Data by the hash of their content, with a folder for a remote; with S3: test_submit's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gliotrail.cluster import content_store as objects
from gliotrail.cluster.content_store import download, fetch, put
from gliotrail.errors import ClusterError, DataError, ParamsError
from gliotrail.runs.store import Store
from tests.support.projects import ROOT

FILES = {"a.bin": b"\0\1", "deep/b": b"b", "deep/same": b"b", "z z": b""}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store({"url": str(tmp_path / "store")})


@pytest.fixture(autouse=True)
def _let_go() -> None:
    objects._HELD.clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_dvc_names_and_fetches_the_same_data_alike(
    data: Path, store: Store, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    digest = put(data, store)
    (project / "data.dvc").write_text(f"outs:\n- {{md5: {digest}, hash: md5, path: data}}\n")
    core, remote = "[core]\nno_scm = true\nremote = there\n", "['remote \"there\"']\n"
    (project / ".dvc/config").write_text(f"{core}{remote}url = {store.url}\n")
    words = [sys.executable, "-m", "dvc", "pull", "--quiet"]
    subprocess.run(words, cwd=project, check=True)
    assert contents(project / "data") == FILES
    assert Store.of_checkout(project).url == store.url


def test_a_folder_and_a_file_come_back_as_they_were(
    data: Path, store: Store, tmp_path: Path
) -> None:
    place = fetch(put(data, store), store, tmp_path / "cache")
    assert contents(place) == FILES
    assert fetch(put(data / "a.bin", store), store, tmp_path / "cache").read_bytes() == b"\0\1"
    with pytest.raises(DataError, match="nothing: no such file or folder"):
        put(tmp_path / "nothing", store)


def test_what_the_store_has_is_not_sent_again(
    data: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    put(data, store)
    assert "upload: 0.00/0.00 MB" in capfd.readouterr().err
    (data / "new").write_bytes(b"n" * 20_000)
    put(data, store)
    assert "upload: 0.02/0.02 MB" in capfd.readouterr().err
    put(data, store)
    assert capfd.readouterr().err == ""


def test_damaged_and_missing_data_are_told_and_never_used(
    data: Path, store: Store, tmp_path: Path
) -> None:
    digest, md5 = put(data, store), put(data / "deep/b", store)
    at = tmp_path / "store/files/md5" / md5[:2] / md5[2:]
    at.write_bytes(b"c")
    with pytest.raises(DataError) as told:
        fetch(digest, store, tmp_path / "cache")
    assert str(told.value).startswith(f"{at}: MD5: wanted {md5}, got ")
    at.unlink()
    with pytest.raises(DataError, match=f"no data of digest {md5}; `dvc push` it"):
        fetch(digest, store, tmp_path / "cache")
    assert not (tmp_path / "cache" / digest).exists()
    at.write_bytes(b"b")  # and it goes on with what was fetched before
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("a.bin")}
    place = fetch(digest, store, tmp_path / "cache")
    assert contents(place) == FILES
    assert before in ({}, {"a.bin": (place / "a.bin").stat().st_mtime_ns})


def test_a_list_of_files_can_lead_nowhere_else(store: Store, tmp_path: Path) -> None:
    content = json.dumps([{"md5": "0" * 32, "relpath": "../out"}]).encode()
    (tmp_path / "list").write_bytes(content)
    md5 = put(tmp_path / "list", store)
    store.write(f"files/md5/{md5[:2]}/{md5[2:]}.dir", content)
    with pytest.raises(DataError, match=r"leads out of its folder: got '\.\./out'"):
        download(f"{md5}.dir", store, tmp_path / "in")


FETCH = """
import sys
from pathlib import Path
from gliotrail.cluster.content_store import fetch
from gliotrail.runs.store import Store
real, asked = Store.download, []
Store.download = lambda *a: (asked.append(a[1]), real(*a))
print("ready", flush=True)
sys.stdin.readline()
fetch(sys.argv[1], Store({"url": sys.argv[2]}), Path(sys.argv[3]))
print(len(asked), flush=True)
sys.stdin.readline()
"""


def test_of_a_machines_processes_one_fetches_and_what_they_use_stays(
    data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, cache = put(data, store), tmp_path / "cache"
    words = [sys.executable, "-c", FETCH, digest, store.url, str(cache)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    processes = [
        subprocess.Popen(
            words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]  # fmt: skip
    monkeypatch.setenv(objects.LIMIT, "1e-6")  # a kilobyte

    def tell(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    def heard(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    try:
        assert [heard(process) for process in processes] == ["ready"] * 2
        for process in processes:
            tell(process)
        asked = sorted(int(heard(process)) for process in processes)
        assert asked == [0, len(FILES)]
        big = []
        for n in range(3):
            (data / "big").write_bytes(bytes([n]) * 900)
            big.append(fetch(put(data / "big", store), store, cache))
            objects._HELD.clear()
        # the newest always stays; of the others what nobody uses goes
        assert [place.exists() for place in big] == [False, False, True]
        assert (cache / digest).exists()
        for process in processes:
            tell(process)
            assert process.wait(30) == 0
        (data / "big").write_bytes(b"last" * 249)
        fetch(put(data / "big", store), store, cache)
        assert not (cache / digest).exists()
        assert not [path for path in cache.iterdir() if path.name.endswith((".gone", ".partial"))]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_none_is_told(
    text: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(objects.LIMIT, text)
    with pytest.raises(ParamsError, match="GLIOTRAIL_CACHE_GB: wanted a number above 0, got"):
        fetch("0" * 32, store, tmp_path)


def test_a_store_that_does_not_answer_and_a_checkout_without_one_are_one_line(
    tmp_path: Path,
) -> None:
    config = {"url": "s3://nobody/here", "endpointurl": "http://127.0.0.1:9", "region": "x"}
    keys = {"access_key_id": "a", "secret_access_key": "geheim"}
    store = Store(config | keys)
    assert store.without_secrets() == config
    with pytest.raises(ClusterError, match="s3://nobody/here: the store of data and runs: got "):
        store.has("a")
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ClusterError, match="DVC has no default remote; `dvc remote add"):
        Store.of_checkout(tmp_path)
