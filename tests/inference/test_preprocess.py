import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import colour_profiles
import numpy as np
import pillow_heif
import pytest
from colour_profiles import photo
from PIL import Image, ImageCms

from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.preprocess import ImageError

SIZE = 32
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes) -> np.ndarray:
    return preprocess.decode(data, SIZE)


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose few bytes of pixels decompress to that size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value).endswith(".")
    return caught.value


@pytest.fixture(autouse=True)
def _heif() -> None:
    pillow_heif.register_heif_opener()  # the tests write HEIF, which the first decoded image allows


def difference(data: bytes, expected: np.ndarray) -> float:
    """Return the mean difference between the decoded image and those pixels as they are decoded from a PNG."""
    return float(np.abs(decode(data).astype(int) - decode(encode(Image.fromarray(expected)))).mean())


def test_an_rgb_png_of_the_size_keeps_its_bytes() -> None:
    assert np.array_equal(decode(encode(Image.fromarray(NOISE))), NOISE)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (31, 33), (640, 480), (4000, 3000)])
def test_any_size_becomes_32_by_32(size: tuple[int, int]) -> None:
    found = decode(encode(Image.new("RGB", size, RED)))
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.all(found == RED)


@pytest.mark.parametrize("size", [28, 48])
def test_an_image_is_decoded_to_the_size_asked_for(size: int) -> None:
    decoded = preprocess.decode(encode(Image.new("RGB", (64, 40), RED)), size)
    assert (decoded.shape, decoded.dtype) == ((size, size, 3), np.uint8)
    assert np.all(decoded == RED)


def test_an_image_of_another_size_keeps_its_bytes_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert np.array_equal(preprocess.decode(encode(Image.fromarray(noise)), 48), noise)


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_the_central_square_is_kept(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    image.paste(Image.fromarray(NOISE), ((size[0] - 32) // 2, (size[1] - 32) // 2))
    assert np.array_equal(decode(encode(image)), NOISE)


def test_resizing_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.all(np.abs(decode(encode(Image.fromarray(stripes)))[2:-2, 2:-2].astype(int) - 128) < 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_gives_the_same_white(mode: str) -> None:
    assert np.all(decode(encode(Image.new("RGB", (40, 40), WHITE).convert(mode))) == 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L", "RGB"])
def test_every_mode_of_jpeg_gives_the_same_grey(mode: str) -> None:
    grey = Image.new("RGB", (40, 40), (100, 100, 100)).convert(mode)
    assert np.all(np.abs(decode(encode(grey, "JPEG")).astype(int) - 100) <= 2)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "MPO"])
def test_a_common_format_is_read(kind: str) -> None:
    assert np.all(np.abs(decode(encode(Image.new("RGB", (40, 40), RED), kind)).astype(int) - RED) <= 3)


@pytest.mark.parametrize("image", [Image.new("RGBA", (40, 40), (0, 0, 0, 0)), Image.new("LA", (40, 40), (0, 0))])
def test_transparent_pixels_are_white(image: Image.Image) -> None:
    assert np.all(decode(encode(image)) == 255)


def test_half_transparent_black_is_grey() -> None:
    assert np.all(np.abs(decode(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128)))).astype(int) - 127) <= 1)


@pytest.mark.parametrize(("mode", "colour", "transparent"), [("P", 0, 0), ("RGB", (9, 9, 9), (9, 9, 9))])
def test_a_transparent_colour_is_white(mode: str, colour: Any, transparent: Any) -> None:
    assert np.all(decode(encode(Image.new(mode, (40, 40), colour), transparency=transparent)) == 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_range(kind: str) -> None:
    grey = Image.fromarray(np.full((40, 40), 200 * 257, np.uint16))
    assert np.all(decode(encode(grey, kind)) == 200)


def test_a_tiff_of_sixteen_bits_in_which_zero_is_white_is_inverted() -> None:
    black_is_zero = encode(Image.fromarray(np.full((40, 40), 200 * 257, np.uint16)), "TIFF")
    entry = struct.pack("<HHIHH", preprocess.PHOTOMETRIC, 3, 1, 1, 0)
    assert black_is_zero.count(entry) == 1
    white_is_zero = black_is_zero.replace(entry, entry[:8] + bytes(4))
    assert np.all(decode(white_is_zero) == 55)


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    pixels = np.full((SIZE, SIZE), 100 * 257, np.uint16)
    pixels[:, : SIZE // 2] = 1234
    decoded = decode(encode(Image.fromarray(pixels), transparency=1234))
    assert np.all(decoded[:, : SIZE // 2] == 255)
    assert np.all(decoded[:, SIZE // 2 :] == 100)


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(preprocess._eight_bits(values), np.round(values / 257))


def test_sixteen_bits_of_grey_need_little_memory() -> None:
    grey = np.zeros((2000, 2000), np.uint16)
    tracemalloc.start()
    preprocess._eight_bits(grey)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * grey.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[preprocess.ORIENTATION] = orientation
    data = encode(Image.fromarray(NOISE), exif=exif)
    assert np.array_equal(decode(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, WHITE)]
    assert np.all(decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED)


def test_an_mpo_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, WHITE)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.all(np.abs(decode(data).astype(int) - RED) <= 3)


def test_a_heif_gives_the_frame_that_it_names() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (WHITE, RED)]
    data = encode(frames[0], "HEIF", save_all=True, append_images=frames[1:], primary_index=1)
    assert np.all(np.abs(decode(data).astype(int) - RED) <= 3)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("brand", [b"mif1", None])
def test_both_kinds_of_the_container_are_told_apart(kind: str, brand: bytes | None) -> None:
    data = encode(Image.fromarray(photo(64)), kind, quality=95)
    assert difference(data[:8] + brand + data[12:] if brand else data, photo(64)) < 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_an_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[preprocess.ORIENTATION] = orientation
    upright = np.rot90(photo(64), -1) if orientation == 6 else photo(64)
    assert difference(encode(Image.fromarray(photo(64)), kind, quality=95, exif=exif.tobytes()), upright) < 4


def test_a_transparent_heif_is_laid_over_white() -> None:
    assert np.all(decode(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "HEIF")) >= 254)


def test_without_its_package_heif_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(photo(64)), "HEIF")
    monkeypatch.setattr(preprocess, "_register_heif", lambda: False)
    assert str(refused(data)).endswith("PPM, AVIF.")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "HEIF", "AVIF"])
@pytest.mark.parametrize(("colorants", "gamma"), [(colour_profiles.DISPLAY_P3, None), (colour_profiles.ADOBE_RGB, 2.2)])
def test_wide_colours_become_those_of_srgb(kind: str, colorants: Any, gamma: float | None) -> None:
    profile = colour_profiles.matrix_profile(colorants, gamma)
    wide = colour_profiles.in_profile(photo(64), profile)
    data = encode(wide, kind, quality=95, icc_profile=profile)
    assert difference(data, photo(64)) < 4
    assert difference(encode(wide, kind, quality=95, icc_profile=b""), photo(64)) > 6


def test_pixels_with_a_profile_of_srgb_keep_their_bytes() -> None:
    for profile in (
        colour_profiles.matrix_profile(colour_profiles.SRGB),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        assert np.array_equal(decode(encode(Image.fromarray(NOISE), icc_profile=profile)), NOISE)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "profile", [b"no profile", bytes(200), colour_profiles.matrix_profile(colour_profiles.SRGB)[:300]]
)
def test_a_broken_profile_is_ignored(mode: str, profile: bytes) -> None:
    grey = Image.new("RGB", (40, 40), (100, 100, 100)).convert(mode)
    assert np.all(np.abs(decode(encode(grey, "JPEG", icc_profile=profile)).astype(int) - 100) <= 2)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_profile_of_another_mode_is_ignored(mode: str) -> None:
    profile = (
        colour_profiles.matrix_profile(colour_profiles.ADOBE_RGB, 2.2)
        if mode == "L"
        else colour_profiles.grey_profile(1)
    )
    grey = Image.new("RGB", (40, 40), (100, 100, 100)).convert(mode)
    assert np.all(np.abs(decode(encode(grey, "JPEG", icc_profile=profile)).astype(int) - 100) <= 2)


def test_the_profile_of_a_grey_image_is_applied() -> None:
    data = encode(Image.new("L", (40, 40), 128), icc_profile=colour_profiles.grey_profile(1.0))
    assert np.all(np.abs(decode(data).astype(int) - 188) <= 1)  # half the light


@pytest.mark.parametrize("profile", [b"", colour_profiles.grey_profile(1.8)])
def test_grey_stays_grey(profile: bytes) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    decoded = decode(encode(ramp, icc_profile=profile))
    assert np.ptp(decoded, axis=-1).max() == 0


def test_inks_become_the_colours_of_their_profile() -> None:
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert np.all(
        np.abs(decode(encode(cyan, "JPEG", icc_profile=colour_profiles.ink_profile())).astype(int) - 185) <= 2
    )
    assert np.all(decode(encode(cyan, "JPEG"))[..., 0] <= 2)


def test_grey_of_a_wide_profile_stays_grey() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    decoded = decode(encode(ramp, icc_profile=colour_profiles.matrix_profile(colour_profiles.DISPLAY_P3)))
    assert np.ptp(decoded, axis=-1).max() == 0


@pytest.mark.parametrize(("size", "rows", "columns"), [((64, 32), (8, 24), (0, 32)), ((32, 64), (0, 32), (8, 24))])
def test_padding_keeps_the_whole_image(size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    decoded = preprocess.decode(encode(Image.new("RGB", size, RED)), SIZE, "pad")
    expected = np.zeros((SIZE, SIZE, 3), np.uint8)
    expected[slice(*rows), slice(*columns)] = RED
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (31, 33)])
def test_padding_takes_any_size(size: tuple[int, int]) -> None:
    assert preprocess.decode(encode(Image.new("RGB", size, RED)), SIZE, "pad").shape == (SIZE, SIZE, 3)


def test_padding_leaves_a_square_as_it_is() -> None:
    assert np.array_equal(preprocess.decode(encode(Image.fromarray(NOISE)), SIZE, "pad"), NOISE)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"this is a letter, not a photograph", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not_an_image"),
        (encode(Image.new("F", (40, 40)), "TIFF"), "unknown_range"),
    ],
)
def test_unreadable_images_are_refused_with_a_code(data: bytes, code: str) -> None:
    assert refused(data).code == code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    whole = encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    assert refused(whole[: int(len(whole) * share)]).code in {"damaged", "not_an_image"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [5001, 12_000, 30_000])
def test_a_decompression_bomb_is_not_decompressed(side: int) -> None:
    started = time.process_time()
    assert refused(png_of(side, side)).code == "too_many_pixels"
    assert time.process_time() - started < 0.1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_photograph_that_claims_too_many_pixels_is_refused_unread(kind: str) -> None:
    data = encode(Image.fromarray(photo(64)), kind)
    place = data.index(b"ispe") + 8
    with pytest.raises(ImageError) as caught:
        preprocess.open_image(data[:place] + struct.pack(">II", 12_000, 12_000) + data[place + 8 :])
    assert caught.value.code == "too_many_pixels"


def test_an_image_of_the_largest_size_is_not_refused() -> None:
    assert preprocess.open_image(png_of(5000, 5000)).size == (5000, 5000)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
def test_damaged_images_raise_only_image_errors() -> None:
    rng = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "HEIF"):
        for _ in range(40):
            data = bytearray(encode(Image.fromarray(NOISE), kind))
            for place in rng.integers(0, len(data), 8):
                data[place] = rng.integers(0, 256)
            with contextlib.suppress(ImageError):
                assert decode(bytes(data)).shape == (32, 32, 3)


def test_the_fingerprint_changes_with_what_is_decoded(monkeypatch):
    before = preprocess.fingerprint()
    assert before == preprocess.fingerprint()
    monkeypatch.setattr(preprocess, "_middle", lambda size: (0, 0, min(size), min(size)))
    assert preprocess.fingerprint() != before


def test_padding_shows_the_whole_image_between_black_borders():
    wide = Image.new("RGB", (64, 32), "white")
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    padded = preprocess.decode(stream.getvalue(), 32, "pad")
    assert padded.shape == (32, 32, 3)
    assert (padded[8:24] == 255).all()
    assert (padded[:8] == 0).all()
    assert (padded[24:] == 0).all()
