"""Train the checkpoint that the package bundles, and record beside it how it was made.

`make weights` runs it. The network is the cifar10 recipe's scratch candidate at α 0.25; the files are
`src/mobilenet_pipeline/weights/mobilenet_0_25_cifar10.{weights.h5,json}`.
"""

import json
from datetime import date

from mobilenet_pipeline import environment

environment.prepare()

import numpy as np  # noqa: E402

from mobilenet_pipeline import (  # noqa: E402
    anatomy,
    distribution,
    images,
    layout,
    ledger,
    metrics,
    mobilenet,
    provenance,
    split,
    training,
)
from mobilenet_pipeline.config import load_recipe  # noqa: E402
from mobilenet_pipeline.stages.train import progress  # noqa: E402

CHANGES = {"alpha": 0.25, "epochs": 24}


def main() -> None:
    """Train on the training split, look at the test set once, at the end."""
    recipe = load_recipe("cifar10")
    candidate = recipe.candidates.scratch.model_copy(update=CHANGES)
    candidate = candidate.with_precision(bfloat16=distribution.bfloat16_helps())
    data = images.open_dataset(layout.data_folder(recipe))
    limits = recipe.split
    kept, held_out = split.training_rows(data.labels, data.is_test, limits.validation_share, limits.seed)
    parts = {
        name: training.Images(np.asarray(data.images[rows]), data.labels[rows])
        for name, rows in (("train", kept), ("validation", held_out), ("test", np.flatnonzero(data.is_test)))
    }

    def on_epoch(row: training.Epoch, epochs: int, left: float) -> None:
        print(progress(row, epochs, left), flush=True)

    trained = training.train(
        candidate, parts["train"], parts["validation"], len(data.class_names), distribution.choose(), on_epoch
    )
    backbone = mobilenet.backbone(candidate.alpha, anatomy.STRIDES[candidate.strides])
    for layer in backbone.layers:
        if layer.weights:
            layer.set_weights(trained.model.get_layer(layer.name).get_weights())
    path = mobilenet.bundled_weights()
    path.parent.mkdir(exist_ok=True)
    backbone.save_weights(path)
    ledger.record_read(recipe, "bundled weights", data.digest, provenance.sha256_of(path))
    scored = metrics.evaluate(
        trained.model.predict(parts["test"].pixels, batch_size=250, verbose=0), parts["test"].labels, data.class_names
    )
    record = {
        "command": "make weights",
        "date": date.today().isoformat(),
        "machine": provenance.describe_machine(),
        "data_digest": data.digest,
        "recipe": "cifar10, scratch",
        "changes": CHANGES,
        "candidate": json.loads(candidate.model_dump_json()),
        "validation_accuracy": trained.history[-1].validation_accuracy,
        "test_accuracy": scored["accuracy"],
        "test_loss": scored["loss"],
        "cpu_minutes": round(trained.cpu_seconds / 60, 1),
        "bytes": path.stat().st_size,
        "sha256": provenance.sha256_of(path),
    }
    layout.write_json(path.with_name("mobilenet_0_25_cifar10.json"), record)
    print(f"{path}: {record['bytes']:,} bytes, test accuracy {scored['accuracy']:.4f}")


if __name__ == "__main__":
    main()
