"""A peer trained on one fold of real patients, for as many seconds of CPU as ours took.

python patients.py nnunet|segresnet RAW FOLD SECONDS OUT: one thread, in an environment of its own
(`pip install nnunetv2==2.8.1 monai==1.6.1 torch==2.13.0`). RAW is nnU-Net's raw data set with the
regions whole, core, enhancing; FOLD a file {"train": [...], "val": [...]}; masks go to OUT, for
`gliotrail score`. Rates fall with the share of SECONDS that is used: nnU-Net's polynomial, the
tutorial's cosine.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

RATE_NNUNET, RATE_SEGRESNET = 1e-2, 1e-4
PATCH_VOX, BATCH = (64, 64, 64), 2  # nnU-Net's own plan for 1 GB; the tutorial's is 224x224x144, 1


def nnunet(raw: Path, fold: dict[str, list[str]], seconds: float, out: Path) -> None:
    """nnU-Net's own trainer, plan `small` (`nnUNetv2_plan_experiment -gpu_memory_target 1`)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / raw.name  # noqa: SIM112
    plans = json.loads((preprocessed / "small.json").read_text()) | {"continue_training": False}
    info = json.loads((raw / "dataset.json").read_text())
    # the trainer reads the fold's number out of a file of all folds
    (preprocessed / "splits_final.json").write_text(json.dumps([fold]))
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, info, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    trainer.set_deep_supervision_enabled(True)
    start, step = time.process_time(), 0
    while (used := (time.process_time() - start) / seconds) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = RATE_NNUNET * (1 - used) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        told(step, used, loss)
        step += 1
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        info,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    scans = [
        [str(raw / f"imagesTr/{case}_{channel:04d}.nii.gz") for channel in range(4)]
        for case in fold["val"]
    ]
    predictor.predict_from_files_sequential(scans, [str(out / case) for case in fold["val"]])


def segresnet(raw: Path, fold: dict[str, list[str]], seconds: float, out: Path) -> None:
    """MONAI's tutorial "Brain tumor 3D segmentation" (BraTS), as it has them."""
    import nibabel as nib
    from monai import transforms as t
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceLoss
    from monai.networks.nets import SegResNet

    def read(case: str) -> dict[str, np.ndarray]:
        files = [raw / f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(4)]
        image = np.stack([nib.load(file).get_fdata(dtype=np.float32) for file in files])
        label = np.asarray(nib.load(raw / f"labelsTr/{case}.nii.gz").dataobj)
        return {"image": image, "label": np.stack([label >= 1, label >= 2, label == 3])}

    normalize = t.NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True)
    crop = t.CropForegroundd(keys=["image", "label"], source_key="image")  # else mostly air
    heads = [normalize(crop(read(case))) for case in fold["train"]]
    augment = t.Compose(
        [
            t.RandSpatialCropd(keys=["image", "label"], roi_size=PATCH_VOX, random_size=False),
            *(t.RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=a) for a in range(3)),
            t.RandScaleIntensityd(keys="image", factors=0.1, prob=1.0),
            t.RandShiftIntensityd(keys="image", offsets=0.1, prob=1.0),
        ]
    ).set_random_state(seed=7)
    torch.manual_seed(7)
    network = SegResNet(
        blocks_down=[1, 2, 2, 4],
        blocks_up=[1, 1, 1],
        init_filters=16,
        in_channels=4,
        out_channels=3,
        dropout_prob=0.2,
    )
    loss_of = DiceLoss(
        smooth_nr=0, smooth_dr=1e-5, squared_pred=True, to_onehot_y=False, sigmoid=True
    )
    optimizer = torch.optim.Adam(network.parameters(), RATE_SEGRESNET, weight_decay=1e-5)
    rng = np.random.default_rng(7)
    start, step = time.process_time(), 0
    while (used := (time.process_time() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE_SEGRESNET * (1 + math.cos(math.pi * used)) / 2
        samples = [augment(heads[rng.integers(len(heads))]) for _ in range(BATCH)]
        images = torch.stack([torch.as_tensor(sample["image"]) for sample in samples])
        truth = torch.stack([torch.as_tensor(sample["label"]) for sample in samples]).float()
        optimizer.zero_grad()
        loss = loss_of(network(images.as_tensor()), truth.as_tensor())
        loss.backward()
        optimizer.step()
        told(step, used, loss.item())
        step += 1
    network.eval()
    for case in fold["val"]:
        image = torch.as_tensor(normalize(read(case))["image"])[None]
        with torch.no_grad():
            found = sliding_window_inference(image, (128, 128, 128), 1, network, overlap=0.25)
        whole, core, enhancing = (found[0] > 0).numpy()
        mask = np.where(enhancing, 3, np.where(core, 2, whole)).astype(np.uint8)
        of = nib.load(raw / f"labelsTr/{case}.nii.gz")
        nib.save(nib.Nifti1Image(mask, of.affine), out / f"{case}.nii.gz")


def told(step: int, used: float, loss: float) -> None:
    if step % 20 == 0:
        print(f"step {step}, {used:.0%} of the CPU time, loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    peer, raw, fold, seconds, out = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    run = {"nnunet": nnunet, "segresnet": segresnet}[peer]
    run(Path(raw), json.loads(Path(fold).read_text()), float(seconds), Path(out))
