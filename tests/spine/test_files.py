import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from gliotrail.files import (
    csv_bytes,
    csv_rows,
    locked,
    read_json,
    replacing,
    sha256,
    write_durably,
    write_json,
)

FORK = multiprocessing.get_context("fork")


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def make(folder: Path, text: str) -> None:
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "a").write_text(text)


def test_a_file_and_a_folder_are_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        make(tmp_path / "folder", text)
        with replacing(tmp_path / "deep/file") as partial:
            partial.write_text(text)
        assert content(tmp_path / "folder") == {"a": text}
        assert (tmp_path / "deep/file").read_text() == text
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "deep", "file", "folder"]


def test_on_an_error_what_was_there_stays(tmp_path: Path) -> None:
    make(tmp_path / "folder", "one")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "a").write_text("half")
        raise ZeroDivisionError
    assert content(tmp_path / "folder") == {"a": "one"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_never_takes_a_folders_place_nor_a_folder_a_files(tmp_path: Path) -> None:
    make(tmp_path / "folder", "one")
    with pytest.raises(IsADirectoryError, match="folder'"), replacing(tmp_path / "folder") as new:
        new.write_text("two")
    assert content(tmp_path / "folder") == {"a": "one"}
    (tmp_path / "file").write_text("one")
    with pytest.raises(NotADirectoryError, match="file'"):
        make(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_killed_between_the_renames_of_a_folder_the_next_one_finds_the_old_or_new(
    n: int, tmp_path: Path
) -> None:
    def die() -> None:
        seen = 0

        def counted(call: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
            def wrapped(path: Path, target: Path) -> Path:
                nonlocal seen
                seen += 1
                if seen == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(path, target)

            return wrapped

        for name in ("rename", "replace"):
            setattr(Path, name, counted(getattr(Path, name)))
        make(tmp_path / "folder", "two")

    make(tmp_path / "folder", "one")
    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder"):
        raise ZeroDivisionError
    assert content(tmp_path / "folder") == {"a": "one"}
    make(tmp_path / "folder", "three")
    assert content(tmp_path / "folder") == {"a": "three"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def write_many(path: Path, kind: str, writer: int) -> int:
    """Write one name 25 times; how many of them failed."""
    failed = 0
    for n in range(25):
        text = f"{writer} {n} " * 500
        try:
            if kind == "folder":
                make(path, text)
            else:
                with replacing(path) as partial:
                    partial.write_text(text)
        except OSError:
            failed += 1
    return failed


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_several_may_write_one_name_at_once(kind: str, tmp_path: Path) -> None:
    """In threads, and in processes."""
    path = tmp_path / "name"
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(4, FORK) as processes:
        pools = (processes, threads)  # forked first
        writers = [pool.submit(write_many, path, kind, n) for pool in pools for n in range(4)]
        assert [writer.result() for writer in writers] == [0] * 8
    words = (path / "a" if kind == "folder" else path).read_text().split()
    assert words == words[:2] * 500
    assert [p.name for p in tmp_path.iterdir()] == ["name"]


def test_what_is_spoilt_counts_as_never_written_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    assert capsys.readouterr().err == ""
    for spoilt in (b"", b'{"a": 1', b"\xff\xfe"):
        path.write_bytes(spoilt)
        assert read_json(path) is None
        assert f"{path}: spoilt ({len(spoilt)} bytes" in capsys.readouterr().err
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "cache", "one")
    (tmp_path / "out").symlink_to(tmp_path / "cache")
    with replacing(tmp_path / "out") as partial:
        partial.write_text("two")
    assert (tmp_path / "out").read_text() == "two"
    assert content(tmp_path / "cache") == {"a": "one"}


def test_equal_values_are_equal_bytes_and_nan_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", {"b": 1, "a": [1.5]})
    write_json(tmp_path / "two.json", {"a": [1.5], "b": 1})
    assert sha256(tmp_path / "one.json") == sha256(tmp_path / "two.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "one.json", {"a": float("nan")})
    assert sha256(tmp_path / "one.json") == sha256(tmp_path / "two.json")


def test_what_is_written_durably_is_there(tmp_path: Path) -> None:
    write_durably(tmp_path / "deep/file", b"one")
    write_durably(tmp_path / "deep/file", b"two")
    assert (tmp_path / "deep/file").read_bytes() == b"two"
    assert sha256(tmp_path / "deep/file") == hashlib.sha256(b"two").hexdigest()


def test_a_lock_is_one_processs_at_a_time_and_a_dead_ones_is_free(tmp_path: Path) -> None:
    def hold() -> None:
        with locked(tmp_path / "lock"):
            (tmp_path / "held").touch()
            time.sleep(60)

    def take() -> None:
        with locked(tmp_path / "lock"):
            (tmp_path / "taken").touch()

    holder, taker = FORK.Process(target=hold), FORK.Process(target=take)
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    taker.start()
    taker.join(0.3)
    assert taker.is_alive()
    assert not (tmp_path / "taken").exists()
    holder.kill()
    taker.join(10)
    assert (tmp_path / "taken").exists()


def test_a_table_comes_back_as_it_was_written_with_what_a_row_lacks_empty(tmp_path: Path) -> None:
    rows = [{"trial": 'lr=3e-4, "48x48x16"', "value": 0.5}, {"trial": "two\nlines"}]
    content = csv_bytes(["trial", "value"], rows)
    (tmp_path / "table.csv").write_bytes(content)
    assert csv_rows(tmp_path / "table.csv") == [
        {"trial": 'lr=3e-4, "48x48x16"', "value": "0.5"},
        {"trial": "two\nlines", "value": ""},
    ]
    assert content.startswith(b"trial,value\n")
    assert b"\r" not in content
    assert csv_rows(tmp_path / "absent.csv") == []
