import numpy as np
import pytest
from PIL import Image

from gliotrail.errors import DataError
from gliotrail.report.animation import write_gif
from tests.support.brain import CLASS_COLOURS

SPACING_MM = (1.0, 1.0, 1.0)


def frames(path):
    with Image.open(path) as gif:
        pictures = []
        for n in range(gif.n_frames):
            gif.seek(n)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
        return pictures, gif.info


def test_a_gif_goes_through_the_slices_upwards_and_is_the_same_every_time(crop, tmp_path):
    image, labels = crop
    for name in ("a.gif", "b.gif"):
        write_gif(image, labels, tmp_path / name, SPACING_MM, "BRATS $1_2 <x>")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    pictures, info = frames(tmp_path / "a.gif")
    assert len(pictures) == image.shape[3]
    assert info["loop"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def test_labels_are_outlined_in_their_colours_where_they_are(tmp_path, find):
    shape = (40, 50, 4)
    image = np.random.default_rng(0).uniform(100, 110, (4, *shape))
    labels = np.zeros(shape, np.uint8)
    labels[4:14, 30:45, 2] = 3  # the patient's left, in front
    write_gif(image, labels, tmp_path / "a.gif", SPACING_MM, "x", shown=("T2w",))
    pictures, _ = frames(tmp_path / "a.gif")
    seen = [
        find(picture[44:-44, :192], CLASS_COLOURS["enhancing"]) for picture in pictures
    ]  # 240 pixels high, between two bands of 44
    assert [rows.size > 0 for rows, _ in seen] == [False, False, True, False]
    rows, columns = seen[2]
    assert (columns.min(), columns.max()) == pytest.approx((1 - 14 / 40, 1 - 4 / 40), abs=0.02)
    assert (rows.min(), rows.max()) == pytest.approx((1 - 45 / 50, 1 - 30 / 50), abs=0.02)
    assert rows.size < 0.2 * 100 * 72  # a rim, no fill


def test_anisotropic_voxels_and_the_scale_bar_agree(tmp_path, run_px):
    shape, spacing_mm = (40, 50, 2), (2.0, 1.0, 4.0)
    image = np.random.default_rng(0).uniform(100, 110, (4, *shape))
    write_gif(image, None, tmp_path / "a.gif", spacing_mm, "x", shown=("FLAIR",))
    picture = frames(tmp_path / "a.gif")[0][0]
    assert picture.shape[:2] == (240 + 4 * 22, 240 * 80 // 50)
    bar_px = max(run_px((row == 255).all(axis=-1)) for row in picture[-44:])
    assert bar_px == pytest.approx(20 * 240 / 50, abs=1)


def test_a_whole_scan_takes_at_most_3_mb(slab, tmp_path):
    image, labels = slab
    head = np.concatenate([image] * 5, axis=3), np.concatenate([labels] * 5, axis=2)
    assert head[0].shape == (4, 240, 240, 155)
    write_gif(*head, tmp_path / "head.gif", SPACING_MM, "BRATS_119")
    assert (tmp_path / "head.gif").stat().st_size < 3_000_000
    with Image.open(tmp_path / "head.gif") as gif:
        assert 50 <= gif.n_frames <= 80


def test_labels_of_another_shape_are_refused_and_the_old_file_stays(crop, tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="label shape"):
        write_gif(crop[0], crop[1][1:], path, SPACING_MM, "x")
    assert path.read_bytes() == b"old"
