"""Images: read from anything, made ready as cv2 and Pillow do it, and what is said of what cannot be read."""

import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seqrt.errors import RequestError
from seqrt.runtime.images import annotated, choose_size, prepare, read_image

SIZES = st.tuples(st.integers(4, 90), st.integers(4, 160)).filter(lambda size: max(size) <= 50 * min(size))
RED, BLUE = (200, 30, 40), (20, 40, 210)


def noise(height: int, width: int, channels: int = 3) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def ready(image: Image.Image, recipe: str, size: tuple[int, int]) -> Any:
    out = np.full((3, *size), np.nan, np.float32)
    prepare(image, recipe, size, out)
    return out


@given(size=SIZES)
def test_stretching_is_that_of_cv2(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = noise(*size)
    blue_first = cv2.resize(np.ascontiguousarray(pixels[:, :, ::-1]), (100, 32)).transpose(2, 0, 1)
    expected = (blue_first.astype(np.float32) / 255 - 0.5) / 0.5
    found = ready(Image.fromarray(pixels), "svtr_bgr_stretch", (32, 100))
    assert np.abs(found - expected).max() <= 2 / 255 + 1e-6  # one step of 255, on a scale from -1 to 1


@given(size=SIZES)
def test_padding_is_that_of_cv2(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = noise(*size)
    wide = min(128, math.ceil(32 * size[1] / size[0]))
    expected = np.zeros((3, 32, 128), np.float32)
    blue_first = cv2.resize(np.ascontiguousarray(pixels[:, :, ::-1]), (wide, 32)).transpose(2, 0, 1)
    expected[:, :, :wide] = (blue_first.astype(np.float32) / 255 - 0.5) / 0.5
    found = ready(Image.fromarray(pixels), "svtr_bgr_pad", (32, 128))
    assert np.abs(found - expected).max() <= 2 / 255 + 1e-6
    assert (found[:, :, wide:] == 0).all()


@given(size=SIZES)
def test_bicubic_is_that_of_pillow(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size))
    resized = np.asarray(image.resize((128, 32), Image.Resampling.BICUBIC), np.float32)
    expected = (resized.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(ready(image, "tv_rgb_bicubic", (32, 128)), expected, atol=1e-6)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours() -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image


def test_sources_of_every_kind_are_the_same(tmp_path: Path) -> None:
    image, file = two_colours(), tmp_path / "word.png"
    image.save(file)
    expected = np.asarray(image)
    for source in (file, str(file), file.read_bytes(), image, np.asarray(image)):
        np.testing.assert_array_equal(np.asarray(read_image(source)), expected)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(np.asarray(read_image(grey)), np.stack([grey] * 3, 2))


def test_the_camera_may_be_held_otherwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = np.asarray(read_image(saved(two_colours(), "JPEG", exif=exif, quality=95)))
    assert found.shape == (40, 20, 3)
    assert np.abs(found[5, 10].astype(int) - RED).max() < 30
    assert np.abs(found[-5, 10].astype(int) - BLUE).max() < 30


def test_damaged_metadata_is_nothing_to_the_pixels(recwarn: pytest.WarningsRecorder) -> None:
    image = two_colours()
    for kind in ("PNG", "JPEG"):
        data = saved(image, kind, exif=b"Exif\0\0garbage that is no TIFF")
        assert np.abs(np.asarray(read_image(data), int)[10, 5] - RED).max() < 30
    assert not recwarn.list


def test_threads_leave_no_filter_of_warnings_behind() -> None:
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    before, data = list(warnings.filters), saved(two_colours())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_image(data), range(200)))
    assert list(warnings.filters) == before


@pytest.mark.parametrize(("ink", "ground"), [((0, 0, 0), 255), ((255, 255, 255), 0)])
def test_transparent_ground_is_the_opposite_of_the_ink(ink: tuple[int, int, int], ground: int) -> None:
    image = Image.new("RGBA", (40, 20), (90, 90, 90, 0))
    image.paste((*ink, 255), (10, 5, 30, 15))
    found = np.asarray(read_image(saved(image)))
    assert (found[0, 0] == ground).all()
    assert (found[10, 20] == ink).all()
    palette = image.convert("P")
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    assert (np.asarray(read_image(saved(palette)))[0, 0] == ground).all()


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    values = np.linspace(0, 65535, 800).astype(np.uint16).reshape(20, 40)
    found = np.asarray(read_image(saved(Image.fromarray(values))))
    np.testing.assert_array_equal(found[..., 0], values // 257)
    floats = Image.fromarray(np.linspace(-3, 5, 800, dtype=np.float32).reshape(20, 40))
    scaled = np.asarray(read_image(saved(floats, "TIFF")))
    assert (scaled.min(), scaled.max()) == (0, 255)
    flat = read_image(saved(Image.fromarray(np.full((20, 40), 7, np.float32)), "TIFF"))
    assert np.asarray(flat).max() == 0
    wild = np.full((20, 40), 3e38, np.float32)
    wild[:10] = np.nan
    wild[0] = -np.inf
    assert np.asarray(read_image(saved(Image.fromarray(wild), "TIFF"))).max() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert read_image(two_colours().convert("RGB" if mode == "LAB" else mode)).mode == "RGB"


def test_of_an_animation_the_first_frame_is_read() -> None:
    data = saved(two_colours(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 20))])
    assert np.abs(np.asarray(read_image(data))[10, 5].astype(int) - RED).max() < 30


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"no image", "the image is no image that Pillow knows; give a PNG"),
        (b"", "the image is no image that Pillow knows"),
        (saved(two_colours())[:70], "is damaged or cut short"),
        (saved(two_colours(), "JPEG")[:300], "is damaged or cut short"),
        (bomb(60_000, 60_000), "more than 33554432"),
        (bomb(9_000, 9_000), "has 9000 x 9000 pixels, more than 33554432"),
        (bomb(10_000, 10_000), "has 10000 x 10000 pixels, more than 33554432"),  # Pillow would warn
        (bomb(20_000, 60), "has 20000 x 60 pixels, which is not the shape of a word; crop words first"),
        (bomb(10, 600), "has 10 x 600 pixels, which is not the shape of a word"),
        (bomb(0, 10), "the image is no image that Pillow knows"),
        (np.zeros((0, 10, 3), np.uint8), "has 10 x 0 pixels"),
        (np.zeros((4, 4, 4), np.uint8), r"an array uint8 \[4, 4, 4\]; give uint8 \[H, W\] or \[H, W, 3\]"),
        (np.zeros((4, 4)), "an array float64"),
        (Path("missing.png"), "missing.png cannot be read: No such file"),
        (Path(__file__).parent, "is a folder; give images"),
        (saved(two_colours(), "EPS"), "the image is EPS, which a program draws"),
        (None, "the image is a NoneType; give a path"),
        (io.BytesIO(), "the image is a BytesIO"),
        (Image.new("RGB", (0, 3)), "has 0 x 3 pixels"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_image(source)
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="pipe is a pipe"):
        read_image(tmp_path / "pipe")


def test_sizes_go_by_the_ratio() -> None:
    sizes = ((64, 64), (48, 96), (40, 112), (32, 128))
    chosen = [choose_size(Image.new("RGB", (width, 20)), sizes) for width in (5, 20, 29, 31, 60, 80, 400)]
    assert chosen == [0, 0, 0, 1, 2, 3, 3]
    assert choose_size(Image.new("RGB", (400, 20)), ((32, 100),)) == 0


def test_annotated_pictures_have_room_for_the_text() -> None:
    small = annotated(Image.new("RGB", (30, 10), RED), "a long word that is wider  0.98")
    assert small.width > 200
    assert small.height > 64
    assert small.getpixel((5, 5)) == RED
    assert np.asarray(small)[70:].min() < 100  # ink
