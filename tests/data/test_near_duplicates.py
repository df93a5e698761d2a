import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mobilenet_pipeline.data import near_duplicates
from mobilenet_pipeline.data.near_duplicates import Twins

COUNT = 40


def scenes(size: int = 32, seed: int = 0) -> np.ndarray:
    """Return smooth random images uint8 (COUNT, size, size, 3) of which no two are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse])


def find(test: np.ndarray, train: np.ndarray) -> Twins:
    """Return the twins of one test image, row 0, among the training images."""
    return near_duplicates.find(np.stack([test, *train]), np.arange(len(train) + 1) == 0)


def darker(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.7)


def cropped(image: Image.Image) -> Image.Image:
    margin = image.width / 32
    return image.resize(image.size, box=(margin, 0, image.width, image.height - margin))


def blurred(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2)).resize(image.size)


def lossy(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) // 24) * 24)


@pytest.mark.parametrize("size", [28, 32, 96])
@pytest.mark.parametrize("change", [darker, cropped, blurred, lossy])
def test_a_changed_copy_of_a_training_image_is_found(change, size: int) -> None:
    train = scenes(size)
    twins = find(np.asarray(change(Image.fromarray(train[7]))), train)
    assert (twins.test.tolist(), twins.train.tolist()) == ([0], [8])


def test_an_exact_copy_has_distance_0_and_correlation_1() -> None:
    twins = find(scenes()[7], scenes())
    assert (twins.distance.tolist(), twins.correlation.tolist()) == ([0], [1.0])


def test_other_images_are_no_twins() -> None:
    images = np.concatenate([scenes(seed=0), scenes(seed=1)])
    assert len(near_duplicates.find(images, np.arange(len(images)) < COUNT).test) == 0


def test_the_most_similar_training_image_is_the_twin() -> None:
    scene = scenes()[7]
    copies = [np.asarray(change(Image.fromarray(scene))) for change in (blurred, lossy)]
    assert find(scene, np.stack([*copies, scene])).train.tolist() == [3]


def test_images_of_one_colour_are_no_twins() -> None:
    blank = np.full((COUNT, 32, 32, 3), 90, np.uint8)
    assert len(near_duplicates.find(blank, np.arange(COUNT) < 5).test) == 0


def test_twins_inside_one_split_do_not_count() -> None:
    images = np.concatenate([scenes(), scenes()[:1]])
    assert len(near_duplicates.find(images, np.zeros(COUNT + 1, bool)).test) == 0
    assert len(near_duplicates.find(images, np.isin(np.arange(COUNT + 1), (0, COUNT))).test) == 0


def test_pairs_are_the_nearest_within_the_distance() -> None:
    hashes = np.array([0, 0b1, 0b111, 0b11, 0b11111], np.uint64)
    pairs = near_duplicates.near_twins(hashes, np.arange(5) == 0, distance=3, most=2)
    assert pairs.tolist() == [[0, 1], [0, 3]]


def test_blocks_do_not_change_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**62, 300, dtype=np.uint64)
    whole = near_duplicates.near_twins(hashes, np.arange(300) < 100, 28)
    monkeypatch.setattr(near_duplicates, "BLOCK", 450)
    assert np.array_equal(near_duplicates.near_twins(hashes, np.arange(300) < 100, 28), whole)
    assert len(whole) > 100


def alike(rows: int, seed: int = 0) -> np.ndarray:
    """Return hashes uint64 (rows,), of which many are equal or differ in a few bits."""
    rng = np.random.default_rng(seed)
    flips = rng.random((rows, 64)) < rng.choice([0, 0.05, 0.15], rows)[:, None]
    scenes = rng.integers(0, 2**63, 20, dtype=np.uint64)[rng.integers(0, 20, rows)]
    return scenes ^ np.packbits(flips, axis=1).view(np.uint64)[:, 0]


@pytest.mark.parametrize("distance", [0, 2, 7, 12])
def test_a_search_by_words_finds_what_a_comparison_finds(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    hashes, is_test = alike(3000), np.arange(3000) % 5 == 0
    compared = near_duplicates.near_twins(hashes, is_test, distance)
    monkeypatch.setattr(near_duplicates, "MANY", 0)
    monkeypatch.setattr(near_duplicates, "TOGETHER", 100)
    monkeypatch.setattr(near_duplicates, "BLOCK", 50)
    assert np.array_equal(near_duplicates.near_twins(hashes, is_test, distance), compared)
    assert len(compared) > 300


def test_of_many_equal_hashes_the_first_are_the_pairs() -> None:
    pairs = near_duplicates.near_twins(np.zeros(9, np.uint64), np.arange(9) >= 7, most=2)
    assert pairs.tolist() == [[7, 0], [7, 1], [8, 0], [8, 1]]


def test_twins_are_found_among_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MANY", 0)
    train = scenes()
    assert find(np.asarray(darker(Image.fromarray(train[7]))), train).train.tolist() == [8]


def test_blocks_do_not_change_the_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = near_duplicates.hashes(scenes())
    monkeypatch.setattr(near_duplicates, "BLOCK", 3 * 32 * 32)
    assert np.array_equal(near_duplicates.hashes(scenes()), whole)


def test_without_test_images_there_are_no_pairs() -> None:
    assert near_duplicates.near_twins(np.zeros(3, np.uint64), np.zeros(3, bool)).shape == (0, 2)
