"""Our recipe against the one of the system that this project re-creates.

    python tests/benchmarks/bench_recipe.py --data DATA [--profile wiki] [--epochs 10]

Both train EfficientNetB0 from scratch on the same faces of 64 pixels, which must lie cleaned in
DATA, and see as many of them. Prints what both get right on validation and test faces. A run that
was cut off goes on where ours stopped; the other's is trained anew.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, balanced_accuracy_score

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.backend import keras
from agelib.config import Config
from agelib.faces.shards import FaceSet
from agelib.labels import AGE_BRANCHES, GENDERS
from agelib.model.inference import estimate
from agelib.model.network import build_backbone
from agelib.model.saved import load_model
from agelib.training.batches import ordered_batches, train_batches
from agelib.training.loop import train

REFERENCE_BATCH = 256


def reference_model(size: int) -> keras.Model:
    """BatchNorm, global maximum, dropout and two softmax layers on an EfficientNet."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = build_backbone("EfficientNetB0", size, None, 0.2)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    heads = {"age_branch": len(AGE_BRANCHES), "gender": len(GENDERS)}
    outputs = {n: keras.layers.Dense(k, "softmax", name=n)(x) for n, k in heads.items()}
    return keras.Model(inputs, outputs)


def train_reference(faces: FaceSet, val: FaceSet, size: int, epochs: int) -> keras.Model:
    """Adam at 1e-3, slowed down where validation stalls; no variation, faces as they come."""
    keras.utils.set_random_seed(0)
    model = reference_model(size)
    model.compile(keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy")

    def two_heads(images, targets):
        return images, {name: targets[name] for name in model.output_names}

    batch_size = min(REFERENCE_BATCH, len(faces))
    model.fit(
        train_batches(faces, np.ones(len(faces)), batch_size, size, seed=0, first_epoch=0).map(
            two_heads
        ),
        epochs=epochs,
        steps_per_epoch=len(faces) // batch_size,
        validation_data=ordered_batches(val, batch_size, size).map(two_heads),
        callbacks=[keras.callbacks.ReduceLROnPlateau(factor=0.9, patience=5)],
        shuffle=False,
        verbose=2,
    )
    return model


def scores(outputs: dict[str, np.ndarray], faces: FaceSet) -> dict[str, float]:
    found = {}
    for head, true in (("age_branch", faces.age_branch), ("gender", faces.gender)):
        said = outputs[head].argmax(axis=1)
        found[f"{head} accuracy"] = 100 * accuracy_score(true, said)
        found[f"{head} balanced"] = 100 * balanced_accuracy_score(true, said)
    return found


def plain(model: keras.Model, faces: FaceSet) -> dict[str, np.ndarray]:
    """The reference looks at each face once, not at its mirror image too."""
    outputs = [model.predict_on_batch(batch) for batch in faces.batches()]
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--profile", default="wiki")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    config = Config.from_profile(
        options.profile,
        backbone="EfficientNetB0",
        weights="none",
        crop_size=64,
        epochs=options.epochs,
        data=options.data,
        run="bench-recipe",
    )
    trained = [config.faces / name for name in config.train_sources]
    faces = {split: FaceSet(trained, split) for split in ("train", "val")}
    faces["test"] = FaceSet([config.faces / config.test_sources[0]], "test")
    train(config, print)
    ours, _ = load_model(config.run_folder / "model.keras")
    theirs = train_reference(
        faces["train"], faces["val"], config.resolved.image_size, config.epochs
    )
    columns = {}
    for split in ("val", "test"):
        columns[f"{split}, reference"] = scores(plain(theirs, faces[split]), faces[split])
        columns[f"{split}, agelib"] = scores(estimate(ours, faces[split]), faces[split])
        columns[f"{split}, ahead by"] = {
            name: columns[f"{split}, agelib"][name] - value
            for name, value in columns[f"{split}, reference"].items()
        }
    print(f"{config.epochs} epochs of {len(faces['train'])} faces")
    print(pd.DataFrame(columns).round(1).to_string())


if __name__ == "__main__":
    main()
