"""Brain tumours' names are the preset's: elsewhere they come from the data set."""

import ast

from gliotrail.dataset.brats import BRATS
from tests.support.scans import ROOT

PACKAGE = ROOT / "platform/gliotrail"
OF_BRAIN_TUMOURS = {
    "dataset/brats.py",
    "synthesis/tumours.py",
    "imaging/formats/brats.py",
    "imaging/formats/bids.py",  # a T1w after contrast is T1gd
    "cli/scans.py",  # --flair, --t1, --t1gd, --t2
}


def test_no_list_of_channels_classes_or_regions_outside_the_preset() -> None:
    names = {*BRATS.channel_names, *BRATS.names}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        spelt = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in names
        }
        if spelt and place not in OF_BRAIN_TUMOURS:
            found[place] = sorted(spelt)
    assert not found
