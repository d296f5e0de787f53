"""That the bench runs, on a crop: what it measures is `make bench`'s."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import compare, growth, reader
from tests.bench.report import Row, write

LOG = compare.LOG
LONG = {"scan", "deep", "hd95"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small scan, laid out."""
    folder = tmp_path_factory.mktemp("bench")
    compare.lay_out(folder, slices=16, size=16, course=(32, 32, 8), side=16)
    return folder


def test_each_part_of_ours_is_done_and_timed(folder: Path) -> None:
    rows = compare.run(folder, list(compare.PARTS), with_peers=False, rounds=1)
    assert len(rows) == len(compare.PARTS)
    for row in rows:
        assert min(row.medians_s.values()) > 0


@pytest.mark.peers
def test_peers_do_the_same_work_in_their_own_process(folder: Path) -> None:
    parts = [part for part in compare.PARTS if part.peers and part.name not in LONG]
    for row in compare.run(folder, parts, with_peers=True, rounds=1):
        assert {peer for _, peer, _ in row.targets} <= {peer for _, peer in row.ratios}


def test_a_training_s_memory_and_waiting_are_measured(tmp_path: Path) -> None:
    growth.stages(tmp_path, 2, processes=1)
    share, grown_mb = growth.memory(tmp_path, 10)
    assert 0 <= share < 1
    assert abs(grown_mb) < 200


@pytest.mark.long
def test_a_reader_is_measured_by_its_cpus(folder: Path) -> None:
    told = reader.lines(folder, steps=2, rounds=1)
    rows = [line for line in told if line.startswith(("| 1 |", "| 2 |"))]
    assert len(rows) == min(2, len(os.sched_getaffinity(0)))
    assert "times what 1 serves (wanted: 1.7)" in told[-1]


def test_the_page_keeps_its_words_and_gets_new_figures(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    page.write_text(LOG.read_text())
    ratios = {("Gliotrail", "nibabel"): 3.5}
    row = Row("read", 3, {"Gliotrail": 0.1, "nibabel": 2.0}, ratios, [("Gliotrail", "nibabel", 4)])
    write(page, [row], ["nothing grows"], "2026-01-01", "abc")
    for end in ("# Side by side", "## What each does"):
        assert page.read_text().count(end) == 1
    line = "| read | Gliotrail 100 ms; nibabel 2.00 s | nibabel 3.5x | 4x nibabel: missed | 3 |"
    assert line in page.read_text()
    write(page, [], [], "2026-01-02", "abd")
    assert line not in page.read_text()
