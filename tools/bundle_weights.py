"""Train the checkpoint in the package, and record its training in a JSON file beside it.

`make weights` runs this program. The network is the cifar10 recipe's scratch candidate with α 0.25, signed pixels and
no distortions. The files are `src/mobilenet_pipeline/models/weights/mobilenet_0_25_cifar10.{weights.h5,json}`.
"""

import json
from datetime import date

from mobilenet_pipeline.system import environment

environment.prepare()

import numpy as np

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.data import dataset
from mobilenet_pipeline.data.split import split_rows
from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.models import anatomy
from mobilenet_pipeline.models.architectures import mobilenet
from mobilenet_pipeline.stages.train import progress
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.training import distribution, loop, train
from mobilenet_pipeline.training.batches import Images
from mobilenet_pipeline.workspace import files, ledger, paths

CHANGES = {"alpha": 0.25, "epochs": 24, "pixel_range": "signed", "shift": 4, "distorted": 0.0}


def main() -> None:
    """Train on the training split; read the test set once, at the end."""
    recipe = load_recipe("cifar10")
    candidate = recipe.candidate("scratch").model_copy(update=CHANGES)
    candidate = candidate.with_precision(bfloat16=distribution.bfloat16_helps())
    data = dataset.open_dataset(paths.data_folder(recipe))
    training, validation = split_rows(data, recipe.split)
    parts = {
        name: Images(data.images, data.labels[rows], rows)
        for name, rows in (("train", training), ("validation", validation), ("test", np.flatnonzero(data.is_test)))
    }

    def on_epoch(row: loop.Epoch, epochs: int, left: float) -> None:
        print(progress(row, epochs, left), flush=True)

    trained = train.train(
        candidate,
        train.TrainingData(parts["train"], parts["validation"], len(data.class_names)),
        distribution.choose(),
        train.Callbacks(on_epoch),
    )
    backbone = mobilenet.backbone(candidate.alpha, anatomy.STRIDES[candidate.strides])
    for layer in backbone.layers:
        if layer.weights:
            layer.set_weights(trained.model.get_layer(layer.name).get_weights())
    path = mobilenet.bundled_weights()
    path.parent.mkdir(exist_ok=True)
    backbone.save_weights(path)
    ledger.record_read(recipe, "bundled weights", data.digest, files.sha256_of(path))
    scored = scores.evaluate(
        trained.model.predict(parts["test"].first(len(parts["test"])), batch_size=250, verbose=0),
        parts["test"].labels,
        data.class_names,
    )
    record = {
        "command": "make weights",
        "date": date.today().isoformat(),
        "machine": machine.describe_machine(),
        "data_digest": data.digest,
        "recipe": "cifar10, scratch",
        "changes": CHANGES,
        "candidate": json.loads(candidate.model_dump_json()),
        "validation_accuracy": trained.history[-1].validation_accuracy,
        "test_accuracy": scored["accuracy"],
        "test_loss": scored["loss"],
        "cpu_minutes": round(trained.cpu_seconds / 60, 1),
        "bytes": path.stat().st_size,
        "sha256": files.sha256_of(path),
    }
    files.write_json(path.with_name("mobilenet_0_25_cifar10.json"), record)
    print(f"{path}: {record['bytes']:,} bytes, test accuracy {scored['accuracy']:.4f}")


if __name__ == "__main__":
    main()
