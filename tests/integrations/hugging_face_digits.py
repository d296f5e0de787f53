"""The script of a user of Hugging Face's Trainer, who tracks it: scikit-learn's digits, 24 steps.

python -m tests.integrations.hugging_face_digits
"""

import time
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import gliotrail
from gliotrail.integrations.hugging_face import TrackRun, checkpoint_of

PARAMS = {"rate": 0.5, "steps": 24}


class Digits(torch.nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            time.sleep(0.05)  # so that there is time to kill it
        logits = self.layer(pixels)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def accuracy(told: Any) -> dict[str, float]:
    return {"accuracy": float((told.predictions.argmax(1) == told.label_ids).mean())}


def main() -> None:
    """Begun, or gone on with."""
    pixels, digits = load_digits(return_X_y=True)
    data = [
        {"pixels": one, "labels": int(digit)}
        for one, digit in zip((pixels / 16).astype(np.float32), digits, strict=True)
    ]
    model = Digits()
    arguments = TrainingArguments(
        output_dir="trainer", max_steps=PARAMS["steps"], per_device_train_batch_size=300,
        per_device_eval_batch_size=1797,
        learning_rate=PARAMS["rate"], optim="sgd", logging_steps=1, eval_strategy="steps",
        eval_steps=6, save_strategy="steps", save_steps=4, save_total_limit=1, report_to="none",
        disable_tqdm=True, use_cpu=True, seed=7,
    )  # fmt: skip
    with gliotrail.track("digits", inputs={"params": PARAMS}) as run:
        trainer = Trainer(
            model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=accuracy,
            callbacks=[TrackRun(run)],
        )  # fmt: skip
        if not run.finished:
            trainer.train(resume_from_checkpoint=checkpoint_of(run))
            run.summary["weights"] = float(model.layer.weight.detach().double().sum())
    print("weights", run.summary.get("weights"), flush=True)


if __name__ == "__main__":
    main()
