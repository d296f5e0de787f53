"""Run by `.venv-bench`'s Python alone: U-Nets of real Keras, their files and what they answer.

python keras_script.py FOLDER DEPTHxWIDTH ..: for each network, in all three layouts, FOLDER gets
2x4.h5, 2x4.weights.h5 and 2x4.old.h5, and 2x4.npz with an `image` (C, I, J, K) and Keras'
`probabilities` (classes, I, J, K). Biases are random, so that none is lost unseen.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
from keras import layers
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group


def unet(depth, base):
    """The course's network, channels last."""
    x = image = keras.Input((None, None, None, 4))
    skips = []
    for level in range(depth):
        x = layers.MaxPooling3D(2)(x) if level else x
        for filters in (base * 2**level, base * 2 ** (level + 1)):
            x = layers.Conv3D(filters, 3, padding="same", activation="relu")(x)
        skips.append(x)
    skips.pop()
    for level in reversed(range(depth - 1)):
        x = layers.concatenate([layers.UpSampling3D(2)(x), skips.pop()])
        for _ in range(2):
            x = layers.Conv3D(base * 2 ** (level + 1), 3, padding="same", activation="relu")(x)
    return keras.Model(image, layers.Conv3D(3, 1, activation="sigmoid")(x))


if __name__ == "__main__":
    rng = np.random.default_rng(7)
    for name in sys.argv[2:]:
        depth, base = map(int, name.split("x"))
        model = unet(depth, base)  # the second's layers are numbered on from the first's
        for layer in model.layers:
            if layer.weights:
                kernel, bias = layer.get_weights()
                layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
        stem = Path(sys.argv[1]) / name
        model.save(f"{stem}.h5")
        model.save_weights(f"{stem}.weights.h5")
        with h5py.File(f"{stem}.old.h5", "w") as file:
            save_weights_to_hdf5_group(file, model)
        image = rng.normal(size=(4, 16, 8, 24)).astype(np.float32)
        answer = np.asarray(model.predict(np.moveaxis(image, 0, -1)[None], verbose=0))[0]
        np.savez(f"{stem}.npz", image=image, probabilities=np.moveaxis(answer, -1, 0))
