"""Logs of a training for TensorBoard, which need no TensorBoard to be written."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from mobilenet_pipeline.training.loop import Epoch

CURVES = {
    "train": {
        "epoch_loss": "train_loss",
        "epoch_accuracy": "train_accuracy",
        "epoch_learning_rate": "learning_rate",
        "epoch_input_size": "input_size",
    },
    "validation": {"epoch_loss": "validation_loss", "epoch_accuracy": "validation_accuracy"},
}
"""{TensorBoard's run: {tag: field of `Epoch`}}. Runs and tags are named as in Keras's callback for TensorBoard."""


class Log:
    """The logs of one training: its learning curve and its graph."""

    def __init__(self, writers: dict[str, tf.summary.SummaryWriter]) -> None:
        self._writers = writers

    def log_epoch(self, row: Epoch) -> None:
        """Log one row of the learning curve."""
        for run, writer in self._writers.items():
            values = [
                tf.compat.v1.Summary.Value(tag=tag, simple_value=float(getattr(row, field)))
                for tag, field in CURVES[run].items()
            ]
            # tf.summary.scalar needs the package tensorboard.
            with writer.as_default():
                tf.summary.experimental.write_raw_pb(
                    tf.compat.v1.Summary(value=values).SerializeToString(), step=row.epoch
                )
            writer.flush()

    def log_graph(self, model: keras.Model) -> None:
        """Log the graph of the model's answer to a batch of images."""
        batch = tf.TensorSpec(model.input_shape, model.input_dtype)
        graph = tf.function(lambda images: model(images, training=False)).get_concrete_function(batch).graph
        with self._writers["train"].as_default():
            tf.summary.graph(graph)


@contextmanager
def open_log(folder: Path | None) -> Iterator[Log]:
    """Yield a log with its files in `folder/train` and `folder/validation`; one that writes nothing for None."""
    with ExitStack() as stack:
        writers = {}
        for run in CURVES:
            writer = tf.summary.create_file_writer(str(folder / run)) if folder else tf.summary.create_noop_writer()
            stack.callback(writer.close)
            writers[run] = writer
        yield Log(writers)
