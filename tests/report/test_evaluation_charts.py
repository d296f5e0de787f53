import json

import numpy as np
import pytest
from matplotlib.colors import to_hex

from gliotrail.report.colours import ERROR_COLOURS
from gliotrail.report.evaluation_charts import (
    case_table,
    confusion_rows,
    draw_confusion,
    draw_measures,
    draw_montage,
    draw_volumes,
    look,
    worst_first,
    write_charts,
)
from gliotrail.segmentation.metrics import confusion
from gliotrail.segmentation.score import score
from tests.support.brain import CLASS_COLOURS, CLASSES, REGIONS
from tests.support.scans import snapshot

SPACING_MM = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def judged():
    """Three predictions of one truth, from nothing to all right; an odd name and an empty truth."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, (4, 30, 36, 6)).astype(np.int16)
    image[:, :3] = 0
    ref = np.zeros((30, 36, 6), np.uint8)
    ref[8:20, 8:20, 2:5], ref[10:16, 10:16, 3], ref[11:13, 11:13, 3] = 1, 2, 3
    worse = ref.copy()
    worse[14:] = 0
    worse[22:25, 25:28, 3] = 1
    pairs = {
        "right": (ref, ref),
        "nothing": (ref, np.zeros_like(ref)),
        "half_$1": (ref, worse),
        "healthy": (np.zeros_like(ref), np.zeros_like(ref)),
    }
    scores = {name: score(*pair, SPACING_MM) for name, pair in pairs.items()}
    looks = {name: look(image, *pair, SPACING_MM) for name, pair in pairs.items()}
    return scores, looks, confusion(ref, worse, 4)


def test_the_worst_case_comes_first_and_those_without_dice_last(judged):
    assert worst_first(judged[0]) == ["nothing", "half_$1", "right", "healthy"]


def test_a_montage_has_a_row_a_case_with_its_dice(judged, drawn, find):
    scores, looks, _ = judged
    sheet = drawn(draw_montage(worst_first(scores), looks, scores))
    told = [text for text in sheet.texts() if "mean Dice" in text]
    assert [text.split("\n")[0] for text in told] == worst_first(scores)
    assert "mean Dice 0.000" in told[0]
    assert "WT none" in told[3]
    missed, right = sheet.panel(2)[20:], sheet.panel(8)[20:]  # the letters R and L are white
    assert find(missed, ERROR_COLOURS["false_negative"])[0].size > 500
    assert not find(right, ERROR_COLOURS["false_negative"])[0].size


def test_measures_are_a_point_a_case_where_they_are_defined(judged):
    figure = draw_measures(judged[0])
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert [name.split("\n")[0] for name in names[:3]] == ["edema", "non-enhancing", "enhancing"]
    counts = [[t.get_text().split("n = ")[1] for t in a.get_xticklabels()] for a in figure.axes]
    assert counts == [["3"] * 6, ["3"] * 6, ["4"] * 6, ["2"] * 6]


def test_volumes_that_are_right_lie_on_the_line(judged):
    scores = {"right": judged[0]["right"]}
    for axes in draw_volumes(scores).axes:
        points = [line for line in axes.lines if line.get_linestyle() == "None"]
        assert len(points) == 3
        assert all(line.get_xdata() == line.get_ydata() for line in points)
    assert to_hex(points[2].get_color()).upper() == CLASS_COLOURS["enhancing"]


def test_the_confusion_matrix_tells_counts_and_shares_of_the_truth(judged):
    table = judged[2]
    texts = [text.get_text() for text in draw_confusion(table).axes[0].texts]
    share = table[1, 1] / table[1].sum()
    assert f"{table[1, 1]:,}\n{share:.1%}" in texts
    rows = confusion_rows(table)
    assert sum(row["voxels"] for row in rows) == 30 * 36 * 6
    for name in ("background", "edema", "non-enhancing", "enhancing"):
        shares = [row["share_of_truth"] for row in rows if row["truth"] == name]
        assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_the_table_has_a_row_a_case_and_class_and_null_where_undefined(judged):
    table = case_table(judged[0])
    assert len(table["data"]) == 4 * (len(CLASSES) + len(REGIONS))
    assert {len(row) for row in table["data"]} == {len(table["columns"])}
    of = {(row[0], row[1]): dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert of["right", "WT"]["dice"] == 1
    assert of["healthy", "ET"]["dice"] is None
    json.dumps(table, allow_nan=False)


def test_charts_are_the_same_bytes_each_time(judged, tmp_path):
    for name in "ab":
        write_charts(tmp_path / name, *judged)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    pictures = {"montage_1.png", "measures.png", "volumes.png", "confusion.png"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == pictures | {
        "table.json",
        "confusion.csv",
    }
