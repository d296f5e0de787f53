import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.lines import Line2D
from PIL import Image

from gliotrail.report.figures import (
    add_legend,
    add_title,
    figure_array,
    figure_png,
    new_figure,
    save_figure,
)

# as mathtext the first would fail, the next would look other; the third would leave the legend
STRANGE = ["$\\frac{$", "a$_$b", "_hidden", "<x> & y_1^2", "$x$"]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_drawn_literally(name):
    figure = new_figure(4, 1)
    add_title(figure, 0.1, 0.5, name)
    legend = add_legend(figure, [(Line2D([], []), name), (Line2D([], []), "plain")])
    figure_array(figure)
    assert [text.get_text() for text in legend.get_texts()] == [name, "plain"]
    assert [text.get_text() for text in figure.texts] == [name]


def test_a_dollar_takes_the_room_of_a_dollar():
    widths = []
    for title in ("$x$", "x"):
        figure = new_figure(4, 1)
        add_title(figure, 0.1, 0.5, title)
        lit = figure_array(figure)[..., 0] > 200
        widths.append(np.ptp(np.nonzero(lit)[1]))
    assert widths[0] > 2 * widths[1]


def test_a_long_title_ends_in_an_ellipsis_within_the_figure():
    figure = new_figure(4, 1)
    add_title(figure, 0.1, 0.5, "m" * 20 + " case" * 60)
    (text,) = figure.texts
    assert text.get_text().endswith("…")
    figure_array(figure)
    assert text.get_window_extent().x1 <= figure.bbox.width


def test_a_png_has_nothing_but_its_picture_and_keeps_its_colours():
    figure = new_figure(2, 1)
    add_title(figure, 0.1, 0.5, "x")
    content = figure_png(figure)
    image = Image.open(io.BytesIO(content))
    assert set(image.info) <= {"dpi"}
    assert b"tEXt" not in content
    assert b"tIME" not in content
    off = np.abs(np.asarray(image.convert("RGB")).astype(int) - figure_array(figure))
    assert off.max() <= 5  # half a step of 64 greys, and what passes for grey


def test_a_figure_without_colour_is_saved_too():
    figure = new_figure(1, 1)
    figure.set_facecolor("black")
    image = Image.open(io.BytesIO(figure_png(figure)))
    assert not np.asarray(image.convert("RGB")).any()


def test_a_file_is_written_whole_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "picture.png"
    save_figure(new_figure(1, 1), path)
    assert Image.open(path).size == (110, 110)
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_a_failed_drawing_leaves_the_old_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    figure = new_figure(1, 1)
    figure.text(0, 0, "$\\frac{$")  # not through add_text: mathtext fails
    with pytest.raises(ValueError, match="frac"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"


def test_importing_the_room_sets_up_no_pyplot_and_no_ray_or_mlflow():
    code = (
        "import sys\n"
        "from gliotrail.report import animation, colours, curves, figures, overlays\n"
        "print({'matplotlib.pyplot', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
