"""Whether a GPU computes what the CPU does: `make gpu-check`. A table; exit code 1 if a row fails.

A difference is |a - b| / |b|, with the norms of whole tensors (L2), b being the CPU's in float32.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import ray
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from gliotrail.cluster.connection import cluster, nodes
from gliotrail.cluster.trials import resources
from gliotrail.errors import ParamsError
from gliotrail.segmentation.batches import Batch, Sample, batches
from gliotrail.segmentation.inference import forward
from gliotrail.segmentation.loop import SCORE, Plan, State, World, fit, gradients_and_losses
from gliotrail.segmentation.precision import convolutions_in
from gliotrail.segmentation.unet import UNet3d, initialize
from gliotrail.training.driver import check_precision

TOLERANCES: Final[Mapping[str, tuple[float, float, float]]] = {
    "float32": (1e-4, 1e-3, 1e-3),
    "tf32": (5e-3, 1e-1, 1e-2),
    "float16": (5e-3, 1e-1, 1e-2),
    "bfloat16": (3e-2, 2e-1, 3e-2),
}
"""Largest difference of logits, of gradients, and of the losses of ten steps.

float32 differs by the order of sums; TF32 and float16 have 10 bits behind the point, bfloat16 7,
which also changes which voxels a pooling or a ReLU lets through. Imitated on a CPU, 2 base filters
and 8x8x8 voxels: float16 1e-3, 7e-2, 2e-4; bfloat16 9e-3, 5e-2, 2e-4.
"""
STEPS: Final = 10
PLAN: Final = Plan(
    steps=STEPS, steps_per_epoch=STEPS, batch_size=2, learning_rate=1e-3, weight_decay=1e-5,
    warmup_steps=2, average=0.9, clip=0, optimizer="adamw", keep="last", loss="soft_dice",
    precision="float32",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was compared; `got` may be `most` at most."""

    what: str
    got: float
    most: float

    @property
    def holds(self) -> bool:
        """Not so for NaN."""
        return self.got <= self.most


@dataclass(frozen=True)
class Balls:
    """A source of samples: three balls in noise, each brighter in a channel of its own."""

    size_vox: tuple[int, int, int] = (32, 32, 32)
    width: tuple[int, int] = (4, 3)

    def sample(self, number: int) -> Sample:
        """Sample n."""
        return Sample(number, f"balls {number}", (0, 0, 0), (0, number))

    def serve(self, sample: Sample) -> tuple[Any, Any]:
        """The image (4, I, J, K) and its targets (3, I, J, K)."""
        rng = np.random.default_rng(sample.augmentation_seed)
        centres = rng.uniform(0.3, 0.7, (3, 3, 1, 1, 1)) * self.size_vox[0]
        grid = np.indices(self.size_vox)
        targets = np.sum((grid - centres) ** 2, axis=1) < (self.size_vox[0] / 5) ** 2
        image = rng.standard_normal((4, *self.size_vox)).astype(np.float32)
        image[:3] += 2 * targets
        return image, targets


SOURCE = Balls()


def network(base_filters: int) -> UNet3d:
    """The same each time."""
    model = UNet3d(2, base_filters)
    initialize(model, 1)
    return model


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm())


def gradients(device: torch.device, precision: str, base_filters: int) -> Tensor:
    """Of all parameters and of one batch, flat, and their scale taken out."""
    model = network(base_filters).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    batch = next(batches(SOURCE, range(1), 2, device=device))
    plan = replace(PLAN, precision=precision)
    flat = gradients_and_losses(model, batch, plan, scaler, World(device=device), stop=False)
    return flat[: -len(plan.losses) - 1].cpu() / scaler.get_scale()


def logits(device: torch.device, precision: str, base_filters: int) -> Tensor:
    """Of one batch."""
    model = network(base_filters).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    batch: Batch = next(batches(SOURCE, range(1), 2, device=device))
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)
    half = torch.autocast(device.type, dtype, enabled=dtype is not None)
    with torch.no_grad(), convolutions_in(precision), half:
        image = batch.image_BCIJK.to(device, memory_format=torch.channels_last_3d)
        return model(image).float().cpu()  # type: ignore[no-any-return]


def training(
    world: World,
    precision: str,
    base_filters: int,
    steps: int = STEPS,
    source: Balls | None = None,
) -> tuple[Tensor, State]:
    """The losses of some steps of the loop, and how it ends."""
    losses: list[float] = []

    def told(step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]) -> None:
        losses.append(metrics["train/soft_dice_loss"])

    plan = replace(PLAN, precision=precision, steps=steps)
    state = fit(
        network(base_filters), source or SOURCE, plan, lambda model: {SCORE: 0.0}, told, world
    )
    return torch.tensor(losses), state


def rows(
    device: torch.device,
    base_filters: int = 32,
    steps: int = STEPS,
    precisions: Iterable[str] = TOLERANCES,
) -> Iterator[Row]:
    """All comparisons of one device with the CPU."""
    cpu = torch.device("cpu")
    true = (
        logits(cpu, "float32", base_filters),
        gradients(cpu, "float32", base_filters),
        training(World(), "float32", base_filters, steps)[0],
    )
    for precision in precisions:
        try:
            check_precision(precision, device)
        except ParamsError:
            continue
        most = TOLERANCES[precision]
        got = (
            logits(device, precision, base_filters),
            gradients(device, precision, base_filters),
            training(World(device=device), precision, base_filters, steps)[0],
        )
        kinds = ("logits", "gradients", f"losses of {steps} steps")
        for kind, ours, wanted, allowed in zip(kinds, got, true, most, strict=True):
            yield Row(f"{precision}: {kind}", difference(ours, wanted), allowed)

    image = torch.from_numpy(SOURCE.serve(SOURCE.sample(0))[0])[None].to(device)
    model = network(base_filters).to(device)
    with torch.no_grad(), convolutions_in("float32"):
        plain = model(image)
        model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        last = model(image.contiguous(memory_format=torch.channels_last_3d))
    yield Row("channels_last_3d: logits", difference(last, plain), 1e-4)
    probabilities = torch.from_numpy(forward(model, image[0].cpu().numpy()))
    yield Row("prediction", difference(probabilities, plain[0].sigmoid()), 1e-4)

    limited = torch.from_numpy(forward(model, image[0].cpu().numpy(), most_bytes=1))
    yield Row("prediction in blocks", difference(limited, plain[0].sigmoid()), 1e-4)

    first, second = (training(World(device=device), "float32", base_filters, steps)[1].tensors
                     for _ in range(2))  # fmt: skip
    changed = sum(int((first[name] != second[name]).sum()) for name in first)
    yield Row("the same training twice: values that differ", changed, 0)
    if device.type == "cuda":
        batch = next(batches(SOURCE, range(1), 2, device=device))
        unpinned = [not t.is_pinned() for t in (batch.image_BCIJK, batch.targets_BCIJK)]
        yield Row("batches not in pinned memory", sum(unpinned), 0)


def two_workers(backend: str, base_filters: int = 32, steps: int = STEPS) -> Row:
    """Two processes, each on a device of its own, against one; `backend` is `nccl` or `gloo`."""
    with TemporaryDirectory() as folder:
        args = (backend, folder, base_filters, steps, SOURCE)
        torch.multiprocessing.spawn(_worker, args, nprocs=2)
        both = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]
    alone, _ = training(World(device=_device(backend, 0)), "float32", base_filters, steps)
    most = TOLERANCES["float32"][2]
    return Row(f"two workers by {backend}", max(difference(b, alone) for b in both), most)


def _worker(
    rank: int, backend: str, folder: str, base_filters: int, steps: int, source: Balls
) -> None:
    device = _device(backend, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    world = World(rank, 2, torch.distributed.all_reduce, device)
    torch.save(training(world, "float32", base_filters, steps, source)[0], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _device(backend: str, number: int) -> torch.device:
    return torch.device("cuda", number) if backend == "nccl" else torch.device("cpu")


def halves() -> Row:
    """How many trials of half a GPU don't run beside each other, of those that could."""
    with cluster() as connected:
        connected()
        wanted, at_once = resources(nodes(), 2 * torch.cuda.device_count(), 0.5)
        task = ray.remote(**{f"num_{k.lower()}s": n for k, n in wanted.per_worker().items()})
        spans = ray.get([task(_half).remote() for _ in range(at_once)])
    beside = [begin for begin, _ in spans if begin < min(end for _, end in spans)]
    return Row("trials of half a GPU that wait", 2 * torch.cuda.device_count() - len(beside), 0)


def _half() -> tuple[float, float]:
    begin = time.time()
    torch.cuda.set_per_process_memory_fraction(0.5)
    training(World(device=torch.device("cuda", 0)), "float32", 32, 2)
    time.sleep(20)  # the others may start later
    return begin, time.time()


def speed(
    device: torch.device, precision: str, base_filters: int = 32, steps: int = 20
) -> dict[str, float]:
    """What the loop tells of an epoch on patches of 64x64x64, without the `train/`."""
    told: dict[str, float] = {}
    plan = replace(PLAN, precision=precision, steps=steps, steps_per_epoch=steps)

    def report(step: int, metrics: Mapping[str, float], snapshot: Callable[[], State]) -> None:
        told.update(metrics)

    source, world = Balls((64, 64, 64)), World(device=device)
    fit(network(base_filters), source, plan, lambda model: {SCORE: 0.0}, report, world)
    return {
        key.removeprefix("train/"): value
        for key, value in told.items()
        if key.startswith(("train/voxels", "train/step", "train/peak", "train/mfu"))
    }


def main() -> None:
    """Print the table.

    Raises:
        SystemExit: 2 without a GPU; 1 where a row doesn't hold.
    """
    if not torch.cuda.is_available():
        sys.stderr.write("gpu-check: no GPU that PyTorch can use here; nothing was compared\n")
        raise SystemExit(2)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    print("\n| what | got | at most | |\n|---|---|---|---|")
    last: list[Callable[[], Row]] = [halves]
    if torch.cuda.device_count() > 1:
        last.insert(0, partial(two_workers, "nccl"))
    failed = 0
    for row in _all(last):
        failed += not row.holds
        print(f"| {row.what} | {row.got:.2g} | {row.most:g} | {'' if row.holds else 'FAILED'} |")
    print("\nspeed, patches of 64x64x64, 2 a step:")
    for precision in TOLERANCES:
        try:
            check_precision(precision, torch.device("cuda", 0))
        except ParamsError as error:
            print(f"- {error}")
            continue
        told = speed(torch.device("cuda", 0), precision)
        print(f"- {precision}: {', '.join(f'{k} {v:.3g}' for k, v in told.items())}")
    if torch.cuda.device_count() < 2:
        print("\nnot compared, as there is one GPU: two workers by NCCL")
    raise SystemExit(bool(failed))


def _all(last: list[Callable[[], Row]]) -> Iterator[Row]:
    yield from rows(torch.device("cuda", 0))
    yield from (compare() for compare in last)


if __name__ == "__main__":
    main()
