import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gliotrail.errors import DataError
from gliotrail.imaging import kernels
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepared import read_labels_patch, read_patch
from gliotrail.segmentation.batches import (
    SYNTHETIC,
    Batch,
    Mixture,
    Patches,
    Phantoms,
    Sample,
    batches,
    change,
    is_synthetic,
    part_of_step,
)
from gliotrail.synthesis.tumours import Style, read_anatomy, read_shape, shape_path
from tests.support.brain import class_masks
from tests.support.scans import ROOT, augmented

NONE = augmented()
EPOCH = range(7)
BATCH_SIZE = 5


def number_of(batch: Batch) -> list[int]:
    return [sample.number for sample in batch.samples]


def served(patches: Patches, workers: int) -> dict[int, tuple[object, ...]]:
    """Of all workers of an epoch, by sample number: step, case, corner, seed, image, targets."""
    merged: dict[int, tuple[object, ...]] = {}
    for rank in range(workers):
        stream = batches(patches, EPOCH, BATCH_SIZE, rank, workers)
        for step, batch in zip(EPOCH, stream, strict=True):
            for place, s in enumerate(batch.samples):
                tensors = (batch.image_BCIJK[place], batch.targets_BCIJK[place])
                assert s.number not in merged
                told = (step, s.case, s.corner_vox, s.augmentation_seed)
                merged[s.number] = (*told, *(t.numpy().tobytes() for t in tensors))
    return merged


def test_an_epoch_is_the_same_for_one_two_and_three_workers(patches: Patches) -> None:
    alone = served(patches, 1)
    assert list(alone) == list(range(35))
    assert [told[0] for told in alone.values()] == [n // 5 for n in range(35)]
    assert len({told[3] for told in alone.values()}) == 35
    assert {told[1] for told in alone.values()} == {"BRATS_009", "BRATS_119"}
    assert served(patches, 2) == alone
    assert served(patches, 3) == alone
    assert served(replace(patches, seed=8), 1) != alone


@settings(deadline=None)
@given(step=st.integers(0, 10**6), batch_size=st.integers(1, 9), workers=st.integers(1, 9))
def test_workers_share_a_step_out_evenly(step: int, batch_size: int, workers: int) -> None:
    parts = [part_of_step(step, batch_size, rank, workers) for rank in range(workers)]
    numbers = sorted(n for part in parts for n in part)
    assert numbers == list(range(step * batch_size, (step + 1) * batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None, max_examples=40)
@given(
    first=st.integers(0, 10**6),
    batch_size=st.integers(1, 9),
    data=st.data(),
    share=st.sampled_from([0.05, 0.125, 0.25, 1 / 3, 0.5, 0.75, 0.9]) | st.floats(0, 1),
)
@example(first=0, batch_size=4, data=None, share=0.25)  # all were rank 3's
@example(first=0, batch_size=3, data=None, share=0.75)
def test_no_worker_makes_more_synthetic_samples_than_its_share(
    first: int, batch_size: int, data: st.DataObject | None, share: float
) -> None:
    workers = data.draw(st.integers(1, batch_size)) if data else batch_size
    for rank in {0, workers // 2, workers - 1}:
        numbers = [
            n
            for step in range(first, first + 100)
            for n in part_of_step(step, batch_size, rank, workers, share)
        ]
        synthetic = sum(is_synthetic(n, share) for n in numbers)
        assert abs(synthetic - share * len(numbers)) <= 2


def test_one_and_two_workers_sum_the_demo_s_samples_as_before() -> None:
    """Which pair of the four is whose doesn't matter: a + b is b + a, to the last bit."""
    for step in range(50):
        n = 4 * step
        assert part_of_step(step, 4, 0, 1, 0.25) == [n, n + 1, n + 2, n + 3]
        both = [part_of_step(step, 4, rank, 2, 0.25) for rank in range(2)]
        assert sorted(both) == [[n, n + 2], [n + 1, n + 3]]


def test_each_lap_visits_every_patch_once_in_an_order_of_its_own(patches: Patches) -> None:
    n = len(patches.index)
    rows = set(zip(patches.index.case_number, map(tuple, patches.index.corner_vox), strict=True))
    wanted = {(patches.index.cases[case], corner) for case, corner in rows}
    laps = []
    for lap in range(3):
        samples = [patches.sample(number) for number in range(lap * n, (lap + 1) * n)]
        laps.append([(s.case, s.corner_vox) for s in samples])
        assert set(laps[-1]) == wanted
        assert len(laps[-1]) == n == 14
    assert laps[0] != laps[1] != laps[2] != laps[0]


def test_a_sample_is_known_without_the_ones_before(patches: Patches) -> None:
    numbers = [3, 14, 0, 500_000, 29, 3, 43, 60, 1]
    forth = [patches.sample(n) for n in numbers]
    assert [patches.sample(n) for n in reversed(numbers)] == forth[::-1]
    first, again = patches.serve(forth[0]), patches.serve(forth[5])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_same_patch_of_the_next_lap_is_changed_another_way(patches: Patches) -> None:
    samples = [patches.sample(n) for n in range(28)]
    one = samples[0]
    two = next(s for s in samples[14:] if (s.case, s.corner_vox) == (one.case, one.corner_vox))
    assert not np.array_equal(patches.serve(one)[0], patches.serve(two)[0])


@pytest.mark.parametrize("standardize", ["foreground", "slice", "none"])
def test_unchanged_a_sample_is_what_the_scan_holds_there(
    patches: Patches, standardize: str
) -> None:
    plain = replace(patches, augment=NONE, standardize=standardize)
    sample = plain.sample(4)
    image, targets = plain.serve(sample)
    box, case = Box.at(sample.corner_vox, (16, 16, 8)), patches.cases[sample.case]
    assert image.dtype == np.float32
    assert np.array_equal(image, read_patch(case, box, standardize))
    assert np.array_equal(targets, class_masks(read_labels_patch(case, box)))
    assert targets.any()


def half_brain(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in part of a box, 0 elsewhere, and targets that follow from the values."""
    rng = np.random.default_rng(seed)
    image = rng.permutation(4 * 6 * 5 * 4).reshape(4, 6, 5, 4).astype(np.float32) + 1
    image *= rng.random((6, 5, 4)) < 0.6
    return image, targets_of(image)


def targets_of(image: np.ndarray) -> np.ndarray:
    return np.stack([(image[c] > 0) & (image[c] % 7 < 3) for c in range(3)])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), flip=st.sampled_from([0.0, 0.3, 1.0]))
def test_background_stays_0_and_each_channel_s_brain_is_scaled_and_shifted(
    seed: int, flip: float
) -> None:
    image, targets = half_brain(seed)
    augment = augmented(flip=flip, intensity_scale=0.2, intensity_shift=0.5)
    changed, moved = change(image, targets, augment, np.random.default_rng(seed))
    unflipped, _ = change(
        image, targets, augment.model_copy(update={"flip": 0.0}), np.random.default_rng(seed)
    )
    brain = image.any(axis=0)
    assert not unflipped[:, ~brain].any()
    assert (changed == 0).all(axis=0).sum() == (~brain).sum()
    assert moved.sum() == targets.sum()
    factors = []
    for before, after in zip(image[:, brain], unflipped[:, brain], strict=True):
        (scale, shift), *_ = np.polyfit(before, after, 1, full=True)
        assert np.abs(scale * before + shift - after).max() < 1e-3
        assert 0.8 <= scale <= 1.2
        assert abs(shift) <= 0.5 + 1e-3
        factors.append(scale)
    assert len({round(f, 6) for f in factors}) == 4


def test_flips_move_image_and_targets_together_each_axis_with_its_probability() -> None:
    image, targets = half_brain(1)
    axes = [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
    for flip, expected in ((0.0, {(): 400}), (1.0, {(1, 2, 3): 400})):
        assert flips(image, targets, axes, flip) == expected
    counts = flips(image, targets, axes, 0.5)
    # 50 each on average, with a std of 6.6
    assert set(counts) == set(axes)
    assert all(abs(n - 50) < 4 * 6.6 for n in counts.values())


def flips(
    image: np.ndarray, targets: np.ndarray, axes: list[tuple[int, ...]], flip: float
) -> Mapping[tuple[int, ...], int]:
    found: Counter[tuple[int, ...]] = Counter()
    augment = augmented(flip=flip)
    for seed in range(400):
        changed, moved = change(image, targets, augment, np.random.default_rng(seed))
        assert np.array_equal(moved, targets_of(changed))
        found.update(a for a in axes if np.array_equal(changed, np.flip(image, a)))
    return found


def test_by_compiled_kernels_a_sample_is_the_same_to_the_last_bit(patches: Patches) -> None:
    image_CIJK = patches.cases["BRATS_009"].image_CIJK
    assert kernels.fitting(kernels.standardize, image_CIJK, np.int16) is not None
    fused = replace(patches, fused=True)
    for number in range(8):
        sample = patches.sample(number)
        for array, again in zip(patches.serve(sample), fused.serve(sample), strict=True):
            assert again.tobytes() == array.tobytes()
            assert again.flags.c_contiguous


def test_without_numba_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels.compiled.__wrapped__(kernels.change) is None


def test_a_worker_too_many_gets_empty_batches(patches: Patches) -> None:
    streams = [batches(patches, range(3), 2, rank, 3) for rank in range(3)]
    for step, parts in enumerate(zip(*streams, strict=True)):
        numbers = [number_of(batch) for batch in parts]
        assert sorted(numbers) == [[], [2 * step], [2 * step + 1]]
        empty = parts[numbers.index([])]
        assert empty.image_BCIJK.shape == (0, 4, 16, 16, 8)
        assert empty.targets_BCIJK.shape == (0, 3, 16, 16, 8)


def test_no_steps_are_no_batches(patches: Patches) -> None:
    assert list(batches(patches, range(5, 5), 2)) == []


def test_steps_may_start_anywhere(patches: Patches) -> None:
    late = list(batches(patches, range(3, 5), 4))
    assert [number_of(batch) for batch in late] == [[12, 13, 14, 15], [16, 17, 18, 19]]


def test_the_next_batch_is_read_while_the_one_before_is_worked_on(patches: Patches) -> None:
    read = threading.Event()
    readers = set()

    class Watched(Patches):
        def serve(self, sample):
            readers.add(threading.current_thread())
            if sample.number == 2:
                read.set()
            return super().serve(sample)

    watched = Watched(**{name: getattr(patches, name) for name in patches.__dataclass_fields__})
    stream = batches(watched, range(2), 2)
    assert number_of(next(stream)) == [0, 1]
    assert read.wait(10)
    assert number_of(next(stream)) == [2, 3]
    assert next(stream, None) is None
    assert not any(reader.is_alive() for reader in readers - {threading.main_thread()})


@pytest.mark.parametrize("first", [True, False])
def test_what_goes_wrong_while_reading_arrives_with_the_batch(
    patches: Patches, tmp_path: Path, first: bool
) -> None:
    cases = [patches.sample(n).case for n in range(6)]
    broken = 0 if first else next(n for n in range(6) if cases[n] != cases[0])
    gone = replace(patches.cases[cases[broken]], folder=tmp_path / "gone")
    spoilt = replace(patches, cases={**patches.cases, cases[broken]: gone})
    stream = batches(spoilt, range(6), 1)
    assert [number_of(next(stream)) for _ in range(broken)] == [[n] for n in range(broken)]
    with pytest.raises(DataError, match=r"gone/image\.npy"):
        next(stream)


# synthetic samples


def no_phantoms(patches: Patches) -> Phantoms:
    """Enough to be asked which sample is which."""
    return Phantoms([], [], Style(), 0.5, patches.size_vox, seed=7)


@given(share=st.floats(0, 1), n=st.integers(1, 60))
def test_a_mixture_has_its_share_evenly_and_the_real_ones_in_their_order(
    patches: Patches, share: float, n: int
) -> None:
    samples = [Mixture(patches, no_phantoms(patches), share).sample(number) for number in range(n)]
    synthetic = [sample for sample in samples if sample.case == SYNTHETIC]
    assert abs(len(synthetic) - share * n) < 1
    assert [sample.number for sample in samples] == list(range(n))
    real = [replace(sample, number=0) for sample in samples if sample.case != SYNTHETIC]
    assert real == [replace(patches.sample(number), number=0) for number in range(len(real))]


def test_a_mixture_is_the_same_for_one_and_two_workers(patches: Patches) -> None:
    folder = ROOT / "data/pretrain"
    phantoms = Phantoms(
        [read_anatomy(folder / "open_ms_patient19")],
        [read_shape(shape_path(folder, "BRATS_003"))],
        Style(),
        healthy=0.25,
        size_vox=patches.size_vox,
        seed=7,
    )
    source = Mixture(patches, phantoms, 0.5)
    alone = next(batches(source, range(1), 4))
    shared = [next(batches(source, range(1), 4, rank, 2)) for rank in range(2)]
    assert [sample.case == SYNTHETIC for sample in alone.samples] == [False, True, False, True]
    assert sorted(n for batch in shared for n in number_of(batch)) == [0, 1, 2, 3]
    for batch in shared:
        assert sorted(sample.case == SYNTHETIC for sample in batch.samples) == [False, True]
        own = number_of(batch)
        assert torch.equal(batch.image_BCIJK, alone.image_BCIJK[own])
        assert torch.equal(
            batch.targets_BCIJK.nan_to_num(-1), alone.targets_BCIJK[own].nan_to_num(-1)
        )
    assert not torch.equal(alone.image_BCIJK[1], alone.image_BCIJK[3])


@dataclass(frozen=True)
class Served(Patches):
    """Says when a sample is made."""

    on_serve: Callable[[int], object] = lambda number: None

    def serve(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        self.on_serve(sample.number)
        return super().serve(sample)


def watched(patches: Patches, on_serve: Callable[[int], object]) -> Served:
    same = {field.name: getattr(patches, field.name) for field in fields(patches)}
    return Served(**same, on_serve=on_serve)


@pytest.mark.parametrize("readers", [2, 5])
def test_several_readers_give_the_same_batches_in_the_same_order(
    patches: Patches, readers: int
) -> None:
    alone = list(batches(patches, range(3, 10), 3))
    several = list(batches(patches, range(3, 10), 3, readers=readers))
    assert [number_of(batch) for batch in several] == [number_of(batch) for batch in alone]
    for ours, wanted in zip(several, alone, strict=True):
        assert torch.equal(ours.image_BCIJK, wanted.image_BCIJK)
        assert torch.equal(ours.targets_BCIJK, wanted.targets_BCIJK)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_as_many_samples_are_made_at_a_time_as_there_are_readers(
    patches: Patches, batch_size: int
) -> None:
    together = threading.Barrier(2)
    source = watched(patches, lambda number: together.wait(30))  # each waits for another one
    got = [number_of(b) for b in batches(source, range(4), batch_size, readers=2)]
    assert got == [list(range(s * batch_size, (s + 1) * batch_size)) for s in range(4)]


def test_no_more_is_read_ahead_than_the_readers_need_and_nothing_after_a_stop(
    patches: Patches,
) -> None:
    begun: list[int] = []
    stream = batches(watched(patches, begun.append), range(100), 2, readers=4)
    next(stream)
    time.sleep(0.5)
    assert max(begun) < 6  # this step and two more
    stream.close()
    after = len(begun)
    time.sleep(0.2)
    assert len(begun) == after
