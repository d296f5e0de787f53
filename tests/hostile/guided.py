"""Scans by a fuzzer that sees which lines of the reader each of them reaches (atheris).

`python -m tests.hostile.guided FOLDER RUNS SEED` leaves its counts in FOLDER/tally.json. What it
finds ends it with a traceback, and lies in FOLDER as well.
"""

import gzip
import json
import sys
from dataclasses import asdict
from pathlib import Path

import atheris
import nibabel as nib

with atheris.instrument_imports(include=["gliotrail.imaging"]):
    from tests.hostile.conftest import Tally
    from tests.hostile.spoilt import NAMES, Spoilt, plain
    from tests.hostile.test_scans import attack

CHANNELS = (1, 4)
PLAIN, PACKED_HERE, PACKED = range(3)  # as it is, packed before it is written, a gzip stream


def spoilt(content: bytes) -> Spoilt:
    """A file: the first byte tells the channels, and what the other bytes are."""
    way, at = divmod(content[0], 2)
    rest = gzip.compress(content[1:], 1, mtime=0) if way % 3 == PACKED_HERE else content[1:]
    return Spoilt(NAMES[way % 3 != PLAIN], rest, CHANNELS[at])


def good_files() -> list[bytes]:
    """Of each kind one, to begin with."""
    made = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for order, dtype in (("<", "i2"), (">", "i2"), ("<", "f4"), ("<", "u1")):
            for at, channels in enumerate(CHANNELS):
                content = plain(kind, order, dtype, channels)
                rests = {PLAIN: content, PACKED_HERE: content}
                rests[PACKED] = gzip.compress(content, 1, mtime=0)
                made += [bytes([2 * way + at]) + rest for way, rest in rests.items()]
    return made


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    place, runs, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    corpus = place / "corpus"
    corpus.mkdir()
    files = good_files()
    for number, content in enumerate(files):
        (corpus / str(number)).write_bytes(content)
    tally = Tally()

    def one(content: bytes) -> None:
        if content:
            attack(spoilt(content), place, tally)
            (place / "tally.json").write_text(json.dumps(asdict(tally)))

    longest = max(map(len, files)) + 1000
    told = {"runs": runs, "seed": seed, "max_len": longest, "len_control": 0, "detect_leaks": 0}
    words = [f"-{name}={value}" for name, value in told.items()]
    atheris.Setup([sys.argv[0], *words, f"-artifact_prefix={place}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
