import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobilenet_pipeline.training import checkpoint
from mobilenet_pipeline.training.budget import Costs

STATE = checkpoint.State(4, 8, Costs([1.0], 0.0), {"weight_0": np.ones(3)}, (0.5, 2.0), 1.0, [{"epoch": 1}], 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.npz"


def test_a_state_comes_back_from_its_file(path):
    checkpoint.save(path, {"seed": 0}, STATE)
    loaded = checkpoint.load(path, {"seed": 0})
    assert replace(loaded, arrays={}) == replace(STATE, arrays={})
    assert np.array_equal(loaded.arrays["weight_0"], np.ones(3))


def test_without_a_file_there_is_no_state(path):
    assert checkpoint.load(path, {}) is None


def test_the_state_of_another_training_is_not_loaded(path, capsys):
    checkpoint.save(path, {"seed": 0}, STATE)
    assert checkpoint.load(path, {"seed": 1}) is None
    assert "the training starts afresh" in capsys.readouterr().out


def test_the_content_of_a_state_is_kept_as_it_is(path, tmp_path):
    checkpoint.save(tmp_path / "elsewhere.npz", {"seed": 0}, STATE)
    checkpoint.keep(path, (tmp_path / "elsewhere.npz").read_bytes())
    assert checkpoint.load(path, {"seed": 0}).step == STATE.step


def test_content_of_the_same_training_replaces_its_state(path, tmp_path):
    checkpoint.save(path, {"seed": 0}, STATE)
    checkpoint.save(tmp_path / "elsewhere.npz", {"seed": 0}, replace(STATE, step=6))
    checkpoint.keep(path, (tmp_path / "elsewhere.npz").read_bytes())
    assert checkpoint.load(path, {"seed": 0}).step == 6
    assert not checkpoint.other(path).exists()


def test_content_of_another_training_leaves_the_state_that_was_there(path, tmp_path):
    checkpoint.save(path, {"seed": 0}, STATE)
    checkpoint.save(tmp_path / "elsewhere.npz", {"seed": 1}, STATE)
    checkpoint.keep(path, (tmp_path / "elsewhere.npz").read_bytes())
    assert checkpoint.load(checkpoint.other(path), {"seed": 0}).step == STATE.step


def test_states_of_other_weights_have_other_digests():
    assert STATE.digest == replace(STATE, arrays={"weight_0": np.ones(3)}).digest
    assert STATE.digest != replace(STATE, arrays={"weight_0": np.zeros(3)}).digest
    assert STATE.digest != replace(STATE, step=5).digest


def test_an_unreadable_state_is_an_error_and_stays(path):
    path.mkdir()  # permissions would not stop root
    with pytest.raises(OSError, match=r"make it readable, or delete it to start afresh: .*checkpoint\.npz"):
        checkpoint.load(path, {})
    assert path.exists()


def test_a_full_disk_keeps_the_previous_state_and_names_the_file(path, monkeypatch):
    written = np.savez
    checkpoint.save(path, {}, STATE)

    def fill_disk(file, **arrays):
        written(file, **arrays)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", fill_disk)
    with pytest.raises(OSError, match=r"No space left on device; make it writable and run again.*checkpoint\.npz"):
        checkpoint.save(path, {}, replace(STATE, step=5))
    assert checkpoint.load(path, {}).step == 4
    assert os.listdir(path.parent) == ["checkpoint.npz"]


def test_the_file_of_a_process_killed_while_saving_is_removed(path):
    path.with_name(".checkpoint.npz.4711").write_bytes(b"half")
    checkpoint.save(path, {}, STATE)
    assert os.listdir(path.parent) == ["checkpoint.npz"]


def test_a_state_set_aside_can_be_put_back(path):
    checkpoint.save(path, {}, STATE)
    checkpoint.set_aside(path)
    assert os.listdir(path.parent) == ["checkpoint.other.npz"]
    checkpoint.other(path).replace(path)
    assert checkpoint.load(path, {}).step == 4
