import time
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from small_training import AUGMENTED, SMALL, coloured, fixed_plan, trained

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.training import budget, distribution, loop, plan, train
from mobilenet_pipeline.training.budget import Costs


@dataclass(frozen=True)
class Finished:
    """A training of `SMALL`, the epochs that it reported, and its checkpoint."""

    trained: train.Trained
    reported: list[tuple[int, int]]
    checkpoint: bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path, reported = tmp_path_factory.mktemp("finished") / "checkpoint.npz", []
    result = trained(checkpoint_path=path, on_epoch=lambda row, epochs, left: reported.append((row.epoch, epochs)))
    return Finished(result, reported, path.read_bytes())


@pytest.fixture(scope="module")
def longer() -> train.Trained:
    """A training of four epochs."""
    return trained(SMALL.model_copy(update={"epochs": 4}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.npz"


def test_fewer_workers_train_with_the_global_batch_and_the_learning_rate_of_all(finished):
    halves = {"workers": 2, "batch_size": 8, "learning_rate": 0.025, "fewer_workers": True}
    alone = trained(SMALL.model_copy(update=halves))
    assert [row.train_loss for row in alone.history] == [row.train_loss for row in finished.trained.history]
    assert (alone.replicas, alone.global_batch) == (1, 16)


def test_fewer_workers_are_refused_where_the_recipe_does_not_allow_them():
    with pytest.raises(ValueError, match="the candidate has 2 workers, and 1 would train: run with --cluster or"):
        trained(SMALL.model_copy(update={"workers": 2}))


def test_a_checkpoint_goes_on_when_fewer_workers_are_allowed(path):
    halves = SMALL.model_copy(update={"workers": 2, "batch_size": 8, "learning_rate": 0.025, "fewer_workers": True})
    trained(halves, path)
    lines: list[str] = []
    trained(halves.model_copy(update={"devices_per_worker": 3}), path, say=lines.append)
    assert any(line.startswith("continuing after step") for line in lines)


def test_a_few_real_steps_lower_the_loss(longer):
    assert longer.history[-1].train_loss < 0.7 * longer.history[0].train_loss


def test_the_same_seed_gives_the_same_weights(finished):
    first, second = finished.trained.model.get_weights(), trained().model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_other_weights(finished):
    other = trained(SMALL.model_copy(update={"seed": 1})).model.get_weights()
    assert not np.allclose(finished.trained.model.get_weights()[0], other[0])


def test_every_epoch_is_reported(finished):
    assert finished.reported == [(1, 2), (2, 2)]


def test_the_trained_model_holds_only_layers_of_keras(finished, tmp_path):
    model = finished.trained.model
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={})
    images = coloured(4).pixels
    assert np.array_equal(np.asarray(loaded(images)), np.asarray(model(images)))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="lower batch_size"):
        trained(SMALL.model_copy(update={"batch_size": 65}))


def test_the_temperature_lowers_the_validation_loss(longer):
    images = coloured(32)
    probabilities = np.asarray(longer.model(images.pixels))
    loss = -np.log(probabilities[np.arange(32), images.labels]).mean()
    assert longer.temperature != 1
    assert loss < longer.history[-1].validation_loss  # which is of before


def test_rows_of_the_history_are_dictionaries():
    row = loop.Epoch(1, 0.1, 1.5, 0.5, 1.25, 0.625, 10.0, 32)
    assert train.to_rows([row]) == [vars(row)]


def test_a_stopped_training_resumes_to_the_same_weights(path, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 3)
    monkeypatch.setattr(train, "make_plan", fixed_plan(8, 1.0, 1.0))
    candidate = AUGMENTED.model_copy(update={"input_sizes": [32, 40]})
    # Chunks of 3, 1, 3 and 1 steps; after the second, the only batch of validation images.
    stops = iter([False, False, False, True])
    with pytest.raises(train.Interrupted):
        trained(candidate, path, should_stop=lambda: next(stops))
    said: list[str] = []
    resumed = trained(candidate, path, say=said.append)
    assert said[-1] == "continuing after step 7 of 8"
    whole = trained(candidate).model.get_weights()
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(resumed.model.get_weights(), whole, strict=True))


def test_a_training_stopped_while_validating_keeps_its_epoch(finished, path, monkeypatch):
    monkeypatch.setattr(train, "make_plan", fixed_plan(8, 1.0))
    stops = iter([False, True])
    with pytest.raises(train.Interrupted):
        trained(checkpoint_path=path, should_stop=lambda: next(stops))
    said: list[str] = []
    resumed = trained(checkpoint_path=path, say=said.append)
    assert said[-1] == "continuing after step 4 of 8"
    for name in ("validation_loss", "train_loss"):
        found, expected = ([getattr(row, name) for row in one.history] for one in (resumed, finished.trained))
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_training_stopped_while_timing_saves_nothing(path):
    stops = iter([False, True])
    said: list[str] = []
    with pytest.raises(train.Interrupted) as stopped:
        trained(checkpoint_path=path, should_stop=lambda: next(stops), say=said.append)
    assert not stopped.value.saved
    assert said == []
    assert not path.exists()


def test_a_finished_training_takes_no_more_steps(finished, path):
    path.write_bytes(finished.checkpoint)
    said: list[str] = []
    again = trained(checkpoint_path=path, say=said.append)
    assert said == ["continuing after step 8 of 8"]
    assert again.history == finished.trained.history
    weights = zip(again.model.get_weights(), finished.trained.model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in weights)


def test_the_state_of_other_code_is_not_continued(finished, path, monkeypatch, capsys):
    path.write_bytes(finished.checkpoint)
    monkeypatch.setattr(train, "_code", lambda: "of yesterday")
    said: list[str] = []
    trained(checkpoint_path=path, say=said.append)
    assert not any("continuing" in line for line in said)
    assert f"{path} is of other code" in capsys.readouterr().out


def test_the_state_of_other_settings_is_not_continued(finished, path, capsys):
    path.write_bytes(finished.checkpoint)
    said: list[str] = []
    trained(SMALL.model_copy(update={"learning_rate": 0.04}), path, say=said.append)
    assert not any("continuing" in line for line in said)
    assert "the training starts afresh" in capsys.readouterr().out


def test_a_training_continues_once_code_and_state_are_restored(path, monkeypatch):
    stops = iter([False] * 7 + [True])
    with pytest.raises(train.Interrupted):
        trained(checkpoint_path=path, should_stop=lambda: next(stops))
    with monkeypatch.context() as changed:
        changed.setattr(train, "_code", lambda: "of tomorrow")
        trained(checkpoint_path=path)
    said: list[str] = []
    path.with_name("checkpoint.other.npz").replace(path)
    trained(checkpoint_path=path, say=said.append)
    assert any("continuing" in line for line in said)


def test_workers_that_differ_leave_the_state_where_it_is(finished, path, monkeypatch):
    path.write_bytes(finished.checkpoint)
    monkeypatch.setattr(train, "_code", lambda: "of this worker alone")
    monkeypatch.setattr(distribution, "all_agree", lambda strategy, facts: False)
    with pytest.raises(ValueError, match="the workers of TF_CONFIG differ"):
        trained(checkpoint_path=path)
    assert path.read_bytes() == finished.checkpoint


def test_a_damaged_state_is_reported_and_training_starts_afresh(path, capsys):
    path.write_bytes(b"PK damaged")
    assert len(trained(checkpoint_path=path).history) == 2
    assert "checkpoint.npz cannot be read" in capsys.readouterr().out


def test_an_unreadable_state_stops_the_training(path):
    path.mkdir()  # permissions would not stop root
    with pytest.raises(OSError, match=r"make it readable, or delete it to start afresh: .*checkpoint\.npz"):
        trained(checkpoint_path=path)
    assert path.exists()


def lasting(seconds: float) -> Candidate:
    """Return the candidate with a budget of so many CPU seconds from now on, in which this process has used some."""
    minutes = budget.minutes_for(time.process_time() + seconds)
    return SMALL.model_copy(update={"epochs": None, "cpu_minutes": minutes})


def test_a_training_fills_its_cpu_minutes():
    candidate = lasting(25)
    said: list[str] = []
    result = trained(candidate, say=said.append)
    assert float(said[0].split(" epochs will take ")[0]) > 2
    assert len(result.history) > 2
    assert result.history[-1].learning_rate == pytest.approx(0, abs=1e-3)
    assert budget.remaining(candidate.cpu_minutes, result.cpu_seconds) < 10
    assert result.cpu_seconds < candidate.cpu_minutes * 60


def test_a_training_slower_than_measured_is_cut_short(monkeypatch):
    candidate = lasting(20)
    measured = plan.make_plan

    def hopeful(*arguments):  # measured, for that also builds the graphs, then told as nearly nothing
        return replace(measured(*arguments), length=40_000, costs=Costs([0.01], 0.01))

    monkeypatch.setattr(train, "make_plan", hopeful)
    result = trained(candidate)
    assert 2 < len(result.history) < 10_000
    assert result.history[-1].learning_rate == pytest.approx(0, abs=1e-3)
    assert result.cpu_seconds < candidate.cpu_minutes * 60
