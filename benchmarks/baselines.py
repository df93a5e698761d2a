"""Baseline services for the benchmark of our service, each a minimal BentoML service.

`Single` and `Batched` are compared with each other: without and with BentoML's adaptive batching.

BentoML gives all of them the multipart field as a PIL.Image.Image. Their answers have the form of ours. BENCH_MODEL is
the model file or folder, BENCH_CLASSES the class names (a JSON list).

`python baselines.py FROM TO` writes the Keras model FROM as a TensorFlow SavedModel to TO.
"""

import json
import os
import queue
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from PIL import Image

# TensorFlow and LiteRT are imported where they are needed, so that `Noop` starts without them.
CLASSES: list[str] = json.loads(os.environ.get("BENCH_CLASSES", "[]"))
SIDE = 32
CORES = len(os.sched_getaffinity(0))


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the model's input, uint8 (1, 32, 32, 3)."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.uint8)[None]


def answer(probabilities: np.ndarray) -> dict[str, Any]:
    """Return the answer in our service's form, from float32 (classes,)."""
    best = int(probabilities.argmax())
    shares = probabilities.tolist()
    return {
        "class": CLASSES[best],
        "confidence": shares[best],
        "probabilities": dict(zip(CLASSES, shares, strict=True)),
        "model_name": "baseline",
        "model_version": "1",
    }


@bentoml.service
class Noop:
    """Decodes the image and returns a constant: the cost of BentoML itself."""

    def __init__(self) -> None:
        # Random probabilities, so that the JSON is as long as a model's.
        self.constant = answer(np.random.default_rng(0).dirichlet(np.ones(len(CLASSES))).astype(np.float32))

    @bentoml.api
    async def predict(self, image: Image.Image) -> dict[str, Any]:
        """Return a constant answer."""
        pixels_of(image)
        return self.constant


@bentoml.service
class KerasPredict:
    """The trained Keras model, called by Model.predict."""

    def __init__(self) -> None:
        import keras

        self.model = keras.models.load_model(os.environ["BENCH_MODEL"])

    @bentoml.api
    def predict(self, image: Image.Image) -> dict[str, Any]:
        """Return the model's answer."""
        return answer(self.model.predict(pixels_of(image), verbose=0)[0])


@bentoml.service
class SavedModel:
    """The trained model as a TensorFlow SavedModel, called by its serving signature."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.loaded = tf.saved_model.load(os.environ["BENCH_MODEL"])
        self.signature = self.loaded.signatures["serving_default"]
        self.input = next(iter(self.signature.structured_input_signature[1]))
        self.constant = tf.constant

    @bentoml.api
    def predict(self, image: Image.Image) -> dict[str, Any]:
        """Return the model's answer."""
        outputs = self.signature(**{self.input: self.constant(pixels_of(image))})
        return answer(next(iter(outputs.values())).numpy()[0])


@bentoml.service(threads=CORES)
class Single:
    """The artefact without batching, with a copy for each core."""

    def __init__(self) -> None:
        from mobilenet_pipeline.inference.artefact import Artefact

        self.free: queue.SimpleQueue[Artefact] = queue.SimpleQueue()
        for _ in range(CORES):
            self.free.put(Artefact(Path(os.environ["BENCH_MODEL"]), threads=1))

    @bentoml.api
    def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Return the artefact's answers."""
        artefact = self.free.get()
        try:
            return [answer(artefact.predict(pixels_of(image))[0]) for image in images]
        finally:
            self.free.put(artefact)


@bentoml.service
class Batched:
    """The artefact on all cores, with adaptive batching."""

    def __init__(self) -> None:
        from mobilenet_pipeline.inference.artefact import Artefact

        self.artefact = Artefact(Path(os.environ["BENCH_MODEL"]), threads=CORES)

    # BentoML refuses requests if `max_latency_ms` is below its default of 60 s.
    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Return the artefact's answers."""
        return [answer(row) for row in self.artefact.predict(np.concatenate([*map(pixels_of, images)]))]


def export(source: str, folder: str) -> None:
    """Write the Keras model `source` as a SavedModel into `folder`."""
    import keras

    keras.models.load_model(source).export(folder, format="tf_saved_model", verbose=False)


if __name__ == "__main__":
    export(*sys.argv[1:3])
