"""Real scans, as (C, I, J, K) and (I, J, K), and a reader of drawn figures."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.text import Text

from gliotrail.report.colours import rgb
from gliotrail.report.figures import figure_array

DEMO = Path(__file__).parents[2] / "data/demo"


def _read(image, label):
    image = np.asarray(nib.load(DEMO / image).dataobj)
    labels = np.asarray(nib.load(DEMO / label).dataobj).astype(np.uint8)
    return np.moveaxis(image, -1, 0), labels


@pytest.fixture(scope="session", params=["BRATS_009", "BRATS_119"])
def crop(request):
    name = f"crops/{request.param}_crop"
    return _read(f"{name}_image.nii.gz", f"{name}_label.nii.gz")


@pytest.fixture(scope="session")
def slab():
    return _read("imagesTr/BRATS_119.nii.gz", "labelsTr/BRATS_119.nii.gz")


class Drawn:
    """A figure's pixels, and its panels as rectangles of pixels."""

    def __init__(self, figure):
        self.figure, self.pixels = figure, figure_array(figure)

    def panel(self, n):
        """Pixels of the n-th panel, row by row."""
        box = self.figure.axes[n].get_window_extent()
        high = self.pixels.shape[0]
        rows = slice(round(high - box.y1), round(high - box.y0))
        return self.pixels[rows, round(box.x0) : round(box.x1)]

    def texts(self):
        return [text.get_text() for text in self.figure.findobj(Text)]


def where(pixels, colour):
    """Rows and columns of a colour's pixels, as shares of the height and width."""
    wanted = np.round(255 * np.array(rgb(colour)))
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - wanted) <= 1).all(axis=-1))
    return (rows + 0.5) / pixels.shape[0], (columns + 0.5) / pixels.shape[1]


def longest_run(row):
    """How many Trues there are side by side, at most."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@pytest.fixture(scope="session")
def run_px():
    return longest_run


@pytest.fixture(scope="session")
def drawn():
    return Drawn


@pytest.fixture(scope="session")
def find():
    return where
