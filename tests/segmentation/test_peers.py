"""HD95 and surface Dice against the libraries that define them, in their own environment.

    make peers && make test ARGS="tests/segmentation/test_peers.py -s"

also prints how far apart the tools are: docs/log/hd95.md.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from gliotrail.segmentation.surface_distance import areas_mm2, hd95_mm, surface_dice
from tests.support.brain import REGIONS

ROOT = Path(__file__).parents[2]
SPACINGS_MM = ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (0.9375, 0.9375, 3.6), (2.7, 0.4, 1.1))


@dataclass(frozen=True)
class Pair:
    """Two masks to compare, and what the peers say of them once they were asked."""

    name: str
    ref: np.ndarray
    pred: np.ndarray
    spacing_mm: tuple[float, float, float]
    tolerance_mm: float


def random_pairs() -> list[Pair]:
    """Masks smooth and ragged, large and of few voxels, apart and touching the border."""
    rng = np.random.default_rng(7)
    pairs = []
    for n in range(80):
        shape = tuple(rng.integers(4, 22, 3))
        field = gaussian_filter(rng.standard_normal((2, *shape)), (0, *rng.uniform(0, 2, 3)))
        if n % 3 == 0:  # a prediction that follows the truth
            field[1] = field[0] + 0.5 * field[1]
        masks = field >= np.quantile(field, rng.uniform(0.05, 1), axis=(1, 2, 3), keepdims=True)
        spacing_mm = SPACINGS_MM[n % 4]
        tolerance_mm = float(rng.uniform(0, 4)) if n % 2 else float(rng.integers(0, 4))
        pairs.append(Pair(f"random {n}", masks[0], masks[1], spacing_mm, tolerance_mm))
    return pairs


def real_pairs() -> list[Pair]:
    """Real tumours against a moved, an eroded and a ragged copy of themselves."""
    pairs = []
    for case in ("BRATS_009", "BRATS_119"):
        labels = np.asarray(nib.load(ROOT / f"data/demo/labelsTr/{case}.nii.gz").dataobj)
        noise = gaussian_filter(np.random.default_rng(7).standard_normal(labels.shape), 3)
        for region, codes in REGIONS.items():
            mask = np.isin(labels, codes)
            copies = {
                "moved": np.roll(mask, (2, -1, 1), (0, 1, 2)),
                "eroded": binary_erosion(mask, iterations=2),
                "ragged": gaussian_filter(mask.astype(float), 2) + 3 * noise > 0.5,
            }
            for what, copy in copies.items():
                spacing_mm = SPACINGS_MM[len(pairs) % 2]
                name = f"{case} {region} {what}, {spacing_mm[2]:g} mm slices"
                pairs.append(Pair(name, mask, copy, spacing_mm, 1.0))
    return pairs


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return random_pairs() + real_pairs()


@pytest.fixture(scope="module")
def answer(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the peers say, from one process."""
    folder = tmp_path_factory.mktemp("peers")
    fields = ("ref", "pred", "spacing_mm", "tolerance_mm")
    arrays = {f"{field}_{n}": getattr(p, field) for n, p in enumerate(pairs) for field in fields}
    np.savez_compressed(folder / "pairs.npz", **arrays)
    script = Path(__file__).with_name("peers_script.py")
    python = ROOT / ".venv-bench/bin/python"
    done = subprocess.run(
        [python, "-W", "ignore", script, folder / "pairs.npz", folder / "out.json"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def peers(answer: dict[str, Any]) -> list[dict[str, float]]:
    """The peers' numbers for each pair."""
    return answer["pairs"]


@pytest.mark.peers
def test_hd95_is_monai_s_to_a_ten_thousandth_of_a_mm(pairs, peers):
    own = [hd95_mm(pair.ref, pair.pred, pair.spacing_mm) for pair in pairs]
    assert worst("HD95, MONAI, mm", pairs, own, [peer["monai_hd95_mm"] for peer in peers]) < 1e-4


@pytest.mark.peers
def test_surface_dice_is_surface_distance_s_to_a_millionth(pairs, peers):
    own = [surface_dice(p.ref, p.pred, p.spacing_mm, p.tolerance_mm) for p in pairs]
    assert worst("surface Dice", pairs, own, [peer["surface_dice"] for peer in peers]) < 1e-6


@pytest.mark.peers
def test_all_256_neighbourhoods_have_surface_distance_s_areas(answer):
    """Its codes have the same corners as ours, from the other end."""
    mirrored = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    for spacing_mm in SPACINGS_MM:
        table_mm2 = np.array(answer["areas_mm2"][json.dumps(spacing_mm)])
        apart_mm2 = np.abs(areas_mm2(spacing_mm) - table_mm2[mirrored]).max()
        print(f"\nareas at {spacing_mm}: largest difference {apart_mm2:.1e} mm2")
        assert apart_mm2 < 1e-12


def worst(what: str, pairs: list[Pair], own: list[float], peer: list[float]) -> float:
    """The largest difference, printed with the pair that has it."""
    apart = np.abs(np.subtract(own, peer))
    print(f"\n{what}: largest difference {apart.max():.1e} ({pairs[apart.argmax()].name})")
    return float(apart.max())


@pytest.mark.peers
def test_the_tools_hd95_are_not_the_same_measure(pairs, peers):
    """Which points a surface has, and their weight, differ: docs/log/hd95.md has the figures."""
    print()
    apart_mm = []
    for pair, peer in zip(pairs, peers, strict=True):
        if pair.name.startswith("BRATS"):
            monai, other = peer["monai_hd95_mm"], peer["surface_distance_hd95_mm"]
            apart_mm.append(abs(monai - other))
            print(f"{pair.name:38} MONAI {monai:6.3f} mm, surface-distance {other:6.3f} mm")
    print(f"apart by up to {max(apart_mm):.3f} mm, {np.mean(apart_mm):.3f} mm in the mean")
    assert max(apart_mm) > 0.1
