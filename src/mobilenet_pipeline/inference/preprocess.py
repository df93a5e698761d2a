"""Image file to model input: the one definition that training data and the service share. NumPy and Pillow only.

Opening and shrinking are apart because only the first is cheap: it reads the header, so a caller can refuse a file,
or send it to another thread, before its pixels are decoded.
"""

import hashlib
import io
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

FINGERPRINT_SIZE = 32
MAX_PIXELS = 25_000_000
"""The largest image that is decoded: a 24-megapixel photograph fits."""
ROWS = 64
"""Of an image of 16 bits that are converted at a time."""
# By name, because Pillow would also open formats that start other programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's names. JPEG includes MPO, a JPEG with several frames."""
PROFILES, PROFILE_BYTES = 8, 4 * 2**20
"""How many colour profiles are kept ready, and the size from which on a profile is ignored."""
SAME_COLOUR = 2
"""Colour profiles that change no channel by more are sRGB: profiles of sRGB differ among themselves by 1."""
Resize = Literal["crop", "pad"]
"""How an oblong image becomes a square: its centre is cropped, or it is padded with black."""
PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0
"""A tag of TIFF, and its value for a negative."""
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


_COLOURS = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), axis=-1).reshape(12, 18, 3).astype(np.uint8)
"""Six values of every channel in all combinations."""


class ImageError(ValueError):
    """The bytes cannot be used as an image; the message is a sentence for people, `code` a word for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that can be read here; HEIF, which includes HEIC, needs pillow-heif."""
    return (*FORMATS, "HEIF") if _register_heif() else FORMATS


def decode(data: bytes, size: int, resize: Resize = "crop") -> np.ndarray:
    """Return an image file of any size and mode as RGB uint8 (size, size, 3).

    The central square is cropped, or the whole image padded with black, and resized with antialiasing. An image of
    `size` × `size` RGB pixels keeps its bytes. A colour profile is converted to sRGB; a broken one is ignored.
    Transparent pixels are laid over white, EXIF orientation is applied, and of several frames the first one counts, or
    that which a HEIF file names.

    Raises ImageError if the bytes are empty, not an image, damaged, cut off, or of more than MAX_PIXELS pixels.
    """
    return shrink(open_image(data), size, resize)


def open_image(data: bytes) -> Image.Image:
    """The image with its header read and nothing decoded. Raises ImageError where it would be refused."""
    if not data:
        raise ImageError("empty", "The file is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except UnidentifiedImageError:
        sentence = f"This is not an image that can be read; send one of {', '.join(formats())}."
        raise ImageError("not_an_image", sentence) from None
    except Image.DecompressionBombError:
        raise _too_large("") from None
    except Exception as error:  # a damaged header raises whatever Pillow's plugin trips over
        raise ImageError("damaged", f"The image file is damaged ({_reason(error)}).") from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f" It has {image.width} by {image.height}.")
    return image


def shrink(image: Image.Image, size: int, resize: Resize = "crop") -> np.ndarray:
    """Return the pixels of an opened image as RGB uint8 (size, size, 3). Raises ImageError if they are damaged."""
    try:
        image.load()
        whole = image.crop(_middle(image.size)) if resize == "crop" else image
        small = _plain(whole, is_negative=getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO)
        scale = size / max(small.size)
        if scale != 1:
            sides = [max(1, round(side * scale)) for side in small.size]
            small = small.resize((sides[0], sides[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
        small = _srgb(small, image.info.get("icc_profile"))  # of the few pixels that are left
        if small.size != (size, size):
            square = Image.new("RGB", (size, size))
            square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
            small = square
        turn = UPRIGHT.get(_orientation(image))
        return np.asarray(small if turn is None else small.transpose(turn), dtype=np.uint8)
    except ImageError:
        raise
    except Exception as error:
        sentence = f"The image file is cut off or damaged ({_reason(error)}); send it again, whole."
        raise ImageError("damaged", sentence) from None


def fingerprint() -> str:
    """Return the SHA-256, hex, of what `decode` gives for a few synthetic images: equal where images decode alike.

    It is not a hash of the code: the version of Pillow matters, a comment does not. Its images are those that decoders
    may turn into different pixels. HEIC, AVIF and colour profiles are not among them: their standards define every
    pixel but for a rounding, and a model whose training images had none of them is served as before.
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


def _plain(image: Image.Image, is_negative: bool) -> Image.Image:
    """Return the image as RGB, as L if it is grey, or as CMYK. `is_negative`: in its file, 0 is white."""
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip them to 8
        wide = np.asarray(image)
        grey = _eight_bits(wide)
        if is_negative:  # of fewer bits, Pillow has inverted it
            np.invert(grey, out=grey)
        if "transparency" in image.info:
            grey[wide == image.info["transparency"]] = 255
        image = Image.fromarray(grey)
    if image.mode == "F":
        raise ImageError("unknown_range", "The pixels are floating-point numbers; save the image with 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a plain image as RGB in the colours of sRGB."""
    transform = _transform(profile, image.mode) if profile and len(profile) < PROFILE_BYTES else None
    if transform:
        image = transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what converts images of the mode to sRGB; None if the profile is sRGB's, broken, or of another mode.

    A transform may be used by several threads at once.
    """
    try:
        source, srgb = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        )
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
        if mode == "RGB":
            colours = Image.fromarray(_COLOURS)
            change = np.asarray(transform.apply(colours)).astype(int) - _COLOURS
            return transform if np.abs(change).max() > SAME_COLOUR else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


@cache
def _register_heif() -> bool:
    """Let Pillow read HEIF; return False where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    # A service and an ingestion decode many files at once, so that one file needs one thread.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


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
