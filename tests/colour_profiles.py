"""Colour profiles and photographs with them, for tests."""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# Colorants as XYZ under D50, columns red, green, blue: those of the published profiles.
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
ADOBE_RGB = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))


def matrix_profile(colorants: Any, gamma: float | None = None) -> bytes:
    """Return an ICC profile with these colorants and a power curve; the curve of sRGB without `gamma`."""
    columns = list(zip(*colorants, strict=True))
    return _profile(
        b"RGB ",
        {f"{name}XYZ".encode(): _xyz(column) for name, column in zip("rgb", columns, strict=True)}
        | {f"{name}TRC".encode(): _curve(gamma) for name in "rgb"},
    )


def grey_profile(gamma: float) -> bytes:
    """Return an ICC profile of grey images with a power curve."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def ink_profile() -> bytes:
    """Return an ICC profile of CMYK in which black ink is black, and each other ink a grey of 75 % lightness."""
    ink = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    lightness = np.clip(1 - ink @ [0.25, 0.25, 0.25, 1], 0, 1)
    colours = np.stack([np.round(255 * lightness), np.full(16, 128), np.full(16, 128)], axis=-1).astype(np.uint8)
    identity = struct.pack(">9i", *(np.eye(3, dtype=int) * 65536).ravel())
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + colours.tobytes() + 3 * ramp
    return _profile(b"CMYK", {b"A2B0": lut}, b"prtr", b"Lab ")


def in_profile(pixels: np.ndarray, profile: bytes) -> Image.Image:
    """Return the sRGB pixels (h, w, 3) as an image in the colours of `profile`, with it."""
    source = Image.fromarray(pixels)
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = ImageCms.profileToProfile(source, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert image is not None
    image.info["icc_profile"] = profile
    return image


def photo(side: int) -> np.ndarray:
    """Return a smooth colourful square, uint8 (side, side, 3)."""
    rows, columns = np.mgrid[0:side, 0:side] / (side - 1)
    return np.round(255 * np.stack([rows, columns, 1 - rows * columns], axis=-1)).astype(np.uint8)


def display_p3_jpeg(pixels: np.ndarray) -> bytes:
    """Return the sRGB pixels (h, w, 3) as the JPEG of a camera with a wide gamut."""
    profile, file = matrix_profile(DISPLAY_P3), io.BytesIO()
    in_profile(pixels, profile).save(file, "JPEG", quality=95, icc_profile=profile)
    return file.getvalue()


def _profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = struct.pack(">iii", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    header = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), bytes(4), 0x02400000, kind, space, connection, bytes(12), b"acsp"
    )
    return (header + bytes(68 - len(header)) + white).ljust(128, b"\0") + table + body


def _xyz(values: Any) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    x = np.linspace(0, 1, 1024)
    values = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + np.round(values * 65535).astype(">u2").tobytes()
