"""Image file to model input: the one definition that training data and the service share. Pillow and NumPy only.

Opening and shrinking are apart because only the first is cheap: it reads the header, so a caller can refuse a file,
or send it to another thread, before its pixels are decoded.
"""

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

FINGERPRINT_SIZE = 32
MAX_PIXELS = 25_000_000
"""The largest image that is decoded: a 24-megapixel photograph fits."""
ROWS = 64
"""Of an image of 16 bits that are converted at a time."""
# By name, because Pillow would also open formats that start other programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ORIENTATION = 0x0112
# What undoes each value of the EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The bytes cannot be used as an image; the message is a sentence for people, `code` a word for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def decode(data: bytes, size: int) -> np.ndarray:
    """Return an image file of any size and mode as RGB uint8 (size, size, 3).

    The central square is cropped and resized with antialiasing; an RGB image of `size` × `size` pixels keeps its bytes.
    Transparent pixels are laid over white, EXIF orientation is applied, and an animation gives its first frame.

    Raises ImageError if the bytes are empty, not an image, damaged, cut off, or of more than MAX_PIXELS pixels.
    """
    return shrink(open_image(data), size)


def open_image(data: bytes) -> Image.Image:
    """The image with its header read and nothing decoded. Raises ImageError where it would be refused."""
    if not data:
        raise ImageError("empty", "The file is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        sentence = f"This is not an image that can be read; send one of {', '.join(FORMATS)}."
        raise ImageError("not_an_image", sentence) from None
    except Image.DecompressionBombError:
        raise _too_large("") from None
    except Exception as error:  # a damaged header raises whatever Pillow's plugin trips over
        raise ImageError("damaged", f"The image file is damaged ({_reason(error)}).") from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f" It has {image.width} by {image.height}.")
    return image


def shrink(image: Image.Image, size: int) -> np.ndarray:
    """Return the pixels of an opened image as RGB uint8 (size, size, 3). Raises ImageError if they are damaged."""
    try:
        image.load()
        small = _rgb(image.crop(_middle(image.size)))
        if small.size != (size, size):
            small = small.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        turn = UPRIGHT.get(_orientation(image))
        return np.asarray(small if turn is None else small.transpose(turn), dtype=np.uint8)
    except ImageError:
        raise
    except Exception as error:
        sentence = f"The image file is cut off or damaged ({_reason(error)}); send it again, whole."
        raise ImageError("damaged", sentence) from None


def fingerprint() -> str:
    """Return the SHA-256, hex, of what `decode` gives for a few synthetic images: equal where images decode alike.

    It is not a hash of the code: the version of Pillow matters, a comment does not.
    """
    rows, columns = np.mgrid[0:48, 0:40]
    channels = [(rows * 5 + columns * 3) % 256, (rows * columns) % 256, (rows ^ columns) * 4 % 256, rows * 5]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    digest = hashlib.sha256()
    for mode, kind in (("RGB", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("RGBA", "PNG")):
        stream = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(stream, kind)
        digest.update(decode(stream.getvalue(), FINGERPRINT_SIZE).tobytes())
    return digest.hexdigest()


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip them to 8
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "F":
        raise ImageError("unknown_range", "The pixels are floating-point numbers; save the image with 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey of 16 bits (h, w) as the nearest of 8; a few rows at a time, for whole large images would take gigabytes."""
    narrow = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), ROWS):
        part = grey[top : top + ROWS].clip(0, 65535).astype(np.uint32)
        narrow[top : top + ROWS] = (part + 128) // 257
    return narrow


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF says nothing; the pixels are fine
        return None


def _too_large(found: str) -> ImageError:
    return ImageError("too_many_pixels", f"The image has more than {MAX_PIXELS // 10**6} million pixels.{found}")


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
