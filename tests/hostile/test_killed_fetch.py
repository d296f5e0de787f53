"""A fetch that is killed leaves what was there or all that is new, and the same command goes on."""

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gliotrail.imaging.formats.decathlon import read_dataset
from tests.hostile.conftest import SEED
from tests.imaging.test_download import Server, tar_of
from tests.support.scans import lay_out_crops, snapshot

ARCHIVE = "Task01_BrainTumour.tar"


class Fetches:
    """Fetches of one source over earlier raw data, each to its end or to its death."""

    def __init__(self, place: Path, source: str) -> None:
        raw = lay_out_crops(place / "raw")
        content = tar_of(raw, "Task01_BrainTumour")
        self.md5, self.server = hashlib.md5(content).hexdigest(), Server(content)
        self._earlier = lay_out_crops(place / "earlier")
        (self._earlier / "README.md").write_text("of before")
        self.out = place / "data/fetch"
        words = ["msd" if source == "msd" else str(raw), self.out, self.server.url, self.md5]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.killed_fetch", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.moments = len(self.ask(0))
        self._new, self._old = snapshot(self.out), snapshot(self._earlier)

    def ask(self, moment: int) -> list[str]:
        """Kill one at a moment, or none at 0; the call of each moment unless it was killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{moment}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().split()

    def begin_again(self, of_the_cache: bool) -> None:
        """Put the earlier data there, and forget the download."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self._earlier, self.out)
        if of_the_cache:
            shutil.rmtree(self.out.parent / "cache", ignore_errors=True)

    def kill(self, moment: int) -> None:
        """Kill one, and look at what is there for the next stage to read."""
        self.ask(moment)
        archive = self.out.parent / "cache" / ARCHIVE
        assert not archive.exists() or hashlib.md5(archive.read_bytes()).hexdigest() == self.md5
        if self.out.exists():
            assert snapshot(self.out) in (self._old, self._new)
            read_dataset(self.out)

    def finish(self) -> None:
        """The same command goes on, and leaves nothing behind of those before it."""
        assert self.ask(0)
        assert snapshot(self.out) == self._new
        left = [path.name for name in ("*", "cache/*") for path in self.out.parent.glob(name)]
        assert set(left) <= {"cache", "fetch", ARCHIVE}

    def close(self) -> None:
        self._process.communicate()
        self.server.http.shutdown()
        self.server.http.server_close()


@contextmanager
def fetches(place: Path, source: str) -> Iterator[Fetches]:
    made = Fetches(place, source)
    try:
        yield made
    finally:
        made.close()


def test_a_killed_fetch_leaves_the_earlier_data_or_the_new_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    with fetches(tmp_path, "msd") as fetch:
        fetch.begin_again(of_the_cache=True)
        for moment in range(1, fetch.moments, 8):
            fetch.kill(moment)
        fetch.finish()
        assert any(fetch.server.asked)  # went on with a part
        calls = fetch.ask(0)
        renames = [moment for moment, name in enumerate(calls, 1) if name == "rename"]
        for moment in (*renames[-4:], len(calls)):  # where one folder takes the other's place
            fetch.begin_again(of_the_cache=False)
            fetch.kill(moment)
        fetch.finish()


@pytest.mark.long
@pytest.mark.parametrize("source", ["msd", "folder"])
def test_fetches_killed_at_random_do_too(source: str, tmp_path: Path) -> None:
    drawn, killed = random.Random(SEED), 0
    with fetches(tmp_path, source) as fetch:
        for _ in range(40):
            fetch.begin_again(of_the_cache=drawn.random() < 0.5)
            for _ in range(drawn.randrange(1, 12)):
                fetch.kill(drawn.randrange(1, fetch.moments))
                killed += 1
            fetch.finish()
    print(f"\n{killed} fetches from {source} killed, seed {SEED}")
