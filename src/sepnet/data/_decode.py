"""One image file to the uint8 pixels that a network is trained on: the same for training, evaluation and prediction.

Only formats of ``FORMATS`` are tried, whatever the name ends in. Transparent pixels lie on white. 16-bit grey is scaled, not
clipped. EXIF orientation is applied. Of an animation the first frame is taken. An image is judged by its header before it is
unpacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sepnet.data._types import Preprocessing, ResizeMode
from sepnet.errors import DataError, ImageError, UnsafeFileError, one_line

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageHeader",
    "crop_note",
    "decode_image",
    "decode_measured",
    "decode_pixels",
    "loses_half",
    "read_header",
]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
MAX_PIXELS = 100_000_000

GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"})
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset(TURNS[orientation] for orientation in (5, 6, 7, 8))
CUT_SHARE = 0.05  # a few odd images are nobody's concern

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class ImageHeader(NamedTuple):
    """What a file's header states: size in pixels as it will be seen (EXIF orientation applied), Pillow's mode, the format."""

    height: int
    width: int
    mode: str
    format: str

    @property
    def grey(self) -> bool:
        """Whether the file holds no colour."""
        return self.mode in GREY_MODES


def decode_image(source: Path | BinaryIO, preprocessing: Preprocessing, name: str | None = None) -> Tensor:
    """Read an image as ``preprocessing`` asks: uint8 (C, H, W), not yet normalised.

    Args:
        source: a file, or an open binary stream (an upload).
        preprocessing: size, channels and mode.
        name: what to call the image in an error; the path if not given.

    Raises:
        ImageError: no such file, not an image of a supported format, cut short or damaged.
        UnsafeFileError: more than ``MAX_PIXELS`` pixels by its header; nothing was unpacked.
    """
    pixels = decode_pixels(source, preprocessing.size, preprocessing.channels, preprocessing.mode, name)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_pixels(
    source: Path | BinaryIO, size: tuple[int, int], channels: int, mode: ResizeMode, name: str | None = None
) -> Pixels:
    """``decode_image`` as an array uint8 (H, W, C) of its own."""
    return decode_measured(source, size, channels, mode, name)[0]


def decode_measured(
    source: Path | BinaryIO, size: tuple[int, int], channels: int, mode: ResizeMode, name: str | None = None
) -> tuple[Pixels, ImageHeader]:
    """``decode_pixels`` and ``read_header`` in one reading."""
    with _opened(source, name) as image:
        stored, found = image.size, image.mode  # the reduction of the next line changes both
        # Twice the wanted size: the JPEG decoder's own reduction is coarse, the last step is left to the antialiased filter.
        image.draft("L" if channels == 1 else "RGB", (2 * max(size), 2 * max(size)))
        plain = _to_mode(image, "L" if channels == 1 else "RGB")
        turn = _turn(image)  # after the pixels: for a PNG this reads them, and would hide that they are damaged
        if turn is not None:
            plain = plain.transpose(turn)
        header = _header(stored, found, image.format, turn)
        return np.array(_resize(plain, size, mode), np.uint8).reshape(*size, channels), header


def read_header(source: Path | BinaryIO, name: str | None = None) -> ImageHeader:
    """Size, mode and format from the header alone; raises as ``decode_image``."""
    with _opened(source, name) as image:
        return _header(image.size, image.mode, image.format, _turn(image))


def loses_half(header: ImageHeader, size: tuple[int, int]) -> bool:
    """Whether the mode "crop" to ``size`` (height, width) takes away more than half of the image's area."""
    ratio = (header.width * size[0]) / (header.height * size[1])
    return min(ratio, 1 / ratio) < 0.5


def crop_note(cut: int, images: int) -> str | None:
    """A line for the user, unless ``cut`` (how many of ``images`` lose half) is small."""
    return f"{cut} of {images} images lose more than half of their area to the centre crop" if cut > CUT_SHARE * images else None


def _header(size: tuple[int, int], mode: str, format_name: str | None, turn: Image.Transpose | None) -> ImageHeader:
    width, height = size[::-1] if turn in SIDEWAYS else size
    return ImageHeader(height, width, mode, format_name or "")


@contextmanager
def _opened(source: Path | BinaryIO, name: str | None) -> Iterator[Image.Image]:
    """The image behind its header; everything that goes wrong inside becomes one line."""
    shown = one_line(name if name is not None else source if isinstance(source, Path) else "image")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes near its own limit and of odd metadata; neither concerns us.
            warnings.filterwarnings("ignore", module=r"PIL\b")
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnsafeFileError(f"{shown} states {width}x{height} pixels; at most {MAX_PIXELS // 10**6} million are read")
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise UnsafeFileError(f"{shown} states far more than the {MAX_PIXELS // 10**6} million pixels that are read") from None
    except UnidentifiedImageError:
        raise ImageError(f"{shown} is not an image in one of the formats {', '.join(FORMATS)}") from None
    except OSError as error:
        raise ImageError(f"{shown} cannot be read: {one_line(error.strerror or error)}") from None
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise ImageError(f"{shown} is damaged: {one_line(error) or type(error).__name__}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for."""
    if image.format == "TIFF":  # Pillow has turned it while loading
        return None
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels unreadable
        return None


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode to "L" or "RGB", transparency on white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide: np.ndarray[Any, np.dtype[np.int64]] = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit values without a stated range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int], mode: ResizeMode) -> Image.Image:
    """Bilinear with antialiasing; "crop" takes the largest centred box of the wanted aspect ratio."""
    height, width = size
    if image.size == (width, height):
        return image
    box = (0.0, 0.0, float(image.width), float(image.height))
    if mode == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + width * scale, image.width), min(top + height * scale, image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
