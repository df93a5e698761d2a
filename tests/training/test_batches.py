from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_training import AUGMENTED, SMALL, coloured

from mobilenet_pipeline.training import batches
from mobilenet_pipeline.training.batches import Images, Share, training_batches

NUMBERED = Images(np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8), np.arange(50))
"""Images whose pixels are their label."""


@pytest.fixture
def stored(tmp_path: Path) -> Images:
    """The images of every second row of a file, as the dataset opens it."""
    np.save(tmp_path / "images.npy", coloured(80).pixels)
    rows = np.arange(0, 80, 2)
    return Images(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(40), rows)


@pytest.mark.parametrize("shares", [[Share()], [Share(0, 1, 2), Share(1, 1, 2)]])
def test_streamed_batches_are_those_of_images_in_memory(stored, shares, monkeypatch):
    def stream() -> list[list[np.ndarray]]:
        images = replace(stored)  # without the pixels that it holds in memory
        streams = [training_batches(images, AUGMENTED, 16, 2, share, first_step=1) for share in shares]
        return [[*map(np.asarray, pair)] for pieces in streams for pair in pieces]

    in_memory = stream()
    monkeypatch.setattr(batches, "IN_MEMORY", 1000)
    streamed = stream()
    assert len(streamed) == 3 * len(shares)
    assert all(
        np.array_equal(a, b) for pair in zip(in_memory, streamed, strict=True) for a, b in zip(*pair, strict=True)
    )


def test_images_are_the_rows_of_their_dataset(stored):
    assert np.array_equal(stored.first(3, start=38), coloured(80).pixels[[76, 78]])


def test_an_epoch_holds_every_image_at_most_once():
    plain = SMALL.model_copy(update={"epochs": 1, "shift": 0})
    made = list(training_batches(NUMBERED, plain, 16, 1))
    seen = np.concatenate([labels for _, labels in made])
    assert len(made) == 3
    assert len(set(seen.tolist())) == 48


def test_images_stay_with_their_labels():
    for pixels, labels in training_batches(NUMBERED, SMALL, 16, 2):
        assert np.array_equal(pixels[:, 0, 0, 0], labels)


def test_a_stream_resumed_at_a_step_is_the_same_stream():
    images = coloured(40)
    whole = [x.numpy() for x, _ in training_batches(images, AUGMENTED, 16, 2)]
    later = [x.numpy() for x, _ in training_batches(images, AUGMENTED, 16, 2, first_step=3)]
    assert len(whole) == 4
    assert len(later) == 1
    assert np.array_equal(whole[3], later[0])


def test_no_tuner_holds_up_the_end_of_a_training():
    assert training_batches(NUMBERED, SMALL, 10, 1).options().autotune.enabled is False


def test_the_pieces_of_a_batch_are_the_batch():
    images = coloured(40)

    def stream(*shares: Share) -> list[np.ndarray]:
        streams = [training_batches(images, AUGMENTED, 16, 1, share) for share in shares]
        return [x.numpy() for stream in streams for x, _ in stream]

    (whole, _) = stream(Share())
    both = stream(Share(0, 2, 2))
    apart = stream(Share(0, 1, 2), Share(1, 1, 2))
    assert np.array_equal(np.concatenate(both[:2]), whole)
    assert np.array_equal(np.concatenate([apart[0], apart[2]]), whole)


def test_a_flipped_image_is_its_mirror_image():
    images = coloured(2).pixels
    flipped = batches.moved(tf.constant(images), tf.zeros((2, 2), tf.int32), tf.constant([True, False])).numpy()
    assert np.array_equal(flipped, np.stack([images[0, :, ::-1], images[1]]))


def test_alternating_flips_show_both_ways_in_two_epochs():
    images = Images(coloured(32).pixels, np.arange(32))
    candidate = SMALL.model_copy(update={"flip": "alternating", "shift": 0})
    seen: dict[int, list[bool]] = {}
    for pixels, labels in training_batches(images, candidate, 16, 2):
        for image, label in zip(pixels.numpy(), labels.numpy(), strict=True):
            seen.setdefault(int(label), []).append(not np.array_equal(image, images.pixels[label]))
    assert all(sorted(ways) == [False, True] for ways in seen.values())
    assert 4 < sum(ways[0] for ways in seen.values()) < 28


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_shifted_image_is_a_window_of_its_reflected_padding(mirrored: bool):
    image = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.int32)
    moved = batches.moved(tf.constant(image), tf.constant([[-2, 1]]), tf.constant([mirrored])).numpy()[0]
    shown = image[0, :, ::-1] if mirrored else image[0]
    padded = np.pad(shown, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    assert np.array_equal(moved, padded[0:32, 3:35])


def test_a_cutout_is_grey_and_ends_at_the_border():
    image = np.zeros((2, 32, 32, 3), np.uint8)
    cut = batches.cut_out(tf.constant(image), tf.constant([[16, 16], [0, 32]]), 8).numpy()
    expected = image.copy()
    expected[0, 12:20, 12:20] = 127
    expected[1, 0:4, 28:32] = 127
    assert np.array_equal(cut, expected)


def test_augmentation_keeps_the_size_of_the_images():
    images = Images(np.zeros((16, 20, 28, 3), np.uint8), np.zeros(16, np.uint8))
    pixels, _ = next(iter(training_batches(images, AUGMENTED, 16, 1)))
    assert pixels.shape == (16, 20, 28, 3)
