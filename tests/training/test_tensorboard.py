"""What a training writes for TensorBoard."""

from pathlib import Path

import pytest
import tensorflow as tf
from small_training import SMALL

from mobilenet_pipeline.models import network
from mobilenet_pipeline.training import tensorboard
from mobilenet_pipeline.training.loop import Epoch

EPOCH = Epoch(3, 0.125, 1.5, 0.5, 1.25, 0.625, 10.0, 32)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tf.compat.v1.Event]]:
    """The events of each run of a training with one epoch."""
    folder = tmp_path_factory.mktemp("logs")
    with tensorboard.open_log(folder) as log:
        log.log_epoch(EPOCH)
        log.log_graph(network.build(SMALL, (32, 32, 3), 2))
    return {run: read(folder / run) for run in ("train", "validation")}


def read(folder: Path) -> list[tf.compat.v1.Event]:
    (file,) = folder.glob("events.out.tfevents.*")
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    return [tf.compat.v1.Event.FromString(record) for record in records]


def curves(events: list[tf.compat.v1.Event]) -> dict[str, tuple[int, float]]:
    return {value.tag: (event.step, value.simple_value) for event in events for value in event.summary.value}


def test_an_epoch_has_loss_accuracy_rate_and_input_size(events) -> None:
    expected = {"epoch_loss": 1.5, "epoch_accuracy": 0.5, "epoch_learning_rate": 0.125, "epoch_input_size": 32}
    assert curves(events["train"]) == {tag: (3, value) for tag, value in expected.items()}
    assert curves(events["validation"]) == {"epoch_loss": (3, 1.25), "epoch_accuracy": (3, 0.625)}


def test_the_graph_of_the_model_is_logged(events) -> None:
    (graph,) = [event.graph_def for event in events["train"] if event.graph_def]
    names = {node.name for node in tf.compat.v1.GraphDef.FromString(graph).node}
    assert any("conv_dw_1" in name for name in names)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tensorboard.open_log(None) as log:
        log.log_epoch(EPOCH)
    assert not list(tmp_path.iterdir())
