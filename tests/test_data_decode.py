"""Every kind of image file becomes the pixels it shows, and a bad one becomes one line."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sepnet.data import Preprocessing, choose_size, decode_image
from sepnet.data._decode import ImageHeader, read_header
from sepnet.errors import ImageError, SepnetError, UnsafeFileError


def pre(height: int = 8, width: int = 8, channels: int = 3, mode: str = "crop") -> Preprocessing:
    return Preprocessing((height, width), channels, mode, (0.0,) * channels, (1.0,) * channels)  # type: ignore[arg-type]


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def colour_of(path: Path, channels: int = 3) -> list[int]:
    return decode_image(path, pre(channels=channels))[:, 4, 4].tolist()


RED = (200, 30, 10)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm", "webp", "jpg", "gif"])
def test_formats(tmp_path: Path, ending: str) -> None:
    path = saved(Image.new("RGB", (20, 12), RED), tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    assert np.allclose(colour_of(path), RED, atol=4)
    assert read_header(path)[:2] == (12, 20)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 255 * 257, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), "white").convert(mode)
    path = saved(image, tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png"))
    assert np.allclose(colour_of(path, channels), [255] * channels, atol=1)


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tiff", "a.pgm"):
        path = saved(Image.fromarray(values), tmp_path / name)
        pixels = decode_image(path, pre(channels=1))[0]
        assert np.allclose(pixels.numpy(), values / 257, atol=0.51), name


def test_32_bit_floats_have_no_range(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.ones((8, 8), np.float32)), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="32-bit"):
        decode_image(path, pre())


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "half.png")
    assert np.allclose(colour_of(half), [127] * 3, atol=1)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert colour_of(saved(palette, tmp_path / "clear.png", transparency=1)) == [255] * 3
    assert colour_of(saved(palette, tmp_path / "clear.gif", transparency=1)) == [255] * 3
    assert colour_of(saved(Image.new("RGB", (8, 8), RED), tmp_path / "key.png", transparency=RED)) == [255] * 3


def test_cmyk_jpeg(tmp_path: Path) -> None:
    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    assert np.allclose(colour_of(saved(cmyk, tmp_path / "a.jpg", quality=95)), RED, atol=8)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert colour_of(tmp_path / "a.gif") == [255, 0, 0]


@pytest.mark.parametrize("ending", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    """A camera's orientation tag is undone: each way of storing the same picture decodes to the same pixels."""
    upright = np.zeros((12, 8, 3), np.uint8)
    upright[:6, :4] = 255  # bright corner at the top left
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse Pillow transposition
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(
        image if undo is None else image.transpose(Image.Transpose(undo)), tmp_path / f"a.{ending}", exif=exif, lossless=True
    )
    pixels = decode_image(path, pre(12, 8, mode="squash"))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(upright))
    assert read_header(path)[:2] == (12, 8)


def test_crop_takes_the_centre_and_squash_takes_all(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    path = saved(Image.fromarray(wide), tmp_path / "a.png")
    assert decode_image(path, pre()).float().mean() == 255
    assert decode_image(path, pre(mode="squash")).float().mean() == pytest.approx(85, abs=2)


def test_a_large_jpeg_is_reduced_as_it_is_decoded_to_the_same_picture(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (480, 1))
    for name in ("a.jpg", "a.png"):
        saved(Image.fromarray(ramp).convert("RGB"), tmp_path / name)
    one, two = (decode_image(tmp_path / name, pre(32, 32)).float() for name in ("a.jpg", "a.png"))
    assert (one - two).abs().max() <= 3


def test_a_stream_can_be_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), RED).save(file, "PNG")
    file.seek(0)
    assert decode_image(file, pre()).shape == (3, 8, 8)


def png_header(width: int, height: int) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))


@pytest.mark.parametrize("side", [30_000, 10_001, 13_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    with pytest.raises(UnsafeFileError, match=r"bomb\.png .*100 million"):
        decode_image(path, pre())


def test_the_callers_warning_filters_are_left_alone(tmp_path: Path) -> None:
    before = list(warnings.filters)
    decode_image(saved(Image.new("RGB", (9, 9)), tmp_path / "a.png"), pre())
    assert warnings.filters == before


@pytest.mark.parametrize("make", ["truncated", "text", "empty", "missing", "folder", "svg", "newline"])
def test_what_is_no_image_is_told_in_one_line(tmp_path: Path, make: str) -> None:
    path = tmp_path / ("a\nb.png" if make == "newline" else "a.jpg")
    if make == "truncated":
        saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), path)
        path.write_bytes(path.read_bytes()[:1500])
    elif make == "folder":
        path.mkdir()
    elif make != "missing":
        path.write_text({"text": "no image", "svg": "<svg/>", "newline": "x"}.get(make, ""))
    with pytest.raises(ImageError) as error:
        decode_image(path, pre())
    assert isinstance(error.value, SepnetError)
    assert "\n" not in str(error.value)
    assert path.name.replace("\n", "\\n") in str(error.value)


@pytest.mark.parametrize(("side", "chosen"), [(8, 28), (30, 28), (33, 32), (64, 64), (100, 96), (4000, 128)])
def test_choose_size(side: int, chosen: int) -> None:
    assert choose_size([ImageHeader(side, side * 2, "RGB", "PNG")] * 3 + [ImageHeader(9999, 9999, "RGB", "PNG")]) == chosen
    assert choose_size([ImageHeader(4000, 4000, "RGB", "PNG")], limit=224) == 224
