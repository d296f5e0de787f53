import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gliotrail import params
from gliotrail.errors import DataError
from gliotrail.imaging.download import download, unpack
from gliotrail.imaging.fetch import fetch
from tests.support.scans import snapshot

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """A web server on loopback whose answers can go wrong, and what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.break_after = len(content)
        """How many bytes of the body it sends before it hangs up."""
        self.knows_range = True
        self.statuses: list[int] = []
        """Answered first, one a request, without a body."""
        self.asked: list[int] = []
        """From which byte each request wanted the file."""
        handler = type("Handler", (Handler,), {"server_state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """Answers GET as its `Server` says."""

    server_state: Server

    def do_GET(self) -> None:
        state = self.server_state
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        state.asked.append(start)
        size = len(state.content)
        if state.statuses:
            self.send_response(state.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if start and state.knows_range:
            self.send_response(206 if start < size else 416)
            span = f"{start}-{size - 1}" if start < size else "*"
            self.send_header("Content-Range", f"bytes {span}/{size}")
        else:
            start = 0
            self.send_response(200)
        body = state.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: state.break_after])
        self.wfile.flush()
        if len(body) > state.break_after:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(CONTENT)
    yield one
    one.http.shutdown()
    one.http.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path / "cache/file", MD5)
    assert path.read_bytes() == CONTENT
    download(server.url, path, MD5)
    assert server.asked == [0]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = 1_200_000
    path = download(server.url, tmp_path / "file", MD5, wait_s=0.01)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 3
    assert sorted(server.asked) == server.asked
    assert server.asked[1] > 0


def test_a_later_call_goes_on_with_what_an_earlier_one_kept(server: Server, tmp_path: Path) -> None:
    server.break_after = 1_200_000
    with pytest.raises(DataError, match=r"broke off 1 times.*MB are kept; run again to go on"):
        download(server.url, tmp_path / "file", MD5, tries=1)
    kept = (tmp_path / "file.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    server.break_after = len(CONTENT)
    assert download(server.url, tmp_path / "file", MD5).read_bytes() == CONTENT
    assert server.asked == [0, kept]


def test_a_part_that_is_already_whole_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "file", MD5).read_bytes() == CONTENT
    assert server.asked == [len(CONTENT)]


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    path = download(server.url, tmp_path / "file", MD5, wait_s=0.01)
    assert path.read_bytes() == CONTENT


def test_a_server_that_ignores_range_is_asked_for_all_of_it(server: Server, tmp_path: Path) -> None:
    server.knows_range = False
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    assert download(server.url, tmp_path / "file", MD5).read_bytes() == CONTENT


def test_a_server_that_ignores_range_and_breaks_is_given_up(server: Server, tmp_path: Path) -> None:
    server.knows_range = False
    server.break_after = 1_200_000
    with pytest.raises(DataError, match="broke off 3 times"):
        download(server.url, tmp_path / "file", MD5, tries=3, wait_s=0.01)
    assert server.asked == [0, 1_200_000, 1_200_000]


def test_wrong_bytes_are_refused_and_thrown_away(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(
        DataError,
        match=f"md5 of the download: wanted {MD5}, got [0-9a-f]+; the file was deleted; run again",
    ):
        download(server.url, tmp_path / "file", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    path = download(server.url, tmp_path / "file", MD5, wait_s=0.01)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_file_that_is_not_there_is_told_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DataError, match="download: wanted the file, got HTTP 404 Not Found"):
        download(server.url, tmp_path / "file", MD5)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
    with pytest.raises(DataError, match=r"broke off 2 times: got ConnectionError.*0.0 MB are kept"):
        download(url, tmp_path / "file", MD5, tries=2, wait_s=0.01)


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **values: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in values.items():
        setattr(info, key, value)
    return info, content


def archive(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked_without_what_macos_left_in_it(tmp_path: Path) -> None:
    tar = archive(
        tmp_path / "a.tar",
        member("./Task", type=tarfile.DIRTYPE),
        member("./._Task", b"finder"),
        member("./Task/a", b"1", mode=0o000),
        member("Task/b/c", b"2"),
        member("Task/._a", b"finder"),
        member("Task/.DS_Store", b"finder"),
    )
    unpack(tar, tmp_path / "out")
    assert sorted(snapshot(tmp_path / "out")) == ["Task/a", "Task/b/c"]
    assert (tmp_path / "out/Task/a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("/tmp/evil", b"1"), "path in the archive: wanted one inside it, got '/tmp/evil'"),
        (member("Task/../../evil", b"1"), r"path in the archive: .*got 'Task/../../evil'"),
        (member("evil", type=tarfile.SYMTYPE, linkname="/etc"), "files and folders only, got 'ev"),
        (member("evil", type=tarfile.LNKTYPE, linkname="Task/a"), "files and folders only"),
        (member("evil", type=tarfile.CHRTYPE), "files and folders only"),
        (member("evil", type=tarfile.FIFOTYPE), "files and folders only"),
        (member("Task/a", b"2"), "'Task/a' twice"),
    ],
)
def test_a_member_that_is_no_plain_file_of_its_own_is_refused(
    tmp_path: Path, bad: Member, message: str
) -> None:
    tar = archive(tmp_path / "a.tar", member("Task/a", b"1"), bad)
    with pytest.raises(DataError, match=message):
        unpack(tar, tmp_path / "deep/out")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in written) == ["a", "a.tar"]


@pytest.mark.parametrize("keep", [0, 100, 700, 1500])
def test_an_archive_that_is_cut_off_or_none_is_refused(tmp_path: Path, keep: int) -> None:
    tar = archive(tmp_path / "a.tar", member("a", b"1" * 700), member("b", b"1" * 700))
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a whole tar"):
        unpack(tar, tmp_path / "out")


def tar_of(folder: Path, top: str) -> bytes:
    with io.BytesIO() as content:
        with tarfile.open(fileobj=content, mode="w") as tar:
            tar.add(folder, arcname=top)
        return content.getvalue()


def fetch_from(server: Server, content: bytes, out: Path, **changes: Any) -> None:
    server.content = content
    server.break_after = len(content) // 2 + 1
    values = {"md5": hashlib.md5(content).hexdigest()} | changes
    fetch(params.Fetch(source="msd"), out, cache=out.parent / "cache", url=server.url, **values)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("quickly")
def test_the_decathlon_s_archive_becomes_raw_data(
    server: Server, raw_crops: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data/fetch"
    (raw_crops / "imagesTr/._BRATS_009.nii.gz").write_bytes(b"finder")
    fetch_from(server, tar_of(raw_crops, "Task01_BrainTumour"), out)
    (raw_crops / "imagesTr/._BRATS_009.nii.gz").unlink()
    got = snapshot(out)
    assert got.pop("PROVENANCE.md")
    assert got == snapshot(raw_crops)
    assert server.asked[1] > 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["cache", "fetch"]


def without_an_image(raw: Path) -> bytes:
    (raw / "imagesTr/BRATS_009.nii.gz").unlink()
    return tar_of(raw, "Task01_BrainTumour")


def without_a_top_folder(raw: Path) -> bytes:
    return tar_of(raw, ".")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (without_an_image, {}, "no such file"),
        (without_a_top_folder, {}, r"wanted one folder with a dataset.json, got 0"),
        (lambda raw: b"no tar", {}, "not a whole tar"),
        (lambda raw: b"no tar", {"md5": MD5}, "md5 of the download"),
    ],
)
def test_a_bad_archive_leaves_earlier_raw_data_alone(
    server: Server,
    raw_crops: Path,
    tmp_path: Path,
    make: Callable[[Path], bytes],
    changes: dict[str, str],
    message: str,
) -> None:
    out = tmp_path / "data/fetch"
    out.mkdir(parents=True)
    (out / "earlier").write_text("work")
    with pytest.raises(DataError, match=message):
        fetch_from(server, make(raw_crops), out, **changes)
    assert sorted(snapshot(out)) == ["earlier"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["cache", "fetch"]
