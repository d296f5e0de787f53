"""The script of a user of Lightning's, who tracks it: scikit-learn's digits, 4 epochs of 6 batches.

python -m tests.integrations.lightning_digits
"""

import time

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gliotrail
from gliotrail.integrations.lightning import RunCheckpoints, RunLogger, checkpoint_of

PARAMS = {"rate": 0.5, "epochs": 4}


class Digits(LightningModule):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(64, 10)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = F.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        time.sleep(0.05)  # so that there is time to kill it
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        right = (self.layer(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val/accuracy", right)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=PARAMS["rate"])


def main() -> None:
    """Begun, or gone on with."""
    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16).float(), torch.tensor(digits))
    loader = DataLoader(data, batch_size=300)
    model = Digits()
    with gliotrail.track("digits", inputs={"params": PARAMS}) as run:
        trainer = Trainer(
            accelerator="cpu", max_epochs=PARAMS["epochs"], log_every_n_steps=1,
            logger=RunLogger(run), callbacks=[RunCheckpoints(run)], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        if not run.finished:
            trainer.fit(model, loader, loader, ckpt_path=checkpoint_of(run))
            run.summary["weights"] = float(model.layer.weight.detach().double().sum())
    print("weights", run.summary.get("weights"), flush=True)


if __name__ == "__main__":
    main()
